"""What training rows are compared with, which follows from the recipe alone; licences; what is done to a person's own rows."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from rounds.data_prep.errors import UserError
from rounds.train.config import recipe
from rounds.train.offline import needs
from rounds.train.plan import held_out
from rounds.train.plan.pipeline import Plan, build_plan

Planned = Callable[..., Plan]
HUB = {"kind": "hub", "id": "org/model", "revision": "0" * 40}
TESTS = {"medqa.test", "medmcqa.validation", "pubmedqa.test", "mmlu_medical.test", "headqa.test",
         "ultrafeedback.test_prefs", *(f"snorkel.test_iteration_{number}" for number in (1, 2, 3))}  # fmt: skip


@pytest.fixture
def planned(tmp_path: Path) -> Planned:
    """Plan a recipe of local rows, with changes."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "rows.jsonl").write_text(json.dumps({"question": "Is it?", "answer": "Yes."}) + "\n")
    rows = {"source": "file", "path": "rows.jsonl", "format": "question_answer", "licence": "ours", "phi": "off"}

    def load(sources: dict[str, Any] | None = None, **changes: Any) -> recipe.Recipe:
        data = {"name": "own", "base": {"kind": "local", "path": "model"}, "sources": {"rows": rows, **(sources or {})},
                "sft": {"data": ["rows"], "max_length": 64, "global_batch_size": 2, "learning_rate": 1e-3}} | changes  # fmt: skip
        file = tmp_path / "own.yaml"
        file.write_text(yaml.safe_dump(data))
        return recipe.load(file)

    def plan(sources: dict[str, Any] | None = None, **changes: Any) -> Plan:
        return build_plan(load(sources, **changes), tmp_path / "store", tmp_path)

    plan.rows, plan.load = rows, load  # type: ignore[attr-defined]
    return plan


def held(plan: Plan, stage: str = "data.sft") -> set[str]:
    return {name.removeprefix("heldout.") for name in plan.stage(stage).inputs if name.startswith("heldout.")}


def test_a_recipe_that_reads_the_hub_is_compared_with_every_benchmark(planned: Planned):
    assert held(planned(base=HUB)) == TESTS
    pairs = {"ultra": {"source": "ultrafeedback", "split": "train_prefs"}}
    plan = planned(pairs, rounds=[{"name": "one", "data": ["ultra"], "max_length": 64, "global_batch_size": 2,
                                   "learning_rate": 1e-6}])  # fmt: skip
    assert held(plan) == held(plan, "data.one") == TESTS
    assert not plan.held_out.missing
    stage = plan.stage("source.medqa.test")
    assert stage.params.stored()["use"]["split"] == "test" and stage.params.stored()["revision"]


def test_a_benchmark_is_no_source_of_the_recipe(planned: Planned):
    sft = {"data": ["medqa.test"], "max_length": 64, "global_batch_size": 2, "learning_rate": 1e-3}
    for changes in ({"sft": sft}, {"evaluate": {"preferences": ["medqa.test"]}}):
        with pytest.raises(UserError, match=r"no source is named 'medqa\.test'"):
            planned(base=HUB, **changes)


def test_a_recipe_of_local_files_says_what_it_is_not_compared_with(planned: Planned):
    plan = planned()
    assert held(plan) == set()
    assert plan.held_out.missing == held_out.BENCHMARKS
    lines = held_out.told(plan.held_out, ["data.sft"], [])
    assert len(lines) == 1 and lines[0].startswith("warning: not compared with medqa, medmcqa") and "`path:`" in lines[0]


def test_the_recipe_can_name_its_benchmarks(planned: Planned):
    assert held(planned(benchmarks=["medqa"])) == {"medqa.test"}
    none = planned(benchmarks=[])
    assert held(none) == set() and not held_out.told(none.held_out, ["data.sft"], [])
    with pytest.raises(UserError, match=r"benchmarks: no registered set 'medqq'.*did you mean 'medqa'"):
        planned(benchmarks=["medqq"])
    with pytest.raises(UserError, match="no registered set 'medquad' with a split for evaluation only"):
        planned(benchmarks=["medquad"])


def test_every_entry_that_is_for_evaluation_only_is_held_out_used_or_not(planned: Planned, tmp_path: Path):
    own = planned.rows | {"heldout_fraction": 0.1}  # type: ignore[attr-defined]
    exam = {"source": "medqa", "split": "test", "path": "rows.jsonl"}
    sources = {"rows": own, "kept": own | {"split": "heldout"}, "exam": exam}
    plan = planned(sources)
    assert held(plan) == {"kept", "exam"}
    assert "medqa" not in plan.held_out.missing and "headqa" in plan.held_out.missing


