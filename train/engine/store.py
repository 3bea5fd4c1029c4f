"""The store: one folder per stage key, which is the whole interface between planning, running and a person looking.

store/dpo-3fa9c1d2e4b5f607/
    stage.json      function, version, params, inputs, git commit: written before it runs
    log.txt         everything the stage printed, appended over restarts
    progress.json   how far it is
    ...             its results
    failed.json     why the last attempt ended, if it did not succeed
    done.json       written last; counts, seconds, digests. Its presence means complete
store/runs/NAME.json   the stages of a recipe as last run, by name
"""

import contextlib
import functools
import hashlib
import json
import logging
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from rounds.data_prep.errors import UserError
from rounds.train.engine.graph import Asset, Stage

logger = logging.getLogger("rounds")

DEFAULT_ROOT = "store"
_LONG_READ = 4 << 30  # bytes; some seconds, at the speed of a disk
SIDE_FILES = {
    "stage.json",
    "log.txt",
    "progress.json",
    "failed.json",
    "done.json",
    "lock",
    "holder.json",
    "job.json",
    "stop",
}
SIDE_FOLDERS = {"checkpoints", "wandb", "cache", "logs", "slurm"}
"""What a stage folder holds besides its result: not digested, not the business of later stages."""


def default_root() -> Path:
    """Return the store named by ROUNDS_STORE, or ./store."""
    return Path(os.environ.get("ROUNDS_STORE", DEFAULT_ROOT))


def folder(root: Path, stage: Stage) -> Path:
    """Return the stage's folder, which need not exist."""
    return root / stage.folder_name


def read_json(path: Path) -> Any | None:
    """Read a JSON file; None where there is none, or where it was being written when the machine died."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file so that a reader sees the old content or the new, never a part."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n")
    partial.replace(path)


def spec(stage_folder: Path) -> dict[str, Any]:
    """Return what a prepared stage is asked to do: its `stage.json`. Raises `UserError` where that is no such file."""
    found = read_json(stage_folder / "stage.json")
    if not isinstance(found, dict) or "name" not in found:
        raise UserError(
            f"{stage_folder / 'stage.json'} is damaged: remove that folder, and `rounds run` makes it again"
        )
    return found


def done(stage_folder: Path) -> dict | None:
    """Return the record of a finished stage, or None: also where a file of its result is gone, so it is made again."""
    record = read_json(stage_folder / "done.json")
    whole = isinstance(record, dict) and all((stage_folder / name).is_file() for name in record.get("digests", {}))
    return record if whole else None


def unfinished(root: Path, stages: Iterable[Stage]) -> list[Stage]:
    """Return the stages that are not done, in their order."""
    return [stage for stage in stages if not done(folder(root, stage))]


def prepare(root: Path, stage: Stage) -> Path:
    """Make the stage's folder and say in `stage.json` what will run there. Repeating it refreshes local paths."""
    path = folder(root, stage)
    path.mkdir(parents=True, exist_ok=True)
    wanted = {
        "name": stage.name,
        "function": stage.function,
        "version": stage.version,
        "params": dict(stage.params),
        "inputs": {
            name: {"path": str(source.path), "digest": source.digest, "patterns": list(source.patterns)}
            if isinstance(source, Asset)
            else {"stage": source.folder_name}
            for name, source in stage.inputs.items()
        },
        "after_stop": stage.after_stop,
    }
    old = read_json(path / "stage.json")
    if not isinstance(old, dict) or any(old.get(field) != value for field, value in wanted.items() if field != "name"):
        write_json(path / "stage.json", {**wanted, "git_commit": _git_commit()})
    return path


def planned(stage_folder: Path) -> Stage:
    """Read back the stage that a folder was prepared for, with all that it reads; their rows are not kept."""
    made: dict[str, Stage] = {}

    def read(path: Path) -> Stage:
        if path.name not in made:
            known = spec(path)
            sources = {
                name: read(path.parent / entry["stage"])
                if "stage" in entry
                else Asset(Path(entry["path"]), entry["digest"], tuple(entry["patterns"]))
                for name, entry in known["inputs"].items()
            }
            made[path.name] = Stage(known["name"], known["function"], known["params"], sources, known["version"],
                                    after_stop=known["after_stop"])  # fmt: skip
        return made[path.name]

    return read(stage_folder)


