"""A policy: the weights that a round takes and returns, as a description on disk. No weights are read here.

A stage that yields a policy writes `policy.json` beside its result. It may refer to a sibling stage of the store by its
folder name, so an adapter knows what it sits on and a gate can point at the policy that it let through, without copies.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path

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
    """Return the folders of the stages that made a policy's weights, base first: gates and skipped stages only point."""
    record = json.loads((folder / POLICY).read_text())
    if record["kind"] == "base":
        return [folder]
    before = chain(folder.parent / record["start"])
    return before if record["kind"] == "same" else [*before, folder]


def read(folder: Path) -> Policy:
    """Resolve the policy of a finished stage."""
    base, *trained = chain(folder)
    record = json.loads((base / POLICY).read_text())
    weights = record["weights"] or str(store.inputs(base)["model"])
    local = base / weights
    found = Policy(str(local) if local.is_dir() else weights, record["revision"], (), base / "tokenizer")
    for stage in trained:
        kind = json.loads((stage / POLICY).read_text())["kind"]
        if kind == "weights":
            found = Policy(str(stage / "model"), None, (), found.tokenizer)
        else:
            below = found.adapters[:-1] if kind == "continued" else found.adapters
            found = replace(found, adapters=(*below, stage / "adapter"))
    return found
