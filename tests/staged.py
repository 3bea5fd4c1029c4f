"""Stages as tests make them: of any kind and params, also such as no recipe gives; and one run as the worker runs it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, ValidationError

from rounds.data_prep.schema import Section
from rounds.train.engine import params, worker
from rounds.train.engine.graph import Asset, Stage
from rounds.train.engine.kinds import KINDS, Kind


class Loose(Section):
    """Params of whatever fields."""

    model_config = ConfigDict(extra="allow", frozen=True)


_REST: dict[str, dict[str, Any]] = {
    "base": {"chat_template": None},
    "sft": {"seed": 0},
    "dpo": {"seed": 0, "dpo": {}, "reference_is_start": True},
}
"""What a test of planning need not say."""


def stage(name: str, kind: str, given: Mapping[str, Any], inputs: Mapping[str, Stage | Asset] | None = None) -> Stage:
    """Make a stage of a kind by its name, or of one that there is not; params that its record does not take are loose."""
    known = KINDS.get(kind) or Kind(kind, "nowhere:run", "tests.staged:Loose", 1)
    try:
        record = params.record_of(known).read_stored({**_REST.get(kind, {}), **given})
    except ValidationError:
        record = Loose(**given)
    return Stage(name, known, record, inputs or {})


def run(
    kind: str, given: Mapping[str, Any], inputs: Mapping[str, Path], out: Path, machine: Any = None
) -> dict[str, Any]:
    """Run a kind's function on params as `stage.json` would hold them; returns its counts."""
    known = KINDS[kind]
    return worker.code_of(known)(params.record_of(known).read_stored(given), dict(inputs), out, machine)
