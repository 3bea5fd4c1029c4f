"""What a store holds, which runs want it, what is read just now, and how a stage's folder is removed."""

import contextlib
import os
import shutil
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from rounds.data_prep.errors import UserError
from rounds.train.engine import claims, records, runs, store
from rounds.train.launch import queue, script, submission

_OLD_SECONDS = 3600
_GONE = ".removed-"
"""Begins the name that a folder has while it is removed: a cut-off removal leaves no half of a stage."""


@dataclass(frozen=True)
class Held:
    """One stage's folder."""

    folder: Path
    size: int
    """Bytes on disk of its files."""
    runs: tuple[str, ...]
    """The recipes whose last run wants it, or something that is made of it."""
    state: str


def held(root: Path) -> list[Held]:
    """List the stages of a store, the largest first."""
    wanted = wanted_by(root)
    found = [
        Held(folder, size_of(folder), tuple(wanted.get(folder.name, ())), _state(folder))
        for folder in (path.parent for path in root.glob("*/stage.json"))
        if not folder.name.startswith(".") and not folder.is_symlink()
    ]
    return sorted(found, key=lambda each: (-each.size, each.folder.name))


def _state(folder: Path) -> str:
    record = store.done(folder)
    return record.status if record else "running" if claims.is_held(folder) else "not finished"


def size_of(folder: Path) -> int:
    """Return the bytes of all files below a folder; links are not followed."""
    size = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):  # a stage at work removes what it has no more use for
                size += (Path(place) / name).lstat().st_size
    return size


def wanted_by(root: Path) -> dict[str, list[str]]:
    """Return, by the name of a folder, the recipes whose last run wants it."""
    found: dict[str, list[str]] = {}
    for path in sorted((root / "runs").glob("*.json")):
        names = {str(entry["folder"]) for entry in runs.last_run(root, path.stem).values()}
        for name in _with_inputs(root, names):
            found.setdefault(name, []).append(path.stem)
    return found


def in_use(root: Path) -> dict[str, str]:
    """Return, by the name of a folder, the stage at work or in the queue that reads it, directly or through what it reads."""
    folders = [path.parent for path in root.glob("*/stage.json")]
    busy = {folder.name for folder in folders if claims.is_held(folder)} | _queued(folders)
    return {name: by for by in sorted(busy) for name in _with_inputs(root, [by])}


def _queued(folders: Iterable[Path]) -> set[str]:
    known = {folder: entry for folder in folders if (entry := submission.read(folder))}
    if not known:
        return set()
    silence = queue.silence()
    if silence:
        raise UserError(f"jobs were submitted for stages of this store, and SLURM does not say whether they still wait: {silence}")
    jobs = queue.jobs(entry.id for entry in known.values())
    return {
        folder.name
        for folder, entry in known.items()
        if (job := jobs.get(entry.id)) and job.live and job.carries(script.comment(folder), entry.name)
    }


def _with_inputs(root: Path, names: Iterable[str]) -> set[str]:
    """Return folders with all that they were made of, as far as it is described."""
    found: set[str] = set()
    left = list(names)
    while left:
        name = left.pop()
        if name not in found:
            found.add(name)
            plain = store.read_json(root / name / records.SPEC)
            inputs = plain.get("inputs") if isinstance(plain, Mapping) else None
            entries = inputs.values() if isinstance(inputs, Mapping) else ()
            stages = [entry.get("stage") for entry in entries if isinstance(entry, Mapping)]
            left += [stage for stage in stages if isinstance(stage, str) and Path(stage).name == stage]
    return found


def remove(root: Path, folders: Iterable[Path]) -> int:
    """Remove stages; returns the bytes that were theirs. Raises `UserError`, before the first, for one that is read just now."""
    folders = list(dict.fromkeys(folders))
    with claims.turn(root):  # no job may be submitted meanwhile
        readers = in_use(root)
        wrong = [f"{folder.name} is read by {readers[folder.name]}" for folder in folders if folder.name in readers]
        if wrong:
            raise UserError(f"{'; '.join(wrong)}, which runs or waits in the queue: nothing was removed")
        size = 0
        for folder in folders:
            size += size_of(folder)
            gone = root / f"{_GONE}{folder.name}-{time.time_ns()}"
            folder.rename(gone)
            shutil.rmtree(gone)
    return size


def leftovers(root: Path) -> list[Path]:
    """List what attempts that were cut off have left: removals, files of bookkeeping that were not
    written to their end, and the words of holders that are dead."""
    found = [*root.glob(f"{_GONE}*"), *root.glob("*.partial"), *root.glob("*/*.partial"), *root.glob(f"*/{records.HOLDER}")]
    return [path for path in found if _is_old(path) and not claims.is_held(path.parent)]


def _is_old(path: Path) -> bool:
    with contextlib.suppress(OSError):
        return time.time() - path.lstat().st_mtime > _OLD_SECONDS
    return False  # it is gone by now


def sweep(paths: Iterable[Path]) -> None:
    """Remove leftovers."""
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
