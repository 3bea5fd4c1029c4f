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
import json
import logging
import os
import pwd
import shlex
import subprocess
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from rounds.data_prep.errors import UserError
from rounds.data_prep.schema import SourceParams
from rounds.data_prep.whole import whole
from rounds.train.config.cluster import StoreAccess
from rounds.train.engine import records
from rounds.train.engine.graph import Asset, Stage, parents_first
from rounds.train.engine.records import Counts, Decision, Done, Failure, Score, Spec

logger = logging.getLogger("rounds")

DEFAULT_ROOT = "store"
SIDE_FILES = {records.SPEC, records.LOG, records.PROGRESS, records.FAILED, records.DONE, records.LOCK, records.HOLDER, records.JOB,
              records.STOP}  # fmt: skip
SIDE_FOLDERS = {"checkpoints", "wandb", "cache", "logs", "slurm"}
"""What a stage folder holds besides its result: not digested, not the business of later stages."""


_LINKING = {"wandb"}
"""Entries that hold links of their own."""
_MODES = {"owner": 0o700, "group": 0o770}
OWN_FILE = "file"
"""The source that reads the user's own rows."""


def default_root() -> Path:
    """Return the store named by ROUNDS_STORE, or ./store."""
    return Path(os.environ.get("ROUNDS_STORE", DEFAULT_ROOT))


def folder(root: Path, stage: Stage) -> Path:
    """Return the stage's folder, which need not exist."""
    return root / stage.folder_name


def read_json(path: Path) -> Any | None:
    """Read a JSON file; None where there is none, or none that can be read: it was being written when the machine died, perhaps.

    Raises `UserError` for a file of somebody else's that this user may not read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None  # reading a pipe would never end
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError, RecursionError):  # the last for deep nesting
        return None
    except PermissionError:
        raise UserError(
            f"{path}: you may not read it. A stage with rows of somebody's own files is its owner's alone, unless the cluster file "
            "that makes it says store_access: group; its owner may also chmod the folder"
        ) from None


def read_fields(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object; empty where there is none, or another kind of value."""
    plain = read_json(path)
    return plain if isinstance(plain, dict) else {}


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file so that a reader sees the old content or the new, never a part."""
    with whole(path, many=True) as partial:
        partial.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n")


def spec(stage_folder: Path) -> Spec:
    """Return what a prepared stage is asked to do. Raises `UserError` where its `stage.json` is none."""
    try:
        return Spec.model_validate(read_json(stage_folder / records.SPEC))
    except ValidationError:
        raise UserError(_damaged(stage_folder, records.SPEC)) from None


def remedy(folders: Sequence[Path]) -> str:
    """Return the command that removes stages whose results are damaged."""
    return shlex.join(["rounds", "clean", *(folder.name for folder in folders), "--store", str(folders[0].parent)])


def _damaged(stage_folder: Path, name: str) -> str:
    return (
        f"{stage_folder.name.partition('-')[0]} ({stage_folder.name}) is damaged: {name} cannot be read\n"
        f"To mend it: `{remedy([stage_folder])}` removes it, and the same run then makes it again; or put the files of a backup back"
    )


def done(stage_folder: Path) -> Done | None:
    """Return the record of a finished stage, or None: also where a file of its result is gone, so it is made again."""
    try:
        record = Done.model_validate(read_json(stage_folder / records.DONE))
    except ValidationError:
        return None
    return record if all((stage_folder / name).is_file() for name in record.digests) else None


def counts(stage_folder: Path) -> Counts:
    """Return what a finished stage counted; empty where it is not finished, or was skipped."""
    record = done(stage_folder)
    return record.counts if record else {}


def scores(stage_folder: Path) -> dict[str, Score]:
    """Return what a policy scored, by metric; empty where nothing was measured. Raises `UserError` for a damaged file."""
    path = stage_folder / records.SCORES
    try:
        return {name: Score.model_validate(plain) for name, plain in (read_json(path) or {}).items() if name != records.PROTOCOL}
    except (ValidationError, AttributeError):
        raise UserError(_damaged(stage_folder, path.name)) from None


def protocol(stage_folder: Path) -> dict[str, Any]:
    """Return how a policy was measured: versions, arithmetic, the form of each task; empty where that was not written down."""
    plain = read_fields(stage_folder / records.SCORES).get(records.PROTOCOL)
    return plain if isinstance(plain, dict) else {}


def decision(stage_folder: Path) -> Decision | None:
    """Return what a gate decided, or None. Raises `UserError` for a damaged file."""
    path = stage_folder / records.DECISION
    try:
        plain = read_json(path)
        return None if plain is None else Decision.model_validate(plain)
    except ValidationError:
        raise UserError(_damaged(stage_folder, path.name)) from None


def failure(stage_folder: Path) -> Failure | None:
    """Return why a stage's last attempt ended, or None."""
    return records.failure(stage_folder, read_json(stage_folder / records.FAILED))


def write_failure(stage_folder: Path, why: Failure) -> None:
    """Write why a stage's attempt ended, and when."""
    write_json(stage_folder / records.FAILED, why.model_copy(update={"time": time.time()}).model_dump(exclude_unset=True))


