"""What is noted of a stage's last job beside it, in `slurm/job.json`. What is lost with a damaged file, SLURM still knows."""

import time
from pathlib import Path

from pydantic import ValidationError

from rounds.train.config.cluster import Machine
from rounds.train.engine import store
from rounds.train.engine.records import JOB, Record


class Submission(Record):
    """A job that was submitted for a stage."""

    id: str
    name: str | None = None
    runs: tuple[str, ...] = ()
    """That want it."""
    checks: tuple[str, ...] = ()
    """Folders of the checks that were put before it."""
    behind: tuple[str, ...] = ()
    """Jobs of the lane that it was put behind."""
    machine: Machine | None = None
    """Its cluster row."""
    recipe: str | None = None
    """The file that it was submitted for."""
    cluster: str | None = None
    more: tuple[str, ...] = ()
    """Further options of that command."""
    submitted: float = 0.0
    """Seconds since 1970."""


def read(folder: Path) -> Submission | None:
    """Return what is known of a stage's last job; None for none, or where the file is damaged."""
    try:
        return Submission.model_validate(store.read_json(_path(folder)))
    except ValidationError:
        return None


def read_of(folder: Path, job: str) -> Submission | None:
    """Return what is known of this very job of a stage, if anything."""
    known = read(folder)
    return known if known and known.id == job else None


def write(folder: Path, submission: Submission) -> None:
    """Note a job as submitted now."""
    keep(folder, submission.model_copy(update={"submitted": time.time()}))


def keep(folder: Path, submission: Submission) -> None:
    """Note a job that was submitted before."""
    store.write_json(_path(folder), submission.model_dump(mode="json"))


def folders(root: Path) -> list[Path]:
    """Return the stages of a store for which jobs were submitted."""
    return [path.parent.parent for path in root.glob(f"*/slurm/{JOB}")]


def _path(folder: Path) -> Path:
    return folder / "slurm" / JOB
