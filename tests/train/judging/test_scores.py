"""A score that is missing stays missing, from the judge to the file and back."""

import math
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from rounds.data_prep.errors import UserError
from rounds.train.judging import scores
from rounds.train.judging.scores import Score

ROWS = [Score("p1", 0, 0.0), Score("p1", 1, None, "names_no_choice"), Score("p2", 0, -3.5, "cut"), Score("p2", 1, None, "not_finite")]


def test_what_is_read_is_what_was_written_in_one_order(tmp_path: Path):
    scores.write(tmp_path / scores.RANKS, reversed(ROWS))
    assert list(scores.read(tmp_path / scores.RANKS)) == ROWS
    table = pq.read_table(tmp_path / scores.RANKS)
    assert table.schema.equals(scores.SCHEMA)
    assert table["score"].null_count == 2
    assert not list(tmp_path.glob("*.partial"))


def test_missing_is_counted_by_reason_and_apart_from_remarks():
    assert scores.counts(ROWS) == {
        "answers": 4,
        "missing": 2,
        "missing_share": 0.5,
        "missing_by_reason": {"names_no_choice": 1, "not_finite": 1},
        "remarks": {"cut": 1},
    }
    assert scores.counts([])["missing_share"] is None


def test_a_number_that_is_none_is_missing_and_not_a_score():
    assert scores.of("p", 0, math.nan) == scores.of("p", 0, math.inf) == Score("p", 0, None, "not_finite")
    assert scores.of("p", 0, -1.0, "cut") == Score("p", 0, -1.0, "cut")
    with pytest.raises(ValueError, match="finite"):
        Score("p", 0, math.nan)
    with pytest.raises(ValueError, match="needs a reason"):
        Score("p", 0, None)


def test_two_scores_of_one_answer_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="prompt p1, number 0"):
        scores.write(tmp_path / scores.RANKS, [*ROWS, Score("p1", 0, 1.0)])
    assert not list(tmp_path.iterdir())


def test_more_missing_than_may_be_is_refused_with_the_reasons():
    scores.check_missing(ROWS, 0.5, "clinician")
    scores.check_missing([], 0.0, "clinician")
    with pytest.raises(
        UserError, match=r"judge clinician: 2 of 4 scores are missing \(50.0%\), more than max_missing_share 0.49: 1 names_no_"
    ):
        scores.check_missing(ROWS, 0.49, "clinician")