def unfinished(root: Path, stages: Iterable[Stage]) -> list[Stage]:
    """Return the stages that are not done, in their order."""
    return [stage for stage in stages if not done(folder(root, stage))]


def prepare(root: Path, stage: Stage, access: StoreAccess = "owner") -> Path:
    """Make the stage's folder and say in `stage.json` what will run there. Repeating it refreshes local paths and limits.

    A folder that will hold what rows of the user's own files say is made for whom `access` names. Raises `UserError` for a link.
    """
    path = folder(root, stage)
    refuse_links(path)
    if not path.exists():
        path.mkdir(parents=True)
        if access != "umask" and stage.kind.holds_text and _reads_own_file(stage):
            path.chmod(_MODES[access])
    wanted = {
        "name": stage.name,
        "function": stage.kind.name,
        "version": stage.version,
        "params": stage.params.stored(),
        **({"beside": beside} if (beside := stage.params.beside()) else {}),
        "inputs": {
            name: {"path": str(source.path), "digest": source.digest, "patterns": list(source.patterns)}
            if isinstance(source, Asset)
            else {"stage": source.folder_name}
            for name, source in stage.inputs.items()
        },
        "after_stop": stage.kind.after_stop,
    }
    if not done(path):
        refuse_foreign(path)
    old = read_json(path / records.SPEC)
    if not isinstance(old, dict) or any(old.get(field) != value for field, value in wanted.items() if field != "name"):
        write_json(path / records.SPEC, {**wanted, "git_commit": _git_commit()})
    return path


def refuse_foreign(path: Path) -> None:
    """Raise `UserError` for a stage's folder that this user may not write, or whose log or lock somebody else keeps: it cannot be made
    here."""
    for entry in (path, path / records.LOG, path / records.LOCK):
        if entry.exists() and not os.access(entry, os.W_OK, effective_ids=os.access in os.supports_effective_ids):
            raise no_access(path.parent, entry)


def no_access(root: Path, path: Path) -> UserError:
    """Say whose something in a store is, and how several people share one."""
    found, mode = path.stat(), root.stat().st_mode & 0o7777
    return UserError(
        f"store {root} (mode {mode:04o}): {path} is user {_user(found.st_uid)}'s, mode {found.st_mode & 0o7777:04o}, and you "
        f"({_user(os.geteuid())}) may not write it. People share a store as one group: its owner runs `chmod -R g+rwX` on it, all use "
        "umask 0002, and `store_access: group` in the cluster file opens the stages that hold rows of somebody's own files. Or name a "
        "store of your own with --store"
    )


def root_above(path: Path) -> Path | None:
    """Return the store that a path lies in, as far as the folders above it show that they are one."""
    for each in (path, *path.parents):
        if (each / "runs").is_dir() or (each.is_dir() and os.access(each, os.R_OK) and any(each.glob(f"*/{records.SPEC}"))):
            return each
    return None


def _user(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


def refuse_links(path: Path) -> None:
    """Raise `UserError` where a stage's folder, or a thing in it, is a link: what is written there would land elsewhere."""
    inside = [entry for entry in path.iterdir() if entry.name not in _LINKING] if path.is_dir() and not path.is_symlink() else []
    for entry in (path, *inside):
        if entry.is_symlink():
            raise UserError(f"{entry} is a link, which a store does not follow: remove the link and run the recipe again")


def _reads_own_file(stage: Stage) -> bool:
    return any(
        isinstance(each.params, SourceParams) and each.params.use.source == OWN_FILE for each in (stage, *parents_first(stage.parents))
    )


def planned(stage_folder: Path) -> Stage:
    """Read back the stage that a folder was prepared for, with all that it reads; their rows are not kept."""
    made: dict[str, Stage] = {}

    def read(path: Path) -> Stage:
        if path.name not in made:
            known = spec(path)
            sources = {
                name: read(path.parent / entry.stage) if entry.stage else Asset(Path(entry.path or ""), entry.digest or "", entry.patterns)
                for name, entry in known.inputs.items()
            }
            made[path.name] = Stage(known.name, known.kind, known.record, sources, known.version)
        return made[path.name]

    return read(stage_folder)


def inputs(stage_folder: Path) -> dict[str, Path]:
    """Return where a prepared stage finds its inputs: sibling folders, and the user's own files and folders."""
    return {
        name: stage_folder.parent / entry.stage if entry.stage else Path(entry.path or "")
        for name, entry in spec(stage_folder).inputs.items()
    }


def result_files(stage_folder: Path) -> list[Path]:
    """List the files that are a stage's result, in a stable order. Links are none: they would lead out of the store."""
    found = []
    for entry in sorted(stage_folder.iterdir()):
        if entry.is_symlink() or entry.name.endswith(".partial"):
            continue
        if entry.is_dir() and entry.name not in SIDE_FOLDERS:
            found += [path for path in sorted(entry.rglob("*")) if path.is_file() and not path.is_symlink()]
        elif entry.is_file() and entry.name not in SIDE_FILES:
            found.append(entry)
    return found


@functools.cache
def _git_commit() -> str | None:
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None  # installed, perhaps inside of a repository of the user's, whose commit says nothing of this code
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=5).stdout.strip()
    return None
