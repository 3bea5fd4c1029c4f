"""Adapters become part of the weights that they were trained on, and the model then answers as it did while it was trained.

In: a model and folders of adapters, in the order in which they were trained. Out: the model without them.
"""

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import PreTrainedModel

from rounds.data_prep.errors import UserError
from rounds.train.engine import ranks

_ROWS, _LENGTH = 2, 4
"""Tokens that a merge is checked on. Few: each pass reads all weights, 140 GB for 70B."""
_NATS = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}
"""What rounding does to a log-probability at most, by the type of the weights: about 2^-24, 2^-8 and 2^-11 of logits of up to some tens,
over all layers."""
_SHARE = 0.1
"""Share of the adapters' own effect that is allowed besides: after many layers rounding grows with it."""


def merged(model: PreTrainedModel, adapters: Sequence[Path]) -> PreTrainedModel:
    """Merge adapters into a model in order: each layer by itself in fp32, and rounded to the model's type once, after the last.

    An adapter's change is often smaller than half a step of bf16. Of four whose factors are 1e-3 (rank 64, on weights of 0.02) 89 %
    of the change survived so, and 62 % where each was added to bf16 weights.

    Raises `UserError` where the merged model answers otherwise than the one that was trained; rank 0 looks.
    """
    names = [f"adapter{number}" for number in range(len(adapters))]
    with_adapters: Any = PeftModel.from_pretrained(model, str(adapters[0]), adapter_name=names[0])
    for name, adapter in zip(names[1:], adapters[1:], strict=True):
        with_adapters.load_adapter(str(adapter), adapter_name=name)
    layers = [layer for layer in with_adapters.modules() if isinstance(layer, BaseTunerLayer)]
    parts = _parts(names, with_adapters.peft_config)
    kept = _half(layers) if len(parts) > 1 else {}
    plain: Any = None
    for part in parts:
        asked = _as_trained(with_adapters, part) if ranks.rank() == 0 else None
        if isinstance(model.get_input_embeddings(), BaseTunerLayer):
            _untie(model)
        for layer in layers:
            weight: Any = layer.get_base_layer().weight
            dtype, first = weight.dtype, kept.get(layer)
            weight.data = (weight.data if first is None else first).float()
            for name in part if first is None else names[: names.index(part[-1]) + 1]:
                layer.merge(adapter_names=[name])
                layer.merged_adapters.clear()  # DoRA takes the norm of the weight that its adapter was trained on: with those before
            weight.data = weight.data.to(dtype)
        if part is parts[-1]:
            plain = with_adapters.base_model.unload()
        if asked is not None:
            _check(plain or with_adapters, *asked, adapters[names.index(part[-1])])
    return plain


def _parts(names: Sequence[str], configs: Mapping[str, Any]) -> list[list[str]]:
    """Group adapters that answer beside the weights as they did while they were trained. DoRA begins a group: it scales by the norm of
    weights that the adapters before it were part of."""
    parts: list[list[str]] = []
    for name in names:
        if not parts or configs[name].use_dora:
            parts.append([])
        parts[-1].append(name)
    return parts


def _half(layers: Sequence[BaseTunerLayer]) -> dict[BaseTunerLayer, torch.Tensor]:
    """Keep the weights of half precision, from which each group is merged anew with those before it: all are rounded once."""
    found: dict[BaseTunerLayer, torch.Tensor] = {}
    for layer in layers:
        weight: Any = layer.get_base_layer().weight
        if weight.dtype != torch.float32:
            found[layer] = weight.data
    return found


def _untie(model: Any) -> None:
    """Give a model whose head is the very table of its input embeddings a head of its own: an adapter on the embeddings changes what
    is read, and the head was trained without it. Its config says so from then on."""
    head, table = model.get_output_embeddings(), model.get_input_embeddings().get_base_layer()
    if head is None or head.weight is not table.weight:
        return
    head.weight = torch.nn.Parameter(head.weight.detach().clone(), requires_grad=head.weight.requires_grad)
    for config in (model.config, model.config.get_text_config()):
        config.tie_word_embeddings = False
    model.all_tied_weights_keys = model.get_expanded_tied_weights_keys(all_submodels=True)


def _as_trained(model: Any, names: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return log-probabilities without these adapters and with them beside the weights."""
    with model.disable_adapter():
        without = _log_probs(model)
    model.base_model.set_adapter(list(names))
    return without, _log_probs(model)


def _check(model: Any, without: torch.Tensor, trained: torch.Tensor, adapter: Path) -> None:
    with model.disable_adapter() if isinstance(model, PeftModel) else contextlib.nullcontext():
        found = _log_probs(model)
    off, effect = ((each - trained).abs().max().item() for each in (found, without))
    dtype = next(model.parameters()).dtype
    if off <= _NATS.get(dtype, _NATS[torch.bfloat16]) + _SHARE * effect:
        return
    raise UserError(
        f"the adapter of {adapter.parent.name}, merged into the weights, answers otherwise than as it was trained: by up to "
        f"{off:.3g} nats a token, of the {effect:.3g} that it makes in all. These weights are not used: PEFT does not merge this kind of "
        "adapter into this kind of model as it trains it. Train other target_modules, or all weights; the adapter itself is unharmed"
    )


@torch.no_grad()
def _log_probs(model: Any) -> torch.Tensor:
    """Return the log-probabilities of each next token, in fp32, of some tokens: the same at every call."""
    plain: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(plain.get_input_embeddings().weight.shape[0], (_ROWS, _LENGTH), generator=generator)
    kept = plain.config._attn_implementation
    was_training = plain.training
    plain.eval()
    plain.set_attn_implementation("eager")  # what training uses may need a card
    try:
        logits = plain(input_ids=ids.to(plain.get_input_embeddings().weight.device), use_cache=False).logits
    finally:
        plain.set_attn_implementation(kept)
        plain.train(was_training)
    return logits.float().log_softmax(-1).cpu()
