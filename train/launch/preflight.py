"""Which checks a run begins with: one stage `preflight` per cluster row that its stages use, on that row's nodes.

They are stages like others, with a folder, a log and a job, but are never taken as done: what was well yesterday may not be today.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from train import store
from train.cluster import Cluster, RowName
from train.graph import Asset, Stage
from train.policy import MODEL_FILES

_POLICIES_AND_CHECKPOINTS = 8
"""Of the start model's size, in bf16: two checkpoints with fp32 masters and two moments are 14 bytes a parameter, over 2."""


def stages(run: Sequence[Stage], root: Path, machine: Cluster) -> list[Stage]:
    """Return the checks for the stages of `run` that are not done; without any, those of all three rows."""
    todo = [stage for stage in run if not store.done(store.folder(root, stage))]
    used = {stage.row for stage in todo}
    rows: list[RowName] = [row for row in get_args(RowName) if row in used or not todo]
    paths = {str(asset.path.resolve()) for stage in todo for asset in stage.inputs.values() if isinstance(asset, Asset)}
    if machine.offline and machine.fetched:
        paths.add(str(machine.fetched.resolve()))
    return [_stage(row, sorted(paths), room(todo), machine) for row in rows]


def _stage(row: RowName, paths: list[str], need: int | None, machine: Cluster) -> Stage:
    name = f"preflight.{row}"
    asked = machine.row(row, name).slurm
    params = {"row": row, "gpus": asked.gpus, "gpu_type": asked.gpu_type, "need_bytes": need, "paths": paths}
    return Stage(name, "preflight", params, row=row)


def room(todo: Sequence[Stage]) -> int | None:
    """Estimate the bytes that the stages write: a policy each, and the checkpoints of the one at work. None: not known.

    Known where the start model is a folder here, whose weights can be looked at.
    """
    models = {asset.path for stage in todo for asset in stage.inputs.values()
              if isinstance(asset, Asset) and asset.patterns == MODEL_FILES}  # fmt: skip
    if not models:
        return None
    size = sum(path.stat().st_size for model in models for path in model.glob("*.safetensors"))
    policies = sum(stage.function in ("sft", "dpo", "export") for stage in todo)
    return size * (policies + _POLICIES_AND_CHECKPOINTS * any(stage.function in ("sft", "dpo") for stage in todo))


def reset(folder: Path) -> None:
    """Forget what an earlier check found."""
    for name in ("done.json", "failed.json", "checks.json"):
        (folder / name).unlink(missing_ok=True)
