"""Which checks a run begins with: one stage `preflight` per cluster row that its stages use, on that row's nodes.

They are stages like others, with a folder, a log and a job, but are never taken as done: what was well yesterday may not be today.
"""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from pydantic import TypeAdapter

from data_prep.errors import UserError
from train import fit, memory, shape, store, usable
from train.cluster import Cluster, RowName
from train.graph import Asset, Stage
from train.recipe import Base, Training
from train.resources import Resources


def stages(run: Sequence[Stage], root: Path, machine: Cluster, lanes: int | None = None) -> list[Stage]:
    """Return the checks for the stages of `run` that are not done; without any, those of all three rows."""
    todo = [stage for stage in run if not store.done(store.folder(root, stage))]
    used = {stage.row for stage in todo}
    rows: list[RowName] = [row for row in get_args(RowName) if row in used or not todo]
    paths = {str(asset.path.resolve()) for stage in todo for asset in stage.inputs.values() if isinstance(asset, Asset)}
    if machine.offline and machine.fetched:
        paths.add(str(machine.fetched.resolve()))
    need = room(todo, root, machine, lanes) if any(stage.function in ("sft", "dpo") for stage in todo) else None
    return [_stage(row, sorted(paths), need, machine, todo) for row in rows]


def _stage(row: RowName, paths: list[str], need: int | None, machine: Cluster, todo: Sequence[Stage]) -> Stage:
    name = f"preflight.{row}"
    asked = machine.row(row, name).slurm
    asks = usable.asks([stage for stage in todo if stage.row == row], machine)
    if not todo and row != "cpu":  # no recipe is at hand
        function = "sft" if row == "train" else "evaluate"
        asks = [usable.Ask(stages=(f"row `{row}`",), function=function, row=machine.row(row, name))]
    params = {
        "row": row,
        "gpus": asked.gpus,
        "gpu_type": asked.gpu_type,
        "need_bytes": need,
        "paths": paths,
        "asks": [
            ask.model_dump(mode="json", exclude={"row": {"slurm"}}) for ask in asks if _alike(ask.row.slurm, asked)
        ],
    }
    return Stage(name, "preflight", params, row=row)


def _alike(one: Resources, other: Resources) -> bool:
    """Tell whether two rows ask for the same kind of node: what one that `stages:` sends elsewhere has is not seen from here."""
    return all(getattr(one, name) == getattr(other, name) for name in ("partition", "gpus", "gpu_type", "constraint"))


def room(todo: Sequence[Stage], root: Path, machine: Cluster, lanes: int | None = None) -> int | None:
    """Estimate the bytes that the stages write: a policy each, and the checkpoints of those that may be at work at once.

    A stage keeps `save_total_limit` checkpoints, and while it writes one, one more. At once are stages with as many training stages
    before them, such as an ablation's variants of a round, at most `lanes` of them. None: a start model's config is not at hand.
    """
    policies: list[float] = []
    checkpoints: dict[int, list[float]] = defaultdict(list)
    merged: list[float] = []
    for stage in todo:
        if stage.function not in ("sft", "dpo"):
            continue
        before = _policies_before(stage)
        row = machine.row(stage.row, stage.name)
        try:
            model, _ = shape.of(_base(before[-1]), root)
        except UserError:
            return None
        how, _, _ = fit.setting(stage.function, Training.model_validate(stage.params["training"]), row)
        policies.append(memory.policy(model, how))
        checkpoints[len(before)].append((row.save_total_limit + 1) * memory.checkpoint(model, how))
        merged.append(4.0 * model.parameters if how.lora else policies[-1])
    exports = sum(stage.function == "export" for stage in todo) * max(merged, default=0)
    at_work = max((sum(sorted(held, reverse=True)[:lanes]) for held in checkpoints.values()), default=0)
    return int(sum(policies) + exports + at_work)


def _policies_before(stage: Stage) -> list[Stage]:
    """Return the stages that a policy came through before one, the last first: gates, rounds, SFT, and at the end the start model."""
    policy = stage.inputs.get("policy", stage.inputs.get("candidate"))
    return [policy, *_policies_before(policy)] if isinstance(policy, Stage) else []


def _base(stage: Stage) -> Base:
    """Return the recipe's section of the start model; a folder's place is no part of the params, but of the inputs."""
    model = stage.inputs.get("model")
    place = {"path": str(model.path)} if isinstance(model, Asset) else {}
    return TypeAdapter(Base).validate_python({**stage.params["base"], **place})


def reset(folder: Path) -> None:
    """Forget what an earlier check found."""
    for name in ("done.json", "failed.json", "checks.json"):
        (folder / name).unlink(missing_ok=True)
