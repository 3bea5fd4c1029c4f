"""A rehearsal of training with a model, at stage `base`, before hours are paid for what comes before it.

In: a model folder, opened on torch's meta device, and the attention of each row of the cluster file that will load it. The model is
tried as it is where it is small, else cut down (`cut_down.py`) with random weights. Out: what training needs to know of it.
What is asked of the model itself, and of no list of names:

- a step forward and backward through TRL's LM head, with the experts' balancing loss where it has one;
- that no token sees a later one, and that padding behind a row changes nothing;
- whether conversations packed in one row are kept apart;
- that nothing random is left when what is known to be random is switched off, as DPO does;
- that it can be saved, and opened again as the same.
"""

import contextlib
import logging
import tempfile
import textwrap
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel
from trl.trainer.utils import add_fused_lm_head

from rounds.data_prep.errors import UserError
from rounds.train.weights import cut_down, experts, noise, packing

logger = logging.getLogger(__name__)
_TOO_LARGE = 300_000_000
"""Parameters of a cut-down model that is not tried any more: some GB in fp32 with gradients."""
_SAVED = 50_000_000
_AGREES = 1e-3
"""Of the largest logit: sums in another order stay below 1e-5, a token that is seen or not changes more than a hundredth."""


class Findings(NamedTuple):
    """What a rehearsal found."""

    tried: str
    """`whole`, `cut down` or `not tried`."""
    packs: str | None
    """Why conversations cannot share a row; None where they can."""
    balanced: str | None
    """Why a mixture of experts is trained without its balancing loss; None where it is not, or has none."""


def rehearse(opened: PreTrainedModel, where: str, attentions: Sequence[tuple[str, str]]) -> Findings:
    """Try a model under each row's attention, given as (row, implementation). Raises `UserError` with the cause where it cannot train."""
    for row, attention in attentions:
        if reason := attention_obstacle(type(opened), attention):
            raise UserError(f"{where}: the cluster file's row `{row}` says attn_implementation: {attention}, and {reason}")
    tried, make = _trial(opened, where)
    if make is None:
        logger.warning("%s is not rehearsed: cut down it would still be too large", type(opened).__name__)
        return Findings("not tried", None, experts.obstacle(opened.config))
    usable = sorted({_on_cpu(type(opened), attention) for _, attention in attentions})
    packs = None
    with torch.random.fork_rng(), torch.enable_grad():
        for attention in usable:
            torch.manual_seed(0)
            try:
                packs = _try(make, attention) or packs
            except UserError as error:
                raise UserError(f"{where}: {type(opened).__name__} {error}") from error
    return Findings(tried, packs, experts.obstacle(opened.config))


def attention_obstacle(model: type, attention: str) -> str | None:
    """Say why a class of model has no such attention, or return None."""
    known: Any = model
    if attention == "sdpa" and not known._supports_sdpa:
        return f"{model.__name__} has none through torch's sdpa: set attn_implementation: eager there"
    if attention == "flash_attention_2" and not known._supports_flash_attn:
        return f"{model.__name__} has none through flash-attn: set attn_implementation: {_on_cpu(model, attention)} there"
    return None


def _on_cpu(model: Any, attention: str) -> str:
    """Return what runs without a GPU in place of an attention."""
    return attention if attention != "flash_attention_2" else "sdpa" if model._supports_sdpa else "eager"


def _trial(opened: PreTrainedModel, where: str) -> tuple[str, Callable[[str], PreTrainedModel] | None]:
    small = cut_down.cut_down(opened)
    size = sum(p.numel() for p in opened.parameters())
    if size <= cut_down.SMALL:
        return "whole", lambda attention: AutoModelForCausalLM.from_pretrained(
            where, dtype=torch.float32, attn_implementation=attention, use_safetensors=True, trust_remote_code=False
        )
    if cut_down.parameters(small) > _TOO_LARGE:
        return "not tried", None
    return "cut down", lambda attention: cut_down.build(small, attention)


