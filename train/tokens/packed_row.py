"""One row of tokens without padding, in segments that attention keeps apart.

`rounds.train.tokens.packed_pairs` makes such rows of preference pairs, stage `sft` of conversations;
`rounds.train.weights.packed_attention` teaches a model to run them.
"""

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
    """(2 * pairs, longest answer): where the numbers of each side stand among the scored ones; one past the end is padding. None
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
