"""A judge's card says in numbers and words where a judge is no better than one that reads nothing."""

import math
from pathlib import Path

import pytest

from rounds.train.judging import card
from rounds.train.judging.card import Answered


def answered(group: str, right: int, n: int, longer: int | None = None, start: int = 0) -> list[Answered]:
    """Pairs of which the first are right, and of the first `longer` of which the better answer is the longer one."""
    longer = n // 2 if longer is None else longer
    return [
        Answered(group, f"q{start + at}", (1.0, 0.0) if at < right else (0.0, 1.0), (9, 5) if (at * 7) % n < longer else (5, 9))
        for at in range(n)
    ]


def test_the_interval_is_wilsons_and_pairs_of_one_question_count_once():
    """Against scipy: `binomtest(32, 72).proportion_ci(method="wilson")`, and of 30 of 30, and 0 of 1."""
    values = [1.0] * 32 + [0.0] * 40
    alone = [f"q{at}" for at in range(72)]
    mean, low, high, questions = card.wilson(values, alone)
    assert (mean, questions) == (pytest.approx(32 / 72), 72)
    # The standard error of a mean divides by n - 1, so the interval is a hair wider than the textbook's.
    assert (low, high) == pytest.approx((0.335391, 0.559126), abs=2e-3)
    twice = card.wilson(values * 2, alone * 2)
    assert twice[3] == 72 and (twice[1], twice[2]) == pytest.approx((low, high), abs=1e-9)
    assert card.wilson([1.0] * 30, alone[:30])[1:3] == pytest.approx((0.886487, 1.0), abs=1e-6)
    assert card.wilson([0.0], ["q"])[1:3] == pytest.approx((0.0, 0.793451), abs=1e-6)


def test_a_judge_that_is_right_on_average_and_blind_to_one_mistake_is_told(tmp_path: Path):
    made = card.made("own", [*answered("unsafe", 72, 72), *answered("evasive", 72, 72, start=72), *answered("wrong", 32, 72, start=144)])
    assert made is not None
    assert [(each.name, each.n) for each in made.groups] == [("", 216), ("evasive", 72), ("unsafe", 72), ("wrong", 72)]
    assert made.whole.accuracy == pytest.approx(176 / 216) and made.whole.standing == "above its floor"
    assert [each.name for each in made.blind] == ["wrong"]
    (line,) = made.says
    assert "own is no better than its floor, right in 0.444 of 72" in line and "where the rejected answer is 'wrong'" in line
    assert "may get worse at exactly this" in line
    card.write(tmp_path, made)
    assert card.read(tmp_path) == made
    assert card.counts(made)["blind"] == ["wrong"] and card.counts(made)["accuracy"]["wrong"] == [0.4444, 0.5, 72]


@pytest.mark.parametrize(
    ("right", "longer", "standing"),
    [
        (70, 20, "above its floor"),
        (70, 70, "no better than its floor"),
        (36, 36, "no better than its floor"),
        (10, 36, "below its floor"),
        (50, 72, "below its floor"),
    ],
)
def test_the_floor_is_the_longer_answer_and_guessing(right: int, longer: int, standing: str):
    made = card.made("own", answered("", right, 72, longer))
    assert made is not None and made.whole.standing == standing and len(made.groups) == 1
    assert any("do not let it rank answers by itself" in line for line in made.says) == (standing != "above its floor")


def test_few_questions_say_nothing():
    made = card.made("own", answered("", 20, 20))
    assert made is not None and made.whole.standing == "too few pairs to say"
    assert made.says == ["20 questions are too few to know own by."]


def test_a_tie_is_half_right_and_what_is_missing_is_no_verdict():
    rows = [Answered("", f"q{at}", (0.3, 0.3), (4, 4)) for at in range(40)]
    lost = [Answered("", f"m{at}", None, (4, 4), "control_token_in_text") for at in range(3)]
    made = card.made("own", [*rows, *lost])
    assert made is not None
    assert (made.whole.accuracy, made.whole.longer, made.whole.n, made.pairs) == (0.5, 0.5, 40, 43)
    assert made.missing == {"control_token_in_text": 3} and made.length_correlation is None
    assert card.made("own", lost) is None


def test_scores_that_follow_length_are_seen():
    rows = [Answered("", f"q{at}", (at + 0.0, at + 1.0), (at, at + 1)) for at in range(40)]
    made = card.made("own", rows)
    assert made is not None and made.length_correlation == pytest.approx(1.0)
    assert not math.isnan(made.whole.over_longer_stderr)
