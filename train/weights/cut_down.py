"""A model's config with few layers, few heads, few experts and few tokens: the same architecture, tried out in a second.

Heads get fewer and not smaller, and what is as wide as all of them together shrinks by the same factor, so that the sizes still fit each
other: rotary dimensions, groups, states. Of the layers so many are kept from the front that every kind of layer is among them.
"""

import itertools
import math
import re
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

VOCABULARY = 256
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads", "mamba_n_heads", "mamba_num_heads", "linear_num_value_heads")
_GROUPS = ("num_key_value_heads", "n_head_kv", "num_kv_heads", "n_groups", "mamba_n_groups", "mamba_ngroups", "linear_num_key_heads")
"""Counts that divide the heads, and that may become one."""
_WIDTHS = ("hidden_size", "n_embd", "d_model", "intermediate_size", "ffn_hidden_size", "ffn_dim", "n_inner", "moe_intermediate_size",
           "lru_width", "mamba_d_ssm", "shared_intermediate_size", "shared_expert_intermediate_size", "word_embed_proj_dim",
           "block_auto_adjust_ff_dim", "hidden_size_per_layer_input")  # fmt: skip
_EXPERTS = ("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts")
_CHOSEN = ("num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_topk")
_PLACES = re.compile("layer|idx|indices")
_CHUNKS = ("chunk_size", "mamba_chunk_size")
"""Tokens that a recurrent layer computes together, up to which every row is filled."""
_NARROW, _FEW_HEADS, _FEW_EXPERTS = 64, 2, 4
_ALIGNED = 16
"""Widths stay a multiple of this where they are one: grouped products of experts want rows of 16 bytes."""


def build(config: PreTrainedConfig, attention: str | None = None) -> PreTrainedModel:
    """Make a model of a config, with random weights in fp32."""
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=attention, trust_remote_code=False)


def on_paper(config: PreTrainedConfig) -> PreTrainedModel:
    """Make a model without weights, whatever its size."""
    with torch.device("meta"):
        return build(config, "eager")


def cut(config: PreTrainedConfig, whole: PreTrainedModel, narrow: bool = True) -> PreTrainedConfig:
    """Return a small config of the same kind; `whole` is the model of `config`. Without `narrow` only layers and tokens are cut."""
    plain = config.to_dict()
    text = config.get_text_config()
    if text is config:
        return type(config)(**_text(plain, text, whole, narrow))
    name = next((key for key, value in vars(config).items() if value is text), None)
    assert name is not None, f"{config.model_type} does not hold its text model's config"
    parts = {key: _part(value) for key, value in plain.items() if key != name and key.endswith("_config") and isinstance(value, dict)}
    return type(config)(**{**plain, **parts, name: _text(plain[name], text, whole, narrow)})


def _text(plain: dict[str, Any], config: Any, whole: PreTrainedModel, narrow: bool) -> dict[str, Any]:
    layers = next((plain[name] for name in _LAYERS if isinstance(plain.get(name), int)), None)
    cut = dict(plain)
    if layers:
        cut = _shallow(cut, layers, _kinds(whole, plain, layers))
    if narrow:
        cut = _fewer_experts(_narrow(cut)) | {name: 16 for name in _CHUNKS if isinstance(plain.get(name), int)}
    cut["vocab_size"] = min(config.vocab_size, VOCABULARY)
    if "vocab_size_per_layer_input" in cut:
        cut["vocab_size_per_layer_input"] = cut["vocab_size"]
    for number, name in enumerate(("bos_token_id", "eos_token_id", "pad_token_id")):
        if cut.get(name) is not None:
            cut[name] = number
    return cut


def _part(plain: dict[str, Any]) -> dict[str, Any]:
    """Cut what sees or hears beside a text model, of which nothing is trained."""
    return {**plain, **{name: 1 for name in (*_LAYERS, "depth") if isinstance(plain.get(name), int)}}


def _kinds(whole: PreTrainedModel, plain: dict[str, Any], layers: int) -> int:
    """Return how many layers from the front have all the kinds that there are: two at least."""
    stacks = [each for each in whole.modules() if isinstance(each, torch.nn.ModuleList) and len(each) == layers]
    lists = [value for value in plain.values() if isinstance(value, list) and len(value) == layers and not _is_places(value)]
    seen: set[str] = set()
    needed = 2
    for place in range(layers):
        made = [sorted({type(module).__name__ for module in stack[place].modules()}) for stack in stacks]
        kind = repr((made, [value[place] for value in lists]))
        if kind not in seen:
            seen.add(kind)
            needed = max(needed, place + 1)
    return min(needed, layers)


def _is_places(value: list[Any]) -> bool:
    """Tell whether a list names places of layers, as against saying something of each."""
    return bool(value) and all(type(each) is int for each in value) and all(a < b for a, b in itertools.pairwise(value))


def _shallow(plain: dict[str, Any], layers: int, kept: int) -> dict[str, Any]:
    cut: dict[str, Any] = {}
    for name, value in plain.items():
        if name in _LAYERS and value == layers:
            cut[name] = kept
        elif isinstance(value, list) and _PLACES.search(name) and _is_places(value):
            cut[name] = [each for each in value if each < kept]
        elif isinstance(value, list) and len(value) == layers:
            cut[name] = value[:kept]
        elif name == "num_kv_shared_layers":
            cut[name] = 0  # the last so many read what those before them have computed
        else:
            cut[name] = value
    return cut


def _narrow(plain: dict[str, Any]) -> dict[str, Any]:
    numbers = {name: value for name, value in plain.items() if type(value) is int and value > 0}
    heads = [numbers[name] for name in _HEADS if name in numbers]
    width = next((numbers[name] for name in ("hidden_size", "n_embd", "d_model") if name in numbers), 0)
    factor = _factor(math.gcd(*heads, width), min(heads), width) if heads else math.gcd(width, max(1, width // _NARROW))
    cut = dict(plain)
    for name, value in numbers.items():
        if name in _HEADS or name in _WIDTHS:
            cut[name] = max(1, value // factor)
    fewest = min((cut[name] for name in _HEADS if name in numbers), default=1)
    for name in _GROUPS:
        if name in numbers:
            cut[name] = math.gcd(max(1, numbers[name] // factor), fewest) if numbers[name] not in heads else max(1, numbers[name] // factor)
    return cut


def _factor(common: int, heads: int, width: int) -> int:
    """Return the largest number that divides all, keeps the width aligned, and leaves two heads where it can."""
    divisors = [n for n in range(1, common + 1) if common % n == 0 and (width // n % _ALIGNED == 0 or width % _ALIGNED)]
    return max((n for n in divisors if n > 1 and heads // n >= _FEW_HEADS), default=max(divisors, default=1))


def _fewer_experts(plain: dict[str, Any]) -> dict[str, Any]:
    cut = dict(plain)
    names = [name for name in _EXPERTS if isinstance(plain.get(name), int) and plain[name] > _FEW_EXPERTS]
    if not names:
        return cut
    cut |= dict.fromkeys(names, _FEW_EXPERTS)
    cut |= {name: min(plain[name], 2) for name in _CHOSEN if isinstance(plain.get(name), int)}
    if isinstance(plain.get("n_group"), int) and plain["n_group"] > 1:
        cut |= {"n_group": 2, "topk_group": 1}
    return cut
