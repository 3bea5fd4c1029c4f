"""A model's shape: how many parameters, in what, for the planner. No torch here: `skeleton` counts in a process of its own."""

import contextlib
import hashlib
import json
import subprocess
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from rounds.data_prep.errors import UserError
from rounds.train.config.recipe import Base
from rounds.train.config.training import Lora
from rounds.train.engine import store
from rounds.train.engine.graph import canonical_json
from rounds.train.plan import model_config


@dataclass(frozen=True)
class Shape:
    """What the planner's formulas ask of a model. `linears` are the linear layers but for the LM head, each kind as (name,
    inputs, outputs, how many)."""

    parameters: int
    linears: tuple[tuple[str, int, int, int], ...]
    largest_module: int
    """Parameters of the largest module by itself: an embedding, mostly."""
    tied: bool
    """Input and output embeddings are the same weights."""
    layers: int
    hidden: int
    heads: int
    key_value_heads: int
    head_width: int
    intermediate: int
    vocabulary: int

    @property
    def key_value(self) -> int:
        """Width of the keys, and of the values."""
        return self.key_value_heads * self.head_width

    @property
    def linear_parameters(self) -> int:
        """Weights of the linear layers but for the LM head: what is multiplied for every token, and what QLoRA quantises."""
        return sum(inputs * outputs * times for _, inputs, outputs, times in self.linears)

    def adapter_parameters(self, lora: Lora) -> int:
        """Parameters that an adapter adds: r x (inputs + outputs) for each layer that it sits on; DoRA's magnitudes too."""
        targets = lora.target_modules
        return sum(
            times * (lora.r * (inputs + outputs) + (outputs if lora.use_dora else 0))
            for name, inputs, outputs, times in self.linears
            if targets == "all-linear" or name in targets
        )


def of(base: Base, root: Path) -> tuple[Shape, str]:
    """Return the shape of a recipe's base model, and where its config is from. Remembered in the store by the config.

    Raises `UserError` where no config can be found or the skeleton cannot be built from it.
    """
    config, origin = model_config.read(base)
    digest = hashlib.sha256(canonical_json(config).encode()).hexdigest()[:16]
    memory = store.read_fields(root / "shapes.json")
    with contextlib.suppress(KeyError, TypeError, ValueError):  # not counted yet, or a memory that is damaged
        return from_counts(memory[digest]), origin
    memory[digest] = _count(config, origin)
    with contextlib.suppress(OSError):  # the store of a cluster that is planned for is not on this machine: counted again
        root.mkdir(exist_ok=True)
        store.write_json(root / "shapes.json", memory)
    return from_counts(memory[digest]), origin


def from_counts(counted: dict[str, Any]) -> Shape:
    """Make a shape of what `rounds.train.forecast.skeleton` counted."""
    linears = tuple((str(name), int(a), int(b), int(n)) for name, a, b, n in counted["linears"])
    return Shape(linears=linears, **{field.name: counted[field.name] for field in fields(Shape) if field.name != "linears"})


def _count(config: dict[str, Any], origin: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "rounds.train.forecast.skeleton"],
        input=json.dumps(config),
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise UserError(f"{origin}: no model can be built from this config: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])
