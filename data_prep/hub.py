"""Rows of a dataset that lives on the Hugging Face hub, wherever a copy of it is.

In: a `SourceUse` and what the source knows of its set. Out: raw rows as dictionaries. A copy is one of: the hub itself
at a pinned commit, read from the hub's cache after its files are there; `path`, a folder with the hub repository's
layout, or of any files of rows; `path`, a folder written by `save_to_disk`; `path`, one file of rows. A folder gives the rows that its
files give one by one: `datasets` reads what it alone can read, and has no part in the rest. Code that comes with a dataset is never
run. `datasets` and `huggingface_hub` are imported only when rows are read.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rounds.data_prep import files, folders
from rounds.data_prep.errors import UserError, nearest
from rounds.data_prep.inventory import note_not_read, note_read
from rounds.data_prep.schema import SourceUse
from rounds.data_prep.turns import Row, RowError

BATCH_ROWS, BATCH_BYTES = 1000, 1 << 26


def reader(repository: str, revision: str | None, config: str | None = None) -> Callable[[SourceUse], Iterator[Row | RowError]]:
    """Return the `rows` of a source whose splits are called as the repository's; the others call `rows` themselves."""
    return lambda use: rows(use, repository, revision=revision, split=use.split, config=config)


def rows(
    use: SourceUse,
    repository: str,
    *,
    revision: str | None,
    split: str,
    config: str | None = None,
    patterns: Sequence[str] = (),
) -> Iterator[Row | RowError]:
    """Yield the raw rows of a set's split, from `use.path` where given, else from the hub.

    `revision` is the commit pinned by the source; `use.revision` takes its place. `patterns` name the repository's
    files that hold the split, where no more of it is to be fetched: they are read file by file, in the order of their
    paths. Raises `UserError` when neither a path nor a revision is known, and when the copy, the configuration, the
    split or the files cannot be found or read.
    """
    if use.path is not None:
        yield from local(Path(use.path), split=split, config=config, patterns=patterns, only_named=True)
        return
    folder = download(repository, use.revision or revision, patterns)
    yield from local(folder, split=split, config=config, patterns=patterns, name=f"{repository} at {folder.name}", only_named=True)


def local(
    path: Path,
    *,
    split: str,
    config: str | None = None,
    patterns: Sequence[str] = (),
    name: str = "",
    encoding: str | None = None,
    header: Sequence[str] = (),
    name_labels: bool = False,
    must_have_config: bool = False,
    only_named: bool = False,
) -> Iterator[Row | RowError]:
    """Yield the rows of a local copy: a file of rows, a folder of such files, or one from `save_to_disk`.

    `name` is what messages call the copy; its path where none is given. `encoding`, `header` and `name_labels` are those of `files.read`,
    `must_have_config` (under which a saved set must name its split too) and `only_named` those of `folders.split_files`. What is read
    and what is not is noted.
    """
    name = name or str(path)
    if path.is_file():
        yield from files.read(path, header=header, encoding=encoding, name_labels=name_labels)
        return
    if not path.is_dir():
        raise UserError(f"{path}: no such file or folder; `path:` is a local copy of the set")
    if saved := _saved(path, split, config):
        if must_have_config and config and not saved.is_relative_to(path / config):
            raise UserError(f"{name}: no configuration {config!r}: `save_to_disk` wrote one set here")
        yield from _saved_rows(path, saved, split, name, name_labels, must_have_config)
        return
    if patterns:
        found = files.find(path, patterns)
        folders.note_others(path, found, f"not of split {split!r}")
    else:
        found = folders.split_files(path, split, config, name=name, must_have_config=must_have_config, only_named=only_named)
    empty = True
    for file in found:
        inside = file.relative_to(path).as_posix()
        for row in files.read(file, header=header, name=inside, encoding=encoding, name_labels=name_labels, may_be_empty=True):
            empty = False
            yield row
    if empty:
        raise UserError(f"{name}: its files hold no rows: {', '.join(file.name for file in found[:5])}")


def is_saved(path: Path) -> bool:
    """Tell whether a folder was written by `save_to_disk`, of a dataset or of a dictionary of datasets."""
    return (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()


def download(repository: str, revision: str | None, patterns: Sequence[str] = (), repo_type: str = "dataset") -> Path:
    """See to it that a repository's files that fit the patterns (all, without any) are in the hub's cache.

    Returns the folder they are in. What is there already is not fetched again. Raises `UserError`, also for a revision
    that is not known.
    """
    if not revision:
        raise UserError(
            f"{repository}: no revision is pinned for this set; give `revision:` (a commit of the hub dataset) or "
            "`path:` (a local copy of the set) with the source in the recipe"
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repository, repo_type=repo_type, revision=revision, allow_patterns=list(patterns) or None))
    except Exception as error:  # the client's transport has its own, outside OSError
        what = "`path:` (a local copy of the set)" if repo_type == "dataset" else "`kind: local` and a model folder"
        raise UserError(
            f"{repository} at {revision} cannot be loaded from the hub: {refusal(error, repository, revision, repo_type)}"
            f". Or give {what} in the recipe"
        ) from None


