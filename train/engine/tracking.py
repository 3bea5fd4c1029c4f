"""Weights & Biases: one group per run, one job per stage, the stage's params as its config.

Nothing is recorded unless the recipe says so. Online only where it says `mode: online`, and there offline without a key, or where
wandb cannot be reached: that ends no training.
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


_QUIET = {"WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false"}
"""No lines of its own in the log, and no reports of crashes to its makers."""


def settings(wandb: Any, group: str) -> dict[str, str | None] | None:
    """Turn a recipe's `wandb` section into what a worker needs."""
    return {"project": wandb.project, "entity": wandb.entity, "group": group, "mode": wandb.mode} if wandb else None


def told(settings: Mapping[str, str | None] | None, root: Path) -> str:
    """Say in one line what a run records, and where."""
    silenced = _is_silenced()
    if settings is None or silenced == "disabled":
        return f"recorded: in the store {root} alone" + (", as WANDB_MODE says disabled" if settings else "")
    online = settings.get("mode") == "online"
    project = "/".join(filter(None, (settings["entity"], settings["project"])))
    if online and not silenced and _has_key():
        return f"recorded: in the store {root}, and sent to Weights & Biases, project {project}, while it trains"
    why = "" if not online else f", as WANDB_MODE says {silenced}" if silenced else ", as no key was found"
    return (
        f"recorded: in the store {root}, and for Weights & Biases, project {project}, in wandb/ beside each training stage{why}; "
        "nothing is sent before you run `wandb sync` on it"
    )


@contextlib.contextmanager
def job(settings: dict[str, str | None] | None, spec: Spec, folder: Path) -> Iterator[None]:
    """Record the stage inside as one wandb job. A resumed stage goes on in the same job."""
    if settings is None or not spec.kind.tracked:
        yield
        return
    import wandb
    from wandb.errors import Error

    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
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
        run = wandb.init(mode=_mode(settings.get("mode")), **how)
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


def _mode(wanted: str | None) -> Any:
    """Return wandb's mode: what the recipe says, unless the environment says less, or there is no key."""
    return _is_silenced() or ("online" if wanted == "online" and _has_key() else "offline")


def _is_silenced() -> str | None:
    """Return what WANDB_MODE says, where that sends nothing: it never makes a run go online that its recipe keeps offline."""
    return {"offline": "offline", "dryrun": "offline", "disabled": "disabled"}.get(os.environ.get("WANDB_MODE", ""))


def _has_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    netrc = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    try:
        return netrc.is_file() and "wandb" in netrc.read_text(errors="ignore")
    except OSError:
        return False
