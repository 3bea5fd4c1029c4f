"""Drop a record whose words are nearly those of an earlier one.

In: records. Out: `near_duplicate` for a record whose prompt and answers share `jaccard` of their runs of words with an
earlier record that was kept. MinHash signatures (rensa) cut into bands name the earlier records that may be alike;
each of them is then compared by the real Jaccard similarity of the sets of runs. The two answers of a pair do not count
for each other, so that a pair and its reverse are not alike; what is known of a prompt's answer does not count.

Memory: 260 bytes for each kept record (21 bands of 12 bytes and a place in the file), and for moments three times that while
sorted arrays are joined. The runs themselves, 4 bytes each and about 1.6 kB for a record of 540 tokens, are in a
nameless temporary file (set TMPDIR to choose the disk).
"""

import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain
from typing import Annotated
from zlib import crc32

import numpy as np
from pydantic import Field
from rensa import RMinHash  # pyright: ignore[reportAttributeAccessIssue]  # a compiled module without stubs

from rounds.data_prep.filters import Filter, Remembering, in_parts, texts_of
from rounds.data_prep.records import Prompt, Record, answers_of, prompt_of
from rounds.data_prep.schema import Between, Section
from rounds.data_prep.turns import folded
from rounds.data_prep.words import Words, runs_of

# Lower-case letters, digits and the bytes of longer characters make words; the rest stands between them.
_TO_WORDS = bytes(code if code >= 128 or chr(code).isdigit() or chr(code).islower() else 32 for code in range(256))
# 21 bands of 6: of two records alike to 0.8, 99.8 % meet in a band (1 - (1 - 0.8^6)^21); of two alike to 0.5, 28 %.
_BANDS, _ROWS = 21, 6
_SEED = 42
# Candidates a band may name: our choice, to bound the work where thousands of rows share a template. Such rows meet in other
# bands too, and one kept row that is alike is enough.
_MOST = 64
_FACTOR = np.uint64(0x9E3779B97F4A7C15)


class Settings(Section):
    """How alike two records must be."""

    # 0.8 and runs of 5 words: the usual choice for text (Lee et al. 2022, "Deduplicating training data makes language
    # models better", take runs of 5 words and an edit similarity of 0.8), and what MedQuAD was counted with.
    jaccard: Annotated[float, Field(ge=0.5, le=1)] = 0.8
    """Smallest share of runs of words in common; below 0.7 the bands miss more and more."""
    run_words: Annotated[int, Between(1, 100, "longer runs are only in copies")] = 5
    """Words in a run; fewer make texts on one subject look alike."""


def build(settings: Section, heldout: Sequence[Record]) -> Filter:
    """Return a filter that remembers each record it has kept."""
    assert isinstance(settings, Settings)
    seen, kept = _Buckets(), _Runs()

    def decide(prepared: _Prepared, places: Sequence[int]) -> list[str | None]:
        bands = prepared.bands[list(places)]
        earlier, again = seen.find(bands), _repeated(bands)
        batch: dict[int, list[int]] = {}
        found: list[str | None] = []
        for row, place in enumerate(places):
            mine = prepared.runs[prepared.offsets[place] : prepared.offsets[place + 1]]
            keys = again.get(row, ())
            near = dict.fromkeys(chain(earlier.get(row, ()), *(batch.get(key, ()) for key in keys)))
            once = np.unique(mine) if near else mine
            if any(kept.alike(once, other, settings.jaccard) for other in near):
                found.append("near_duplicate")
                continue
            found.append(None)
            number = kept.add(mine)
            for key in keys:
                if len(others := batch.setdefault(key, [])) < _MOST:
                    others.append(number)
        seen.add(bands[np.array([reason is None for reason in found], bool)])
        return found

    return Remembering(lambda records: _prepare(records, settings.run_words), decide)


@dataclass(frozen=True, slots=True)
class _Prepared:
    """For each record the keys of its bands, and its runs as they stand in it: those from one offset to the next."""

    bands: np.ndarray
    runs: np.ndarray
    offsets: np.ndarray


