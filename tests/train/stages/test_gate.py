"""The gate: paired differences with their standard error, every kind of rule both ways, and what a rejection does.

Covers: train/config/evaluation, train/evaluation/items.
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
from scipy import stats

from rounds.data_prep.errors import UserError
from rounds.train.config.evaluation import Rule
from rounds.train.engine import policy, store
from rounds.train.evaluation.items import Items, mean_and_stderr
from rounds.train.stages.gate import judge, paired_difference
from tests import staged

Run = Callable[..., tuple[Path, dict]]
Scores = Callable[[str, dict[str, list[float]]], Path]

OLD = [0.0, 1.0, 1.0, 0.0, 1.0, 1.0, 0.0, 1.0]
NEW = [1.0, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 0.0]  # two up, one down: difference 1/8
DIFFERENCE = 0.125
STDERR = float(np.std(np.subtract(NEW, OLD), ddof=1) / math.sqrt(8))  # 0.2266


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


@given(st.lists(numbers, min_size=2, max_size=30))
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


EDGE = DIFFERENCE / STDERR  # the difference in its own standard errors: 0.5517


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
    ],
    ids=str,
)
def test_a_rule_on_a_metric_that_rose(folders: tuple[Path, Path], rule: dict, holds: bool):
    verdict = judge(Rule(metric="facts/acc", **rule), *folders)
    assert verdict.holds is holds, verdict.says
    assert (verdict.old, verdict.new, verdict.n) == (0.625, 0.75, 8)
    assert (verdict.difference, verdict.stderr) == pytest.approx((DIFFERENCE, STDERR))
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
    assert judge(Rule(metric="facts/acc", **rule), *reversed(folders)).holds is holds


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
    one, two = scores("one", {"facts/acc": [0.0, 1.0]}), scores("two", {"facts/acc": [0.0, 1.0, 0.0, 0.0]})
    verdict = judge(Rule(metric="facts/acc", may_fall_by=0), one, two)
    assert verdict.n == 2
    assert verdict.new - verdict.old == pytest.approx(verdict.difference)


def test_a_metric_that_was_not_measured_is_a_user_error(folders: tuple[Path, Path]):
    with pytest.raises(UserError, match=r"'facts/ac' was not measured.*did you mean 'facts/acc'\?"):
        judge(Rule(metric="facts/ac", may_fall_by=0), *folders)


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
