"""A model's config cut down to what is tried in seconds on a CPU: one layer of each of its kinds, narrow, with few words and experts.

In: a model on torch's meta device, whose modules tell which kinds of layers it has. Out: a config of the same class. Which numbers
depend on which differs by model; so each is made smaller by itself, and stays as it was where the model cannot be made then.
"""

import copy
import math
from collections.abc import Generator
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

SMALL = 20_000_000
"""Parameters of a model that is tried as it is."""
_VOCABULARY, _INNER, _WIDTH, _EXPERTS = 512, 128, 256, 16
_WIDTHS = ("hidden_size", "d_model", "n_embd", "dim", "lru_width", "mamba_d_ssm", "embedding_size", "word_embed_proj_dim")
_HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads", "mamba_n_heads", "num_key_value_heads", "num_kv_heads")
_WIDE = ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size", "moe_intermediate_size", "shared_expert_intermediate_size",
         "shared_intermediate_size", "intermediate_size_mlp", "dense_intermediate_size", "block_ff_dim")  # fmt: skip
_MANY = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_PER_LAYER = ("layer_types", "layers_block_type", "mlp_layer_types", "attention_layers", "block_types", "attn_layers")


def build(config: Any, attention: str | None = None) -> PreTrainedModel:
    """Make a model of a config with random weights. Nothing of a kernel that the config names is fetched."""
    config = copy.deepcopy(config)
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention or "eager", dtype=torch.float32, trust_remote_code=False)


def parameters(config: Any) -> int:
    """Count the parameters of a config's model."""
    with torch.device("meta"):
        return sum(p.numel() for p in build(config).parameters())


def cut_down(model: PreTrainedModel) -> Any:
    """Return a small config of the same class; the model's own where that is small."""
    if sum(p.numel() for p in model.parameters()) <= SMALL:
        return copy.deepcopy(model.config)
    config = _few_layers(model)
    changes = _changes(config)
    smaller = next(changes, None)
    while smaller is not None:
        config = _with(config, smaller) or config
        try:
            smaller = changes.send(config)
        except StopIteration:
            break
    return config


def _few_layers(model: PreTrainedModel) -> Any:
    """Keep as many of the first layers as have one of each kind."""
    config = model.config
    total = getattr(config.get_text_config(), "num_hidden_layers", None)
    lists = [m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == total]
    if not total or not lists:
        return copy.deepcopy(config)
    kinds = [_kind(layer, config.get_text_config(), place) for place, layer in enumerate(lists[0])]
    keep = max(kinds.index(kind) for kind in set(kinds)) + 1
    changed = {name: _first(value, total, keep) for name, value in config.get_text_config().to_dict().items()}
    return _with(config, {**changed, "num_hidden_layers": keep}) or copy.deepcopy(config)


def _first(value: Any, total: int, keep: int) -> Any:
    """Cut what a config says layer by layer."""
    if isinstance(value, list | tuple) and len(value) == total:
        return value[:keep]
    if isinstance(value, dict) and value and all(str(key).isdigit() for key in value):
        return {key: each for key, each in value.items() if int(key) < keep}
    return value


def _with(config: Any, changes: dict[str, Any]) -> Any:
    """Return a config with other numbers, checked as its class checks them; None where no model can be made of it."""
    plain, text = config.to_dict(), config.get_text_config()
    inner = plain if text is config else next(v for n, v in plain.items() if getattr(config, n, None) is text)
    inner |= changes
    for name in [name for name in inner if _is_fixed(type(text), name)]:
        del inner[name]
    try:
        changed = type(config).from_dict(plain)
        parameters(changed)
    except Exception:  # each class checks itself in its own way, or not at all and fails while its model is built
        return None
    return changed


def _is_fixed(kind: type, name: str) -> bool:
    """Whether a class computes a field by itself."""
    found = getattr(kind, name, None)
    return isinstance(found, property) and found.fset is None


def _is_list(text: Any, name: str, total: int) -> bool:
    return isinstance(getattr(text, name, None), list | tuple) and len(getattr(text, name)) == total


def _kind(layer: torch.nn.Module, text: Any, place: int) -> tuple:
    modules = tuple((name, type(module).__name__) for name, module in layer.named_modules() if not _numbered(name, 1))
    told = [getattr(layer, name, None) for name in ("attention_type", "layer_type", "is_sliding")]
    listed = [getattr(text, name)[place] for name in _PER_LAYER if _is_list(text, name, text.num_hidden_layers)]
    return (modules, *map(str, told), *map(str, listed))


def _numbered(name: str, first: int) -> bool:
    """Whether a name is inside a list's later members, such as experts: one of them tells what all are."""
    return any(part.isdigit() and int(part) >= first for part in name.split("."))


def _changes(config: Any) -> Generator[dict[str, Any], Any, None]:
    """Give changes to try one after the other; what came of the last is sent back."""

    def number(name: str) -> int:
        value = getattr(config.get_text_config(), name, None)
        return value if isinstance(value, int) and not isinstance(value, bool) else 0

    if number("vocab_size") > _VOCABULARY:
        names = config.get_text_config().to_dict()
        special = [name for name in names if name.endswith("token_id") and number(name) >= _VOCABULARY]
        sizes = [name for name in names if name.startswith("vocab_size") and number(name) > _VOCABULARY]
        config = yield {**dict.fromkeys(sizes, _VOCABULARY), **dict.fromkeys(special, 1)}
    for names, most in ((_MANY, _EXPERTS), (_WIDE, _INNER)):
        for name in names:
            if number(name) > most:
                config = yield {name: most}
            elif isinstance(value := getattr(config.get_text_config(), name, None), list | tuple) and value:
                config = yield {name: [most] * len(value)}
    by = 2 ** max(0, math.floor(math.log2(max(1, max(map(number, _WIDTHS), default=0) / _WIDTH))))
    while by > 1 and max(map(number, _WIDTHS), default=0) > _WIDTH:
        config = yield {
            **{name: number(name) // by for name in _WIDTHS if number(name)},
            **{name: max(1, number(name) // by) for name in _HEADS if number(name)},
        }
        by //= 2
