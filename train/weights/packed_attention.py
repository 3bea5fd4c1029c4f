"""A forward pass over a `PackedRow`: attention that keeps its segments apart, and the LM head at scored tokens only.

Built from transformers' AttentionInterface and TRL's fused LM head, so it serves any decoder whose layers all use plain
causal attention, with grouped heads, PEFT, activation checkpointing and DeepSpeed. No mask over the whole row is made:
each segment is one call of torch's attention, or, on a GPU in half precision, all of them together are one call of
its variable-length FlashAttention, where a query block that is shorter than its keys is aligned to their end.
"""

import contextlib
import functools
import logging
import types
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from rounds.data_prep.errors import UserError
from rounds.train.config.cluster import PairBatching
from rounds.train.tokens.packed_row import PackedRow
from rounds.train.weights import cut_down

try:
    from torch.nn.attention.varlen import varlen_attn  # torch 2.10 and newer
except ImportError:
    varlen_attn = None

logger = logging.getLogger(__name__)

NAME, _PROBE = "rounds_packed", "rounds_probe"
_IN_THE_ROW = {"input_ids", "position_ids", "attention_mask", "labels"}


def obstacle(model: PreTrainedModel) -> str | None:
    """Say why a model cannot run packed rows, or return None."""
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"} or getattr(config, "sliding_window", None):
        return "not every layer attends to the whole sequence"
    if config is not model.config or hasattr(config, "output_router_logits"):
        return "it is no plain text model without experts"
    if not model._can_set_attn_implementation() or model.config._attn_implementation == "eager":
        return "its attention cannot be exchanged"
    if not _hands_on(type(model), model):
        return "its layers do not hand on to their attention what the model is given"
    return None


_HANDS_ON: dict[type, bool] = {}
"""By class of model, since it is its code that does or does not."""


def _hands_on(kind: type, model: PreTrainedModel) -> bool:
    """Tell whether arguments of the model's forward pass arrive at its attention, asked of a cut-down model without weights. StableLM's
    do not (transformers 5.23), and its attention would compute a packed row as one text. What cannot be asked is taken to hand on."""
    if kind not in _HANDS_ON:
        seen: list[bool] = []
        AttentionInterface.register(_PROBE, functools.partial(_note, seen))
        try:
            with torch.random.fork_rng(devices=[]), torch.device("meta"):
                small = cut_down.cut(model.config, model)
                small._attn_implementation = _PROBE
                ids = torch.zeros(1, 4, dtype=torch.long)
                kind(small).base_model(input_ids=ids, position_ids=ids, attention_mask=ids[None, None], packed_row=ids, use_cache=False)
            _HANDS_ON[kind] = bool(seen) and all(seen)
        except Exception as error:  # whatever a model's code makes of it
            logger.info("%s cannot be cut down: %s", kind.__name__, error)
            _HANDS_ON[kind] = all(seen)
    return _HANDS_ON[kind]


def _note(seen: list[bool], module: Any, query: Any, key: Any, value: Any, mask: Any, packed_row: Any = None, **rest: Any) -> Any:
    seen.append(packed_row is not None)
    return sdpa_attention_forward(module, query, key, value, None, **rest)


def choose(wanted: PairBatching, model: PreTrainedModel) -> PairBatching:
    """Turn `auto` into what serves the model best, and refuse with `UserError` what it cannot run."""
    reason = obstacle(model)
    if wanted == "auto":
        return "padded" if reason else "shared_prefix"
    if wanted != "padded" and reason:
        raise UserError(f"pair_batching: {wanted} does not work for {type(model).__name__}: {reason}. Use auto or padded")
    return wanted


@contextlib.contextmanager
def installed(model: PreTrainedModel) -> Iterator[None]:
    """Let a model take `packed_row=`, as `install` does, and leave it with its own attention."""
    own, inner = str(model.config._attn_implementation), model.forward
    hook = install(model)
    try:
        yield
    finally:
        hook.remove()
        model.forward = inner
        model.set_attn_implementation(own)


