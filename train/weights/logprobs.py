"""Log-probabilities of answers under a model, in batches of similar length.

TRL's fused LM head is used, as its DPOTrainer does: the same numbers as in training, and the logits of a whole
vocabulary are never held for more than a chunk of tokens.
"""

from collections.abc import Callable, Sequence

import torch
from transformers import PreTrainedModel
from trl.trainer.utils import add_fused_lm_head


def answer_logprobs(
    model: PreTrainedModel,
    rows: Sequence[tuple[list[int], list[int]]],
    batch_size: int,
    progress: Callable[[int], None] = lambda done: None,
) -> list[float]:
    """Return, for each (prompt ids, answer ids), the summed log-probability of the answer tokens, in nats, in fp32."""
    whole = [(prompt + answer, [False] * len(prompt) + [True] * len(answer)) for prompt, answer in rows]
    return masked_logprobs(model, whole, batch_size, progress)


@torch.no_grad()
def masked_logprobs(
    model: PreTrainedModel,
    rows: Sequence[tuple[list[int], list[bool]]],
    batch_size: int,
    progress: Callable[[int], None] = lambda done: None,
) -> list[float]:
    """Return, for each (ids, mask), the summed log-probability of the masked tokens given all before them."""
    give_fused_head(model)
    model.eval()
    sums = [0.0] * len(rows)
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i][0]))  # longest first: memory trouble shows at once
    for start in range(0, len(order), batch_size):
        places = order[start : start + batch_size]
        for place, value in zip(places, _batch(model, [rows[i] for i in places]), strict=True):
            sums[place] = value
        progress(min(start + batch_size, len(order)))
    return sums


def _batch(model: PreTrainedModel, rows: list[tuple[list[int], list[bool]]]) -> list[float]:
    width = max(len(ids) for ids, _ in rows)
    input_ids = torch.zeros((len(rows), width), dtype=torch.long)
    attention_mask, labels = torch.zeros_like(input_ids), torch.full_like(input_ids, -100)
    for place, (ids, mask) in enumerate(rows):
        tokens = torch.tensor(ids)
        input_ids[place, : len(ids)] = tokens
        attention_mask[place, : len(ids)] = 1
        labels[place, : len(ids)] = torch.where(torch.tensor(mask), tokens, -100)
    device = next(model.parameters()).device
    outputs = model(
        input_ids=input_ids.to(device),
        attention_mask=attention_mask.to(device),
        labels=labels.to(device),
        use_cache=False,
        fused_lm_head=True,
    )
    return outputs.log_probs.float().sum(dim=1).tolist()


def give_fused_head(model: PreTrainedModel) -> None:
    """Give a model TRL's fused LM head, once: patching twice would nest the forward."""
    if not getattr(model, "_scores_answers", False):
        add_fused_lm_head(model)
        model.__dict__["_scores_answers"] = True
