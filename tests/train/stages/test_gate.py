"""The gate: paired differences with their standard error, every kind of rule both ways, and what a rejection does.

Covers: train/config/evaluation, train/config/metrics, train/evaluation/items.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy import stats

from rounds.data_prep.errors import UserError
from rounds.train.config.evaluation import Rule, TooFew
from rounds.train.engine import policy, store
from rounds.train.evaluation.items import Items, add_averages, mean_and_stderr
from rounds.train.evaluation.paired import Z95
from rounds.train.stages.gate import judge, paired_difference
from tests import staged

Run = Callable[..., tuple[Path, dict]]
Scores = Callable[[str, dict[str, list[float]]], Path]

OLD = [0.0, 1.0, 1.0, 0.0, 1.0, 1.0, 0.0, 1.0] * 4
NEW = [1.0, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 0.0] * 4  # of eight two up, one down: difference 1/8
DIFFERENCE = 0.125
STDERR = float(np.std(np.subtract(NEW, OLD), ddof=1) / math.sqrt(32))  # 0.1067
LEVEL = float(np.std(NEW, ddof=1) / math.sqrt(32))  # 0.0778, of the new value itself


@pytest.fixture
def scores(tmp_path: Path) -> Scores:
    """Write an evaluation folder as the stage does: item i of a metric has the i-th value."""

    def write(name: str, values: dict[str, list[float]]) -> Path:
        items = Items()
        for metric, numbers in values.items():
            for place, number in enumerate(numbers):
                items.add(metric, f"item{place}", number)
        (tmp_path / name).mkdir()
        items.write(tmp_path / name / "items.parquet")
        scores = {metric: score.model_dump(exclude_unset=True) for metric, score in items.scores().items()}
        store.write_json(tmp_path / name / "scores.json", scores)
        return tmp_path / name

    return write


@pytest.fixture
def folders(scores: Scores) -> tuple[Path, Path]:
    """The scores of the current and of the candidate policy."""
    return scores("current", {"facts/acc": OLD}), scores("candidate", {"facts/acc": NEW})


numbers = st.floats(-10, 10)


@given(st.lists(st.tuples(numbers, numbers), min_size=2, max_size=30))
def test_the_paired_difference_is_scipys(values: list[tuple[float, float]]):
    old, new = ({str(place): value[side] for place, value in enumerate(values)} for side in (0, 1))
    mean, stderr, _ = paired_difference(old, dict(reversed(new.items())))
    differences = [b - a for a, b in values]
    assert mean == pytest.approx(np.mean(differences), abs=1e-9)
    assert stderr == pytest.approx(stats.sem(differences), abs=1e-9)


def test_the_paired_test_statistic_is_scipys():
    mean, stderr, _ = paired_difference(dict(enumerate(OLD)), dict(enumerate(NEW)))  # type: ignore[arg-type]
    assert (mean, stderr) == pytest.approx((DIFFERENCE, STDERR))
    assert mean / stderr == pytest.approx(stats.ttest_rel(NEW, OLD).statistic)


def test_only_common_items_are_compared():
    assert paired_difference({"a": 1.0, "b": 0.0, "gone": 9.0}, {"b": 1.0, "a": 1.0, "more": -9.0}) == (0.5, 0.5, 2)
    with pytest.raises(UserError, match="not asked a single common item"):
        paired_difference({"a": 1.0}, {"b": 1.0})


def test_one_item_has_no_error_to_speak_of():
    assert paired_difference({"a": 1.0}, {"a": 0.25}) == (-0.75, 0.0, 1)


@given(st.lists(numbers, min_size=2, max_size=30).filter(lambda values: set(values) not in ({0.0}, {1.0})))
def test_a_scores_error_is_scipys(values: list[float]):
    found = mean_and_stderr(values, list(map(str, range(len(values)))))
    assert found.value == pytest.approx(np.mean(values), abs=1e-9)
    assert found.stderr == pytest.approx(stats.sem(values), abs=1e-9)
    assert found.n == len(values)


@given(st.lists(st.tuples(numbers, numbers), min_size=2, max_size=12), st.integers(1, 4))
def test_asking_a_question_again_in_other_words_is_no_more_evidence(values: list[tuple[float, float]], times: int):
    old, new = ({f"{q}/{n}": each[side] for q, each in enumerate(values) for n in range(times)} for side in (0, 1))
    mean, stderr, number = paired_difference(old, new, {item: item.partition("/")[0] for item in old})
    assert number == len(values) and stderr == pytest.approx(stats.sem([b - a for a, b in values]), abs=1e-9)
    alone = paired_difference(old, new)
    assert alone[0] == pytest.approx(mean, abs=1e-9) and alone[2] == times * len(values)


EDGE = DIFFERENCE / STDERR  # the difference in its own standard errors: 1.1716


@pytest.mark.parametrize(
    ("rule", "holds"),
    [
        ({"must_rise_by": 0}, True),
        ({"must_rise_by": EDGE - 0.01}, True),
        ({"must_rise_by": EDGE + 0.01}, False),
        ({"must_rise_by": 0.12, "unit": "absolute"}, True),
        ({"must_rise_by": 0.13, "unit": "absolute"}, False),
        ({"must_fall_by": 0}, False),
        ({"must_fall_by": 0.1, "unit": "absolute"}, False),
        ({"may_fall_by": 0}, True),
        ({"may_rise_by": 0}, False),
        ({"may_rise_by": EDGE + 0.01}, True),
        ({"may_rise_by": EDGE - 0.01}, False),
        ({"may_rise_by": 0.13, "unit": "absolute"}, True),
        ({"may_rise_by": 0.12, "unit": "absolute"}, False),
        ({"at_least": 0.75}, True),
        ({"at_least": 0.76}, False),
        ({"at_most": 0.75}, True),
        ({"at_most": 0.74}, False),
        ({"must_rise_by": 0.19, "unit": "relative"}, True),
        ({"must_rise_by": 0.21, "unit": "relative"}, False),
        ({"may_rise_by": 0.21, "unit": "relative"}, True),
        ({"may_rise_by": 0.19, "unit": "relative"}, False),
        ({"at_least": 0.6, "beyond": (0.15 - 0.001) / LEVEL}, True),
        ({"at_least": 0.6, "beyond": (0.15 + 0.001) / LEVEL}, False),
        ({"at_most": 0.9, "beyond": (0.15 - 0.001) / LEVEL}, True),
        ({"at_most": 0.9, "beyond": (0.15 + 0.001) / LEVEL}, False),
    ],
    ids=str,
)
def test_a_rule_on_a_metric_that_rose(folders: tuple[Path, Path], rule: dict, holds: bool):
    verdict = judge(Rule(metric="facts/acc", **rule), folders[0], folders[1])
    assert verdict.holds is holds, verdict.says
    assert (verdict.old, verdict.new, verdict.n) == (0.625, 0.75, 32)
    is_level = "at_least" in rule or "at_most" in rule
    assert (verdict.difference, verdict.stderr) == pytest.approx((DIFFERENCE, LEVEL if is_level else STDERR))
    assert "facts/acc 0.6250 -> 0.7500" in verdict.says


@pytest.mark.parametrize(
    ("rule", "holds"),
    [
        ({"may_fall_by": EDGE + 0.01}, True),
        ({"may_fall_by": EDGE - 0.01}, False),
        ({"may_fall_by": 0.13, "unit": "absolute"}, True),
        ({"may_fall_by": 0.12, "unit": "absolute"}, False),
        ({"must_fall_by": 0}, True),
        ({"must_fall_by": EDGE - 0.01}, True),
        ({"must_fall_by": EDGE + 0.01}, False),
        ({"must_fall_by": 0.12, "unit": "absolute"}, True),
        ({"must_fall_by": 0.13, "unit": "absolute"}, False),
        ({"must_rise_by": 0}, False),
        ({"may_rise_by": 0}, True),
    ],
    ids=str,
)
def test_a_rule_on_a_metric_that_fell(folders: tuple[Path, Path], rule: dict, holds: bool):
    assert judge(Rule(metric="facts/acc", **rule), folders[1], folders[0]).holds is holds


@pytest.mark.parametrize(
    ("rule", "holds"), [({"may_fall_by": 0}, True), ({"may_rise_by": 0}, True), ({"must_rise_by": 0}, False),
                        ({"must_fall_by": 0}, False), ({"must_rise_by": 2}, False), ({"must_fall_by": 2}, False)], ids=str
)  # fmt: skip
def test_a_rule_on_a_metric_that_stayed(scores: Scores, rule: dict, holds: bool):
    """No item differs, so the standard error is 0: a rise of any number of zeros is still no rise."""
    one, two = scores("one", {"facts/acc": OLD}), scores("two", {"facts/acc": OLD})
    assert judge(Rule(metric="facts/acc", **rule), one, two).holds is holds


def test_the_mean_is_that_of_the_items_that_were_compared(scores: Scores):
    """With a difference over common items beside means over all of them, the sentence would contradict itself."""
    one, two = scores("one", {"facts/acc": OLD}), scores("two", {"facts/acc": [*OLD, 0.0, 0.0]})
    verdict = judge(Rule(metric="facts/acc", may_fall_by=0), one, two)
    assert verdict.n == len(OLD)
    assert verdict.new - verdict.old == pytest.approx(verdict.difference)


def test_a_metric_that_was_not_measured_is_a_user_error(folders: tuple[Path, Path]):
    with pytest.raises(UserError, match=r"'facts/ac' was not measured.*did you mean 'facts/acc'\?"):
        judge(Rule(metric="facts/ac", may_fall_by=0), folders[0], folders[1])


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        ({"must_rise_by": 0}, "(no item differs, over 32 questions): must rise: does not hold"),
        ({"may_fall_by": 0}, "(no item differs, over 32 questions): may not fall: holds"),
        ({"may_fall_by": 2}, "may fall by 2 standard errors (0.0000): holds"),
        ({"may_rise_by": 0.15, "unit": "relative"}, "may rise by 15% (0.0938): holds"),
        (
            {"at_least": 0.5, "beyond": 1},
            "(standard error 0.0870, over 32 questions): at least 0.5, passed by 1 standard errors (0.0870): holds",
        ),
    ],
    ids=str,
)
def test_a_verdict_reads_as_what_it_means(scores: Scores, rule: dict, says: str):
    one, two = scores("one", {"facts/acc": OLD}), scores("two", {"facts/acc": OLD})
    assert judge(Rule(metric="facts/acc", **rule), one, two).says.endswith(says)


def test_beyond_belongs_to_a_level():
    with pytest.raises(ValidationError, match="`beyond` goes with at_least or at_most; may_fall_by says by how much itself"):
        Rule(metric="facts/acc", may_fall_by=1, beyond=2)


def test_a_level_has_no_relative_unit():
    with pytest.raises(ValidationError, match="`unit` is that of a difference; at_least bounds the value itself"):
        Rule(metric="facts/acc", at_least=0.5, unit="relative")


ANSWERS: dict[TooFew, bool] = {"accept": True, "reject": False}


@pytest.mark.parametrize("rule", [{"may_fall_by": 2}, {"at_least": 0.1}, {"must_rise_by": 0}], ids=str)
def test_few_questions_decide_nothing(scores: Scores, rule: dict):
    """Four answers that all got worse have a difference without any spread, and prove nothing."""
    few = scores("one", {"facts/acc": [1.0, 1.0, 1.0, 0.0]}), scores("two", {"facts/acc": [0.0, 0.0, 0.0, 0.0]})
    with pytest.raises(UserError, match=r"4 questions are too few to decide by \(at least 30\).*`too_few: accept`"):
        judge(Rule(metric="facts/acc", **rule), few[0], few[1])
    for too_few, holds in ANSWERS.items():
        verdict = judge(Rule(metric="facts/acc", **rule), few[0], few[1], too_few)
        assert verdict.holds is holds and f"`too_few: {too_few}` takes it as {'holding' if holds else 'not holding'}" in verdict.says


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_share_of_none_or_all_has_wilsons_error(value: float):
    """proportion_confint(30, 30, method="wilson") of statsmodels is 0.8865 to 1."""
    found = mean_and_stderr([value] * 30, list(map(str, range(30))))
    assert found.stderr is not None and 2 * Z95 * found.stderr == pytest.approx(1 - 0.8865, abs=1e-4)


PARTS = {"a/acc": [1.0, 0.0, 1.0, 1.0] * 8, "b/acc": [0.0, 1.0] * 30, "c/acc": [1.0] * 40 + [0.0] * 10}


def averaged(columns: dict[str, list[float]], averages: dict[str, tuple[str, ...]]) -> tuple[Items, dict[str, str]]:
    """Items with averages of them."""
    items = Items()
    for metric, values in columns.items():
        for place, value in enumerate(values):
            items.add(metric, f"{metric}{place}", value)
    return items, add_averages(items, averages)


def test_an_average_counts_each_part_as_much_and_has_the_error_of_a_mean_of_means():
    items, missing = averaged(PARTS, {"all": ("ab", "c/acc"), "ab": ("a/acc", "b/acc")})
    assert not missing
    score, ab = items.scores()["all"], items.scores()["ab"]
    means, errors = zip(*((np.mean(values), stats.sem(values)) for values in PARTS.values()), strict=True)
    assert ab.value == pytest.approx((means[0] + means[1]) / 2) and score.value == pytest.approx((ab.value + means[2]) / 2)
    exact = math.sqrt((errors[0] / 4) ** 2 + (errors[1] / 4) ** 2 + (errors[2] / 2) ** 2)
    assert score.stderr == pytest.approx(exact, rel=0.02) and score.n == 142


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_part_that_is_all_wrong_or_all_right_counts_in_the_error_of_the_average(value: float):
    """Its items have no spread, and 30 of them say as little as they do alone."""
    items, _ = averaged({"a/acc": PARTS["a/acc"], "flat/acc": [value] * 30}, {"all": ("a/acc", "flat/acc")})
    found = items.scores()
    errors = [found[name].stderr or 0.0 for name in ("a/acc", "flat/acc")]
    assert found["all"].stderr == pytest.approx(math.hypot(*errors) / 2, rel=0.02)
    flat, _ = averaged({"flat/acc": [value] * 30, "other/acc": [value] * 60}, {"all": ("flat/acc", "other/acc")})
    errors = [flat.scores()[name].stderr or 0.0 for name in ("flat/acc", "other/acc")]
    assert flat.scores()["all"].stderr == pytest.approx(math.hypot(*errors) / 2)


def test_a_difference_of_averages_is_paired():
    """Two policies that differ in one part alone: the error of the average is that part's, over the number of parts."""
    better = {**PARTS, "b/acc": [1.0 if place % 6 == 0 else value for place, value in enumerate(PARTS["b/acc"])]}
    old, new = (averaged(columns, {"all": tuple(PARTS)})[0].values for columns in (PARTS, better))
    difference, stderr, _ = paired_difference(old["all"], new["all"])
    alone, error, _ = paired_difference(old["b/acc"], new["b/acc"])
    assert difference == pytest.approx(alone / 3) and stderr == pytest.approx(error / 3, rel=0.02)


