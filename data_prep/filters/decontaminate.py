"""Drop a record that holds a held-out prompt, as it is or re-told with small edits.

In: records, and the run's held-out records. Out, with the held-out record's source, so that counts are by benchmark:

- `heldout_prompt_<source>`: the record's prompt is the held-out prompt, by its id in the set that both come from, or as
  a whole by its words, case and punctuation aside; a question in any phrasing that training asks it in;
- `overlaps_<source>`: a turn or an answer of the record tells a held-out prompt again, or a user turn is a short one.

Re-told prompts are found in two steps. Runs of `ngram` words that few held-out texts share name up to three candidates
for each text of a record. A candidate is then compared by pairs of neighbouring words, each of which counts 1 / (the
number of held-out texts with that pair), so that "comes to the physician because of" counts next to nothing; what the
two share must be `min_shared` of the smaller one, and not too little in all. Numbers count as one word whatever their
value. Choices of twice `min_words` and more are held-out
texts too; a shorter one is a fact that any text may state. System turns of
held-out records are left out: many records share them.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Annotated

import numpy as np
from pydantic import Field

from rounds.data_prep.filters import Filter
from rounds.data_prep.records import Message, Question, Record, answers_of, prompt_id, prompt_of
from rounds.data_prep.render import phrasings
from rounds.data_prep.schema import Section
from rounds.data_prep.turns import folded, normalised

_WORD = re.compile(r"\w+")
_MARKS = re.compile(r"[^\w\x00-\x7f]+")
# What stands before an option, "A." or "1)": one exam is printed with letters, another with numbers or dashes. Of MMLU's 845
# medical questions in our training phrasings 66 were not found without this, 9 with it, and none with all phrasings known.
_OPTION = re.compile(r"\n[ \t]*\(?(?:[A-Za-z]|\d{1,2})[.):][ \t]+")
# Lower-case letters stay, digits become 0, other ASCII a space; bytes of longer characters stay, as parts of words.
_TO_WORDS = bytes(
    code if code >= 128 or chr(code).islower() else 48 if chr(code).isdigit() else 32 for code in range(256)
)
# A run in more held-out texts than this is a stock phrase and names no candidate. Both are first choices that bound the
# work; scripts/bench_decontaminate was run with these values only.
_MAX_TEXTS = 20
_MAX_CANDIDATES = 3
# A held-out text of less weight than 9 (a question of about 15 words) must be shared to three quarters: at 4 in common
# one name in a template would do. At 6, 94 % of the reworded short questions of part `tuning` are found, at 9, 90 %, at
# 12, 81 %; of the 3,946 embedded training rows, which share templates on purpose, 52, 41 and 28 are dropped.
_SHORT_WEIGHT = 9.0
_SHORT_SHARE = 0.75
# The id of a prompt is a digest or the like; shorter ones are counters that two unrelated sets can share.
_MIN_ID_LENGTH = 16
_FACTOR = np.uint64(0x9E3779B97F4A7C15)


class Settings(Section):
    """What is taken for the same text; measured by scripts/bench_decontaminate."""

    # FM (design/med42-v2-facts.md section 5) takes 8; 5, because each swapped word breaks all runs over it. Not varied.
    ngram: Annotated[int, Field(ge=5)] = 5
    """Words in a run that makes two texts candidates; fewer find more edits and cost time."""
    # The longest run that GPT-3 (Brown et al. 2020, appendix C) asks for: its N is within 8 and 13. Not varied.
    min_words: Annotated[int, Field(ge=5)] = 13
    """A held-out prompt without a turn this long (or `ngram`) counts only where a user turn is it as a whole."""
    # On part `tuning`, in a prototype of the same rule: 99.4 % of re-told vignettes are found at 0.15, 99.1 % at 0.20 and
    # 97.3 % at 0.30; of 5,754 clean texts 34, 20 and 15 are dropped.
    min_shared: Annotated[float, Field(gt=0, le=1)] = 0.15
    """Smallest weighted share of word pairs in common; higher keeps more texts on the same subject, and more leaks."""
    # Same prototype, at a share of 0.15: without it 117 of the clean texts are dropped, with it 34.
    min_weight: Annotated[float, Field(ge=0)] = 4.0
    """Smallest weight of all word pairs in common: 4 pairs that no other held-out text has, or as many as come to it."""


def build(settings: Section, heldout: Sequence[Record]) -> Filter:
    """Return the filter for these held-out records; without any it keeps every record."""
    assert isinstance(settings, Settings)
    size = max(settings.ngram, settings.min_words)
    ids: dict[str, str] = {}
    prompts: dict[bytes, dict[str, tuple[str, bool]]] = {}
    texts: dict[tuple[bytes, ...], str] = {}
    for record in heldout:
        turns = _turns(prompt_of(record))
        choices = record.choices if isinstance(record, Question) else ()
        words = [tuple(_words(text)) for text in turns]
        long = [each for each in words if len(each) >= size]
        is_short = not long
        for each in (*long, *(each for each in map(tuple, map(_words, choices)) if len(each) >= 2 * size)):
            texts.setdefault(each, record.source)
        asked = phrasings(record) if isinstance(record, Question) else turns[-1:]
        for whole in (" ".join([*turns[:-1], each]) for each in asked):
            prompts.setdefault(_key(_words(whole)), {}).setdefault(_form(whole), (record.source, is_short))
        if name := _prompt_id(record):
            ids.setdefault(name, record.source)
    index = _Index.build(texts, settings) if texts else None

    def known(record: Record, words: Sequence[list[bytes]]) -> str | None:
        """Tell what the record is by id or as a whole."""
        if source := ids.get(_prompt_id(record)):
            return f"heldout_prompt_{source}"
        prompt = prompt_of(record)
        turns = _turns(prompt)
        asked = [place for place, turn in enumerate(_spoken(prompt)) if turn.role == "user"]
        keys = [_key(each) for each in words[: len(turns)]]
        for place, key in [(-1, _key(keys)), *((place, keys[place]) for place in asked if len(turns) > 1)]:
            if found := prompts.get(key):
                source, is_short = found.get(_form(" ".join(turns) if place < 0 else turns[place]), ("", False))
                if source and (is_short or place < 0):
                    return f"overlaps_{source}" if is_short else f"heldout_prompt_{source}"
        return None

    def verdicts(records: Sequence[Record]) -> list[str | None]:
        found: list[str | None] = []
        rows: list[int] = []
        codes: list[int] = []
        starts: list[int] = []
        for row, record in enumerate(records):
            prompt = prompt_of(record)
            system = [turn.content for turn in prompt if turn.role == "system"]
            words = [_words(text) for text in (*_turns(prompt), *answers_of(record), *system)]
            found.append(known(record, words))
            for each in words:
                if index and found[-1] is None and len(each) >= size:
                    rows.append(row)
                    starts.append(len(codes))
                    # 0 is a word that no held-out text has; one after each text keeps runs from crossing its end.
                    codes.extend(map(index.vocabulary.get, each, repeat(0)))
                    codes.append(0)
        best: dict[int, tuple[float, str]] = {}
        for text, share, source in index.search(codes, starts) if index else ():
            best[rows[text]] = max(best.get(rows[text], (0.0, "")), (share, source))
        for row, (_, source) in best.items():
            found[row] = f"overlaps_{source}"
        return found

    return verdicts if heldout else lambda records: [None] * len(records)


def _words(text: str) -> list[bytes]:
    """Return a text's words in lower case without punctuation and with 0 for each digit, in a few passes in C."""
    text = folded(_OPTION.sub("\n", text))
    if not text.isascii():
        text = _MARKS.sub(" ", text)
    return text.encode("utf-8", "surrogatepass").translate(_TO_WORDS).split()


