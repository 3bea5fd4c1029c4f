"""Which checks a run begins with: one stage `preflight` per cluster row that its stages use, on that row's nodes.

They are stages like others, with a folder, a log and a job, but are never taken as done: what was well yesterday may not be today.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from pydantic import TypeAdapter, ValidationError

from rounds.train.config.cluster import Cluster, RowName
from rounds.train.config.slurm import Resources
from rounds.train.engine import kinds, store
from rounds.train.engine.graph import Asset, Stage
from rounds.train.engine.params import PreflightParams, Requirement
from rounds.train.engine.records import CHECKS, DONE, FAILED, Record
from rounds.train.forecast import disk
from rounds.train.weights import requirements


def stages(run: Sequence[Stage], root: Path, cluster: Cluster, lanes: int | None = None) -> list[Stage]:
    """Return the checks for the stages of `run` that are not done; without any, those of all rows of the file."""
    todo = store.unfinished(root, run)
    used = {stage.row for stage in todo}
    known: tuple[RowName, ...] = get_args(RowName)
    rows: list[RowName] = [row for row in known if (row in used if todo else row != "generate" or cluster.generate)]
    paths = {str(asset.path.resolve()) for stage in todo for asset in stage.inputs.values() if isinstance(asset, Asset)}
    if cluster.offline and cluster.fetched:
        paths.add(str(cluster.fetched.resolve()))
    need = disk.needed(todo, root, cluster, lanes) if any(stage.kind.trains for stage in todo) else None
    return [_stage(row, sorted(paths), need, cluster, todo) for row in rows]


def _stage(row: RowName, paths: list[str], need: int | None, cluster: Cluster, todo: Sequence[Stage]) -> Stage:
    name = f"preflight.{row}"
    asked = cluster.machine(row, name).slurm
    asks = requirements.asks([stage for stage in todo if stage.row == row], cluster)
    if not todo and row != "cpu":  # no recipe is at hand
        kind = {"train": kinds.SFT, "infer": kinds.EVALUATE}.get(row, kinds.ANSWERS)
        asks = [Requirement(stages=(f"row `{row}`",), function=kind.name, machine=cluster.machine(row, name))]
    params = PreflightParams(
        row=row,
        gpus=asked.gpus,
        gpu_type=asked.gpu_type,
        need_bytes=need,
        paths=tuple(paths),
        asks=tuple(_without_slurm(ask) for ask in asks if _alike(ask.machine.slurm, asked)),
    )
    return Stage(name, kinds.PREFLIGHT, params)


def _without_slurm(ask: Requirement) -> Requirement:
    """What a job asks of SLURM is no business of the node's."""
    return ask.model_copy(update={"machine": ask.machine.model_copy(update={"slurm": Resources()})})


def _alike(one: Resources, other: Resources) -> bool:
    """Tell whether two rows ask for the same kind of node: what one that `stages:` sends elsewhere has is not seen from here."""
    return all(getattr(one, name) == getattr(other, name) for name in ("partition", "gpus", "gpu_type", "constraint"))


class Check(Record):
    """One entry of `checks.json`."""

    check: str
    found: str
    wrong: tuple[str, ...] = ()


def results(folder: Path) -> tuple[Check, ...]:
    """Return what the checks of a row found; nothing where they have not ended, or their file is damaged."""
    try:
        return TypeAdapter(tuple[Check, ...]).validate_python(store.read_json(folder / CHECKS) or ())
    except ValidationError:
        return ()


def reset(folder: Path) -> None:
    """Forget what an earlier check found."""
    for name in (DONE, FAILED, CHECKS):
        (folder / name).unlink(missing_ok=True)
