"""Stages as tests make them: of any kind and params, also such as no recipe gives; and one run as the worker runs it."""

import os
import sys
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


_RANK = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
_TRAINING = {"learning_rate": 1e-5, "global_batch_size": 8, "max_length": 64}
_REST: dict[str, dict[str, Any]] = {
    "source": {"use": {"source": "file"}, "source_version": 1, "repository": None, "revision": None},
    "data": {"mix": [{"name": "rows"}], "filters": [], "seed": 0, "kind": "conversation"},
    "base": {"base": {"kind": "tiny"}, "chat_template": None},
    "pack": {"max_length": 256},
    "tokenize": {"max_length": 256},
    "sft": {"training": _TRAINING, "seed": 0},
    "dpo": {"training": _TRAINING, "seed": 0, "dpo": {}, "reference_is_start": True},
    "evaluate": {"tasks": [], "max_length": 256},
    "answers": {"sets": [{"name": "answers", "max_rows": None, "system_prompt": None}], "max_length": 256, "seed": 0},
    "gate": {"rules": [{"metric": "facts/acc", "at_least": 0}]},
    "manifest": {"name": "run", "description": "", "sources": {}, "missing_benchmarks": [], "unknown_tasks": []},
    "export": {"name": "run", "description": "", "licence": None, "licences": {}, "base": {"kind": "tiny"}},
    "report": {"recipe": {}},
}
"""What a test need not say of a kind's params."""


def filled(kind: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return params with what a test does not say."""
    rest = _REST.get(kind, {})
    merged = {
        name: {**rest[name], **value} if isinstance(value, dict) and isinstance(rest.get(name), dict) else value
        for name, value in given.items()
    }
    return {**rest, **merged}


def described(name: str, given: Mapping[str, Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `stage.json` says of a stage, whose kind is the first part of its name."""
    kind = name.partition(".")[0]
    return {
        "name": name,
        "function": kind,
        "version": KINDS[kind].version,
        "params": filled(kind, given),
        "inputs": dict(inputs),
    }


def stage(name: str, kind: str, given: Mapping[str, Any], inputs: Mapping[str, Stage | Asset] | None = None) -> Stage:
    """Make a stage of a kind by its name, or of one that there is not; params that its record does not take are loose."""
    known = KINDS.get(kind) or Kind(kind, "nowhere:run", "tests.staged:Loose", 1)
    try:
        record = params.record_of(known).read_stored(filled(kind, given))
    except ValidationError:
        record = Loose(**given)
    return Stage(name, known, record, inputs or {})


def run(kind: str, given: Mapping[str, Any], inputs: Mapping[str, Path], out: Path, machine: Any = None) -> dict[str, Any]:
    """Run a kind's function on params as `stage.json` would hold them; returns its counts."""
    known = KINDS[kind]
    return worker.code_of(known)(params.record_of(known).read_stored(given), dict(inputs), out, machine)


def forget_ranks() -> None:
    """Take back what a trainer leaves in its process, in which a stage of real life is alone: its ranks and DeepSpeed's state."""
    for name in [name for name in os.environ if name in _RANK or name.startswith("ACCELERATE_")]:
        del os.environ[name]
    if (distributed := sys.modules.get("torch.distributed")) is not None and distributed.is_initialized():
        distributed.destroy_process_group()
    if (comm := sys.modules.get("deepspeed.comm.comm")) is not None:
        setattr(comm, "cdb", None)  # noqa: B010
    if (state := sys.modules.get("accelerate.state")) is not None:
        state.AcceleratorState._reset_state(reset_partial_state=True)
