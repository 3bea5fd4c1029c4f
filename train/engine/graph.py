"""A run as a graph of stages: what a stage is, its key, and the order that puts parents first. No I/O but digests."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from rounds.data_prep.schema import Section
from rounds.train.config.cluster import RowName
from rounds.train.engine.kinds import Kind

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
    """One step of a run: its kind, what it is asked to do, and what it reads.

    Only the kind's name and version, the params as they are stored, and the keys of `inputs` make the key; `name` does not.
    """

    name: str
    kind: Kind
    params: Section
    """The kind's record, of `params.py`."""
    inputs: Mapping[str, "Stage | Asset"] = field(default_factory=dict)
    stored_version: int | None = None
    """The version of the code that it was planned with, where that was another release; None is this one's."""

    @cached_property
    def key(self) -> str:
        """Hash of kind, version, params and input keys: the same key means the same answer. Cached, since without
        that the cost doubles with every round."""
        return identity(self.kind.name, self.version, self.params.stored(), {name: source.key for name, source in self.inputs.items()})

    @property
    def folder_name(self) -> str:
        """Name of the stage's folder in a store."""
        return f"{self.kind.name}-{self.key}"

    @property
    def version(self) -> int:
        """Version of the code."""
        return self.kind.version if self.stored_version is None else self.stored_version

    @property
    def row(self) -> RowName:
        """The row of the cluster file that it runs by; a check's is the one that it looks at."""
        return getattr(self.params, "row") if self.kind.checks else self.kind.row  # noqa: B009

    @property
    def parents(self) -> list["Stage"]:
        """The stages among the inputs."""
        return [source for source in self.inputs.values() if isinstance(source, Stage)]


def identity(function: str, version: int, params: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """Hash what makes a stage's answer: its code, what that is asked, and the keys of what it reads."""
    parts = {"function": function, "version": version, "params": params, "inputs": inputs}
    return hashlib.sha256(canonical_json(parts).encode()).hexdigest()[:KEY_LENGTH]


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