def _try(make: Callable[[str], PreTrainedModel], attention: str) -> str | None:
    """Try one attention; returns why conversations cannot be packed, or None. Raises `UserError` that goes on from the class's name."""
    model = make(attention).float().train()
    words = model.get_input_embeddings().num_embeddings  # type: ignore[union-attr]
    rows = torch.randint(min(3, words - 1), words, (2, 24))
    quiet = model.eval()
    with torch.no_grad():
        with _told("cannot run a row of text", attention):
            alone = quiet(input_ids=rows[:1], attention_mask=torch.ones_like(rows[:1]), use_cache=False).logits
            changed = rows[:1].clone()
            changed[:, -8:] = rows[1:, -8:]
            other = quiet(input_ids=changed, attention_mask=torch.ones_like(changed), use_cache=False).logits
            mask = torch.ones_like(rows)
            mask[0, -8:] = 0
            padded = quiet(input_ids=rows, attention_mask=mask, use_cache=False).logits
        if not torch.isfinite(alone).all():
            raise UserError("computes numbers that are not finite: its weights are damaged, or its config does not fit them")
        if apart(alone[:, :-8], other[:, :-8]):
            raise UserError("lets tokens see later ones, so it is no causal language model (is_decoder in its config?)")
        if apart(alone[:, :-8], padded[:1, :-8]):
            raise UserError("gives other numbers for a row when another that is longer stands beside it, so no answer could be trusted")
        packs = packing.leak(quiet)
    _step(model, rows, attention)
    _check_quiet(model, rows)
    _save(model, rows, attention)
    return packs


def apart(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Tell whether logits differ by more than rounding."""
    return not float((one - other).abs().max()) <= _AGREES * max(float(one.abs().max()), 1e-6)


@contextlib.contextmanager
def _told(what: str, attention: str) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # whatever a model's code or TRL stumbles over
        logger.exception("the rehearsal failed")
        said = textwrap.shorten(str(error), 200, placeholder=" ...")
        raise UserError(f"{what} (attn_implementation: {attention}): {type(error).__name__}: {said}") from error


def _step(model: PreTrainedModel, rows: torch.Tensor, attention: str) -> None:
    """Go forward and backward as SFT and DPO do."""
    with _told("cannot be trained with TRL's trainers here", attention):
        add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))
        asked: dict[str, Any] = {"output_router_logits": True} if experts.coefficient(model.config, None) else {}
        out = model.train()(input_ids=rows, attention_mask=torch.ones_like(rows), labels=rows, use_cache=False, fused_lm_head=True, **asked)
        loss = out.loss if not asked else out.loss + 0.01 * out.aux_loss
        loss.backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
    if not gradients or not all(torch.isfinite(each).all() for each in gradients):
        raise UserError("has no finite gradients in its first step")
    model.zero_grad(set_to_none=True)


@torch.no_grad()
def _check_quiet(model: PreTrainedModel, rows: torch.Tensor) -> None:
    """Raise `UserError` where something random is left in training mode."""
    noise.switch_off(model)
    asked = {"input_ids": rows, "attention_mask": torch.ones_like(rows), "use_cache": False}
    quiet = model.eval()(**asked).logits
    loud = model.train()(**asked).logits
    if apart(quiet, loud):
        raise UserError("computes at random in training also with all dropout off, so DPO's first loss could not be ln 2")


@torch.no_grad()
def _save(model: PreTrainedModel, rows: torch.Tensor, attention: str) -> None:
    """Raise `UserError` for a model that could not be saved after its training, or would be opened as another."""
    if sum(p.numel() for p in model.parameters()) > _SAVED:
        return
    asked = {"input_ids": rows[:1], "attention_mask": torch.ones_like(rows[:1]), "use_cache": False}
    before = model.eval()(**asked).logits
    with tempfile.TemporaryDirectory(prefix="rounds-rehearsal-") as folder, _told("cannot be saved and opened again", attention):
        model.generation_config = GenerationConfig()  # `models` sees to one that contradicts itself
        model.save_pretrained(folder)
        again = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation=attention, use_safetensors=True)
        after = again.eval()(**asked).logits
    if apart(before, after):
        raise UserError("is another model when it has been saved and opened again")
