"""Puts the rows of several sources through the filters, in one process or in several, with the same answer.

In: the files of the sources and the filters, in their orders. Out: batch by batch, in the order of the rows, what is
kept and why the rest is not. What needs no memory of other rows (reading, rendering, hashing, most filters) is done for
a batch by any process; what does, the second half of a `Remembering` filter, is done here, in the order of the rows.
"""

import multiprocessing
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rounds.data_prep import filters, records
from rounds.data_prep.errors import UserError
from rounds.data_prep.pool import in_order
from rounds.data_prep.records import Kind, Question, Record, to_prompt
from rounds.data_prep.render import to_conversation
from rounds.data_prep.schema import FilterUse
from rounds.data_prep.words import Texts, Vocabulary

Rules = Sequence[tuple[str, filters.Filter]]
# What is done here takes about an eighth of the time that the rest takes, so more processes would wait for it.
MAX_PROCESSES = 16
_BATCHES_EACH = 2  # To start a process takes as long as to put a batch through all filters.


@dataclass(frozen=True)
class Sieve:
    """The filters to put rows through, the files of held-out records that they may ask for, and the kind to make.

    Held-out records go under the recipe's own name for their set, so that what is found is counted by benchmark.
    """

    uses: Sequence[FilterUse]
    heldout: Mapping[str, Path]
    kind: Kind

    def rules(self) -> Rules:
        """Build the filters, in order."""
        heldout = [replace(each, source=name) for name, path in self.heldout.items() for each in records.read_records(path)]
        return [(use.name, filters.build(use, heldout)) for use in self.uses]

    def deciding(self) -> Rules:
        """Build the filters for `decide` alone, for which no held-out record is needed."""
        return [(use.name, filters.build(use, ())) for use in self.uses]


@dataclass(frozen=True)
class Part:
    """One batch of a source's file."""

    source: str
    path: Path
    number: int


@dataclass(frozen=True)
class Sifted:
    """What became of a batch: its rows' ids, the kept rows as the filters left them, and by place in the batch the
    filter and reason that dropped a row, or by filter the counts of what was masked in a kept one."""

    source: str
    ids: list[str]
    kept: pa.Table
    dropped: dict[int, tuple[str, str]]
    masked: dict[int, dict[str, dict[str, int]]]


@dataclass(frozen=True)
class _Step:
    """What one filter made of a batch: its answers by place, or what it prepared to decide about `places`."""

    name: str
    answers: dict[int, str | dict[str, int]] = field(default_factory=dict)
    places: list[int] | None = None
    prepared: Any = None


@dataclass(frozen=True)
class Prepared:
    """A batch after all that needs no memory of other rows; `table` holds all its rows."""

    ids: list[str]
    table: pa.Table
    steps: list[_Step]


