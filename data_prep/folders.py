"""Which files of a folder hold a split: by the front matter of its README, or by their names.

In: a folder, a split and a configuration. Out: the files to read, in the order of their paths; those left alone are noted with the
reason (`rounds.data_prep.inventory`). Nothing is left alone for its suffix where that can be read, and a word in the middle of a name
makes no split: `blood_test.jsonl` and `train_notes.jsonl` are notes like others. A name says a split where

- it is one of the split words, with or without a number: `test.jsonl`, `train-3.csv`, `valid/rows.parquet`;
- it is a shard as the hub names them, beside others whose split begins with such a word: `data/train_prefs-00000-of-00001.parquet`;
- another file has the same name but for that word: `medqa_train.jsonl` beside `medqa_test.jsonl`.

What says none belongs to `train`.
"""

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import yaml

from rounds.data_prep import compressed, files
from rounds.data_prep.errors import UserError, nearest
from rounds.data_prep.inventory import note_not_read

_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
_SHARD = re.compile(r"(?P<split>\w+(?:[.-]\w+)*?)-\d{5}-of-\d{5}(?:-\w+)?")
_NUMBERED = re.compile(rf"(?P<word>{'|'.join(sorted(_WORDS, key=len, reverse=True))})(?:[-_. ]?(?:part|shard)?[-_. ]?\d+)*")
_README = "its README"
_HIDDEN = (".", "~$")
"""How names begin that are nobody's rows: hidden files, and what a spreadsheet leaves beside a file that is open."""
# What libraries keep beside the rows of a set.
_ABOUT = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "croissant.json")
_NO_ROWS = (".md", ".rst", ".py", ".pdf", ".html", ".png", ".jpg", ".svg", ".bib", ".lock", ".sh", ".ipynb")


def split_files(
    root: Path, split: str, config: str | None = None, *, name: str = "", must_have_config: bool = False, only_named: bool = False
) -> list[Path]:
    """Return the files of a folder that hold a split, and note the others.

    `name` is what messages call the folder. With `only_named`, files whose names say no split are of `train` only where no file's name
    says one, as the hub has it. A configuration that neither README nor a folder knows is passed over, as in a copy of one
    alone, unless `must_have_config`. Raises `UserError` where there are no files, several configurations and none is asked for, or no
    such split.
    """
    called = name or str(root)
    found = _data_files(root)
    declared = _declared(root)
    if declared and (config in declared or not config or must_have_config):
        by_split, where = _of_readme(root, declared, config, called)
    else:
        inner = root / config if config and (root / config).is_dir() else None
        if config and inner is None and must_have_config:
            raise UserError(f"{called}: no configuration {config!r}: neither its README nor a folder in it has that name. {_folders(root)}")
        part = [path for path in found if inner is None or path.is_relative_to(inner)]
        by_split, where = _by_names(inner or root, part), f"configuration {config!r}" if inner else ""
    readable = {key: [path for path in paths if files.unreadable(path) is None] for key, paths in by_split.items()}
    chosen = _chosen(readable, split, only_named)
    wanted, known = set(chosen), {path: key for key, paths in by_split.items() for path in paths}
    note_others(root, found)
    for path in found:
        if path not in wanted:
            note_not_read(path.relative_to(root).as_posix(), _why_not(path, known, where, split))
    if not any(readable.values()):
        saved = sorted(path.parent.name for name in ("state.json", "dataset_dict.json") for path in root.glob(f"*/{name}"))
        kinds = f"; it has {', '.join(sorted(path.name for path in found)[:5])}" if found else ""
        kinds += f", and sets from `save_to_disk` in {', '.join(saved[:5])}: give one of them as `path:`, or as `config:`" if saved else ""
        raise UserError(f"{called}: the folder has no data files{kinds}. Rows are read from {', '.join(files.SUFFIXES)}, compressed or not")
    if not chosen:
        splits = sorted({key or "train" for key, paths in readable.items() if paths})
        raise UserError(
            f"{called}: no split {split!r}{f' in {where}' if where else ''}: {nearest(split, splits)}. With source `file`, "
            f"`from_split: {splits[0]}` reads one of them"
        )
    return chosen


def _chosen(by_split: dict[str, list[Path]], split: str, only_named: bool) -> list[Path]:
    """Return the files of a split: those of that very name, else those of the same word; `train` has the files that name no split too."""
    exact, word = by_split.get(split, []), _word(split)
    same = exact or [path for key, paths in by_split.items() if word and word == _word(key) for path in paths]
    loose = by_split.get("", []) if word == "train" and not (only_named and same) else []
    return sorted({*same, *loose})


def _word(split: str) -> str | None:
    """Return `train`, `validation` or `test` for what means it: `dev`, `test1`."""
    match = _NUMBERED.fullmatch(split.lower())
    return _WORDS[match["word"]] if match else None


def _data_files(root: Path) -> list[Path]:
    found = []
    for folder, inner, names in os.walk(root):
        inner[:] = sorted(each for each in inner if not each.startswith((".", "__")))
        found += [Path(folder, name) for name in names if not name.startswith(_HIDDEN)]
    return files.plain_first(path for path in found if files.is_data(path) and path.name not in _ABOUT and path.is_file())


