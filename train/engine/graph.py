"""A run as a graph of stages: what a stage is, its key, and the order that puts parents first. No I/O but digests."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from rounds.train.config.cluster import RowName

KEY_LENGTH = 16


@dataclass(frozen=True)
class Asset:
    """A file or folder of the user's that enters a key by the digest of its content, never by its path."""

    path: Path
    digest: str
    patterns: tuple[str, ...] = ("*",)
    """Which of a folder's files count."""

    @property
    def key(self) -> str:
        """Return the digest."""
        return self.digest


@dataclass(frozen=True, eq=False)
class Stage:
    """One step of a run: a function, what it is asked to do, and what it reads.

    `function` names the code, `version` is raised when that code's answer changes. `params` is plain JSON. Only these
    and the keys of `inputs` make the key; `name`, `row` and `after_stop` do not.
    """

    name: str
    function: str
    params: Mapping[str, Any]
    inputs: Mapping[str, "Stage | Asset"] = field(default_factory=dict)
    version: int = 1
    row: RowName = "cpu"
    after_stop: bool = False
    """Runs even when a gate has ended the rounds before it."""

    @cached_property
    def key(self) -> str:
        """Hash of function, version, params and input keys: the same key means the same answer. Cached, since without
        that the cost doubles with every round."""
        identity = {
            "function": self.function,
            "version": self.version,
            "params": dict(self.params),
            "inputs": {name: source.key for name, source in self.inputs.items()},
        }
        return hashlib.sha256(canonical_json(identity).encode()).hexdigest()[:KEY_LENGTH]

    @property
    def folder_name(self) -> str:
        """Name of the stage's folder in a store."""
        return f"{self.function}-{self.key}"

    @property
    def parents(self) -> list["Stage"]:
        """The stages among the inputs."""
        return [source for source in self.inputs.values() if isinstance(source, Stage)]


def canonical_json(value: Any) -> str:
    """Write JSON in one way only: sorted keys, no spaces, no NaN. Raises `TypeError` on anything that is not JSON."""
    _check_keys(value)
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def _check_keys(value: Any) -> None:
    """Refuse keys that `json` would quietly turn into text: 1 and "1" would share a key."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise TypeError(f"{key!r} is no JSON key: expected a string")
            _check_keys(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            _check_keys(inner)


def parents_first(last: Iterable[Stage]) -> list[Stage]:
    """List the given stages and all they need, each once (by key), parents before children."""
    order: dict[str, Stage] = {}

    def visit(stage: Stage) -> None:
        if stage.key not in order:
            for parent in stage.parents:
                visit(parent)
            order[stage.key] = stage

    for stage in last:
        visit(stage)
    return list(order.values())
