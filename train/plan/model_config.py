"""The config of a recipe's base model, as far as it is known before the model is opened. No torch here.

It is the model's own `config.json` where that is at hand (a local folder, the hub's cache), the recipe's numbers for `tiny`,
else the published facts in recipes/configs/MODEL.json.
"""

from pathlib import Path
from typing import Any, NamedTuple

from rounds.data_prep.errors import UserError
from rounds.train.config import shipped
from rounds.train.config.recipe import Base, Hub, Local
from rounds.train.engine import store


class Limits(NamedTuple):
    """What a model can take; None where that is not known."""

    positions: int | None = None
    """Tokens that it was made to read at once; None also where its rotary embedding is scaled to read more."""
    width: int | None = None
    """Numbers in its residual stream."""


def limits(base: Base) -> Limits:
    """Return what a model can take. Of one on the hub the published facts are asked, not the cache: `rounds fetch` plans before it
    says which cache it is."""
    try:
        config = _published(base) if isinstance(base, Hub) else read(base)[0]
    except (UserError, OSError):
        return Limits()
    if config is None:
        return Limits()
    config = config.get("text_config") or config
    scaling = config.get("rope_scaling") or config.get("rope_parameters")
    scaled = isinstance(scaling, dict) and scaling.get("rope_type", scaling.get("type", "default")) != "default"
    positions = None if scaled else config.get("max_position_embeddings") or config.get("n_positions")
    width = config.get("hidden_size") or config.get("n_embd") or config.get("d_model")
    return Limits(*(each if isinstance(each, int) else None for each in (positions, width)))


def read(base: Base) -> tuple[dict[str, Any], str]:
    """Return the config and where it is from. Raises `UserError` where there is none."""
    if isinstance(base, Hub):
        return _hub_config(base)
    if isinstance(base, Local):
        file = Path(base.path) / "config.json"
        found = store.read_json(file)
        if not isinstance(found, dict):
            raise UserError(f"{file}: no config of a model; base.path must be a Hugging Face model folder")
        return _clean(found), str(file)
    numbers = base.model_dump(exclude={"kind", "chat_template", "template_date"})
    return {"model_type": "llama", **numbers, "num_key_value_heads": base.num_attention_heads}, "the recipe"


def _hub_config(base: Hub) -> tuple[dict[str, Any], str]:
    from huggingface_hub import try_to_load_from_cache

    published = _published(base)
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


def _published(base: Hub) -> dict[str, Any] | None:
    return store.read_json(shipped.RECIPES / "configs" / f"{base.id.rpartition('/')[2]}.json")


def _clean(config: dict[str, Any]) -> dict[str, Any]:
    """Drop what concerns how the weights are stored, and code of the repository's own, which is never run."""
    return {name: value for name, value in config.items() if name not in ("quantization_config", "auto_map", "torch_dtype")}
