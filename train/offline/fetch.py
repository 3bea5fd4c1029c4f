"""Downloading what a run needs into a folder from which it runs without the hub, and writing the list of it.

In: needs, and the folder. Out: the folder as `rounds.train.offline.folder` describes it. The libraries download: `huggingface_hub`
repositories, lm-eval the datasets of its tasks. Call `prepare` first, before any of them is imported.
"""

import functools
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rounds.data_prep import hub
from rounds.data_prep.errors import UserError
from rounds.train.engine import digests as file_digests
from rounds.train.engine import store
from rounds.train.offline import folder as offline_folder
from rounds.train.offline.needs import Need

Say = Callable[[str], None]
_FREE_SHARE = 1.02  # blocks of a file system, the cache's own records, and others who write meanwhile
_KNOCK_SECONDS = 15
_ARROW_SHARE = 3  # a task's dataset is downloaded and unpacked into Arrow, which compresses nothing


@dataclass(frozen=True)
class Estimate:
    """What a need will take: files in all, bytes in all, and bytes that are not in the folder yet."""

    files: int
    size: int
    to_fetch: int


def prepare(folder: Path) -> None:
    """Make the folder the Hugging Face home of this process. A token that was saved by `hf auth login` stays in use."""
    blocked = [name for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE") if _is_on(name)]
    if blocked:
        raise UserError(f"{', '.join(blocked)} forbids asking the hub; unset it to fetch")
    home = Path(os.environ.get("HF_HOME", Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "huggingface"))
    os.environ.setdefault("HF_TOKEN_PATH", str(home.expanduser() / "token"))
    os.environ.update(offline_folder.environment(folder, offline=False))
    folder.mkdir(parents=True, exist_ok=True)


def survey(needs: Sequence[Need], folder: Path) -> dict[Need, Estimate]:
    """Ask the hub for the sizes of everything. Raises one `UserError` for all that it refuses or that does not fit."""
    _knock()
    found, refused = {}, []
    datasets = _datasets_of_tasks([need.name for need in needs if need.kind == "task"])
    for need in needs:
        try:
            found[need] = _estimate_task(need, datasets, folder) if need.kind == "task" else _estimate(need)
        except UserError as error:
            refused.append(f"{need.kind} {need.name} (for {', '.join(need.stages[:3])}): {error}")
    if refused:
        raise UserError("not everything can be fetched; nothing was:\n  " + "\n  ".join(refused))
    wanted = int(_FREE_SHARE * sum(each.to_fetch for each in found.values()))
    free = shutil.disk_usage(folder).free
    if wanted > free:
        raise UserError(f"{folder}: {gib(wanted)} are to be fetched, and {gib(free)} are free there; nothing was fetched")
    return found


def fetch(need: Need, folder: Path, run: str) -> dict[str, Any]:
    """Download one need, add it to the folder's list with the digests of its files, and return its entry.

    Repeating it, after an interruption for example, fetches what is missing. `run` is the recipe's name.
    """
    paths, more = _fetch_task(need) if need.kind == "task" else _fetch_repository(need)
    names = [path.relative_to(folder.resolve()).as_posix() for path in paths]
    digests = file_digests.digests(folder, paths)
    for path, digest in zip(paths, digests, strict=True):
        promised = path.resolve().name  # the cache calls a large file by the digest that the hub promises
        if len(promised) == 64 and promised != digest:
            path.resolve().unlink()
            raise UserError(f"{need.name}: {path.name} was damaged on the way and is removed; fetch it again")
    listed = offline_folder.assets(folder)
    old = next((asset for asset in listed if _same(asset, need)), {"stages": [], "patterns": list(need.patterns), "files": {}})
    entry = {
        "kind": need.kind,
        "name": need.name,
        "revision": need.revision,
        "patterns": sorted({*old["patterns"], *need.patterns}) if old["patterns"] and need.patterns else [],
        **({"licence": need.licence} if need.licence else {}),
        "stages": list(dict.fromkeys([*old["stages"], *(f"{run}: {stage}" for stage in need.stages)])),
        **more,
        "fetched": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "files": old["files"]
        | {name: {"size": path.stat().st_size, "sha256": digest} for name, path, digest in zip(names, paths, digests, strict=True)},
    }
    store.write_json(folder / offline_folder.LIST, {"assets": [*(asset for asset in listed if not _same(asset, need)), entry]})
    return entry


def rehearse(file: Path, overrides: Sequence[str], folder: Path, say: Say) -> bool:
    """Open everything as the run will, in a process that may not ask the hub; tell what it finds, and whether all is
    well."""
    command = [sys.executable, "-P", "-m", "rounds.train.offline.rehearsal", str(file), *overrides]
    environment = {**os.environ, **offline_folder.environment(folder)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout
        for line in process.stdout:
            say(line.rstrip("\n"))
    return process.returncode == 0


def gib(size: float) -> str:
    """Write a number of bytes for a person."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def _is_on(name: str) -> bool:
    return os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE")


def _same(asset: dict[str, Any], need: Need) -> bool:
    return (asset["kind"], asset["name"], asset["revision"]) == (need.kind, need.name, need.revision)


def _knock() -> None:
    """Raise `UserError` where the hub cannot be reached, before the client tries each repository for minutes."""
    import httpx2
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=_KNOCK_SECONDS)
    except httpx2.HTTPError as error:
        raise UserError(
            f"{constants.ENDPOINT} cannot be reached ({error}); fetch on a machine with internet, or set HF_ENDPOINT to a mirror of the hub"
        ) from None


def _estimate(need: Need) -> Estimate:
    from huggingface_hub import constants, errors, snapshot_download
    from huggingface_hub.utils import disable_progress_bars, enable_progress_bars, logging

    logging.set_verbosity_error()  # a retry is no traceback for the person at the terminal
    disable_progress_bars()
    try:
        infos = snapshot_download(
            need.name,
            repo_type=need.kind,
            revision=need.revision,
            allow_patterns=list(need.patterns) or None,
            dry_run=True,
        )
    except Exception as error:  # the client's transport has its own, outside OSError
        cause = error.__cause__ if isinstance(error, errors.DryRunError) else error  # which says less than its cause
        raise UserError(hub.refusal(cause or error, need.name, str(need.revision), need.kind)) from None
    finally:
        if not constants.HF_HUB_DISABLE_PROGRESS_BARS:
            enable_progress_bars()
    if not infos:
        raise UserError(f"no file of the repository fits {', '.join(need.patterns[:3])}")
    sizes = [(info.file_size or 0, info.will_download) for info in infos]
    return Estimate(len(sizes), sum(size for size, _ in sizes), sum(size for size, will in sizes if will))


def _fetch_repository(need: Need) -> tuple[list[Path], dict[str, Any]]:
    from huggingface_hub.utils import filter_repo_objects

    root = hub.download(need.name, need.revision, need.patterns, need.kind)
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
    # By the client's own rule: its `*` goes over the slashes of a path, which that of a shell does not.
    return [root / name for name in filter_repo_objects(names, allow_patterns=list(need.patterns) or None)], {}


@functools.cache
def _task_manager() -> Any:
    """lm-eval's index of its 15,000 task files, which takes ten seconds."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


def _datasets_of_tasks(names: Sequence[str]) -> dict[str, set[str]]:
    """Return the hub datasets that lm-eval's tasks say they read; one that loads its rows by code says none.

    A dataset that several tasks read is given to the first of them, so that it is counted once.
    """
    index = _task_manager().task_index if names else {}
    found: dict[str, set[str]] = {}
    for name in names:
        found[name] = _datasets_of(name, index) - {each for before in found.values() for each in before}
    return found


def _datasets_of(name: str, index: Any) -> set[str]:
    found, left, seen = set(), [name], set()
    while left:
        entry = index.get(name := left.pop())
        if entry is None or name in seen:
            continue
        seen.add(name)
        config = entry.cfg or {}
        found.add(config.get("dataset_path"))
        members: Any = config.get("task") if isinstance(config.get("task"), list) else []
        left += [each if isinstance(each, str) else each.get("task") or each.get("group") for each in members]
        left += entry.tags if entry.kind.name == "TAG" else ()  # a task's tags lead back to it
    return {each for each in found if isinstance(each, str) and "/" in each}


def _estimate_task(need: Need, datasets: dict[str, set[str]], folder: Path) -> Estimate:
    from huggingface_hub import HfApi

    files, size = 0, 0
    for repository in sorted(datasets[need.name]):
        try:
            info = HfApi().dataset_info(repository, files_metadata=True)
        except Exception as error:
            raise UserError(hub.refusal(error, repository, "main", "dataset")) from None
        files += len(info.siblings or ())
        size += sum(each.size or 0 for each in info.siblings or ())
    there = offline_folder.find(offline_folder.assets(folder), need) is not None
    return Estimate(files, size, 0 if there else _ARROW_SHARE * size)


def _fetch_task(need: Need) -> tuple[list[Path], dict[str, Any]]:
    """Let lm-eval load a task, and return the files that its datasets were put into, and which datasets they are."""
    try:
        tasks = _task_manager().load([need.name])["tasks"]
    except Exception as error:  # a task may run any code of lm-eval's own
        raise UserError(f"task {need.name}: lm-eval cannot load it: {type(error).__name__}: {error}") from error
    paths: set[Path] = set()
    read: dict[str, dict[str, Any]] = {}
    for task in tasks.values():
        for split in getattr(task, "dataset", {}).values():
            files = [Path(each["filename"]).resolve() for each in getattr(split, "cache_files", ())]
            for path in files:
                paths |= {path, *path.parent.glob("dataset_info.json")}
                name = f"{task.DATASET_PATH}/{task.DATASET_NAME or 'default'}"
                read[name] = {
                    "repository": task.DATASET_PATH,
                    "configuration": task.DATASET_NAME,
                    "revision": path.parent.name,
                }
    return sorted(paths), {"datasets": list(read.values())}
