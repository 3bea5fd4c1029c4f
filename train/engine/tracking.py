"""Weights & Biases: one group per run, one job per stage, the stage's params as its config.

Offline without a key, and where wandb cannot be reached: that ends no training.
"""

import contextlib
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rounds.train.engine.records import Input, Spec

logger = logging.getLogger(__name__)


def settings(wandb: Any, group: str) -> dict[str, str | None] | None:
    """Turn a recipe's `wandb` section into what a worker needs."""
    return {"project": wandb.project, "entity": wandb.entity, "group": group} if wandb else None


@contextlib.contextmanager
def job(settings: dict[str, str | None] | None, spec: Spec, folder: Path) -> Iterator[None]:
    """Record the stage inside as one wandb job. A resumed stage goes on in the same job."""
    if settings is None or not spec.kind.tracked:
        yield
        return
    import wandb
    from wandb.errors import Error

    os.environ.setdefault("WANDB_SILENT", "true")
    how: dict[str, Any] = {
        "project": settings["project"],
        "entity": settings["entity"],
        "group": settings["group"],
        "name": spec.name,
        "job_type": spec.function,
        "id": folder.name,
        "resume": "allow",
        "config": {"params": spec.params, "inputs": _keys(spec.inputs), "git_commit": spec.git_commit},
        "dir": folder,
    }
    try:
        run = wandb.init(mode=_mode(), **how)
    except Error as error:  # a key that is wrong, or a node that does not see the internet
        logger.warning("wandb: %s. Recorded offline; `wandb sync` on %s sends it", str(error).splitlines()[0], folder / "wandb")
        wandb.teardown()  # its service still holds the run of this id
        run = wandb.init(mode="offline", **how)
    with run:
        yield


def _keys(inputs: dict[str, Input]) -> dict[str, str | None]:
    """Name inputs by stage or digest: where files lie on this machine is nobody else's business."""
    return {name: entry.stage or entry.digest for name, entry in inputs.items()}


def log(values: Mapping[str, float], step: int | None = None) -> None:
    """Add numbers to the current job, if there is one."""
    wandb = _loaded()
    if wandb is not None and wandb.run is not None:
        wandb.log(dict(values), step=step)


def scores(values: dict[str, Any]) -> None:
    """Put final numbers into the current job's summary, if there is one."""
    wandb = _loaded()
    if wandb is not None and wandb.run is not None:
        wandb.run.summary.update(values)


def _loaded() -> Any:
    """Return wandb where `job` has imported it: without a job nothing need be installed."""
    return sys.modules.get("wandb")


def _mode() -> Any:
    if "WANDB_MODE" in os.environ:
        return os.environ["WANDB_MODE"]
    netrc = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    has_key = bool(os.environ.get("WANDB_API_KEY")) or (netrc.is_file() and "wandb" in netrc.read_text(errors="ignore"))
    return "online" if has_key else "offline"