def refusal(error: BaseException, repository: str, revision: str, repo_type: str) -> str:
    """Say in one line why the hub did not give a repository, and what to do about it."""
    import httpx2  # what huggingface_hub speaks with
    from huggingface_hub import constants, errors

    page = f"{constants.ENDPOINT}/{'datasets/' if repo_type == 'dataset' else ''}{repository}"
    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else None
    if isinstance(error, errors.GatedRepoError) or status == 403:
        return f"access is restricted; accept its licence at {page} and set HF_TOKEN to a token of that account"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"the repository has no commit {revision}; look for it at {page}/commits/main"
    if isinstance(error, errors.RepositoryNotFoundError) or status == 401:
        return f"no such repository, or a private one; check the id at {page}, and set HF_TOKEN where it is private"
    if isinstance(error, errors.OfflineModeIsEnabled | errors.LocalEntryNotFoundError):
        if constants.is_offline_mode():
            return "the hub may not be asked (HF_HUB_OFFLINE is set) and it is not in the cache"
        return f"{constants.ENDPOINT} cannot be reached and it is not in the cache"
    if isinstance(error, httpx2.TransportError):
        return f"the connection broke ({_first_line(error)}); the same command goes on from here"
    return f"{type(error).__name__}: {_first_line(error)}"


def _saved(path: Path, split: str, config: str | None) -> Path | None:
    """Return the folder that `save_to_disk` wrote: a copy's own, or that of its configuration or split."""
    places = [path, *((path / config, path / config / split) if config else ()), path / split]
    return next((each for each in places if is_saved(each)), None)


def _from_saved(path: Path, split: str, must_be_named: bool) -> Any:
    from datasets import DatasetDict, load_from_disk

    try:
        dataset = load_from_disk(str(path))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as a saved dataset: {_first_line(error)}") from None
    if not isinstance(dataset, DatasetDict):
        if split not in ("train", path.name) and dataset.split is not None and str(dataset.split) != split:
            raise UserError(f"{path}: the saved dataset is split {str(dataset.split)!r}, not {split!r}")
        if must_be_named and split not in ("train", path.name) and dataset.split is None:
            raise UserError(f"{path}: the saved dataset says no split, so it may not be {split!r}: leave `from_split` out")
        return dataset
    if split not in dataset:
        raise UserError(f"{path}: the saved dataset has no split {split!r}: {nearest(split, map(str, dataset))}")
    return dataset[split]


def _saved_rows(path: Path, saved: Path, split: str, where: str, name_labels: bool, must_be_named: bool) -> Iterator[Row]:
    import pyarrow as pa
    from datasets.exceptions import DatasetsError

    from rounds.data_prep import arrow_rows

    dataset = _from_saved(saved, split, must_be_named)
    read = [Path(each["filename"]) for each in dataset.cache_files]
    inside = [each.relative_to(path).as_posix() if each.is_relative_to(path) else each.name for each in read]
    for other in sorted(each for each in path.rglob("*") if files.is_data(each) and each not in read):
        if other.suffix == ".arrow":
            note_not_read(other.relative_to(path).as_posix(), f"it is not of split {split!r}")
        elif other.name not in ("dataset_info.json", "dataset_dict.json", "state.json"):
            note_not_read(other.relative_to(path).as_posix(), "it is not of the set that `save_to_disk` wrote")
    number = 0
    try:
        # As Arrow tables: iterating a `Dataset` row by row decodes one row at a time, several times slower.
        for table in dataset.with_format("arrow").iter(batch_size=BATCH_ROWS):
            labels = arrow_rows.label_names(table.schema) if name_labels else {}
            # As Python values no more than some 64 MB at a time: 1,000 rows with a cell of 10 MB would be 10 GB.
            fitting = max(1, BATCH_BYTES * table.num_rows // max(1, table.nbytes))
            for batch in table.to_batches(max_chunksize=fitting):
                for row in arrow_rows.python_rows(batch, where, labels):
                    number += 1
                    yield {**row, files.ROW: number}
    except (pa.ArrowException, OSError, ValueError, DatasetsError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{where}: the rows cannot be read: {_first_line(error)}") from None
    for each, shard in zip(inside, read, strict=True):
        note_read(each, arrow_rows.count_stream(shard))


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