def sift(paths: Mapping[str, Path], sieve: Sieve, processes: int = 1) -> Iterator[Sifted]:
    """Yield what becomes of each batch of the sources' files, source by source, in order.

    Where there are rows enough, batches are prepared by up to so many other processes. Raises `UserError` when one of
    them is killed.
    """
    parts = [Part(name, path, number) for name, path in paths.items() for number in range(records.batches_in(path))]
    rows = sum(pq.read_metadata(path).num_rows for path in paths.values())
    processes = min(processes, MAX_PROCESSES, rows // (_BATCHES_EACH * records.BATCH_ROWS))
    rules = sieve.rules() if processes < 2 else sieve.deciding()
    prepared = _here(parts, rules, sieve) if processes < 2 else _elsewhere(parts, sieve, processes)
    for part, batch in zip(parts, prepared, strict=True):
        yield decide(part.source, rules, batch)


def prepare(rules: Rules, table: pa.Table, rows: Sequence[Record], kind: Kind, vocabulary: Vocabulary | None = None) -> Prepared:
    """Ask each filter about the records that those before it keep, as they leave them; put off what needs memory."""
    current, standing, steps, texts = list(rows), list(range(len(rows))), [], Texts(vocabulary)
    for name, rule in rules:
        asked = filters.Batch([current[place] for place in standing], texts)
        if isinstance(rule, filters.Remembering):
            steps.append(_Step(name, places=standing, prepared=rule.prepare(asked)))
            continue
        answers: dict[int, str | dict[str, int]] = {}
        for place, answer in zip(standing, rule(asked), strict=True):
            if isinstance(answer, filters.Changed):
                assert answer.record.id == current[place].id
                current[place] = answer.record
                answers[place] = dict(answer.counts)
            elif answer is not None:
                answers[place] = answer
        standing = [place for place in standing if not isinstance(answers.get(place), str)]
        steps.append(_Step(name, answers))
    changed = any(new is not old for new, old in zip(current, rows, strict=True))
    return Prepared([each.id for each in rows], records.to_table(current, kind) if changed else table, steps)


def decide(source: str, rules: Rules, batch: Prepared) -> Sifted:
    """Let the filters that remember answer, in order, and put all answers together. Call it in the order of the rows."""
    dropped: dict[int, tuple[str, str]] = {}
    masked: dict[int, dict[str, dict[str, int]]] = {}
    for (name, rule), step in zip(rules, batch.steps, strict=True):
        answers = step.answers
        if step.places is not None:
            assert isinstance(rule, filters.Remembering)
            left = [at for at, place in enumerate(step.places) if place not in dropped]
            found = zip(left, rule.decide(step.prepared, left), strict=True)
            answers = {step.places[at]: answer for at, answer in found if answer is not None}
        for place, answer in answers.items():
            if isinstance(answer, str):
                dropped.setdefault(place, (name, answer))
            elif place not in dropped:
                masked.setdefault(place, {})[name] = answer
    kept = pa.array([place not in dropped for place in range(len(batch.ids))], pa.bool_())
    masked = {place: counts for place, counts in masked.items() if place not in dropped}
    return Sifted(source, batch.ids, _from(source, batch.table.filter(kept)), dropped, masked)


def _from(name: str, table: pa.Table) -> pa.Table:
    """Name the source as the recipe does: two files, or two splits of one set, are told apart from here on."""
    place = table.schema.get_field_index("source")
    return table.set_column(place, "source", pa.repeat(pa.scalar(name), table.num_rows))


def _read(part: Part, kind: Kind) -> tuple[pa.Table, Sequence[Record]]:
    """Return a batch as records of this kind: questions as conversations, and any record as what it asks."""
    table, rows = records.read_batch(part.path, part.number)
    if records.read_kind(part.path) == kind:
        return table, rows
    made = map(to_prompt, rows) if kind == "prompt" else (to_conversation(each) for each in rows if isinstance(each, Question))
    changed = list[Record](made)
    return records.to_table(changed, kind), changed


def _here(parts: Iterable[Part], rules: Rules, sieve: Sieve) -> Iterator[Prepared]:
    vocabulary = Vocabulary()
    for part in parts:
        yield prepare(rules, *_read(part, sieve.kind), sieve.kind, vocabulary)


def _elsewhere(parts: Iterable[Part], sieve: Sieve, processes: int) -> Iterator[Prepared]:
    """Prepare in other processes, no more batches at a time than keep them busy: a batch of results is 20 MB."""
    # Fresh processes, not forks: this one may have threads of Arrow's, which a fork would leave in any state.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, context, initializer=_start, initargs=(sieve,))
    try:
        yield from in_order(pool, _prepare, parts, ahead=processes + 2)
    except BrokenProcessPool:
        raise UserError(
            "a process of data preparation was killed, for want of memory perhaps: set `threads` of the cluster's cpu "
            "row to use fewer at a time"
        ) from None


_mine: tuple[Rules, Kind, Vocabulary] | None = None


def _start(sieve: Sieve) -> None:
    """Make this process ready for `_prepare`; it ends with the one that started it."""
    global _mine
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ["RAYON_NUM_THREADS"] = "1"  # rensa's; the processes use all cores already
    pa.set_cpu_count(1)
    _mine = sieve.rules(), sieve.kind, Vocabulary()


def _prepare(part: Part) -> Prepared:
    assert _mine
    rules, kind, vocabulary = _mine
    return prepare(rules, *_read(part, kind), kind, vocabulary)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent
    wait([parent.sentinel])
    os._exit(1)
