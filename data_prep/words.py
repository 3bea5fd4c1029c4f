"""The words of many texts, cut once for all that ask for them.

In: texts, and a rule that makes words of a text. Out: the words as numbers into a list of the distinct ones, text after text. Arrow
cuts a text at its white space once; a rule is asked about each distinct piece once, not about each place where it stands, so
what follows is arithmetic on arrays. A rule may therefore not look across white space: its words of a text are
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


@dataclass(frozen=True, slots=True)
class Words(Generic[Word]):
    """Words of texts: text i has `numbers[starts[i] : starts[i + 1]]`, each the place of a word in `distinct`."""

    numbers: np.ndarray
    starts: np.ndarray
    distinct: Sequence[Word]

    def of(self, text: int) -> list[Word]:
        """Return the words of one text."""
        return [self.distinct[number] for number in self.numbers[self.starts[text] : self.starts[text + 1]].tolist()]

    def length(self, text: int) -> int:
        """Return how many words a text has."""
        return int(self.starts[text + 1] - self.starts[text])

    def shapes(self) -> list[tuple[int, Word | None, Word | None]]:
        """Return of each text how many words it has, its first word and its last one."""
        import numpy as np

        lengths, words = np.diff(self.starts), [*self.distinct, None]
        ends = [np.append(self.numbers, 0)[each] for each in (self.starts[:-1], self.starts[1:] - 1)]
        first, last = (np.where(lengths, each, len(self.distinct)).tolist() for each in ends)
        return [(length, words[one], words[other]) for length, one, other in zip(lengths.tolist(), first, last, strict=True)]


@dataclass(slots=True)
class _Table(Generic[Word]):
    """What a rule makes of each piece: piece i has the words `numbers[begins[i] : begins[i + 1]]`."""

    distinct: dict[Word, int] = field(default_factory=dict)
    numbers: list[int] = field(default_factory=list)
    begins: list[int] = field(default_factory=lambda: [0])


class Texts:
    """Remembers how texts were cut and what became of their pieces; for one batch of rows, then to be dropped."""

    def __init__(self) -> None:
        self._bounds: dict[str, tuple[int, int]] = {}
        self._cut: list[np.ndarray] = []
        self._length = 0
        self._pieces: dict[str, int] = {}
        self._tables: dict[Callable, _Table] = {}

    def words(self, texts: Sequence[str], rule: Callable[[str], Sequence[Word]]) -> Words[Word]:
        """Return the words that `rule` makes of each text."""
        import numpy as np

        pieces, starts = self._pieces_of(texts)
        table = self._table(rule)
        flat, begins = np.array(table.numbers, np.int32), np.array(table.begins)
        begin, count = begins[:-1][pieces], np.diff(begins)[pieces]
        ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(count)])
        inside = np.repeat(begin - ends[:-1], count)
        inside += np.arange(len(inside))
        return Words(flat[inside], ends[starts], list(table.distinct))

    def sums(self, texts: Sequence[str], measure: Callable[[str], int]) -> list[int]:
        """Return for each text the sum of what `measure` says of its pieces."""
        import numpy as np

        pieces, starts = self._pieces_of(texts)
        values = np.fromiter(map(measure, self._pieces), np.int64, len(self._pieces))
        return np.diff(np.concatenate([np.zeros(1, np.int64), np.cumsum(values[pieces])])[starts]).tolist()

    def _pieces_of(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return the numbers of all texts' pieces, and where each text's start."""
        import numpy as np

        if new := [text for text in dict.fromkeys(texts) if text not in self._bounds]:
            self._add(new)
        bounds = np.array([self._bounds[text] for text in texts], np.int64).reshape(-1, 2)
        lengths = bounds[:, 1] - bounds[:, 0]
        starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        if len(self._cut) > 1:
            self._cut = [np.concatenate(self._cut)]
        if np.array_equal(bounds[1:, 0], bounds[:-1, 1]):
            first = int(bounds[0, 0]) if len(bounds) else 0
            return (self._cut[0] if self._cut else np.zeros(0, np.int32))[first : first + int(starts[-1])], starts
        places = np.repeat(bounds[:, 0] - starts[:-1], lengths)
        places += np.arange(len(places))
        return self._cut[0][places], starts

    def _add(self, texts: Sequence[str]) -> None:
        import numpy as np

        numbers, starts, distinct = _cut(texts)
        known = np.fromiter((self._pieces.setdefault(piece, len(self._pieces)) for piece in distinct), np.int32, len(distinct))
        self._cut.append(known[numbers])
        starts += self._length
        self._length = int(starts[-1])
        ends = starts.tolist()
        self._bounds.update(zip(texts, itertools.pairwise(ends), strict=True))

    def _table(self, rule: Callable) -> _Table:
        table = self._tables.setdefault(rule, _Table())
        distinct, numbers, begins = table.distinct, table.numbers, table.begins
        for piece in list(self._pieces)[len(begins) - 1 :]:
            for word in rule(piece):
                numbers.append(distinct.setdefault(word, len(distinct)))
            begins.append(len(numbers))
        return table


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