def note_others(root: Path, read: Iterable[Path], why: str = "") -> None:
    """Note what may hold rows in a folder and is not read, for a reason of its own where the file has one."""
    wanted = set(read)
    for folder, inner, names in os.walk(root):
        inner[:] = sorted(each for each in inner if not each.startswith((".", "__")))
        for link in (Path(folder, each) for each in inner):
            if link.is_symlink():
                note_not_read(link.relative_to(root).as_posix(), "a link to a folder is not followed: give that folder as `path:`")
        for path in sorted(Path(folder, each) for each in names):
            if (
                path in wanted
                or path.name.startswith(_HIDDEN)
                or path.suffix.lower() in _NO_ROWS
                or path.stem.upper() in ("README", "LICENSE")
            ):
                continue
            about = "it tells about the set" if path.name in _ABOUT else files.unreadable(path)
            if about is None and compressed.is_compressed(path) and path.with_suffix("").is_file():
                about = f"{path.with_suffix('').name} is there, unpacked"
            if about or why:
                note_not_read(path.relative_to(root).as_posix(), about or why)


def _by_names(root: Path, found: Sequence[Path]) -> dict[str, list[Path]]:
    """Sort files by the split that their names say; the empty name has those that say none."""
    shards = {path: match["split"] for path in found if (match := _SHARD.fullmatch(compressed.stem(path)))}
    are_splits = any(_begins_with_word(split) for split in shards.values())
    alike: dict[tuple[Path, str], set[str]] = defaultdict(set)
    for path in found:
        for word, rest in _in_the_middle(path):
            alike[path.parent, rest].add(_WORDS[word])
    by_split: dict[str, list[Path]] = defaultdict(list)
    for path in found:
        by_split[_split_of(path, root, shards.get(path) if are_splits else None, alike)].append(path)
    return by_split


def _split_of(path: Path, root: Path, shard: str | None, alike: dict[tuple[Path, str], set[str]]) -> str:
    if shard:
        return shard
    stem = compressed.stem(path)
    if _NUMBERED.fullmatch(stem.lower()):
        return stem if stem.lower() not in _WORDS else stem.lower()
    for word, rest in _in_the_middle(path):
        if len(alike[path.parent, rest]) > 1:
            return word
    return next((part.lower() for part in path.relative_to(root).parts[:-1] if part.lower() in _WORDS), "")


def _begins_with_word(split: str) -> bool:
    return re.split(r"[-_.]", split.lower())[0] in _WORDS


def _in_the_middle(path: Path) -> list[tuple[str, str]]:
    """Return each split word among the words of a file's name, with the name without it."""
    parts = re.split(r"([-_. ])", compressed.stem(path).lower())
    return [(part, "".join([*parts[:at], "*", *parts[at + 1 :]])) for at, part in enumerate(parts) if part in _WORDS and len(parts) > 1]


def _declared(root: Path) -> dict[str, dict[str, list[str]]]:
    """Return configuration -> split -> patterns, as the README's front matter says; empty where it says nothing of files."""
    try:
        text = (root / "README.md").read_text(encoding="utf-8-sig")
        front = yaml.safe_load(text.split("---", 2)[1]) if text.startswith("---") else None
    except (OSError, UnicodeDecodeError, yaml.YAMLError, IndexError):
        return {}
    configs = front.get("configs") if isinstance(front, dict) else None
    found: dict[str, dict[str, list[str]]] = {}
    for each in configs if isinstance(configs, list) else ():
        if isinstance(each, dict) and (patterns := _patterns(each)):
            found["" if each.get("default") else str(each.get("config_name", "default"))] = patterns
            if each.get("default"):
                found[str(each.get("config_name", "default"))] = patterns
    return found


def _patterns(config: dict[str, object]) -> dict[str, list[str]]:
    given, folder = config.get("data_files"), config.get("data_dir")
    if given is None and isinstance(folder, str):
        return {"*": [folder]}
    by_split: dict[str, list[str]] = {}
    for each in given if isinstance(given, list) else [given]:
        split, paths = (str(each.get("split", "train")), each.get("path")) if isinstance(each, dict) else ("train", each)
        texts = [path for path in (paths if isinstance(paths, list) else [paths]) if isinstance(path, str)]
        by_split[split] = by_split.get(split, []) + [f"{folder}/{path}" if isinstance(folder, str) else path for path in texts]
    return {split: patterns for split, patterns in by_split.items() if patterns}


def _of_readme(root: Path, declared: dict[str, dict[str, list[str]]], config: str | None, called: str) -> tuple[dict[str, list[Path]], str]:
    names = [each for each in declared if each]
    key = config or ("" if "" in declared else "default" if "default" in declared else names[0] if len(names) == 1 else None)
    if key is None:
        raise UserError(f"{called}: its README tells of several configurations: choose one of {', '.join(names)} with `config:`")
    if key not in declared:
        raise UserError(f"{called}: its README tells of no configuration {key!r}: {nearest(key, names)}")
    patterns = declared[key]
    if "*" in patterns:
        folder = root / patterns["*"][0]
        return _by_names(folder, [path for path in _data_files(root) if path.is_relative_to(folder)]), f"configuration {key!r}"
    by_split = {
        split: sorted({path for each in inner for path in _matching(root, each) if files.is_data(path)})
        for split, inner in patterns.items()
    }
    return by_split, f"configuration {key!r}" if key else _README


def _matching(root: Path, pattern: str) -> list[Path]:
    inside = pattern.removeprefix("./")
    if not inside or inside.startswith("/") or ".." in Path(inside).parts:
        return []
    return [path for path in root.glob(inside) if path.is_file()]


def _why_not(path: Path, known: dict[Path, str], where: str, split: str) -> str:
    if why := files.unreadable(path):
        return why
    if path not in known:
        return "its README does not name it" if where == _README else f"not of {where}" if where else "not of this split"
    if known[path]:
        return f"its name says split {known[path]!r}"
    return "its name says no split, " + ("and those of others do" if _word(split) == "train" else "so it is of 'train'")


def _folders(root: Path) -> str:
    names = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith((".", "__")))
    return f"Its folders: {', '.join(names[:20])}" if names else "It has no folders"
