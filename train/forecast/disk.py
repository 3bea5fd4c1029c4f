"""How much room a run takes in the store: policies and checkpoints."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from pydantic import TypeAdapter

from rounds.data_prep.errors import UserError
from rounds.train.config.cluster import Cluster
from rounds.train.config.recipe import Base
from rounds.train.engine.graph import Asset, Stage
from rounds.train.engine.params import BaseParams, DpoParams, RewardParams, SftParams
from rounds.train.forecast import advice, memory, model_shape


def needed(todo: Sequence[Stage], root: Path, cluster: Cluster, lanes: int | None = None) -> int | None:
    """Estimate the bytes that the stages write: a policy each, and the checkpoints of those that may be at work at once.

    A stage keeps `save_total_limit` checkpoints, and while it writes one, one more. At once are stages with as many training stages
    before them, such as an ablation's variants of a round, at most `lanes` of them. None: a start model's config is not at hand.
    """
    policies: list[float] = []
    checkpoints: dict[int, list[float]] = defaultdict(list)
    merged: list[float] = []
    for stage in todo:
        if not isinstance(stage.params, SftParams | DpoParams | RewardParams):
            continue
        before = _policies_before(stage)
        machine = cluster.machine(stage.row, stage.name)
        try:
            model, _ = model_shape.of(_base(before[-1]), root)
        except UserError:
            return None
        how, _, _ = advice.setting(stage.kind, stage.params.training, machine)
        policies.append(memory.policy(model, how))
        checkpoints[len(before)].append((machine.save_total_limit + 1) * memory.checkpoint(model, how))
        merged.append(4.0 * model.parameters if how.lora else policies[-1])
    exports = sum(stage.kind.exports for stage in todo) * max(merged, default=0)
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
    assert isinstance(stage.params, BaseParams)
    return TypeAdapter(Base).validate_python({**stage.params.base.model_dump(), **place})