def test_an_average_with_a_part_that_was_not_measured_is_none():
    items, missing = averaged(PARTS, {"all": ("a/acc", "usmle"), "usmle": ("usmle/acc/sample",), "ab": ("a/acc", "b/acc")})
    assert missing == {"all": "usmle/acc/sample", "usmle": "usmle/acc/sample"} and set(items.values) == {*PARTS, "ab"}


def test_parts_of_two_directions_have_no_average():
    items, _ = averaged(PARTS, {})
    items.lower_is_better.add("b/acc")
    with pytest.raises(UserError, match="in some of a/acc, b/acc more is better, in others less"):
        add_averages(items, {"all": ("a/acc", "b/acc")})


# The stage


@pytest.fixture
def inputs(tmp_path: Path, folders: tuple[Path, Path]) -> dict[str, Path]:
    """Two policies with different weights, and their scores."""
    found = {"current_scores": folders[0], "candidate_scores": folders[1]}
    (tmp_path / "base").mkdir()
    policy.write_base(tmp_path / "base", "some/model", "revision")
    for name in ("current", "candidate"):
        found[name] = tmp_path / f"policy-{name}"
        found[name].mkdir()
        policy.write_weights(found[name], tmp_path / "base")
    return found


def gate(rules: list[dict], on_reject: str = "continue") -> dict:
    return {"rules": [{"metric": "facts/acc", **rule} for rule in rules], "on_reject": on_reject}