def _spoken(prompt: Sequence[Message]) -> list[Message]:
    return [turn for turn in prompt if turn.role != "system"]


def _turns(prompt: Sequence[Message]) -> list[str]:
    return [turn.content for turn in prompt if turn.role != "system"]


def _key(words: Sequence[bytes]) -> bytes:
    return b" ".join(words)


def _form(text: str) -> str:
    """Return what two equal prompts share: their words with numbers as they are, or the marks of a text without words."""
    return " ".join(_WORD.findall(folded(_OPTION.sub("\n", text)))) or normalised(text)


def _prompt_id(record: Record) -> str:
    """Return the id of the record's prompt where it is one that no other set has, or nothing."""
    found = prompt_id(record)
    return found if len(found) >= _MIN_ID_LENGTH else ""


@dataclass(frozen=True)
class _Index:
    """Held-out texts by their runs of words and by their word pairs, as sorted arrays.

    `starts` and `holders` list for each run the texts that hold it; `table` answers most look-ups of runs that no text
    holds. `pairs` and `texts_with` are all word pairs and how many texts hold each; `own` is each text's part of them.
    """

    settings: Settings
    vocabulary: dict[bytes, int]
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
    def build(cls, texts: dict[tuple[bytes, ...], str], settings: Settings) -> "_Index":
        """Index texts, given as words -> source."""
        # All numbers are one word, whatever their number of digits.
        vocabulary = {b"0" * digits: 1 for digits in range(1, 40)}
        coded = [np.array([vocabulary.setdefault(w, len(vocabulary) + 2) for w in words], np.uint64) for words in texts]
        found = [np.unique(_runs(codes, settings.ngram)) for codes in coded]
        every = np.concatenate(found)
        order = np.argsort(every, kind="stable")
        runs, starts, counts = np.unique(every[order], return_index=True, return_counts=True)
        holders = np.repeat(np.arange(len(found), dtype=np.int32), [len(each) for each in found])[order]
        few = counts <= _MAX_TEXTS
        # One place in sixteen taken: a look-up of a run that no text holds goes on to the sorted array so often.
        bits = max(16, (16 * len(runs)).bit_length())
        table = np.zeros(1 << bits, bool)
        table[runs[few] >> np.uint64(64 - bits)] = True
        own_pairs = [np.unique(_runs(codes, 2)) for codes in coded]
        pairs, texts_with = np.unique(np.concatenate(own_pairs), return_counts=True)
        own = [(each, 1 / texts_with[np.searchsorted(pairs, each)]) for each in own_pairs]
        ends = np.append(starts, len(every))
        return cls(settings, vocabulary, list(texts.values()), [len(each) for each in coded], runs[few],
                   np.stack([ends[:-1][few], ends[1:][few]]), holders, table, pairs, texts_with, own)  # fmt: skip

    def search(self, texts: Sequence[int], starts: Sequence[int]) -> Iterator[tuple[int, float, str]]:
        """Yield a text's number, the share in common and the source, for each held-out text that is told again.

        `texts` are the vocabulary's numbers of all texts' words, each text followed by a 0; `starts` are their places.
        """
        if not starts:
            return
        codes, bounds = np.array(texts, np.uint64), np.array([*starts, len(texts)])
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
                yield one, share, self.sources[other]

    def _hits(self, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the places at which a run of held-out words starts, and the run's number."""
        size = self.settings.ngram
        unknown = np.concatenate([[0], np.cumsum(codes == 0)])
        at = np.flatnonzero(unknown[size:] == unknown[:-size])
        found = _runs(codes, size)[at]
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
        """Return the weighted share of word pairs in common with a held-out text, or 0 where it is too small."""
        pairs, weights = self.own[other]
        known = (codes[1:] != 0) & (codes[:-1] != 0)
        mine = np.unique(_runs(codes, 2)[known])
        place = np.minimum(np.searchsorted(pairs, mine), len(pairs) - 1)
        common = weights[place][pairs[place] == mine].sum()
        whole = weights.sum()
        if common < (_SHORT_SHARE * whole if whole < _SHORT_WEIGHT else self.settings.min_weight):
            return 0.0
        # A pair that no held-out text has counts 1, as one that a single text has.
        place = np.minimum(np.searchsorted(self.pairs, mine), len(self.pairs) - 1)
        text = np.where(self.pairs[place] == mine, 1 / self.texts_with[place], 1.0).sum() + np.sum(~known)
        share = float(common / min(whole, text))
        return share if share >= self.settings.min_shared else 0.0


def _runs(codes: np.ndarray, size: int) -> np.ndarray:
    """Hash each run of `size` words to 64 bits (a polynomial, then mixed so that the high bits depend on all words)."""
    found = np.zeros(max(0, len(codes) - size + 1), np.uint64)
    for place in range(size):
        found = (found + codes[place : len(codes) - size + 1 + place]) * _FACTOR
        found ^= found >> np.uint64(29)
    return found