def install(model: PreTrainedModel) -> torch.utils.hooks.RemovableHandle:
    """Let a causal LM with TRL's fused head take `packed_row=`: it then returns that head's outputs for its scored tokens, laid out
    by its view. Calls without it are as before. Returns the hook that picks the scored tokens. Raises `ValueError` where `obstacle` names
    one."""
    reason = obstacle(model)
    if reason:
        raise ValueError(f"{type(model).__name__} cannot run packed rows: {reason}")
    model.set_attn_implementation(NAME)
    hook = model.base_model.register_forward_hook(_keep_scored, with_kwargs=True)
    inner = model.forward

    @functools.wraps(inner)
    def forward(self: PreTrainedModel, *args: Any, packed_row: PackedRow | None = None, **kwargs: Any) -> Any:
        if packed_row is None:
            return inner(*args, **kwargs)
        asked = {name: value for name, value in kwargs.items() if name not in _IN_THE_ROW}
        outputs = inner(
            **asked,
            input_ids=packed_row.input_ids,
            position_ids=packed_row.position_ids,
            attention_mask=packed_row.input_ids[None, None],  # four dimensions: transformers then makes none of its own
            packed_row=packed_row,
            shift_labels=packed_row.labels,
        )
        for name, value in outputs.items():
            if packed_row.view is not None and torch.is_tensor(value) and value.shape == packed_row.labels.shape:
                outputs[name] = _spread(value, packed_row.view)
        return outputs

    model.forward = types.MethodType(forward, model)
    return hook


def _keep_scored(module: torch.nn.Module, args: tuple, kwargs: dict, outputs: Any) -> Any:
    row = kwargs.get("packed_row")
    if row is not None:
        # index_select, since the backward pass of an indexed tensor adds in no fixed order
        outputs.last_hidden_state = outputs.last_hidden_state.index_select(1, row.scored)
    return outputs


def _spread(values: torch.Tensor, view: torch.Tensor) -> torch.Tensor:
    padded = torch.cat([values[0], values.new_zeros(1)])
    return padded.index_select(0, view.flatten()).view(view.shape)


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    packed_row: PackedRow | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention as transformers calls it: (1, heads, tokens, head size) in, (1, tokens, heads, head size) out."""
    if packed_row is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    device = query.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else value.dtype
    query, key, value = (part.to(dtype) for part in (query, key, value))  # rotation leaves fp32 under autocast
    half = dtype in (torch.bfloat16, torch.float16)
    if device == "cuda" and half and dropout == 0 and query.shape[-1] <= 256 and _has_varlen(query.device):
        return _by_one_call(query, key, value, scaling, packed_row), None
    groups = query.shape[1] // key.shape[1]
    return _by_segment(query, repeat_kv(key, groups), repeat_kv(value, groups), scaling, dropout, packed_row), None


@functools.cache
def _has_varlen(device: torch.device) -> bool:
    """Tell whether a GPU runs FlashAttention: Ampere and newer do."""
    return varlen_attn is not None and torch.cuda.get_device_capability(device)[0] >= 8


def _by_segment(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None, dropout: float, row: PackedRow
) -> torch.Tensor:
    lengths = [segment.length for segment in row.segments]
    # Split once: the backward pass of a slice fills a tensor as long as the row, that of a split joins its parts.
    queries, keys, values = (part.split(lengths, dim=2) for part in (query, key, value))
    # Float, since a boolean mask costs three times as much on a CPU.
    triangle = row.triangle.to(query.dtype)
    edge = triangle.shape[1] - triangle.shape[0]
    done = []
    for place, (length, trunk, shared) in enumerate(row.segments):
        own_keys, own_values, mask = keys[place], values[place], None
        if shared:
            own_keys = torch.cat([keys[trunk][:, :, :shared], own_keys], dim=2)
            own_values = torch.cat([values[trunk][:, :, :shared], own_values], dim=2)
            mask = triangle[:length, edge - shared : edge + length]
        done.append(
            F.scaled_dot_product_attention(
                queries[place],
                own_keys,
                own_values,
                attn_mask=mask,
                dropout_p=dropout,
                scale=scaling,
                is_causal=mask is None,
            ).transpose(1, 2)
        )
    return torch.cat(done, dim=1)


def _by_one_call(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None, row: PackedRow) -> torch.Tensor:
    assert varlen_attn is not None
    queries, keys, values = (part[0].transpose(0, 1) for part in (query, key, value))
    if row.ranges.keys is not None:
        keys, values = (part.index_select(0, row.ranges.keys) for part in (keys, values))
    out = varlen_attn(
        queries,
        keys,
        values,
        row.ranges.query_ends,
        row.ranges.key_ends,
        row.ranges.longest_query,
        row.ranges.longest_key,
        scale=scaling,
        window_size=(-1, 0),  # causal, the last query at the last key
        enable_gqa=query.shape[1] != key.shape[1],
    )
    assert torch.is_tensor(out)
    return out[None]


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
AttentionMaskInterface.register(_PROBE, sdpa_mask)
