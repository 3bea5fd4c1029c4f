"""Held-out texts in numbers, and the search for what tells one of them again: the arithmetic of `decontaminate`.

In: texts as words, and the numbers of other texts' words. Out: which of these tell which held-out text again, and how much of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rounds.data_prep.words import Words, runs_of

if TYPE_CHECKING:
    from rounds.data_prep.filters.decontaminate import Settings

# A run in more held-out texts than this is a stock phrase and names no candidate. Both are first choices that bound the
# work; scripts/bench_decontaminate was run with these values only.
_MAX_TEXTS = 20
_MAX_CANDIDATES = 3
# A held-out text of less weight than 9 (a question of about 15 words) must be shared to three quarters: at 4 in common
# one name in a template would do. At 6, 94 % of the reworded short questions of part `tuning` are found, at 9, 90 %, at
# 12, 81 %; of the 3,946 embedded training rows, which share templates on purpose, 52, 41 and 28 are dropped.
_SHORT_WEIGHT = 9.0
_SHORT_SHARE = 0.75


@dataclass(frozen=True)
class RunIndex:
    """Held-out texts by their runs of words and by their word pairs, as sorted arrays.

    `number` is a word's number, 0 where no held-out text has it. `starts` and `holders` list for each run the texts that hold it;
    `table` answers most look-ups of runs that no text holds. `pairs` and `texts_with` are all word pairs and how many texts hold each;
    `own` is each text's part of them.
    """

    settings: Settings
    number: Callable[[bytes], int]
    sources: list[str]
    lengths: list[int]
    runs: np.ndarray
    starts: np.ndarray
    holders: np.ndarray
    table: np.ndarray
    pairs: np.ndarray
    texts_with: np.ndarray
    own: list[tuple[np.ndarray, np.ndarray]]

    @classmethod
    def build(cls, texts: dict[tuple[bytes, ...], str], settings: Settings) -> RunIndex:
        """Index texts, given as words -> source."""
        # All numbers are one word, whatever their number of digits.
        vocabulary = {b"0" * digits: 1 for digits in range(1, 40)}
        coded = [np.array([vocabulary.setdefault(w, len(vocabulary) + 2) for w in words], np.uint64) for words in texts]
        every, holders = _each_once(coded, settings.ngram)
        runs, starts, counts = np.unique(every, return_index=True, return_counts=True)
        few = counts <= _MAX_TEXTS
        # One place in sixteen taken: a look-up of a run that no text holds goes on to the sorted array so often.
        bits = max(16, (16 * len(runs)).bit_length())
        table = np.zeros(1 << bits, bool)
        table[runs[few] >> np.uint64(64 - bits)] = True
        found, texts_of = _each_once(coded, 2)
        pairs, place, texts_with = np.unique(found, return_inverse=True, return_counts=True)
        by_text = np.argsort(texts_of, kind="stable")
        bounds = np.searchsorted(texts_of[by_text], np.arange(1, len(coded)))
        weights = 1 / texts_with[place[by_text]]
        own = list(zip(np.split(found[by_text], bounds), np.split(weights, bounds), strict=True))
        ends = np.append(starts, len(every))
        return cls(
            settings,
            lambda word: vocabulary.get(word, 0),
            list(texts.values()),
            [len(each) for each in coded],
            runs[few],
            np.stack([ends[:-1][few], ends[1:][few]]),
            holders,
            table,
            pairs,
            texts_with,
            own,
        )

    def search(self, words: Words[bytes], chosen: Sequence[int]) -> Iterator[tuple[int, float, str]]:
        """Yield a text's number, the share in common and the source, for each held-out text that one of the chosen tells again."""
        if not chosen:
            return
        codes, bounds = self._coded(words, np.array(chosen))
        at, run = self._hits(codes)
        text = np.searchsorted(bounds, at, side="right") - 1
        counts = (self.starts[1] - self.starts[0])[run]
        at, text, weight = np.repeat(at, counts), np.repeat(text, counts), np.repeat(1 / counts, counts)
        inside = np.arange(len(at)) - np.repeat(np.cumsum(counts) - counts, counts)
        holder = self.holders[np.repeat(self.starts[0][run], counts) + inside]
        order = np.lexsort((at, holder, text))
        at, text, holder, weight = at[order], text[order], holder[order], weight[order]
        first = np.flatnonzero(np.diff(text, prepend=-1) | np.diff(holder, prepend=-1))
        last = np.append(first[1:], len(at))
        heaviest = np.lexsort((holder[first], -np.add.reduceat(weight, first), text[first])) if len(first) else first
        rank = np.arange(len(first)) - np.searchsorted(text[first][heaviest], text[first][heaviest])
        for pair in heaviest[rank < _MAX_CANDIDATES]:
            one, other = int(text[first[pair]]), int(holder[first[pair]])
            near = self._near(at[first[pair] : last[pair]], self.lengths[other], bounds[one], bounds[one + 1] - 1)
            if share := self._shared(codes[near], other):
                yield chosen[one], share, self.sources[other]

    def _coded(self, words: Words[bytes], chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the vocabulary's numbers of the chosen texts' words, and where each text's begin.

        0 is a word that no held-out text has; one after each text keeps runs from crossing its end.
        """
        number = words.values(self.number)
        lengths = np.diff(words.starts)[chosen]
        before = np.cumsum(lengths) - lengths
        bounds = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths + 1)])
        every = np.arange(lengths.sum())
        codes = np.zeros(bounds[-1], np.uint64)
        codes[every + np.repeat(bounds[:-1] - before, lengths)] = number[
            words.numbers[every + np.repeat(words.starts[chosen] - before, lengths)]
        ]
        return codes, bounds

    def _hits(self, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the places at which a run of held-out words starts, and the run's number."""
        size = self.settings.ngram
        unknown = np.concatenate([[0], np.cumsum(codes == 0)])
        at = np.flatnonzero(unknown[size:] == unknown[:-size])
        found = runs_of(codes, size)[at]
        at = at[likely := self.table[found >> np.uint64(65 - len(self.table).bit_length())]]
        found = found[likely]
        run = np.minimum(np.searchsorted(self.runs, found), len(self.runs) - 1)
        sure = self.runs[run] == found if len(self.runs) else np.zeros(len(found), bool)
        return at[sure], run[sure]

    def _near(self, at: np.ndarray, length: int, low: int, high: int) -> slice:
        """Return the part of a text, twice as long as the held-out text, around where most runs are in common."""
        start = at[np.argmax(np.searchsorted(at, at + length) - np.arange(len(at)))]
        return slice(max(low, start - length // 2), min(high, start + length + length // 2))

    def _shared(self, codes: np.ndarray, other: int) -> float:
        """Return the weighted share of word pairs in common with a held-out text, or 0 where it is too small.

        It is counted twice, the second time by the squares of the weights: what is in common must not be what a few held-out texts share,
        such as a list of laboratory values, which has no pair of its own.
        """
        pairs, weights = self.own[other]
        known = (codes[1:] != 0) & (codes[:-1] != 0)
        mine = np.unique(runs_of(codes, 2)[known])
        place = np.minimum(np.searchsorted(pairs, mine), len(pairs) - 1)
        shared = weights[place][pairs[place] == mine]
        common, whole = shared.sum(), weights.sum()
        if common < (_SHORT_SHARE * whole if whole < _SHORT_WEIGHT else self.settings.min_weight):
            return 0.0
        # A pair that no held-out text has counts 1, as one that a single text has.
        place = np.minimum(np.searchsorted(self.pairs, mine), len(self.pairs) - 1)
        own, unknown = np.where(self.pairs[place] == mine, 1 / self.texts_with[place], 1.0), np.sum(~known)
        by_weight = common / min(whole, own.sum() + unknown)
        by_square = (shared**2).sum() / min((weights**2).sum(), (own**2).sum() + unknown)
        share = float(min(by_weight, by_square))
        return share if share >= self.settings.min_shared else 0.0


def _each_once(texts: Sequence[np.ndarray], size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the hashed runs of all texts in order, a text's own once, and by whose number they are the texts'."""
    lengths = np.array([len(each) for each in texts], np.int64)
    found = runs_of(np.concatenate(texts), size)
    owner = np.repeat(np.arange(len(texts), dtype=np.int32), lengths)
    inside = np.flatnonzero(owner[: len(found)] == owner[size - 1 :][: len(found)])
    order = inside[np.lexsort((owner[inside], found[inside]))]
    found, owner = found[order], owner[order]
    new = np.ones(len(found), bool)
    new[1:] = (found[1:] != found[:-1]) | (owner[1:] != owner[:-1])
    return found[new], owner[new]
