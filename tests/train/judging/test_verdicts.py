"""Disagreement of the two orders is a tie, a missing side is no verdict, and a judge that goes by place or length is seen to."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from rounds.train.judging import verdicts
from rounds.train.judging.scores import Score
from rounds.train.judging.verdicts import Verdict
from tests.train.judging.answers import sample


@pytest.mark.parametrize(
    ("forward", "backward", "outcome"),
    [(2.0, 0.1, 1.0), (-1.0, -3.0, 0.0), (1.0, -1.0, 0.5), (-1.0, 1.0, 0.5), (1.0, 0.0, 0.5), (None, 1.0, None), (1.0, None, None)],
)
def test_who_wins(forward, backward, outcome):
    assert Verdict("p", 0, 1, forward, backward, "" if outcome is not None else "made").outcome == outcome


def test_every_two_answers_are_compared_once_and_equal_ones_are_not():
    samples = [sample(2, "c"), sample(0, "a"), sample(1, "b"), sample(0, "x", prompt_id="o"), sample(1, "x", prompt_id="o")]
    assert [(one.number, other.number) for one, other in verdicts.comparisons(samples)] == [(0, 1), (0, 2), (1, 2)]


def test_a_score_is_the_share_won_and_missing_comparisons_are_no_ties():
    samples = [sample(number, "abcd"[number]) for number in range(4)]
    found = verdicts.scores_of(
        [
            Verdict("p", 0, 1, 1.0, 1.0),
            Verdict("p", 0, 2, 1.0, -1.0),
            Verdict("p", 1, 2, None, 1.0, "died"),
            Verdict("p", 0, 3, None, None, "died"),
        ],
        samples,
    )
    assert found == [
        Score("p", 0, 0.75, "some_comparisons_missing"),
        Score("p", 1, 0.0, "some_comparisons_missing"),
        Score("p", 2, 0.5, "some_comparisons_missing"),
        Score("p", 3, None, "died"),
    ]
    assert verdicts.scores_of([], samples[:1]) == [Score("p", 0, None, "nothing_to_compare_with")]


def test_a_judge_that_goes_by_place_or_by_length_is_seen_to():
    by_place = [Verdict("p", 0, number, 1.0, -1.0) for number in range(1, 5)]
    assert verdicts.counts(by_place) == {
        "comparisons": 4,
        "missing": 0,
        "missing_by_reason": {},
        "remarks": {},
        "flip_share": 1.0,
        "tie_share": 1.0,
        "first_place_share": 1.0,
        "longer_share": None,
    }
    by_length = [
        Verdict("p", 0, 1, 1.0, 1.0, "cut", 9, 5),
        Verdict("p", 0, 2, -1.0, -1.0, "", 9, 12),
        Verdict("p", 1, 2, None, 1.0, "died"),
    ]
    found = verdicts.counts(by_length)
    assert (found["longer_share"], found["flip_share"], found["missing_by_reason"], found["remarks"]) == (1.0, 0.0, {"died": 1}, {"cut": 1})
    assert found["first_place_share"] == 0.4, "two of the five orders that were judged"


def test_what_is_read_is_what_was_written_in_one_order(tmp_path: Path):
    rows = [Verdict("p", 0, 1, 1.5, None, "died", 3, 4), Verdict("p", 0, 2, -1.0, 0.5)]
    verdicts.write(tmp_path / verdicts.VERDICTS, rows[::-1])
    assert list(verdicts.read(tmp_path / verdicts.VERDICTS)) == rows
    assert pq.read_table(tmp_path / verdicts.VERDICTS).schema.equals(verdicts.SCHEMA)
