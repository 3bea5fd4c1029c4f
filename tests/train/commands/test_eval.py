"""`rounds eval`: models side by side under one evaluation, with the keys of a training run, so that nothing is measured twice.

Covers: train/plan/comparison, train/stages/comparison, train/display/comparison.
"""

import csv
import io
import json
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from rounds.data_prep.errors import UserError
from rounds.train.config import recipe as recipes
from rounds.train.display import comparison as display
from rounds.train.display.scores import scores_table
from rounds.train.engine.records import Score
from rounds.train.plan import comparison, pipeline
from tests.train import command_line

MINI = Path(__file__).parents[1] / "mini.yaml"


def evaluate(store: Path, *words: str | Path, expect: int = 0) -> str:
    """`rounds eval` in a process of its own."""
    return command_line.afresh("eval", *words, "--store", store, expect=expect, environment={"COLUMNS": "240"})


@pytest.fixture(scope="module")
def store(undisturbed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that holds a finished run of the mini recipe."""
    return shutil.copytree(undisturbed, tmp_path_factory.mktemp("eval") / "store")


def test_a_finished_run_is_compared_without_measuring_it_again(store: Path):
    before = {path.name for path in store.glob("evaluate-*")}
    said = evaluate(store, f"{MINI}:base", f"{MINI}:sft", "dpo.first")
    assert {path.name for path in store.glob("evaluate-*")} == before and "1 stages run" in said
    assert "not for clinical use" in _page(said).read_text().lower()
    rows = list(csv.DictReader((_page(said).parent / "comparison.csv").open()))
    assert {row["model"] for row in rows} == {f"{MINI}:base", f"{MINI}:sft", "dpo.first"}
    base, sft = (next(r for r in rows if r["model"].endswith(name) and r["metric"] == "conversations/loss") for name in (":base", ":sft"))
    assert float(sft["difference"]) == pytest.approx(float(sft["value"]) - float(base["value"]), abs=1e-9)
    assert sft["verdict"] == "too few items"
    assert "nothing was left to do" in evaluate(store, f"{MINI}:base", f"{MINI}:sft", "dpo.first")


def _page(said: str) -> Path:
    return Path(next(line for line in said.splitlines() if line.startswith("page:")).partition(":")[2].strip())


def test_a_model_folder_scores_as_the_policy_that_it_was_exported_from(store: Path):
    """The export is another base model, so it is measured, and gives the run's own numbers."""
    model = next(store.glob("export-*")) / "model"
    said = evaluate(store, model, MINI, "--recipe", MINI, "--json")  # with what stderr says of its stages
    told, _ = json.JSONDecoder().raw_decode(said, said.index("{\n"))
    exported, trained = told["scores"][str(model)], told["scores"][str(MINI)]
    assert exported.keys() == trained.keys()
    for metric, (value, n) in trained.items():
        assert exported[metric] == [pytest.approx(value, abs=2e-4), n]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("nope", "--recipe", MINI), "nope: no model of that name"),
        (("org/name", "--recipe", MINI), "needs the commit that is meant, as org/name@COMMIT"),
        ((f"{MINI}:sfx",), "the recipe has no policy of that name: did you mean 'sft'?"),
        ((MINI, MINI), "is named twice"),
        (("dpo.first",), "say what is measured: --suite NAME, or --recipe FILE"),
        (("data.sft", "--recipe", MINI), "data.sft is no policy"),
        ((MINI, "--set", "evaluate=null"), "has no `evaluate` section"),
        ((MINI, "--suite", "med43"), "no suite 'med43'"),
        (("org/name", "--suite", "use_cases", "--set", "sft.max_length=9"), "with --suite it is evaluate and the suites' sources"),
    ],
    ids=str,
)
def test_a_mistake_is_one_message(store: Path, words: tuple, says: str):
    said = evaluate(store, *words, expect=1)
    assert says in said and "Traceback" not in said


def test_keys_are_those_of_a_training_recipe(tmp_path: Path):
    recipe = recipes.load(MINI)
    trained = pipeline.build_plan(recipe, tmp_path, MINI.parent)
    compared = comparison.build_plan([f"{MINI}:base", f"{MINI}:first"], recipe, MINI.parent, tmp_path, False, ())
    assert [stage.key for stage in compared.scores.values()] == [trained.stage(f"evaluate.{name}").key for name in ("base", "first")]
    assert not any(stage.kind.exports or stage.kind.name == "report" for stage in compared.stages)


def test_a_model_that_the_recipe_starts_from_is_taken_as_the_recipe_takes_it(tmp_path: Path, made_base: Path):
    """With its chat template; any other model keeps its own."""
    template = tmp_path / "own.jinja"
    template.write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    base = {"kind": "local", "path": str(made_base / "model"), "chat_template": str(template)}
    recipe = recipes.load(MINI, (f"base={json.dumps(base)}",))
    made = comparison.build_plan([str(made_base / "model")], recipe, MINI.parent, tmp_path / "store", False, ())
    assert next(stage for stage in made.stages if stage.kind.starts).key == pipeline.start(recipe, tmp_path / "store", MINI.parent).key


