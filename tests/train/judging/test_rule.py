"""The floors do what their names say, and read no answer."""

from dataclasses import replace

import pytest

from rounds.train.config.judging import RuleJudge
from rounds.train.judging import rule
from tests.train.judging.answers import sample

SAMPLES = [sample(0, "a", 5), sample(1, "b", 9), sample(2, "c", 2)]


@pytest.mark.parametrize(("name", "order"), [("longer", [1, 0, 2]), ("shorter", [2, 0, 1]), ("first", [0, 1, 2])])
def test_a_rule_orders_answers_as_its_name_says(name, order):
    found = rule.score(RuleJudge(kind="rule", rule=name), SAMPLES)
    assert [each.number for each in sorted(found, key=lambda each: -(each.score or 0))] == order


def test_random_is_the_same_whatever_else_is_scored_and_whatever_is_said():
    judge = RuleJudge(kind="rule", rule="random")
    found = rule.score(judge, SAMPLES)
    assert rule.score(judge, [replace(each, answer="other", tokens=1) for each in reversed(SAMPLES)]) == found[::-1]
    values = [each.score for each in rule.score(judge, [sample(number, "", prompt_id=f"p{number}") for number in range(400)])]
    assert len(set(values)) == 400 and sum(value is not None and value < 0.5 for value in values) == pytest.approx(200, abs=40)
