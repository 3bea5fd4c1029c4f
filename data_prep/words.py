"""The words of many texts, cut once for all that ask for them.

In: texts, and a rule that makes words of a text. Out: the words as numbers into a list of the distinct ones, text after text. Arrow
cuts a text at its white space once; a rule is asked about each distinct piece once, not about each place or batch where it stands,
so what follows is arithmetic on arrays. A rule may therefore not look across white space: its words of a text are
those of the text's pieces, one after the other.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:  # planning loads filters and has no use for either
    import numpy as np

Word = TypeVar("Word", bound=Hashable)
# Four rules' words of as many pieces take some 40 MB in a process. A batch of 4,096 rows of the usual length has 20 to 60 thousand.
_MOST_PIECES = 1 << 16
_PART = 1 << 14


@dataclass(slots=True)
class _Table(Generic[Word]):
    """What one rule makes of each piece: piece i has the words `numbers[begins[i] : begins[i + 1]]`; `values` is what was told of words."""

    numbers: np.ndarray
    begins: np.ndarray
    known: dict[Word, int] = field(default_factory=dict)
    distinct: list[Word] = field(default_factory=list)
    values: dict[Callable[[Word], int], np.ndarray] = field(default_factory=dict)

    def add(self, pieces: Sequence[str], rule: Callable[[str], Sequence[Word]]) -> None:
        """Take up further pieces."""
        import numpy as np

        numbers, ends, known, distinct, before = list[int](), list[int](), self.known, self.distinct, len(self.numbers)
        for piece in pieces:
            for word in rule(piece):
                number = known.setdefault(word, len(distinct))
                if number == len(distinct):
                    distinct.append(word)
                numbers.append(number)
            ends.append(before + len(numbers))
        self.numbers = np.concatenate([self.numbers, np.array(numbers, np.int32)])
        self.begins = np.concatenate([self.begins, np.array(ends, np.int32)])


@dataclass(frozen=True, slots=True)
class Words(Generic[Word]):
    """Words of texts: text i has `numbers[starts[i] : starts[i + 1]]`, each the place of a word in `distinct`, which may hold more."""

    numbers: np.ndarray
    starts: np.ndarray
    _table: _Table[Word]

    @property
    def distinct(self) -> Sequence[Word]:
        """Return all words that the rule has made so far."""
        return self._table.distinct

    def of(self, text: int) -> list[Word]:
        """Return the words of one text."""
        distinct = self.distinct
        return [distinct[number] for number in self.numbers[self.starts[text] : self.starts[text + 1]].tolist()]

    def length(self, text: int) -> int:
        """Return how many words a text has."""
        return int(self.starts[text + 1] - self.starts[text])

    def shapes(self) -> list[tuple[int, Word | None, Word | None]]:
        """Return of each text how many words it has, its first word and its last one."""
        import numpy as np

        lengths, distinct = np.diff(self.starts).tolist(), self.distinct
        first, last = (np.append(self.numbers, 0)[each].tolist() for each in (self.starts[:-1], self.starts[1:] - 1))
        ends = zip(lengths, first, last, strict=True)
        return [(length, distinct[one], distinct[other]) if length else (0, None, None) for length, one, other in ends]

    def values(self, measure: Callable[[Word], int]) -> np.ndarray:
        """Return what `measure` says of each distinct word, 64 bits; it is asked once a word, as long as pieces are remembered."""
        import numpy as np

        found = self._table.values.get(measure, np.zeros(0, np.uint64))
        if len(found) < len(self.distinct):
            new = self.distinct[len(found) :]
            found = self._table.values[measure] = np.concatenate([found, np.fromiter(map(measure, new), np.uint64, len(new))])
        return found


class Vocabulary:
    """The distinct pieces of the texts so far, and what rules and measures made of them; begun anew where they are too many."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget all pieces."""
        self.pieces: dict[str, int] = {}
        self._listed: list[str] = []
        self._tables: dict[Callable, _Table] = {}
        self._measured: dict[Callable, np.ndarray] = {}

    def number(self, pieces: Sequence[str]) -> np.ndarray:
        """Return the numbers of pieces."""
        import numpy as np

        known = self.pieces
        numbers = np.fromiter((known.setdefault(piece, len(known)) for piece in pieces), np.int32, len(pieces))
        self._listed.extend(itertools.islice(known, len(self._listed), None))
        return numbers

    def table(self, rule: Callable[[str], Sequence[Word]]) -> _Table[Word]:
        """Return what a rule makes of each piece."""
        import numpy as np

        if rule not in self._tables:
            self._tables[rule] = _Table(np.zeros(0, np.int32), np.zeros(1, np.int32))
        table = self._tables[rule]
        if len(table.begins) <= len(self._listed):
            table.add(self._listed[len(table.begins) - 1 :], rule)
        return table

    def measured(self, measure: Callable[[str], int]) -> np.ndarray:
        """Return what is told of each piece."""
        import numpy as np

        found = self._measured.get(measure, np.zeros(0, np.int64))
        new = self._listed[len(found) :]
        found = self._measured[measure] = np.concatenate([found, np.fromiter(map(measure, new), np.int64, len(new))])
        return found


