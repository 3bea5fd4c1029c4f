"""Policies on one scale: what a closed form gives for two, chains, intervals over prompts, and nobody infinitely strong."""

import math

import pytest

from rounds.train.judging import strengths


def won(share: float, prompts: int = 100) -> dict[str, float]:
    return {f"p{number:03}": float(number < share * prompts) for number in range(prompts)}


def test_two_policies_have_the_closed_form():
    (best, first), apart = strengths.table("sft", {("one", "sft"): won(0.7)})
    assert (best.policy, first.policy, apart) == ("one", "sft", [])
    assert best.strength == pytest.approx(math.log(70.5 / 30.5), abs=1e-6) and best.win_rate == pytest.approx(70.5 / 101, abs=1e-6)
    assert (first.strength, first.low, first.high, first.win_rate) == (0.0, 0.0, 0.0, 0.5)
    error = 1 / math.sqrt(101 * best.win_rate * (1 - best.win_rate))  # of a logit
    assert (best.high - best.low) / 2 == pytest.approx(1.96 * error, rel=0.15)
    assert strengths.table("sft", {("one", "sft"): won(0.7)})[0] == [best, first], "the same prompts are drawn again"


def test_a_chain_adds_up_and_ties_are_halves():
    found, _ = strengths.table("sft", {("one", "sft"): won(0.6), ("two", "one"): dict.fromkeys(won(1), 0.5), ("three", "two"): won(1.0)})
    by_name = {each.policy: each for each in found}
    assert (found[0].policy, found[-1].policy) == ("three", "sft")
    assert by_name["two"].strength == pytest.approx(by_name["one"].strength, abs=1e-6)
    assert by_name["three"].strength - by_name["two"].strength == pytest.approx(math.log(100.5 / 0.5), abs=1e-4), "and not infinite"


def test_where_no_prompt_differs_an_interval_is_left():
    (all_won, _), _ = strengths.table("sft", {("one", "sft"): won(1.0)})
    assert all_won.low < all_won.strength - 1 and all_won.high > all_won.strength + 1
    (one, other), _ = strengths.table("sft", {("one", "sft"): dict.fromkeys(won(1), 0.5)})
    tied = one if one.policy == "one" else other
    assert tied.strength == pytest.approx(0, abs=1e-6) and tied.low < 0 < tied.high


def test_what_nothing_joins_is_named_and_not_ranked():
    found, apart = strengths.table("sft", {("one", "sft"): won(0.6), ("x", "y"): won(0.5), ("two", "sft"): {}})
    assert ({each.policy for each in found}, apart) == ({"one", "sft"}, ["two", "x", "y"])
    assert strengths.table("sft", {("one", "sft"): {}}) == ([], ["one"])
