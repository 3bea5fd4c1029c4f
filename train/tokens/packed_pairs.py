"""Preference pairs as one row without padding, in which chosen and rejected share what they have in common.

In: pairs as token ids. Out: the batch that TRL's DPOTrainer expects, cut down to the answers, with a `PackedRow` beside it:
the tokens that a model computes. `rounds.train.weights.packed_attention` teaches a model to run such a row.

How such a row is laid out is told in `rounds.train.tokens.packed_row`.
"""

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from rounds.train.tokens import packed_row
from rounds.train.tokens.packed_row import PackedRow


def pack(pairs: Sequence[tuple[list[int], list[int], list[int]]], share_prefix: bool) -> PackedRow:
    """Lay out (prompt, chosen, rejected) in one row, whose view has all chosen sides, then all rejected ones; without `share_prefix` the
    two sides stand alone."""
    row = packed_row.pack([(prompt, (chosen, rejected)) for prompt, chosen, rejected in pairs], share_prefix)
    assert row.view is not None
    return replace(row, view=torch.cat([row.view[::2], row.view[1::2]]))


@dataclass(frozen=True)
class PairCollator:
    """Makes the batch of TRL's DPOTrainer out of token rows: chosen sides first, then rejected ones.

    Each side is cut to the last prompt token and the answer, which is all that the loss looks at; `packed_row` holds the
    tokens to compute. `attention_mask` holds the number of tokens per side, so that its sum, which TRL reports as
    `num_tokens`, is the one of a padded batch.
    """

    share_prefix: bool

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        pairs = [(row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]) for row in examples]
        sides = [(p, c) for p, c, _ in pairs] + [(p, r) for p, _, r in pairs]
        width = max(len(answer) for _, answer in sides)
        batch: dict[str, Any] = {
            "input_ids": torch.tensor([[p[-1], *a, *[0] * (width - len(a))] for p, a in sides]),
            "completion_mask": torch.tensor([[0, *[1] * len(a), *[0] * (width - len(a))] for _, a in sides]),
            "attention_mask": torch.tensor([[len(p) + len(a)] for p, a in sides]),
            "packed_row": pack(pairs, self.share_prefix),
        }
        for name in ("ref_chosen_logps", "ref_rejected_logps"):
            if name in examples[0]:
                batch[name] = torch.tensor([row[name] for row in examples])
        return batch


def lengths(table: pa.Table) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return how many tokens the prompt, the chosen and the rejected answer of each pair have."""
    prompt, chosen, rejected = (
        np.concatenate([chunk.value_lengths().to_numpy() for chunk in table[name].chunks])
        for name in ("prompt_ids", "chosen_ids", "rejected_ids")
    )
    return prompt, chosen, rejected


def costs(table: pa.Table, batching: str) -> list[int]:
    """Return how long each pair of token rows is in the layout that `batching` names. What answers have in common is left out
    of account: it is small, and counting it would take a pass over all tokens."""
    prompt, chosen, rejected = lengths(table)
    if batching == "padded":
        return (prompt + np.maximum(chosen, rejected)).tolist()
    return ((1 if batching == "shared_prefix" else 2) * prompt + chosen + rejected).tolist()


def arrangement(costs: Sequence[int], batching: str, micro_batch_size: int) -> Callable[[list[int]], list[int]]:
    """Return how to put the pairs of one global batch into micro-batches, which go to the ranks in turn.

    Padded: pairs of like length together, the longest first, so that memory trouble shows in the first step. Packed: as many
    tokens in each micro-batch as in any other, so that no rank waits for another and no micro-batch needs far more memory.
    """

    def by_length(batch: list[int]) -> list[int]:
        return sorted(batch, key=lambda place: -costs[place])

    def evenly(batch: list[int]) -> list[int]:
        filled: list[list[int]] = [[] for _ in range(-(-len(batch) // micro_batch_size))]
        emptiest = [(0, number) for number in range(len(filled))]
        for place in by_length(batch):
            tokens, number = heapq.heappop(emptiest)
            filled[number].append(place)
            if len(filled[number]) < micro_batch_size:
                heapq.heappush(emptiest, (tokens + costs[place], number))
        return [place for rows in filled for place in rows]

    return by_length if batching == "padded" else evenly
