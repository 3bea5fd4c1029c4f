"""Words of many texts: the same whatever was cut before them."""

import numpy as np
import pytest

from rounds.data_prep import words
from rounds.data_prep.words import Texts, Vocabulary, runs_of

TEXTS = ["Take 5 mg, twice-daily.", "", "take it", "  ", "Fièvre, toux", "Take 5 mg, twice-daily.", "a-b-c a-b-c"]


def rule(piece: str) -> list[str]:
    """Cut at hyphens, and leave out a comma alone."""
    return [word for word in piece.lower().strip(",.").split("-") if word]


def expected(text: str) -> list[str]:
    """Return what the rule makes of a text by itself."""
    return [word for piece in text.split() for word in rule(piece)]


@pytest.mark.parametrize("order", [TEXTS, TEXTS[::-1], TEXTS[2:3], []])
def test_words_are_those_of_the_pieces_whatever_came_before(order):
    vocabulary = Vocabulary()
    for _ in range(2):
        texts = Texts(vocabulary)
        texts.words(["mg of water - or", "Toux"], rule)
        found = texts.words(order, rule)
        assert [found.of(place) for place in range(len(order))] == list(map(expected, order))
        assert [found.length(place) for place in range(len(order))] == [len(expected(each)) for each in order]
        shapes = [(len(each), each[0] if each else None, each[-1] if each else None) for each in map(expected, order)]
        assert found.shapes() == shapes
        assert texts.sums(order, len) == [sum(map(len, each.split())) for each in order]
        assert all(count >= len(each.split()) for count, each in zip(texts.cut(order).tolist(), order, strict=True))
        assert found.values(len)[found.numbers].tolist() == [len(word) for each in order for word in expected(each)]


def test_a_measure_is_asked_once_a_word_over_batches_and_a_full_vocabulary_begins_anew(monkeypatch):
    asked: list[str] = []

    def measure(word: str) -> int:
        asked.append(word)
        return len(word)

    vocabulary = Vocabulary()
    for text in ("fever and cough", "cough and fever", "fever at night"):
        Texts(vocabulary).words([text], rule).values(measure)
    assert asked == ["fever", "and", "cough", "at", "night"]
    monkeypatch.setattr(words, "_MOST_PIECES", 3)
    found = Texts(vocabulary).words(["cough"], rule)
    assert (found.of(0), list(found.distinct)) == (["cough"], ["cough"])


def test_runs_are_hashed_alike_in_any_part_of_a_long_text():
    codes = np.arange(1, (1 << 14) + 50, dtype=np.uint64)
    every = runs_of(codes, 5)
    assert len(every) == len(codes) - 4 and len(np.unique(every)) == len(every)
    place = (1 << 14) - 3
    assert np.array_equal(every[place : place + 6], runs_of(codes[place : place + 10], 5))
    assert not len(runs_of(codes[:4], 5))