def _prepare(records: Sequence[Record], run_words: int) -> _Prepared:
    bands, every, counts = [np.zeros((0, _BANDS), np.uint64)], [np.zeros(0, np.uint32)], [np.zeros(1, np.int64)]
    for part in in_parts(records):
        runs, offsets = _hashed(part, run_words)
        bands.append(_bands(runs, offsets))
        every.append(runs.astype(np.uint32))
        counts.append(np.diff(offsets))
    return _Prepared(np.concatenate(bands), np.concatenate(every), np.cumsum(np.concatenate(counts)))


def _hashed(records: Sequence[Record], size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the hashed runs of all records, and where each record's begin. A short part is one run."""
    texts: list[str] = []
    ends, kinds, owned = [0], list[int](), [0]
    for record in records:
        texts += [turn.content for turn in prompt_of(record) if turn.role != "system"]
        ends.append(len(texts))
        answers = () if isinstance(record, Prompt) else answers_of(record)
        texts += answers
        ends += range(len(texts) - len(answers) + 1, len(texts) + 1)
        kinds += range(len(answers) + 1)
        owned.append(len(kinds))
    words = texts_of(records).words(texts, words_of)
    flat, bounds = _padded(_codes(words, kinds, ends), words.starts[ends], np.array(kinds, np.uint64), size)
    runs = runs_of(flat, size)
    inside = np.ones(len(runs), bool)
    crossing = bounds[1:-1, None] - np.arange(1, size)
    inside[crossing[crossing >= 0]] = False
    before = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.diff(bounds) - size + 1)])
    return runs[inside], before[owned]


def words_of(text: str) -> list[bytes]:
    """Return a text's words in lower case without punctuation."""
    return folded(text).encode("utf-8", "surrogatepass").translate(_TO_WORDS).split()


def _codes(words: Words[bytes], kinds: Sequence[int], ends: Sequence[int]) -> np.ndarray:
    """Hash each word by the part that it stands in, 0 the prompt, from 1 the answers; `ends` are the parts', in texts."""
    codes = np.concatenate([words.values(_hash_in(kind)) for kind in range(max(kinds, default=0) + 1)])
    place = np.repeat(np.array(kinds, np.int32) * np.int32(len(words.distinct)), np.diff(words.starts[ends]))
    place += words.numbers
    return codes[place]


@cache
def _hash_in(kind: int) -> Callable[[bytes], int]:
    """Return the hash of a word in parts of a kind."""
    return lambda word: crc32(word, kind)


