"""Log-probabilities of several answers to each of many prompts: the choices of closed questions.

In: token rows, as prompt and answers. Out: for each answer the sum over its tokens given the prompt, in nats. A prompt is computed once for
all its answers, in a packed row; where the model's attention, or its place on several devices, does not allow that, each answer is a padded
row with a prompt of its own.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from rounds.train.tokens import packed_row
from rounds.train.weights import logprobs, packed_attention

logger = logging.getLogger(__name__)

Asked = tuple[list[int], Sequence[list[int]]]
"""A prompt, and its answers, as tokens."""
_MISREADS = {True: 3e-2, False: 1e-3}
"""In nats a token, for weights in half precision and others. Rounding stays below 1e-2 and 1e-5."""


def score(
    model: PreTrainedModel, asked: Sequence[Asked], batch_size: int, progress: Callable[[int], None] = lambda done: None
) -> list[list[float]]:
    """Return the log-probability of every answer, in fp32 arithmetic over whatever the weights are.

    A packed row has as many tokens as `batch_size` padded rows of its longest prompt and answer would have. `progress` is told how many
    answers are done.
    """
    logprobs.give_fused_head(model)
    model.eval()
    reason = obstacle(model)
    if reason:
        logger.info("each choice is scored with a prompt of its own: %s", reason)
        flat = [(prompt, answer) for prompt, answers in asked for answer in answers]
        found = iter(logprobs.answer_logprobs(model, flat, batch_size, progress))
        return [[next(found) for _ in answers] for _, answers in asked]
    sums: list[list[float]] = [[] for _ in asked]
    done = 0
    with packed_attention.installed(model):
        for places in _rows(asked, batch_size):
            for place, values in zip(places, _packed(model, [asked[each] for each in places]), strict=True):
                sums[place] = values
                done += len(values)
            progress(done)
    return sums


def obstacle(model: PreTrainedModel) -> str | None:
    """Say why a model cannot share a prompt between answers, or return None. Ends with asking the model itself: a recurrent layer, for
    one, would run on from one answer into the next."""
    if len(set(getattr(model, "hf_device_map", {"": 0}).values())) > 1:
        return "the model is spread over several devices"
    reason = packed_attention.obstacle(model)
    if reason:
        return reason
    embedded: Any = model.get_input_embeddings()
    words: int = embedded.num_embeddings
    draw = torch.Generator().manual_seed(0)
    prompt, *answers = (torch.randint(min(3, words - 1), words, (n,), generator=draw).tolist() for n in (9, 4, 6))
    answers.append([answers[0][0], *answers[1]])  # one that goes along with the first for a while
    logprobs.give_fused_head(model)
    model.eval()
    with packed_attention.installed(model):
        (together,) = _packed(model, [(prompt, answers)])
    alone = logprobs.answer_logprobs(model, [(prompt, answer) for answer in answers], 1)
    half = any(parameter.itemsize < 4 for parameter in model.parameters())
    worst = max(abs(one - other) / len(answer) for one, other, answer in zip(together, alone, answers, strict=True))
    return None if worst <= _MISREADS[half] else f"answers that share a prompt in one row change each other by {worst:.2g} nats a token"


def _rows(asked: Sequence[Asked], batch_size: int) -> Iterator[list[int]]:
    """Cut the questions into rows, those with the longest sequences first: memory trouble shows at once."""
    longest = [len(prompt) + max(map(len, answers)) for prompt, answers in asked]
    row: list[int] = []
    tokens = 0
    for place in sorted(range(len(asked)), key=lambda each: -longest[each]):
        prompt, answers = asked[place]
        cost = len(prompt) + sum(map(len, answers))
        if row and tokens + cost > batch_size * longest[row[0]]:
            yield row
            row, tokens = [], 0
        row.append(place)
        tokens += cost
    if row:
        yield row


@torch.no_grad()
def _packed(model: PreTrainedModel, asked: Sequence[Asked]) -> list[list[float]]:
    row = packed_row.pack(asked, share_prefix=True).to(next(model.parameters()).device)
    found = iter(model(packed_row=row, fused_lm_head=True).log_probs.double().sum(dim=1).tolist())
    return [[next(found) for _ in answers] for _, answers in asked]
