"""The filter registry and contract: one file per rule.

A filter's file holds `Settings` (a frozen pydantic section: the fields a recipe may set) and
`build(settings, heldout) -> Filter`. A `Filter` is called with a list of records and answers, for each, None to keep it,
a stable reason to drop it, or `Changed` to keep another record in its place. In a run the list is a `Batch`, by which the filters
share what they cut of its texts (`texts_of`). Batches go to several processes, so its
answer may depend on nothing but the record; a filter that must know the rows before is a `Remembering`. `heldout` are
the run's own evaluation records, for the filter that needs them. A filter that needs an optional package has `check(settings)` too,
which raises `UserError` where that is not installed; it is called while planning, so it imports none of it.
"""

import functools
import importlib
import pkgutil
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from rounds.data_prep.errors import UserError, nearest
from rounds.data_prep.records import Record, answers_of, prompt_of
from rounds.data_prep.schema import FilterUse, Section
from rounds.data_prep.words import Texts


@dataclass(frozen=True, slots=True)
class Changed:
    """Keep this record, of the same id and kind, in place of the one that was asked about.

    `counts` says how often what was changed, by stable names such as `email`: for the counts, never text of the row.
    """

    record: Record
    counts: Mapping[str, int]


Verdict = str | Changed | None
_PART_WORDS = 1 << 16


@dataclass(frozen=True, slots=True)
class Remembering:
    """A filter whose answer depends on the rows before, in two halves.

    `prepare(records)` does in any process what needs no memory, mostly hashing, and returns what `decide` needs to know.
    `decide(prepared, places)` is called in the order of the rows, in one process, and answers None or a reason for each
    of these places in what was prepared: those whose rows the filters before have kept. Held-out records are for `prepare` alone.
    """

    prepare: Callable[[Sequence[Record]], Any]
    decide: Callable[[Any, Sequence[int]], Sequence[str | None]]

    def __call__(self, records: Sequence[Record]) -> Sequence[Verdict]:
        """Answer as any filter does, in this process."""
        return self.decide(self.prepare(records), range(len(records)))


Filter = Callable[[Sequence[Record]], Sequence[Verdict]]


class Batch(Sequence[Record]):
    """Records that one filter after the other is asked about, with what was cut of their texts."""

    def __init__(self, records: Sequence[Record], texts: Texts) -> None:
        self._records, self.texts = records, texts

    def __getitem__(self, place: Any) -> Any:
        """Return a record, or a batch of some of them."""
        return Batch(self._records[place], self.texts) if isinstance(place, slice) else self._records[place]

    def __len__(self) -> int:
        """Return how many records there are."""
        return len(self._records)

    def __iter__(self) -> Iterator[Record]:
        """Yield the records."""
        return iter(self._records)


def texts_of(records: Sequence[Record]) -> Texts:
    """Return what remembers how the texts of these records were cut: the batch's, or a new one."""
    return records.texts if isinstance(records, Batch) else Texts()


def in_parts(records: Sequence[Record]) -> Iterator[Sequence[Record]]:
    """Yield records in order, some `_PART_WORDS` words of theirs together: arrays of so many numbers stay in the processor's cache, and
    their memory is used again. All texts are cut at once before."""
    batch = records if isinstance(records, Batch) else Batch(records, Texts())
    texts, begins = list[str](), [0]
    for record in batch:
        texts += [turn.content for turn in prompt_of(record)]
        texts += answers_of(record)
        begins.append(len(texts))
    ends = list(accumulate(batch.texts.cut(texts).tolist(), initial=0))
    words = [ends[begin] for begin in begins]
    first = 0
    while first < len(batch):
        last = max(first + 1, bisect_right(words, words[first] + _PART_WORDS) - 1)
        yield batch[first:last]
        first = last


def names() -> list[str]:
    """List the registered filters: the files of this folder."""
    return list(_files())


@functools.cache
def _files() -> tuple[str, ...]:
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")))


def settings(use: FilterUse) -> Section:
    """Check a recipe's settings for one filter; raises pydantic's error where they are wrong.

    Raises `UserError` for an unknown filter, and for one whose optional packages are not installed.
    """
    module = _module(use.name)
    section = module.Settings.model_validate(use.settings)
    if hasattr(module, "check"):
        module.check(section)
    return section


def section(use: FilterUse) -> type[Section]:
    """Return the section that a filter's settings are checked by."""
    return _module(use.name).Settings


def build(use: FilterUse, heldout: Sequence[Record]) -> Filter:
    """Make the filter that a recipe asks for."""
    return _module(use.name).build(settings(use), heldout)


def _module(name: str):
    if name not in names():
        raise UserError(f"unknown filter {name!r}: {nearest(name, names())}")
    return importlib.import_module(f"{__name__}.{name}")
