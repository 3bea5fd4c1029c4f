"""Rates over prompts: ties are halves, missing is missing, an error is never 0, and what length alone wins is put down to length."""

import math
import random
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rounds.train.evaluation.paired import Z95
from rounds.train.judging import win_rates
from rounds.train.judging.verdicts import Verdict
from rounds.train.judging.win_rates import Prompt

Rows = Sequence[tuple[float, float]]
"""Share won, and tokens longer."""

rows = st.lists(st.tuples(st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.integers(-40, 40)), min_size=2, max_size=40)


def prompts(given: Rows) -> list[Prompt]:
    return [Prompt(f"p{place}", value, longer) for place, (value, longer) in enumerate(given)]


def test_ties_are_halves_over_prompts_and_missing_is_missing():
    verdicts = [
        Verdict("a", 0, 0, 1.0, 2.0, "", 12, 10),
        Verdict("a", 1, 1, -1.0, -1.0, "", 14, 10),  # one won, one lost: the prompt is a half
        Verdict("b", 0, 0, 1.0, -1.0, "", 10, 10),
        Verdict("c", 0, 0, 0.5, 0.5, "", 10, 20),
        Verdict("d", 0, 0, None, 1.0, "no_reply", 10, 10),
    ]
    found = win_rates.by_prompt(verdicts)
    assert found == [Prompt("a", 0.5, 3.0), Prompt("b", 0.5, 0.0), Prompt("c", 1.0, -10.0)]
    assert win_rates.win_rate(found, {}).value == pytest.approx(2 / 3)
    told = win_rates.counts(verdicts, in_both_orders=True)
    assert (told["prompts"], told["prompts_missing"], told["missing_by_reason"], told["parsed_share"]) == (4, 1, {"no_reply": 1}, 0.8)
    assert (told["tokens"], told["tokens_against"], told["longer_share"]) == (11.2, 12.0, 0.4)
    assert win_rates.counts(verdicts, in_both_orders=False)["flip_share"] is None, "single scores know no places"


def test_an_error_by_hand():
    found = win_rates.win_rate(prompts([(1.0, 0)] * 6 + [(0.0, 0)] * 3 + [(0.5, 0)]), {})
    stderr = math.sqrt((6 * 0.35**2 + 3 * 0.65**2 + 0.15**2) / 9 / 10)
    assert (found.value, found.stderr) == (pytest.approx(0.65), pytest.approx(stderr))
    effective = 0.65 * 0.35 / stderr**2
    assert (found.low + found.high) / 2 == pytest.approx((0.65 + Z95**2 / 2 / effective) / (1 + Z95**2 / effective)), "Wilson's middle"


@pytest.mark.parametrize(("value", "low", "high"), [(1.0, 100 / (100 + Z95**2), 1.0), (0.0, 0.0, Z95**2 / (100 + Z95**2))])
def test_who_won_all_has_an_error_too(value: float, low: float, high: float):
    found = win_rates.win_rate(prompts([(value, 1)] * 100), {})
    assert (found.value, found.low, found.high) == pytest.approx((value, low, high))
    assert found.stderr == pytest.approx((high - low) / (2 * Z95))
    even = win_rates.win_rate(prompts([(0.5, 1)] * 100), {})
    assert even.stderr == found.stderr and even.low < 0.5 < even.high, "nor is it 0 where all are ties"


def test_one_question_in_other_words_is_no_more_evidence():
    twice = prompts([(value, 3) for value in (1.0, 0.0, 1.0, 1.0, 0.5) for _ in range(2)])
    asked = {each.prompt_id: f"q{int(each.prompt_id[1:]) // 2}" for each in twice}
    once = win_rates.win_rate(twice[::2], {})
    found = win_rates.win_rate(twice, asked)
    assert (found.value, found.stderr, found.questions, found.prompts) == (pytest.approx(once.value), pytest.approx(once.stderr), 5, 10)
    assert win_rates.win_rate(twice[:2], asked).stderr is None, "a single question says nothing of others"
    assert win_rates.length_controlled(twice[:2], asked).stderr is None


@settings(deadline=None, max_examples=60)
@given(rows)
def test_the_other_way_round_it_is_the_rest_to_one(given: Rows):
    there, back = prompts(given), prompts([(1 - value, -longer) for value, longer in given])
    for rate in (win_rates.win_rate, win_rates.length_controlled):
        one, other = rate(there, {}), rate(back, {})
        assert one.value == pytest.approx(1 - other.value, abs=1e-6)
        assert one.stderr == pytest.approx(other.stderr, abs=1e-6) and (one.stderr or 0) > 0.001
        assert (one.low, one.high) == (pytest.approx(1 - other.high, abs=1e-6), pytest.approx(1 - other.low, abs=1e-6))
        assert -1e-9 <= one.low <= one.value <= one.high <= 1 + 1e-9


def test_a_judge_that_always_says_first_decides_nothing():
    given = [Verdict(f"p{number}", 0, 0, 1.0, -1.0, "", 10 + number % 3, 10) for number in range(40)]
    found, told = win_rates.win_rate(win_rates.by_prompt(given), {}), win_rates.counts(given, in_both_orders=True)
    assert found.value == 0.5
    assert (told["first_place_share"], told["flip_share"], told["tie_share"], told["agrees_with_longer_share"]) == (1.0, 1.0, 1.0, None)


@pytest.mark.parametrize("lengths", ["all longer", "most longer"])
def test_what_only_got_longer_wins_by_a_judge_of_length_and_not_at_equal_length(lengths: str):
    draw = random.Random(3)
    longer = [draw.randint(5, 40) if lengths == "all longer" else round(draw.gauss(15, 15)) for _ in range(200)]
    found = prompts([((each > 0) + (each == 0) / 2, each) for each in longer])
    raw, level = win_rates.win_rate(found, {}), win_rates.length_controlled(found, {})
    assert raw.value > 0.8 and raw.low > 0.75
    assert level.value == pytest.approx(0.5, abs=0.15) and level.low < 0.4 and level.high > 0.6


def test_a_better_policy_of_the_same_lengths_keeps_its_rate():
    draw = random.Random(4)
    found = prompts([(float(draw.random() < 0.7), draw.gauss(0, 20)) for _ in range(400)])
    raw, level = win_rates.win_rate(found, {}), win_rates.length_controlled(found, {})
    assert level.value == pytest.approx(raw.value, abs=0.01) and level.stderr == pytest.approx(raw.stderr, rel=0.1)
    same = win_rates.length_controlled(prompts([(value, 0.0) for value in (1.0, 1.0, 0.0)] * 40), {})
    assert same.value == pytest.approx(2 / 3, abs=0.005), "no length differs"
    unanimous = win_rates.length_controlled(prompts([(1.0, draw.gauss(0, 20)) for _ in range(100)]), {})
    assert unanimous.value > 0.97 and unanimous.low < 0.97, "and where all are won it ends"


def test_the_regression_ends_where_its_gradient_is_nothing():
    y, x = np.array([1.0, 0.0, 0.5, 1.0, 0.0, 1.0]), np.stack([np.ones(6), np.array([0.3, -0.2, 0.1, 0.8, 0.4, -0.5])], axis=1)
    prior = np.diag([0.16, 0.001])
    beta = win_rates._fitted(x, y, prior)
    gradient = x.T @ (1 / (1 + np.exp(-x @ beta)) - y) + prior @ beta
    assert np.abs(gradient).max() < 1e-8