@pytest.mark.parametrize(("trained", "is_refused"), [(0.0, True), (0.05, True), (0.1, False), (0.2, False)])
def test_rows_held_out_of_a_file_are_not_trained_on_under_another_entry(planned: Planned, trained: float, is_refused: bool):
    rows = planned.rows  # type: ignore[attr-defined]
    sources = {
        "rows": rows | {"heldout_fraction": trained},
        "kept": rows | {"heldout_fraction": 0.1, "split": "heldout"},
    }
    if is_refused:
        with pytest.raises(UserError, match=r"'kept' is also trained on \(as 'rows'\).*same `heldout_fraction`"):
            planned(sources, evaluate={"conversations": "kept"})
    else:
        assert planned(sources, evaluate={"conversations": "kept"})


def test_a_split_given_by_path_is_not_fetched_too_unless_it_is_cut(planned: Planned):
    exam = {"source": "medqa", "split": "test", "path": "rows.jsonl"}
    assert held(planned({"exam": exam}, base=HUB)) == TESTS - {"medqa.test"} | {"exam"}
    assert held(planned({"exam": exam | {"max_rows": 5}}, base=HUB)) == TESTS | {"exam"}


@pytest.mark.parametrize(
    ("task", "names"),
    [
        ("medqa_4options", {"medqa.test"}),
        ("mmlu_anatomy", {"mmlu_medical.test"}),
        ("mmlu_professional_medicine", {"mmlu_medical.test"}),
        ("mmlu", {"mmlu_medical.test"}),
        ("mmlu_astronomy", set()),
        ("mmlu_professional_law", set()),
        ("headqa_en", {"headqa.test"}),
        ("multimedqa", {"medqa.test", "medmcqa.validation", "pubmedqa.test", "mmlu_medical.test"}),
        ("mmlu_pro_health", {"mmlu_pro.test"}),
        ("toxigen", {"toxigen.test"}),
        ("gsm8k_cot_zeroshot", {"gsm8k.test"}),
        ("gsm8k-cot-llama", {"gsm8k.test"}),
        ("ifeval", {"ifeval.test"}),
        ("medmcqa", {"medmcqa.validation"}),
        ("pubmedqa", {"pubmedqa.test"}),
        ("arc_easy", set()),
    ],
)
def test_what_lm_evals_own_tasks_ask_is_held_out_whatever_the_benchmarks(planned: Planned, task: str, names: set[str]):
    """Some of them cannot be planned here: ifeval where its packages are missing."""
    found = held_out.held_out(planned.load(evaluate={"tasks": [task]}, benchmarks=[]))  # type: ignore[attr-defined]
    assert set(found.uses) == names
    assert found.unknown_tasks == (() if names else (task,))
    assert bool(names) != any(task in line for line in held_out.told(found, ["data.sft"], []) if "warning" in line)


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm-eval is not installed")
def test_every_medical_subject_of_mmlu_has_a_task_that_is_known():
    from rounds.data_prep.sources.mmlu_medical import SUBJECTS

    pattern = dict(held_out._ASKED_BY)["mmlu_medical"]
    assert all(pattern.fullmatch(f"mmlu_{subject}") for subject in SUBJECTS)


def test_a_set_without_the_filter_is_told(planned: Planned):
    plan = planned(filters=["exact_dedup"])
    assert held_out.told(plan.held_out, [], ["data.sft"]) == ["warning: no filter `decontaminate` for data.sft"]


# Licences.


def test_rows_without_a_licence_are_refused_unless_the_recipe_takes_them_on_itself(planned: Planned):
    bare = {name: value for name, value in planned.rows.items() if name != "licence"}  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=r"sources\.rows\.licence.*state `licence:`.*allow_unlicensed: \[rows\]"):
        planned({"rows": bare})
    assert planned({"rows": bare}, allow_unlicensed=["rows"]).stage("source.rows").key == planned().stage("source.rows").key
    with pytest.raises(UserError, match=r"allow_unlicensed: no source is named 'row'.*did you mean 'rows'"):
        planned(allow_unlicensed=["row"])


