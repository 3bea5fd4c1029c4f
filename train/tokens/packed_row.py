"""One row of tokens without padding, in segments that attention keeps apart.

`pack` makes such a row of prompts with several answers each, which share what they have in common: the choices of a question, or,
through `rounds.train.tokens.packed_pairs`, the two sides of a preference pair. Stage `sft` makes them of conversations;
`rounds.train.weights.packed_attention` teaches a model to run them.

A row is a chain of segments. A prompt with its first answer is one, and each further answer one with the part of it that differs
from the first. That one attends to the beginning of the first, up to the fork, and then to itself; its positions go on from the fork.
Nothing else is visible to it, so every answer gets the very numbers that it gets alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple

import torch


class Segment(NamedTuple):
    """A run of tokens that see the first `shared` tokens of segment `trunk`, then themselves, each up to its own place."""

    length: int
    trunk: int = 0
    shared: int = 0


@dataclass(frozen=True)
class PackedRow:
    """What a model computes, and where the numbers go. `to` lets accelerate move it with the rest of a batch."""

    segments: tuple[Segment, ...]
    input_ids: torch.Tensor
    """(1, tokens)"""
    position_ids: torch.Tensor
    """(1, tokens)"""
    scored: torch.Tensor
    """(answer tokens,): the token whose hidden state predicts it, for every answer token that is computed."""
    labels: torch.Tensor
    """(1, answer tokens): the tokens to be predicted there."""
    view: torch.Tensor | None = None
    """(answers, longest answer): where the numbers of each answer stand among the scored ones; one past the end is padding. None
    leaves them as they come."""

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "PackedRow":
        """Return the row on another device."""
        parts = {f.name: getattr(self, f.name) for f in fields(self)}
        tensors = {name: value for name, value in parts.items() if isinstance(value, torch.Tensor)}
        return replace(self, **{name: value.to(device, non_blocking=non_blocking) for name, value in tensors.items()})

    @cached_property
    def triangle(self) -> torch.Tensor:
        """Zeros beside a causal triangle of minus infinity: the additive mask of every branch is a part of it."""
        height = max((segment.length for segment in self.segments if segment.shared), default=0)
        width = max(segment.shared for segment in self.segments)
        return torch.full((height, width + height), float("-inf"), device=self.input_ids.device).triu(width + 1)

    @cached_property
    def ranges(self) -> "Ranges":
        """The same structure in the form that variable-length kernels take."""
        starts = [0, *accumulate(segment.length for segment in self.segments)]
        device, longest = self.input_ids.device, max(segment.length for segment in self.segments)
        ends = torch.tensor(starts, dtype=torch.int32, device=device)
        if not any(segment.shared for segment in self.segments):
            return Ranges(None, ends, ends, longest, longest)
        seen = [
            [*range(starts[s.trunk], starts[s.trunk] + s.shared), *range(starts[place], starts[place] + s.length)]
            for place, s in enumerate(self.segments)
        ]
        return Ranges(
            torch.tensor([key for keys in seen for key in keys], device=device),
            ends,
            torch.tensor([0, *accumulate(map(len, seen))], dtype=torch.int32, device=device),
            longest,
            max(map(len, seen)),
        )


class Ranges(NamedTuple):
    """Which keys each segment sees, one segment after the other (None: its own), and where the queries and keys of each end."""

    keys: torch.Tensor | None
    query_ends: torch.Tensor
    key_ends: torch.Tensor
    longest_query: int
    longest_key: int


def pack(prompts: Sequence[tuple[list[int], Sequence[list[int]]]], share_prefix: bool) -> PackedRow:
    """Lay out prompts, each with its answers, in one row whose view has the answers in their order; without `share_prefix` every answer
    stands alone, with a prompt of its own."""
    segments: list[Segment] = []
    ids: list[int] = []
    positions: list[int] = []
    scored: list[int] = []
    labels: list[int] = []
    places: list[list[int]] = []
    for prompt, (first, *others) in prompts:
        assert prompt and first and all(others), "a prompt and its answers have tokens"
        trunk, start, known = len(segments), len(ids), len(scored)
        segments.append(Segment(len(prompt) + len(first)))
        ids += prompt + first
        positions += range(len(prompt) + len(first))
        scored += range(start + len(prompt) - 1, start + len(prompt) + len(first) - 1)
        labels += first
        places.append(list(range(known, known + len(first))))
        for answer in others:
            fork = len(prompt) + common_prefix(first, answer) if share_prefix else 0
            branch = (prompt + answer)[fork:]
            both = max(fork - len(prompt), 0)  # tokens that the answer shares with the first
            branch_start = len(ids)
            if branch:
                segments.append(Segment(len(branch), trunk, fork))
                ids += branch
                positions += range(fork, fork + len(branch))
            alone = answer[both:]
            before = start + fork - 1 if fork else branch_start + len(prompt) - 1  # what predicts the first of them
            inside = branch_start if fork else branch_start + len(prompt)
            scored += [before, *range(inside, inside + len(alone) - 1)] if alone else []
            places.append([*range(known, known + both), *range(len(labels), len(labels) + len(alone))])
            labels += alone
    width = max(map(len, places))
    return PackedRow(
        tuple(segments),
        torch.tensor([ids]),
        torch.tensor([positions]),
        torch.tensor(scored),
        torch.tensor([labels]),
        torch.tensor([row + [len(labels)] * (width - len(row)) for row in places]),
    )


def common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """Count the tokens with which both begin."""
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