def inputs(stage_folder: Path) -> dict[str, Path]:
    """Return where a prepared stage finds its inputs: sibling folders, and the user's own files and folders."""
    return {
        name: stage_folder.parent / entry["stage"] if "stage" in entry else Path(entry["path"])
        for name, entry in spec(stage_folder)["inputs"].items()
    }


@contextlib.contextmanager
def claim(stage_folder: Path, wait: bool = True) -> Iterator[None]:
    """Hold a stage against other runs. The operating system frees the claim when the holder dies, however it dies.

    Raises `UserError` naming the holder when `wait` is off and somebody holds it.
    """
    lock = FileLock(stage_folder / "lock")
    try:
        lock.acquire(timeout=-1 if wait else 0)
    except Timeout:
        raise UserError(f"{stage_folder.name} is being computed by {holder(stage_folder)}") from None
    try:
        write_json(
            stage_folder / "holder.json", {"host": socket.gethostname(), "pid": os.getpid(), "since": time.time()}
        )
        yield
    finally:
        (stage_folder / "holder.json").unlink(missing_ok=True)
        lock.release()


@contextlib.contextmanager
def turn(root: Path, seconds: float = 600) -> Iterator[None]:
    """Let one command at a time submit or cancel jobs for this store: two at once would each submit what neither sees queued.

    Raises `UserError` when another is not through after so many seconds.
    """
    lock = FileLock(root / "submitting.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.warning("another command submits or cancels jobs of %s; waiting for it", root)
        try:
            lock.acquire(timeout=seconds)
        except Timeout:
            raise UserError(f"another command has been submitting or cancelling jobs of {root} for {seconds / 60:.0f} minutes; "
                            f"try again when it has ended, or, if none runs any more, remove {root / 'submitting.lock'}") from None  # fmt: skip
    try:
        yield
    finally:
        lock.release()


def is_held(stage_folder: Path) -> bool:
    """Tell whether a living process holds the stage."""
    if not (stage_folder / "lock").exists():
        return False
    lock = FileLock(stage_folder / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    except OSError:  # somebody else's store, which we may only read
        return (stage_folder / "holder.json").exists()
    lock.release()
    return False


def holder(stage_folder: Path) -> str:
    """Say who holds, or last held, a stage."""
    record = read_json(stage_folder / "holder.json")
    if record is None:
        return "another run"
    since = time.strftime("%H:%M:%S", time.localtime(record["since"]))
    return f"process {record['pid']} on {record['host']}, since {since}"


def result_files(stage_folder: Path) -> list[Path]:
    """List the files that are a stage's result, in a stable order."""
    found = []
    for entry in sorted(stage_folder.iterdir()):
        if entry.is_dir() and entry.name not in SIDE_FOLDERS:
            found += [path for path in sorted(entry.rglob("*")) if path.is_file()]
        elif entry.is_file() and entry.name not in SIDE_FILES and not entry.name.endswith(".partial"):
            found.append(entry)
    return found


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def asset(root: Path, path: Path, patterns: tuple[str, ...] = ("*",)) -> Asset:
    """Digest a local file, or a folder with the names and contents of those of its files that fit a pattern.

    Hidden files and folders do not count: downloaders keep their bookkeeping, with times in it, there.

    Digests are remembered in the store by size and modification time, so that planning with a large model is quick the
    second time. Raises `UserError` when there is nothing at `path`.
    """
    try:
        exists = path.exists()
    except (OSError, ValueError) as error:  # a name that no file can have
        raise UserError(f"{str(path)[:200]}: {error}") from None
    if not exists:
        raise UserError(f"{path}: no such file or folder")
    inside = [path] if path.is_file() else sorted(path.rglob("*"))
    files = [
        file
        for file in inside
        if file.is_file()
        and not any(part.startswith(".") for part in file.relative_to(path).parts)
        and (file == path or any(file.match(pattern) for pattern in patterns))
    ]
    parts = [
        f"{file.relative_to(path) if file != path else ''}:{digest}"
        for file, digest in zip(files, digests(root, files), strict=True)
    ]
    digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    return Asset(path, digest, patterns)


def digests(
    root: Path, files: Sequence[Path], fresh: bool = False, watch: Callable[[str], None] = lambda line: None
) -> list[str]:
    """Return the SHA-256 of each file. They are remembered in the store by size and modification time, so that a large
    model is read once; `fresh` reads everything again. `watch` is told what is read where that may take a while.
    """
    memory = read_json(root / "digests.json") or {}
    stats = [file.stat() for file in files]
    stamps = [f"{file.resolve()}:{s.st_size}:{s.st_mtime_ns}" for file, s in zip(files, stats, strict=True)]
    unknown = {stamp: place for place, stamp in enumerate(stamps) if fresh or stamp not in memory}
    size = sum(stats[place].st_size for place in unknown.values())
    if size > _LONG_READ:
        watch(f"reading {len(unknown)} files, {size / 2**30:.1f} GiB, to check their digests")
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:  # hashing leaves the interpreter to the others
        read = threads.map(file_digest, [files[place] for place in unknown.values()])
        known = {**memory, **dict(zip(unknown, read, strict=True))}
    if known != memory:
        with contextlib.suppress(OSError):  # a store that cannot be written only costs the memory
            root.mkdir(parents=True, exist_ok=True)
            write_json(root / "digests.json", known)
    return [known[stamp] for stamp in stamps]


def remember_run(root: Path, name: str, recipe: str, stages: list[Stage]) -> None:
    """Note which stages a recipe consists of, so that they can be found by name and a change can be explained."""
    entries = {
        stage.name: {"folder": stage.folder_name, "params": dict(stage.params), "version": stage.version,
                     "inputs": {key: source.key for key, source in stage.inputs.items()}}
        for stage in stages
    }  # fmt: skip
    (root / "runs").mkdir(parents=True, exist_ok=True)
    write_json(root / "runs" / f"{name}.json", {"recipe": recipe, "time": time.time(), "stages": entries})


def last_run(root: Path, name: str) -> dict[str, dict]:
    """Return the stages of a recipe as last run, by name; empty when it never was."""
    return (read_json(root / "runs" / f"{name}.json") or {"stages": {}})["stages"]


def find(root: Path, wanted: str) -> Path:
    """Find a stage's folder by path, by folder name or key (or the start of one), or by stage name in any run here.

    Raises `UserError` when nothing or more than one folder fits.
    """
    if not wanted:
        raise UserError("give a stage's name, key, or folder")
    if (Path(wanted) / "stage.json").is_file():
        return Path(wanted)
    named = [last_run(root, run.stem).get(wanted) for run in sorted((root / "runs").glob("*.json"))]
    fits = {root / entry["folder"] for entry in named if entry}
    if not fits:
        folders = sorted(path.parent for path in root.glob("*/stage.json"))
        fits = {f for f in folders if f.name.startswith(wanted) or f.name.rpartition("-")[2].startswith(wanted)}
    there = sorted(folder for folder in fits if (folder / "stage.json").is_file())
    if len(there) == 1:
        return there[0]
    if fits and not there:
        raise UserError(f"{wanted} is planned, as {sorted(f.name for f in fits)[0]}, and has not been started yet")
    if not there:
        raise UserError(
            f"no stage {wanted!r} in {root}: give a stage's name, folder or key; `rounds status RECIPE` lists them"
        )
    raise UserError(f"{wanted!r} fits {len(there)} stages: {', '.join(f.name for f in there)}; give one of these")


@functools.cache
def _git_commit() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=5).stdout.strip()
    return None
