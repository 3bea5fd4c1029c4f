"""Comparisons by judges in a plan: what they read, what is in their keys, what a gate on them reads, and what is refused."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from rounds.data_prep.errors import UserError
from rounds.train.config import recipe
from rounds.train.display.plan import plan_table
from rounds.train.engine.graph import Stage
from rounds.train.plan.pipeline import Plan, build_plan
from tests.train.conftest import MINI

GIVEN = {
    "right": {"kind": "verifiable", "match": "choice"},
    "longer": {"kind": "rule", "rule": "longer"},
    "own": {"kind": "reward_model", "path": "model", "licence": "MIT"},
    "asked": {"kind": "llm", "model": "m", "endpoint": "judge", "rubric": "rubric.md"},
    "itself": {"kind": "llm", "policy": "base", "rubric": "rubric.md"},
}
MED = {"name": "med", "answers": "asked", "by": "right"}
RULES = [{"metric": "med/winrate", "at_least": 0.5, "beyond": 2}]
Planner = Callable[..., Plan]


@pytest.fixture
def planned(tmp_path: Path) -> Planner:
    """Plan the small recipe with judges, comparisons, and other changes of its fields at the top."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "rubric.md").write_text("Which answer is kinder?")

    def make(*judged: dict, judges: dict | None = None, rules: list | None = None, **changes: object) -> Plan:
        made = yaml.safe_load(MINI.read_text())
        made["judges"] = {**GIVEN, **(judges or {})}
        made["evaluate"]["answers"].append({"name": "asked", "source": "facts_heldout", "max_rows": 30, "max_new_tokens": 8})
        made["evaluate"]["judged"] = list(judged)
        made["gate"]["rules"] += rules or []
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**made, **changes}))
        return build_plan(recipe.load(tmp_path / "recipe.yaml"), tmp_path / "store", tmp_path)

    return make


def read(stage: Stage) -> dict[str, str]:
    return {name: source.name if isinstance(source, Stage) else "own" for name, source in stage.inputs.items()}


def test_each_round_is_set_against_the_policy_that_it_started_from(planned: Planner):
    plan = planned(MED)
    assert read(plan.stage("judge.first.med")) == {
        "answers": "answers.first",
        "prompts": "source.facts_heldout",
        "against": "answers.sft",
    }
    assert read(plan.stage("judge.second.med")) == {
        "answers": "answers.second",
        "prompts": "source.facts_heldout",
        "against_policy": "gate.first",
        "against.sft": "answers.sft",
        "against.first": "answers.first",
    }, "what the gate lets through is not known here"
    free = planned(MED, gate=None)
    assert read(free.stage("judge.second.med"))["against"] == "answers.first", "without a gate it is"


@pytest.mark.parametrize("name", ["base", "sft"])
def test_or_against_where_the_run_began(planned: Planner, name: str):
    plan = planned({**MED, "against": name})
    assert [read(plan.stage(f"judge.{each}.med"))["against"] for each in ("first", "second")] == [f"answers.{name}"] * 2


def test_a_judge_with_weights_has_a_models_row(planned: Planner):
    plan = planned(*({"name": f"by_{by}", "answers": "answers", "by": by} for by in ("longer", "own", "asked", "itself")))
    rows = {by: plan.stage(f"judge.first.by_{by}").row for by in ("longer", "own", "asked", "itself")}
    assert rows == {"longer": "cpu", "own": "generate", "asked": "cpu", "itself": "generate"}
    assert read(plan.stage("judge.first.by_itself"))["judge"] == "base" and read(plan.stage("judge.first.by_own"))["judge"] == "own"


def test_the_plan_says_how_many_comparisons_and_calls(planned: Planner, tmp_path: Path):
    plan = planned(*({**MED, "name": f"by_{by}", "by": by} for by in ("longer", "own", "asked")))
    table = plan_table(plan, tmp_path / "store")
    names, sizes = (list(table.columns[place].cells) for place in (0, 3))
    told = {name: size for name, size in zip(names, sizes, strict=True) if str(name).startswith("judge.first")}
    assert told == {
        "judge.first.by_longer": "up to 24 comparisons",
        "judge.first.by_own": "up to 24 comparisons",
        "judge.first.by_asked": "up to 24 comparisons in both orders, up to 48 calls where each is answered at once",
    }


def test_a_comparison_is_in_no_key_but_its_own_and_that_of_a_gate_on_it(planned: Planner):
    before, seen, ruled = planned(), planned(MED), planned(MED, rules=RULES)
    keys = [{stage.name: stage.key for stage in plan.stages} for plan in (before, seen, ruled)]
    assert keys[1].keys() - keys[0].keys() == {"judge.first.med", "judge.second.med"}
    assert [name for name in keys[0] if keys[0][name] != keys[1][name]] == ["report"]
    assert {name for name in keys[1] if keys[1][name] != keys[2][name]} >= {"gate.first", "dpo.second", "judge.second.med"}
    assert keys[1]["judge.first.med"] == keys[2]["judge.first.med"]
    assert read(ruled.stage("gate.first"))["judged.med"] == "judge.first.med" and "judged.med" not in read(seen.stage("gate.first"))


