"""What the report says of judges: win rates with intervals, length, place, who made the pairs, where judges differ, and never more."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from rounds.train.engine import store
from rounds.train.judging import verdicts, win_rates
from rounds.train.judging.verdicts import Verdict
from rounds.train.reports import judged
from rounds.train.reports.steps import Finished, finished
from tests import staged

RECIPE = {
    "rounds": [{"name": "first"}, {"name": "second"}],
    "judges": {
        "model": {"kind": "reward_model", "id": "org/judge", "licence": "MIT"},
        "right": {"kind": "verifiable", "match": "choice"},
    },
    "evaluate": {
        "judged": [{"name": "liked", "answers": "open", "by": "model"}, {"name": "truth", "answers": "asked", "by": "right"}],
    },
    "gate": {"rules": [{"metric": "liked/winrate", "at_least": 0.5}]},
}
Judge = Callable[..., Finished]
Row = tuple[float | None, float | None, int, int]
"""Both orders, and tokens of both answers."""


@pytest.fixture
def stage(tmp_path: Path) -> Judge:
    """Write a finished comparison, as the stage leaves it."""

    def write(name: str, against: str, rows: Sequence[Row], in_both_orders: bool = True) -> Finished:
        folder, policy = tmp_path / name, name.split(".")[1]
        folder.mkdir()
        given = [
            Verdict(f"p{place:03}", 0, 0, forward, backward, "" if None not in (forward, backward) else "no_reply", *tokens)
            for place, (forward, backward, *tokens) in enumerate(rows)
        ]
        verdicts.write(folder / verdicts.VERDICTS, given)
        prompts = win_rates.by_prompt(given)
        raw, level = win_rates.win_rate(prompts, {}), win_rates.length_controlled(prompts, {})
        shown = {
            metric: {"value": rate.value, "stderr": rate.stderr, "low": rate.low, "high": rate.high, "prompts": rate.prompts,
                     "questions": rate.questions}
            for metric, rate in (("winrate", raw), ("winrate_lc", level))
        }  # fmt: skip
        store.write_json(folder / "scores.json", {f"{name.split('.')[2]}/winrate": raw.score().model_dump()})
        counts = {"policy": policy, "against": against, **shown, **win_rates.counts(given, in_both_orders)}
        params = {"metric": name.split(".")[2], "answers": "open", "judge": {"kind": "rule", "rule": "longer"}}
        store.write_json(folder / "stage.json", staged.described(name, params, {}))
        store.write_json(folder / "done.json", {"status": "done", "counts": counts})
        return finished(name, folder)

    return write


def both(value: float, number: int, tokens: tuple[int, int] = (10, 10)) -> list[Row]:
    return [(value, value, *tokens)] * number


def of(*stages: Finished) -> list[dict]:
    return judged.comparisons(RECIPE, {each.name: each for each in stages})


def test_rounds_stand_in_order_with_what_may_be_said(stage: Judge):
    found = of(
        stage("judge.second.liked", "first", both(1, 30) + both(-1, 30)),
        stage("judge.first.liked", "sft", both(1, 50, (11, 10)) + both(-1, 5) + both(1, 20, (9, 10))),
    )
    (each,) = found
    assert [(row["policy"], row["says"]) for row in each["rows"]] == [
        ("first", "preferred, also at equal length"),
        ("second", "no difference beyond noise"),
    ]
    assert each["judge"] == "reward model: org/judge, licence MIT"
    assert {place.policy for place in each["scale"]} == {"sft", "first", "second"} and not each["apart"]
    assert max(each["scale"], key=lambda place: place.strength).policy in ("first", "second")


def test_what_won_by_length_is_said_to(stage: Judge):
    (each,) = of(stage("judge.first.liked", "sft", both(1, 40, (30, 10))))
    assert each["rows"][0]["says"] == "preferred, but not at equal length beyond noise: its answers have +20.0 tokens in the mean"
    assert "first: it decides for the longer answer in 100%" in each["warnings"]
    (each,) = of(stage("judge.second.liked", "sft", both(1, 1, (30, 10)) + both(0, 60)))
    assert each["warnings"] == [], "one decision among ties is no leaning"


def test_too_few_and_worse(stage: Judge):
    (each,) = of(stage("judge.first.liked", "sft", both(1, 20)), stage("judge.second.liked", "first", both(-1, 40)))
    assert [row["says"] for row in each["rows"]] == ["too few questions to say (20)", "preferred less"]


def test_a_judge_of_places_and_missing_verdicts_are_told(stage: Judge):
    (each,) = of(stage("judge.first.liked", "sft", [(1.0, -1.0, 10, 10)] * 38 + [(None, 1.0, 10, 10)] * 2))
    assert each["warnings"] == [
        "first: it prefers the first place (97% of its decisions), and its verdict turned with the order in 100%",
        "first: 2 of 40 prompts have no verdict and are not counted",
    ]


def test_one_judge_up_another_flat_and_longer_is_said_in_words(stage: Judge):
    found = of(
        stage("judge.first.liked", "sft", both(1, 40, (30, 10))), stage("judge.first.truth", "sft", both(1, 20) + both(-1, 20), False)
    )
    (said,) = judged.disagreements(found)
    assert said.startswith("first: better by model, not by right, and its answers got longer.")
    assert judged.disagreements(found[:1]) == []


def test_the_judge_that_made_the_pairs_and_gates_is_named(stage: Judge):
    ranked = {**RECIPE, "rounds": [{"name": "first", "rank": {"by": ["right", "model"]}}, {"name": "second"}]}
    made = stage("judge.first.liked", "sft", both(1, 40))
    (each,) = judged.comparisons(ranked, {made.name: made})
    assert each["warnings"][0].startswith("model made the pairs of first and gates it too, as the recipe allows (also_ranks)")
    (free,) = judged.comparisons({**ranked, "gate": None}, {made.name: made})
    assert not any("made the pairs" in said for said in free["warnings"])


def test_what_was_not_made_is_not_told(stage: Judge):
    assert of() == [] and judged.comparisons({"evaluate": None}, {}) == []
    made = stage("judge.first.liked", "sft", both(1, 40))
    assert [(name, metric) for name, metric, _ in judged.scores({made.name: made})] == [("first", "liked/winrate")]
