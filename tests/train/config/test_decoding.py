"""What a recipe and a cluster file may say of answers, and what of it is in their keys."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from rounds.data_prep.errors import UserError
from rounds.train.config import cluster, recipe
from rounds.train.config.cluster import Cluster, Machine
from rounds.train.engine.params import AnswersParams
from rounds.train.plan import held_out
from rounds.train.plan.pipeline import Plan, build_plan

REPOSITORY = Path(__file__).resolve().parents[3]
SET = {"name": "open", "source": "answers_heldout", "max_rows": 8}


def planned(tmp_path: Path, *overrides: str, **changes: Any) -> Plan:
    """Plan the quickstart with one set of answers, changed so."""
    asked = yaml.safe_dump([{**SET, **changes}], default_flow_style=True, width=10_000).strip()
    file = REPOSITORY / "recipes" / "quickstart.yaml"
    given = recipe.load(file, (f"evaluate.answers={asked}", *overrides))
    return build_plan(given, tmp_path / "store", file.parent)


def key(tmp_path: Path, *overrides: str, **changes: Any) -> str:
    return planned(tmp_path, *overrides, **changes).stage("answers.base").key


def test_every_policy_answers_once_before_it_is_evaluated(tmp_path: Path):
    made = planned(tmp_path)
    assert [stage.name for stage in made.stages if stage.kind.writes] == [
        f"answers.{name}" for name in ("base", "sft", "first", "second", "third")
    ]
    stage, evaluation = made.stage("answers.sft"), made.stage("evaluate.sft")
    assert set(stage.inputs) == {"policy", "prompts.open"} and stage.row == "generate"
    assert evaluation.inputs["answers"] is stage and evaluation.inputs["prompts.open"] is stage.inputs["prompts.open"]
    assert not [each for each in planned(tmp_path, "evaluate.answers=[]").stages if each.kind.writes]


def test_what_changes_an_answer_is_in_its_key_and_nothing_else(tmp_path: Path):
    plain = key(tmp_path)
    for change in (
        {"max_rows": 9},
        {"max_new_tokens": 65},
        {"temperature": 0.5},
        {"temperature": 0.5, "top_p": 0.9},
        {"temperature": 0.5, "num_answers": 2},
        {"engine": "vllm"},
        {"system_prompt": str(REPOSITORY / "recipes" / "prompts" / "medical_assistant.md")},
    ):
        assert key(tmp_path, **change) != plain, change
    # What is measured, by which tasks and gates, writes nothing anew.
    assert key(tmp_path, "evaluate.tasks=[]", "evaluate.conversations=null", "gate=null") == plain


def test_answers_of_a_system_prompt_hold_its_text_and_no_path(tmp_path: Path):
    params = planned(tmp_path, system_prompt="prompts/medical_assistant.md").stage("answers.base").params
    assert isinstance(params, AnswersParams)
    (asked,) = params.sets
    assert asked.system_prompt == (REPOSITORY / "recipes" / "prompts" / "medical_assistant.md").read_text().strip()
    with pytest.raises(UserError, match=r"evaluate\.answers\.open\.system_prompt"):
        planned(tmp_path, system_prompt="nowhere.md")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"num_answers": 2}, r"num_answers: expected 1 with temperature 0, found 2"),
        ({"temperature": -1}, r"temperature: expected 0 to 10, found -1"),
        ({"temperature": 1, "top_p": 0}, r"top_p: .*found 0"),
        ({"max_new_tokens": 0}, r"max_new_tokens: .*found 0"),
        ({"engine": "auto"}, r"engine"),
        ({"name": "facts"}, r"two measurements are called 'facts'"),
        ({"name": "preferences"}, r"two measurements are called 'preferences'"),
        ({"source": "nowhere"}, r"evaluate\.answers\.open: no source is named 'nowhere'"),
        ({"source": "facts"}, r"evaluate\.answers\.open: source 'facts' is also trained on"),
        ({"name": "a/b"}, r"name"),
    ],
)
def test_a_set_that_cannot_be_is_refused_while_planning(tmp_path: Path, change: dict[str, Any], told: str):
    with pytest.raises(UserError, match=told):
        planned(tmp_path, **change)


def test_pairs_conversations_and_questions_may_be_asked_and_are_held_out(tmp_path: Path):
    for source in ("answers_heldout", "facts_heldout", "pairs_heldout"):
        planned(tmp_path, source=source)
    file = REPOSITORY / "recipes" / "quickstart.yaml"
    only = ["evaluate.tasks=[]", "evaluate.preferences=[]", "evaluate.conversations=null", "gate=null"]
    given = recipe.load(file, (*only, "evaluate.answers=[{name: open, source: answers_heldout}]"))
    assert "answers_heldout" in held_out.held_out(given).uses


def test_the_row_generate_is_that_of_infer_until_it_says_otherwise(tmp_path: Path):
    given = Cluster(infer=Machine(eval_batch_size=5))
    assert given.machine("generate").eval_batch_size == 5
    own = Cluster(infer=Machine(eval_batch_size=5), generate=Machine(processes=4, nodes=2, engine_python="/venv/bin/python"))
    assert own.machine("generate", "answers.base").world_size == 8 and own.machine("infer").world_size == 1
    (tmp_path / "cluster.yaml").write_text("generate: {processes: 2, device_map: auto}\n")
    with pytest.raises(UserError, match=r"generate.processes: expected 1 with device_map: auto"):
        cluster.load(tmp_path / "cluster.yaml")
    (tmp_path / "cluster.yaml").write_text("generate: {engine_python: venv/bin/python}\n")
    with pytest.raises(UserError, match="engine_python"):
        cluster.load(tmp_path / "cluster.yaml")