def _padded(codes: np.ndarray, starts: np.ndarray, fill: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return codes of parts, filled up where a part is shorter than `size`, and where the parts start then."""
    lengths = np.diff(starts)
    full = np.maximum(lengths, size)
    bounds = np.concatenate([np.zeros(1, np.int64), np.cumsum(full)])
    if (lengths == full).all():
        return codes, bounds
    flat = np.repeat(fill, full)
    flat[np.arange(len(codes)) + np.repeat(bounds[:-1] - starts[:-1], lengths)] = codes
    return flat, bounds


def _bands(runs: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Return a key for each band of each record's signature; the same in two records where the band is."""
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(runs, offsets.astype(np.uint64), _BANDS * _ROWS, _SEED)
    count = (len(offsets) - 1) * _BANDS * _ROWS
    digests = np.fromiter(chain.from_iterable(matrix.to_rows()), np.uint64, count).reshape(-1, _BANDS, _ROWS)
    keys = np.tile(np.arange(1, _BANDS + 1, dtype=np.uint64), (len(digests), 1))
    for place in range(_ROWS):
        keys = (keys + digests[:, :, place]) * _FACTOR
        keys ^= keys >> np.uint64(29)
    return keys


def _repeated(bands: np.ndarray) -> dict[int, list[int]]:
    """Return for each row its keys that stand in these bands more than once; rows that have none are left out."""
    ordered = np.sort(bands, axis=None)
    again = ordered[1:][ordered[1:] == ordered[:-1]]
    if not len(again):
        return {}
    rows, columns = np.nonzero(again[np.minimum(np.searchsorted(again, bands), len(again) - 1)] == bands)
    found: dict[int, list[int]] = {}
    for row, key in zip(rows.tolist(), bands[rows, columns].tolist(), strict=True):
        found.setdefault(row, []).append(key)
    return found


class _Runs:
    """The runs of kept records, in a file: read back only for a record that may be a duplicate."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the filter
        self._ends = np.zeros(1 << 12, np.int64)
        self._count, self._is_at_end = 0, True

    def add(self, runs: np.ndarray) -> int:
        """Keep a record's runs and return its place."""
        if self._count + 1 == len(self._ends):
            self._ends = np.concatenate([self._ends, np.zeros_like(self._ends)])
        if not self._is_at_end:
            self._file.seek(0, 2)
            self._is_at_end = True
        self._file.write(runs.tobytes())
        self._count += 1
        self._ends[self._count] = self._ends[self._count - 1] + runs.nbytes
        return self._count - 1

    def alike(self, runs: np.ndarray, place: int, jaccard: float) -> bool:
        """Tell whether a record, its runs sorted and each once, is as much like a kept one."""
        start, end = map(int, self._ends[place : place + 2])
        if (end - start) // runs.itemsize < jaccard * len(runs):
            return False
        self._file.seek(start)
        self._is_at_end = False
        # Sorted here and not for every row: few are ever compared.
        other = np.unique(np.frombuffer(self._file.read(end - start), np.uint32))
        sizes = len(runs), len(other)
        if min(sizes) < jaccard * max(sizes):
            return False
        common = np.count_nonzero(other[np.minimum(np.searchsorted(other, runs), len(other) - 1)] == runs)
        return bool(common >= jaccard * (sum(sizes) - common))


class _Buckets:
    """Which kept records have a band's key: sorted arrays, each at least twice as long as the next."""

    def __init__(self) -> None:
        self._levels: list[tuple[np.ndarray, np.ndarray]] = []
        self._count = 0

    def add(self, bands: np.ndarray) -> None:
        """Add the keys of further records, which get the next places."""
        places = np.repeat(np.arange(self._count, self._count + len(bands), dtype=np.int32), bands.shape[1])
        self._count += len(bands)
        level = _sorted(bands.reshape(-1), places)
        while self._levels and len(self._levels[-1][0]) < 2 * len(level[0]):
            keys, older = self._levels.pop()
            level = _sorted(np.concatenate([keys, level[0]]), np.concatenate([older, level[1]]))
        self._levels.append(level)

    def find(self, bands: np.ndarray) -> dict[int, Iterable[int]]:
        """Return for each row the places, in order, of records that share a key with it; at most `_MOST` a key."""
        found: list[np.ndarray] = []
        # Sorted look-ups go through a long array once: 15 s in place of 132 for 1.3 million rows.
        order = np.argsort(bands, axis=None)
        wanted = bands.reshape(-1)[order]
        for keys, places in self._levels:
            first = np.searchsorted(keys, wanted)
            hit = np.flatnonzero(keys[np.minimum(first, len(keys) - 1)] == wanted) if len(keys) else first[:0]
            first = first[hit]
            count = np.minimum(np.searchsorted(keys, wanted[hit], side="right") - first, _MOST)
            inside = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
            rows = np.repeat(order[hit] // bands.shape[1], count)
            found.append(np.stack([rows, places[np.repeat(first, count) + inside]], axis=1))
        pairs = np.unique(np.concatenate(found), axis=0) if found else np.zeros((0, 2), int)
        near: dict[int, list[int]] = {}
        for row, place in pairs.tolist():
            near.setdefault(row, []).append(place)
        return dict(near)


def _sorted(keys: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    order = np.argsort(keys, kind="stable")
    return keys[order], places[order]