@pytest.mark.parametrize("change", [{"max_calls": 3}, {"max_tokens": 3}, {"allow_outside": True}, {"max_missing_share": 0.5}])
def test_limits_are_in_no_key_and_the_rubrics_text_is(planned: Planner, tmp_path: Path, change: dict):
    each = {**MED, "by": "asked"}
    key = planned(each).stage("judge.first.med").key
    assert planned(each, judges={"asked": {**GIVEN["asked"], **change}}).stage("judge.first.med").key == key
    (tmp_path / "rubric.md").write_text("Which answer is safer?")
    assert planned(each).stage("judge.first.med").key != key


def test_weights_are_in_the_key_by_content(planned: Planner, tmp_path: Path):
    each = {**MED, "by": "own"}
    key = planned(each).stage("judge.first.med").key
    (tmp_path / "model").rename(tmp_path / "elsewhere")
    there = {"own": {"kind": "reward_model", "path": "elsewhere", "licence": "BSD"}}
    assert planned(each, judges=there).stage("judge.first.med").key == key
    (tmp_path / "elsewhere" / "config.json").write_text('{"num_labels": 1}')
    assert planned(each, judges=there).stage("judge.first.med").key != key


@pytest.mark.parametrize(
    ("judged", "rules", "says"),
    [
        ({"answers": "askd"}, [], r"evaluate\.judged\.med\.answers: no set of answers is named 'askd' .* did you mean 'asked'\?"),
        ({"by": "rigth"}, [], r"evaluate\.judged\.med\.by: no judge is named 'rigth' .* did you mean 'right'\?"),
        ({"answers": "answers"}, [], r"'right' asks whether an answer is the right one, and 'answers_heldout' holds conversations"),
        ({"name": "facts"}, [], r"two measurements are called 'facts'"),
        ({}, [{"metric": "med/winrat", "at_least": 0.5}], r"metric 'med/winrat' is not measured. did you mean 'med/winrate'\?"),
        ({}, [{"metric": "med/winrate", "may_fall_by": 1}], r"compares two policies already, so may_fall_by says nothing of it"),
        ({}, [{"metric": "mde/winrate", "at_least": 0.5}], r"metric 'mde/winrate' is not measured"),
    ],
)
def test_what_cannot_be_is_refused(planned: Planner, judged: dict, rules: list, says: str):
    with pytest.raises(UserError, match=says):
        planned({**MED, **judged}, rules=rules)


@pytest.mark.parametrize("same", [{}, {"max_missing_share": 0.5}])
def test_the_judge_that_makes_a_rounds_pairs_does_not_gate_it_unless_the_recipe_says_so(planned: Planner, same: dict):
    """By whatever name, and whatever limits it has."""
    first, second = yaml.safe_load(MINI.read_text())["rounds"]
    own = {"sample": {"prompts": "open", "max_new_tokens": 8}, "rank": {"by": ["longer", "again"]}, "data": ["sampled"]}
    changes = {
        "prompts": {"open": {"data": ["facts"]}},
        "rounds": [first, {**second, **own}],
        "judges": {"again": {**GIVEN["right"], **same}},
        "rules": RULES,
    }
    with pytest.raises(UserError, match=r"gate of round 'second': .* judge 'right' also makes this round's pairs .*rank\.by: again\)"):
        planned(MED, **changes)
    assert planned({**MED, "also_ranks": True}, **changes).stage("gate.second")
    assert planned({**MED, "by": "longer"}, **{**changes, "rounds": [first, second]}).stage("gate.second"), "who ranks nothing may gate"
    assert planned(MED, **{**changes, "rules": []}).stage("judge.second.med"), "nor is a comparison refused that no gate reads"


def test_a_run_without_sft_or_rounds_has_nothing_to_compare_with(planned: Planner):
    tokenizer = {**yaml.safe_load(MINI.read_text())["base"], "tokenizer_data": ["facts"]}
    with pytest.raises(UserError, match=r"evaluate\.judged\.med\.against: the recipe has no sft; expected `previous` or `base`"):
        planned({**MED, "against": "sft"}, sft=None, base=tokenizer, rounds=yaml.safe_load(MINI.read_text())["rounds"][:1])
    with pytest.raises(UserError, match=r"evaluate\.judged: it compares the policies of rounds, and the recipe has none"):
        planned(MED, rounds=[], gate=None)


def test_a_gate_over_too_few_prompts_is_refused_before_the_run(planned: Planner):
    few = [{"metric": "med/winrate_lc", "at_least": 0.5}]
    gate = {"rules": few}
    with pytest.raises(UserError, match="med/winrate_lc is measured on 24 rows at most"):
        planned(MED, gate=gate)
