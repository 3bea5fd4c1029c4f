"""A policy: the weights that a round takes and returns, as a description on disk. No weights are read here.

A stage that yields a policy writes `policy.json` beside its result. It may refer to a sibling stage of the store by its
folder name, so an adapter knows what it sits on and a gate can point at the policy that it let through, without copies.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rounds.data_prep.errors import UserError
from rounds.train.engine import store
from rounds.train.engine.records import POLICY

MODEL_FILES = ("*.json", "*.safetensors", "*.model", "*.jinja", "*.txt")
"""The files of a model folder that are ever read: no pickled weights, no remote code."""


@dataclass(frozen=True)
class Policy:
    """What it takes to load a model: base weights, the adapters to merge into them in order, and the tokenizer."""

    weights: str
    """Local folder, or hub id."""
    revision: str | None
    """Commit, for a hub id."""
    adapters: tuple[Path, ...]
    tokenizer: Path
    """Folder with the tokenizer and the chat template that this run uses."""


def write_base(folder: Path, weights: str | None, revision: str | None) -> None:
    """Describe the starting model. `weights` None means the folder given to the stage as input `model`."""
    store.write_json(folder / POLICY, {"kind": "base", "weights": weights, "revision": revision})


def write_weights(folder: Path, start: Path) -> None:
    """Describe full weights in `folder/model`, trained from the policy of stage folder `start`."""
    store.write_json(folder / POLICY, {"kind": "weights", "start": start.name})


def write_adapter(folder: Path, start: Path, continues: bool = False) -> None:
    """Describe an adapter in `folder/adapter` that sits on the policy of stage folder `start`, or, when it `continues` the
    adapter of that policy, takes its place."""
    store.write_json(folder / POLICY, {"kind": "continued" if continues else "adapter", "start": start.name})


def write_same(folder: Path, as_folder: Path) -> None:
    """Describe the very policy of another stage folder."""
    store.write_json(folder / POLICY, {"kind": "same", "start": as_folder.name})


def chain(folder: Path) -> list[Path]:
    """Return the folders of the stages that made a policy's weights, base first: gates and skipped stages only point.

    Raises `UserError` for a description that is damaged.
    """
    found: list[Path] = []
    seen: set[Path] = set()
    while folder not in seen:
        seen.add(folder)
        record = _described(folder)
        if record["kind"] != "same":
            found.insert(0, folder)
        if record["kind"] == "base":
            return found
        folder = folder.parent / record["start"]
    raise _damaged(folder)


def parts(folder: Path) -> list[Path]:
    """Return the stage folders that a policy's files lie in: not those whose weights were trained on to the end."""
    described = read(folder)
    needed = [Path(described.weights), *described.adapters, described.tokenizer]
    return [stage for stage in chain(folder) if any(path.is_relative_to(stage) for path in needed)]


def _described(folder: Path) -> dict[str, Any]:
    record = store.read_json(folder / POLICY)
    if not isinstance(record, dict):
        raise _damaged(folder)
    weights, start = record.get("weights"), record.get("start")
    if record.get("kind") == "base" and isinstance(weights, str | None) and isinstance(record.get("revision"), str | None):
        return record
    if record.get("kind") in ("weights", "adapter", "continued", "same") and isinstance(start, str) and Path(start).name == start:
        return record
    raise _damaged(folder)


def _damaged(folder: Path) -> UserError:
    return UserError(f"{folder / POLICY} is damaged, or not there: `rounds verify RECIPE` says what mends it")


def read(folder: Path) -> Policy:
    """Resolve the policy of a finished stage."""
    base, *trained = chain(folder)
    record = _described(base)
    weights = record["weights"] or str(store.inputs(base)["model"])
    local = base / weights
    found = Policy(str(local) if local.is_dir() else weights, record["revision"], (), base / "tokenizer")
    for stage in trained:
        kind = _described(stage)["kind"]
        if kind == "weights":
            found = Policy(str(stage / "model"), None, (), found.tokenizer)
        else:
            below = found.adapters[:-1] if kind == "continued" else found.adapters
            found = replace(found, adapters=(*below, stage / "adapter"))
    return found