@pytest.fixture
def decide(tmp_path: Path, inputs: dict[str, Path]) -> Callable[[dict], tuple[Path, dict]]:
    """Run the gate."""
    from rounds.train.config.cluster import Machine

    def run(params: dict) -> tuple[Path, dict]:
        out = tmp_path / "gate"
        out.mkdir(exist_ok=True)
        return out, staged.run("gate", params, inputs, out, Machine())

    return run


def weights(folder: Path) -> str:
    return policy.read(folder).weights


def items(folder: Path) -> list:
    return pq.read_table(folder / "items.parquet").to_pylist()


def test_an_accepted_policy_goes_on_with_its_scores(decide: Callable, inputs: dict[str, Path]):
    out, counts = decide(gate([{"may_fall_by": 0}, {"must_rise_by": 0}], "stop"))
    assert (counts["decision"], counts["stops_rounds"]) == ("accepted", False)
    assert weights(out) == weights(inputs["candidate"]) != weights(inputs["current"])
    assert items(out) == items(inputs["candidate_scores"])
    assert store.read_json(out / "scores.json") == store.read_json(inputs["candidate_scores"] / "scores.json")


@pytest.mark.parametrize(("on_reject", "stops"), [("continue", False), ("stop", True)])
def test_after_a_rejection_the_current_policy_goes_on(decide: Callable, inputs: dict[str, Path], on_reject: str, stops: bool):
    out, counts = decide(gate([{"may_fall_by": 0}, {"must_fall_by": 0}], on_reject))
    assert (counts["decision"], counts["stops_rounds"]) == ("rejected", stops)
    assert weights(out) == weights(inputs["current"])
    assert items(out) == items(inputs["current_scores"])
    assert store.read_json(out / "scores.json") == store.read_json(inputs["current_scores"] / "scores.json")
    decision = json.loads((out / "decision.json").read_text())
    assert [rule["holds"] for rule in decision["rules"]] == [True, False]
    assert len(counts["reasons"]) == 2 and "does not hold" in counts["reasons"][1]


def test_a_candidate_that_was_skipped_passes_the_current_policy_on(decide: Callable, inputs: dict[str, Path]):
    """Behind a stop there is no candidate and nothing was measured; what follows still needs a policy and its scores."""
    (inputs["candidate"] / "policy.json").unlink()
    for name in ("scores.json", "items.parquet"):
        (inputs["candidate_scores"] / name).unlink()
    store.write_json(inputs["candidate"] / "done.json", {"status": "skipped", "because": "the rounds ended"})
    out, counts = decide(gate([{"must_rise_by": 0}], "stop"))
    assert (counts["decision"], counts["stops_rounds"]) == ("skipped", True), "or the round after it would run again"
    assert weights(out) == weights(inputs["current"])
    assert items(out) == items(inputs["current_scores"])
