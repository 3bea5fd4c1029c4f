"""Several judges make one score, in which nothing that is missing becomes a number."""

import math

from hypothesis import given
from hypothesis import strategies as st

from rounds.train.config.judging import Rank
from rounds.train.judging import combining
from tests.train.judging.answers import scored

CASCADE, MEAN = Rank(by=("gold", "reward")), Rank(by=("gold", "reward"), how="mean_of_ranks")
MATRIX = st.lists(st.tuples(*[st.one_of(st.none(), st.sampled_from([0.0, 1.0]), st.floats(-3, 3))] * 2), min_size=1, max_size=6)


def values(rank: Rank, gold, reward) -> tuple[list[float | None], dict[str, int]]:
    found, deciders = combining.combine(rank, {"gold": scored(gold), "reward": scored(reward)})
    return [each.score for each in found], deciders


def test_a_cascade_takes_the_first_judge_that_tells_answers_apart():
    assert values(CASCADE, [1.0, 0.0, None], [5.0, 6.0, 7.0]) == ([1.0, 0.0, None], {"gold": 1})
    assert values(CASCADE, [1.0, 1.0, 1.0], [5.0, 6.0, None]) == ([5.0, 6.0, None], {"reward": 1})
    assert values(CASCADE, [None, 1.0, None], [5.0, 6.0, 7.0]) == ([5.0, 6.0, 7.0], {"reward": 1})
    assert values(CASCADE, [1.0, 1.0], [None, 6.0]) == ([1.0, 1.0], {"nobody": 1}), "a tie stays one"
    assert values(CASCADE, [None, 1.0], [None, 6.0]) == ([None, None], {"nobody": 1})


def test_each_prompt_has_its_own_judge():
    given = {"gold": [*scored([1.0, 1.0], "a"), *scored([0.0, 1.0], "b")], "reward": [*scored([2.0, 3.0], "b"), *scored([2.0, 3.0], "a")]}
    found, deciders = combining.combine(CASCADE, given)
    assert [(each.prompt_id, each.score) for each in found] == [("a", 2.0), ("a", 3.0), ("b", 0.0), ("b", 1.0)]
    assert deciders == {"gold": 1, "reward": 1}


def test_a_mean_of_ranks_is_over_what_all_judges_scored():
    assert values(MEAN, [1.0, 0.0, 0.0], [30.0, 20.0, 10.0]) == ([1.0, 0.375, 0.125], {"all": 1})
    assert values(MEAN, [1.0, 0.0, None], [10.0, 20.0, 90.0]) == ([0.5, 0.5, None], {"nobody": 1})
    assert values(MEAN, [1.0, None], [10.0, 20.0]) == ([None, None], {"nobody": 1})


@given(MATRIX)
def test_nothing_missing_becomes_a_number(matrix):
    gold, reward = map(list, zip(*matrix, strict=True))
    cascade, _ = values(CASCADE, gold, reward)
    assert cascade in (gold, reward, [None] * len(matrix))
    for score, *each in zip(values(MEAN, gold, reward)[0], gold, reward, strict=True):
        assert score is None or (None not in each and 0 <= score <= 1)


@given(MATRIX)
def test_a_judge_that_agrees_with_itself_keeps_its_order(matrix):
    gold = [None if each[0] is None else round(each[0], 3) for each in matrix]
    found, _ = values(MEAN, gold, [None if each is None else math.exp(each) for each in gold])
    there = [(a, b) for a, b in zip(gold, found, strict=True) if a is not None and b is not None]
    assert all((a > c) == (b > d) for a, b in there for c, d in there)