def test_a_hub_model_is_planned_at_its_commit(tmp_path: Path):
    commit = "0123456789" * 4
    made = comparison.build_plan([f"org/name@{commit}"], recipes.load(MINI), MINI.parent, tmp_path, False, ())
    start = next(stage for stage in made.stages if stage.kind.starts)
    assert start.params.stored()["base"] == {"kind": "hub", "id": "org/name", "revision": commit}
    with pytest.raises(UserError, match="40 hex digits"):
        comparison.build_plan(["org/name@main"], recipes.load(MINI), MINI.parent, tmp_path, False, ())


def test_what_is_set_goes_to_the_suite_or_to_the_recipe_of_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A recipe does not have a suite's sources, nor a suite a recipe's base: each is set where it is."""
    monkeypatch.setenv("COLUMNS", "200")
    words = ("eval", f"{MINI}:base", "--suite", "use_cases", "--dry-run", "--store", str(tmp_path / "store"))
    plain = command_line.here(*words)
    set_in_the_suite = command_line.here(*words, "--set", "evaluate.answers.use_cases.max_rows=3", "--set", "sources.use_cases.max_rows=9")
    set_in_the_recipe = command_line.here(*words, "--set", "base.max_position_embeddings=2048")
    assert "3 answers" in set_in_the_suite and _key(set_in_the_suite, "base") == _key(plain, "base")
    assert _key(set_in_the_recipe, "base") != _key(plain, "base")
    both = command_line.here(*words, "--recipe", MINI, "--set", "evaluate.answers.use_cases.max_rows=3")
    assert "7 answers" in both  # the four of the recipe's own set beside them


def _key(said: str, stage: str) -> str:
    return next(line.split()[1] for line in said.splitlines() if line.split()[:1] == [stage])


@pytest.mark.parametrize(("width", "models", "heads"), [(80, 3, "model 1"), (80, 2, "a-model-of-mine-0"), (240, 5, "a-model-of-mine-0")])
def test_scores_are_whole_where_the_terminal_is_narrow(width: int, models: int, heads: str):
    score = Score(value=0.2761, stderr=0.0451, n=98, questions=98, higher_is_better=True)
    of_models = {f"a-model-of-mine-{number}": {"mmlu_pro/acc_bytes": score} for number in range(models)}
    named = display._heads(of_models, width)
    assert named["a-model-of-mine-0"] == heads
    console = Console(width=width, record=True, file=io.StringIO())
    beside = display._beside(of_models, width)
    marks = {(named[name], "mmlu_pro/acc_bytes"): display._MARKS["better"] for name in of_models}
    console.print(scores_table("own", {named[name]: of_models[name] for name in list(of_models)[:beside]}, marks))
    assert console.export_text().count("0.276 ±0.045 ▲") == beside and beside >= min(models, 3)


def test_what_was_left_out_and_how_often_was_refused_is_told(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    prompts = [
        {"id": f"{kind}{n}", "group": kind, "prompt": "What is it? " * (1 if n else 200)} for kind in ("safe", "unsafe") for n in range(4)
    ]
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(each) + "\n" for each in prompts))
    (tmp_path / "suites").mkdir()
    (tmp_path / "suites" / "own.yaml").write_text(
        "about: A suite of the tests.\n"
        f"sources: {{asked: {{source: file, path: {tmp_path}/asked.jsonl, format: prompt, split: heldout, heldout_fraction: 1.0, "
        "licence: own}, facts: {source: clinic_facts, split: heldout_questions}}\n"
        "evaluate:\n  tasks: [{task: choice_likelihood, name: facts, source: facts, limit: 9}]\n"
        "  answers: [{name: asked, source: asked, max_new_tokens: 4}]\n"
        "  averages: {lacking: {mean_of: [facts/acc, facts/acc/nobody]}}\n"
    )
    monkeypatch.chdir(tmp_path)
    words = (f"{MINI}:base", f"{MINI}:sft", "--suite", "own")
    said = evaluate(store, *words)
    assert "not available: lacking: facts/acc/nobody was not measured" in said
    assert "left out: 2 of asked: too long" in said
    told = json.loads(evaluate(store, *words, "--json"))
    assert told["floors"]["facts/acc"]["chance"] == 0.25 and told["not_available"][f"{MINI}:sft"] == {"lacking": "facts/acc/nobody"}
    assert {"asked/refusal/safe", "asked/refusal/unsafe"} <= told["differences"][f"{MINI}:sft"].keys()
    failed = evaluate(store, *words, "--set", "evaluate.too_long=fail", expect=1)
    assert "answers to 'asked': 2 prompts do not fit with the tokens that may be written after them" in failed
