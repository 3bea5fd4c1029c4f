"""A model's shape: how many parameters, in what, for the planner. No torch here: `train.skeleton` counts in its own process.

The config is the model's own `config.json` where it is at hand (a local folder, the hub's cache), the recipe's numbers for
`tiny`, else the published facts in recipes/configs/MODEL.json.
"""

import hashlib
import json
import subprocess
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from data_prep.errors import UserError
from train import store, yaml_file
from train.graph import canonical_json
from train.recipe import Base, Hub, Local, Lora


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
    config, origin = _config(base)
    digest = hashlib.sha256(canonical_json(config).encode()).hexdigest()[:16]
    memory = store.read_json(root / "shapes.json") or {}
    if digest not in memory:
        memory[digest] = _count(config, origin)
        root.mkdir(parents=True, exist_ok=True)
        store.write_json(root / "shapes.json", memory)
    return from_counts(memory[digest]), origin


def from_counts(counted: dict[str, Any]) -> Shape:
    """Make a shape of what `train.skeleton` counted."""
    linears = tuple((str(name), int(a), int(b), int(n)) for name, a, b, n in counted["linears"])
    return Shape(
        linears=linears, **{field.name: counted[field.name] for field in fields(Shape) if field.name != "linears"}
    )


def _count(config: dict[str, Any], origin: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "train.skeleton"], input=json.dumps(config), capture_output=True, text=True
    )
    if done.returncode:
        raise UserError(f"{origin}: no model can be built from this config: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def _config(base: Base) -> tuple[dict[str, Any], str]:
    if isinstance(base, Hub):
        return _hub_config(base)
    if isinstance(base, Local):
        file = Path(base.path) / "config.json"
        found = store.read_json(file)
        if found is None:
            raise UserError(f"{file}: no such file; base.path must be a Hugging Face model folder")
        return _clean(found), str(file)
    numbers = base.model_dump(exclude={"kind", "chat_template"})
    return {"model_type": "llama", **numbers, "num_key_value_heads": base.num_attention_heads}, "the recipe"


def _hub_config(base: Hub) -> tuple[dict[str, Any], str]:
    from huggingface_hub import try_to_load_from_cache

    published = store.read_json(yaml_file.PROJECT_RECIPES / "configs" / f"{base.id.rpartition('/')[2]}.json")
    cached = try_to_load_from_cache(base.id, "config.json", revision=base.revision)
    own = store.read_json(Path(cached)) if isinstance(cached, str) else None
    if own is None and published is None:
        raise UserError(
            f"base.id: the config of {base.id} is neither in the hub's cache nor in recipes/configs, so what it needs cannot be "
            "planned; fetch the model first"
        )
    if own is None:
        assert published is not None
        return published, f"recipes/configs/{base.id.rpartition('/')[2]}.json, published facts; the model is not here"
    differ = [name for name, value in (published or {}).items() if name in own and own[name] != value]
    note = f" (recipes/configs differs from it in {', '.join(differ)})" if differ else ""
    return _clean(own), f"{cached}{note}"


def _clean(config: dict[str, Any]) -> dict[str, Any]:
    """Drop what concerns how the weights are stored, and code of the repository's own, which is never run."""
    return {
        name: value for name, value in config.items() if name not in ("quantization_config", "auto_map", "torch_dtype")
    }