def test_a_published_set_without_a_licence_is_refused_too(planned: Planned):
    sft = {"data": ["rows", "papers"], "max_length": 64, "global_batch_size": 2, "learning_rate": 1e-3}
    papers = {"source": "cord19", "path": "rows.jsonl"}
    with pytest.raises(UserError, match=r"sources\.papers\.licence.*its publisher states none"):
        planned({"papers": papers}, sft=sft)
    planned({"papers": papers}, sft=sft, allow_unlicensed=["papers"])


# What is done to a source's rows.


def test_a_persons_own_rows_are_masked_unless_the_recipe_says_otherwise(planned: Planned):
    pytest.importorskip("presidio_analyzer")
    bare = {name: value for name, value in planned.rows.items() if name != "phi"}  # type: ignore[attr-defined]
    assert planned({"rows": bare}).stage("source.rows").params.stored()["phi"] == {"name": "phi"}
    chosen = planned({"rows": bare | {"phi": {"action": "drop", "min_score": 0.4}}}).stage("source.rows").params.stored()["phi"]
    assert chosen == {"name": "phi", "action": "drop", "min_score": 0.4}
    assert planned({"rows": bare | {"phi": "drop"}}).stage("source.rows").params.stored()["phi"]["action"] == "drop"
    for off in ("off", False):
        assert "phi" not in planned({"rows": bare | {"phi": off}}).stage("source.rows").params.stored()
    with pytest.raises(UserError, match=r"sources\.rows\.phi.*'dorp'"):
        planned({"rows": bare | {"phi": "dorp"}})
    with pytest.raises(UserError, match="phi"):
        planned({"rows": bare | {"phi": 3}})


def test_published_sets_are_left_as_they_are_unless_the_recipe_says_otherwise(planned: Planned):
    sft = {"data": ["questions"], "max_length": 64, "global_batch_size": 2, "learning_rate": 1e-3}
    questions = {"source": "medquad", "path": "rows.jsonl"}
    assert "phi" not in planned({"questions": questions}, sft=sft).stage("source.questions").params.stored()
    pytest.importorskip("presidio_analyzer")
    assert planned({"questions": questions | {"phi": "mask"}}, sft=sft).stage("source.questions").params.stored()["phi"]


def test_without_the_extra_own_rows_are_refused_while_planning(planned: Planned, monkeypatch: pytest.MonkeyPatch):
    from rounds.data_prep.filters import phi

    monkeypatch.setattr(phi, "MODULES", ("no_such_module",))
    bare = {name: value for name, value in planned.rows.items() if name != "phi"}  # type: ignore[attr-defined]
    with pytest.raises(UserError) as error:
        planned({"rows": bare})
    message = str(error.value)
    assert "sources.rows.phi (on by default for your own files)" in message
    assert "pip install" in message and "`phi: off`" in message and len(message.splitlines()) == 1
    planned()


def test_a_system_prompt_is_a_file_whose_text_is_in_the_key(planned: Planned, tmp_path: Path):
    before = planned()
    with_prompt = planned({"rows": planned.rows | {"system_prompt": "prompts/exam.md"}})  # type: ignore[attr-defined]
    stage = with_prompt.stage("source.rows")
    assert stage.params.stored()["system_prompt"].startswith("You answer medical examination questions.")
    assert stage.key != before.stage("source.rows").key
    (tmp_path / "mine.md").write_text("Be brief.\n")
    own = planned({"rows": planned.rows | {"system_prompt": "mine.md"}})  # type: ignore[attr-defined]
    assert own.stage("source.rows").params.stored()["system_prompt"] == "Be brief."
    with pytest.raises(UserError, match=r"sources\.rows\.system_prompt.*none\.md"):
        planned({"rows": planned.rows | {"system_prompt": "none.md"}})  # type: ignore[attr-defined]


@pytest.mark.parametrize("revision", [None, "a" * 40])
def test_a_split_is_planned_and_fetched_from_the_set_that_it_lives_in(planned: Planned, revision: str | None):
    exam = {"source": "pubmedqa", "split": "labeled", **({"revision": revision} if revision else {})}
    stage = planned({"exam": exam}, base=HUB, benchmarks=[]).stage("source.exam")
    commit = revision or "9001f2853fb87cab8d220904e0de81ac6973b318"
    assert (stage.params.stored()["repository"], stage.params.stored()["revision"]) == ("qiaojin/PubMedQA", commit)
    assert [(need.name, need.revision) for need in needs.of([stage])] == [("qiaojin/PubMedQA", commit)]
