"""Engine `transformers`: in this process, by `generate`, in batches of prompts of like length, padded on the left."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel

from rounds.train.config.decoding import Decoding
from rounds.train.generation.decoding import OneToken
from rounds.train.generation.engine import Ask, Reply, Subject, Write
from rounds.train.weights import logprobs, models


@contextmanager
def opened(subject: Subject) -> Iterator[Write]:
    """Load the policy as evaluation does, and write with it."""
    model = models.load_to_score(subject.policy, subject.machine)

    def write(asks: Sequence[Ask], decoding: Decoding) -> list[Reply]:
        found: list[Reply | None] = [None] * len(asks)
        order = sorted(range(len(asks)), key=lambda place: -len(asks[place].prompt_ids))  # longest first: memory trouble shows at once
        for start in range(0, len(order), subject.machine.eval_batch_size):
            places = order[start : start + subject.machine.eval_batch_size]
            for place, reply in zip(places, _batch(model, [asks[n] for n in places], decoding, subject), strict=True):
                found[place] = reply
        return [each for each in found if each is not None]

    yield write


@torch.no_grad()
def _batch(model: PreTrainedModel, asks: Sequence[Ask], decoding: Decoding, subject: Subject) -> list[Reply]:
    width = max(len(ask.prompt_ids) for ask in asks)
    pad = subject.ends[0]  # what is padded is not looked at; any id
    ids = torch.tensor([[pad] * (width - len(ask.prompt_ids)) + ask.prompt_ids for ask in asks])
    mask = torch.tensor([[0] * (width - len(ask.prompt_ids)) + [1] * len(ask.prompt_ids) for ask in asks])
    chooser = OneToken([ask.seed for ask in asks], decoding)
    # Whole: penalties and the like that the base was published with would be filled in from the model's own.
    model.generation_config = GenerationConfig(
        max_new_tokens=decoding.max_new_tokens, do_sample=False, use_cache=True, eos_token_id=subject.ends, pad_token_id=pad
    )
    generate: Any = model.generate
    device = next(model.parameters()).device
    drawn = generate(input_ids=ids.to(device), attention_mask=mask.to(device), logits_processor=LogitsProcessorList([chooser]))
    steps = torch.stack(chooser.logprobs, 1).double().tolist()
    rows = [_until_end(row, subject.ends) for row in drawn[:, width:].tolist()]
    sums = [sum(logps[: len(row)]) for logps, row in zip(steps, rows, strict=True)]
    if subject.machine.precision == "fp32":
        # Each by itself, in one pass: the last bits of a sum over steps depend on who else was in the batch.
        sums = logprobs.answer_logprobs(model, [(ask.prompt_ids, row) for ask, row in zip(asks, rows, strict=True)], 1)
    return [Reply(row[:-1] if (ended := row[-1] in subject.ends) else row, ended, total) for row, total in zip(rows, sums, strict=True)]


def _until_end(row: list[int], ends: Sequence[int]) -> list[int]:
    """Cut a row behind the first token that ends it."""
    place = next((place for place, token in enumerate(row) if token in ends), len(row) - 1)
    return row[: place + 1]
