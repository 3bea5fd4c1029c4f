"""The order in which rows are trained on: seeded by the recipe, the same on one process and on forty-eight.

An epoch is a seeded shuffle of all rows, cut into global batches; the last one is filled up with the first rows of that epoch's
order, so every step is a whole global batch (ceil(rows / global batch) steps an epoch). accelerate hands out consecutive
micro-batches to the ranks in turn, so global batch k is rows k*G to (k+1)*G of this order whatever the number of ranks and the
micro-batch. Left to accelerate (`even_batches`), an incomplete last batch would be filled up differently at each world size.
"""

import math
from collections.abc import Callable, Iterator

import torch
from torch.utils.data import Sampler

Arrange = Callable[[list[int]], list[int]]
"""Takes the rows of one global batch and returns them in another order: `micro_batch_size` rows at a time go to rank 0, 1, ..
and round again. What is put together changes no loss, only how much is padding."""


class GlobalBatches(Sampler[int]):
    """Row numbers of one epoch after the other; `set_epoch`, called by accelerate and Trainer, chooses the epoch."""

    def __init__(self, rows: int, global_batch_size: int, seed: int, arrange: Arrange | None = None) -> None:
        self.rows, self.global_batch_size, self.seed, self.arrange = rows, global_batch_size, seed, arrange
        self.epoch = 0
        self._known: tuple[int, list[int]] = -1, []

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, from 0, whose order comes next."""
        self.epoch = epoch

    def __len__(self) -> int:
        return steps_per_epoch(self.rows, self.global_batch_size) * self.global_batch_size

    def __iter__(self) -> Iterator[int]:
        whole = self._whole(self.epoch)
        for start in range(0, len(whole), self.global_batch_size):
            batch = whole[start : start + self.global_batch_size]
            yield from self.arrange(batch) if self.arrange else batch

    def batch(self, step: int) -> list[int]:
        """Return the rows of an optimizer step, counted from 0 over all epochs, as they come before `arrange`."""
        epoch, place = divmod(step, steps_per_epoch(self.rows, self.global_batch_size))
        if self._known[0] != epoch:
            self._known = epoch, self._whole(epoch)
        start = place * self.global_batch_size
        return self._known[1][start : start + self.global_batch_size]

    def _whole(self, epoch: int) -> list[int]:
        order = torch.randperm(self.rows, generator=_generator(self.seed, epoch)).tolist()
        times = math.ceil(len(self) / self.rows)  # a set smaller than one batch goes round more than once
        return (order * times)[: len(self)]


def steps_per_epoch(rows: int, global_batch_size: int) -> int:
    """Return the optimizer steps of one pass over the rows."""
    return math.ceil(rows / global_batch_size)


def _generator(seed: int, epoch: int) -> torch.Generator:
    # Both numbers matter: with seed + epoch, the second epoch of seed 0 would be the first of seed 1.
    return torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