class Texts:
    """Remembers how texts were cut, for one batch of rows; the vocabulary, which is shared by batches, remembers their pieces."""

    def __init__(self, vocabulary: Vocabulary | None = None) -> None:
        import numpy as np

        self._vocabulary = vocabulary or Vocabulary()
        if len(self._vocabulary.pieces) > _MOST_PIECES:
            self._vocabulary.clear()
        self._known: dict[str, int] = {}
        self._starts, self._cut = np.zeros(1, np.int64), np.zeros(0, np.int32)

    def cut(self, texts: Sequence[str]) -> np.ndarray:
        """Cut texts, all at once where they are new, and return how many pieces each has."""
        numbers = self._numbers(texts)
        return self._starts[numbers + 1] - self._starts[numbers]

    def words(self, texts: Sequence[str], rule: Callable[[str], Sequence[Word]]) -> Words[Word]:
        """Return the words that `rule` makes of each text."""
        import numpy as np

        pieces, starts = self._pieces_of(texts)
        table = self._vocabulary.table(rule)
        if len(table.numbers) == len(table.begins) - 1 and (np.diff(table.begins) == 1).all():
            return Words(table.numbers[pieces], starts, table)
        count = np.diff(table.begins)[pieces]
        ends = np.zeros(len(count) + 1, np.int64)
        np.cumsum(count, out=ends[1:])
        inside = np.repeat(table.begins[:-1][pieces] - ends[:-1], count)
        inside += np.arange(len(inside))
        return Words(table.numbers[inside], ends[starts], table)

    def sums(self, texts: Sequence[str], measure: Callable[[str], int]) -> list[int]:
        """Return for each text the sum of what `measure` says of its pieces."""
        import numpy as np

        pieces, starts = self._pieces_of(texts)
        values = self._vocabulary.measured(measure)
        return np.diff(np.concatenate([np.zeros(1, np.int64), np.cumsum(values[pieces])])[starts]).tolist()

    def _pieces_of(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return the numbers of all texts' pieces, and where each text's start."""
        import numpy as np

        numbers = self._numbers(texts)
        begins = self._starts[numbers]
        lengths = self._starts[numbers + 1] - begins
        starts = np.zeros(len(numbers) + 1, np.int64)
        np.cumsum(lengths, out=starts[1:])
        if (np.diff(numbers) == 1).all():
            first = int(begins[0]) if len(begins) else 0
            return self._cut[first : first + int(starts[-1])], starts
        places = np.repeat(begins - starts[:-1], lengths)
        places += np.arange(len(places))
        return self._cut[places], starts

    def _numbers(self, texts: Sequence[str]) -> np.ndarray:
        """Return the numbers of texts among those that were cut; new ones are."""
        import numpy as np

        known = self._known
        try:
            return np.fromiter(map(known.__getitem__, texts), np.int64, len(texts))
        except KeyError:
            self._add([text for text in dict.fromkeys(texts) if text not in known])
        return np.fromiter(map(known.__getitem__, texts), np.int64, len(texts))

    def _add(self, texts: Sequence[str]) -> None:
        import numpy as np

        pieces, starts, distinct = _cut(texts)
        pieces = self._vocabulary.number(distinct)[pieces]
        self._cut = np.concatenate([self._cut, pieces]) if len(self._cut) else pieces
        self._starts = np.concatenate([self._starts, self._starts[-1] + starts[1:]])
        self._known.update(zip(texts, range(len(self._known), len(self._known) + len(texts)), strict=True))


def runs_of(codes: np.ndarray, size: int) -> np.ndarray:
    """Hash each run of `size` numbers to 64 bits (a polynomial, then mixed so that the high bits depend on all of them)."""
    import numpy as np

    found = np.zeros(max(0, len(codes) - size + 1), np.uint64)
    factor, shift = np.uint64(0x9E3779B97F4A7C15), np.uint64(29)
    # Part by part, so that what is multiplied stays in the processor's cache.
    for start in range(0, len(found), _PART):
        part = found[start : start + _PART]
        mixed = np.empty_like(part)
        for place in range(start, start + size):
            part += codes[place : place + len(part)]
            part *= factor
            np.right_shift(part, shift, out=mixed)
            part ^= mixed
    return found


def _cut(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Cut texts at white space: numbers of the pieces, where each text's start, and the distinct pieces."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    try:
        lists = pc.call_function("ascii_split_whitespace", [pa.array(texts, pa.string())])
    except UnicodeEncodeError:  # a lone surrogate, which Arrow does not hold
        lists = None
    if lists is not None:
        encoded = lists.values.dictionary_encode()
        return encoded.indices.to_numpy(), lists.offsets.to_numpy().astype(np.int64), encoded.dictionary.to_pylist()
    pieces: dict[str, int] = {}
    cut = [[pieces.setdefault(piece, len(pieces)) for piece in text.split()] for text in texts]
    starts = np.concatenate([[0], np.cumsum([len(each) for each in cut])])
    return np.array([number for each in cut for number in each], np.int32), starts, list(pieces)
