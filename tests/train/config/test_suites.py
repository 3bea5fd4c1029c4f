"""Suites lie beneath a recipe: what it says goes first, by name; what is the user's own to bring is left out in words."""

from pathlib import Path

import pytest

from rounds.data_prep.errors import UserError
from rounds.train.config import recipe as recipes
from rounds.train.config import shipped, suites
from rounds.train.config.evaluation import Evaluate
from rounds.train.config.recipe import Recipe
from rounds.train.plan import pipeline

RECIPE = """
name: own
base: {kind: tiny}
sources:
  facts: {source: clinic_facts, split: train}
  asked: {source: clinic_facts, split: heldout_questions, max_rows: 50}
sft: {data: [facts], max_length: 64, global_batch_size: 4, num_train_epochs: 1, learning_rate: 1.0e-3}
evaluate:
  suites: [own]
  tasks:
    - {task: choice_likelihood, name: mine, source: asked, limit: 40}
    - {task: choice_likelihood, name: shared, source: asked, limit: 30}
"""
SUITE = """
about: A suite of the tests.
sources:
  asked: {source: clinic_facts, split: heldout_questions, max_rows: 900}
  more: {source: clinic_facts, split: heldout_questions}
evaluate:
  max_length: 99
  tasks:
    - {task: choice_likelihood, name: shared, source: more, limit: 7}
    - {task: choice_likelihood, name: theirs, source: more, limit: 31}
    - {task: choice_likelihood, name: usmle, source: usmle, optional: true}
  averages: {both: {mean_of: [mine/acc, theirs/acc]}, all: {mean_of: [both, usmle/acc]}}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a recipe and a suite beside it."""
    (tmp_path / "suites").mkdir()
    (tmp_path / "suites" / "own.yaml").write_text(SUITE.replace("  more:", "  usmle: {source: usmle, split: test}\n  more:"))
    (tmp_path / "own.yaml").write_text(RECIPE)
    return tmp_path


def read(folder: Path, *overrides: str) -> tuple[Recipe, Evaluate]:
    """Read the recipe with its suite."""
    recipe = recipes.load(folder / "own.yaml", overrides)
    assert recipe.evaluate
    return recipe, recipe.evaluate


def test_what_the_recipe_says_goes_first_by_name(folder: Path):
    recipe, evaluate = read(folder)
    assert [(task.label, task.source, task.limit) for task in evaluate.tasks] == [
        ("mine", "asked", 40), ("shared", "asked", 30), ("theirs", "more", 31)]  # fmt: skip
    assert recipe.sources["asked"].max_rows == 50 and "more" in recipe.sources and evaluate.max_length == 99
    assert evaluate.averages["both"].mean_of == ("mine/acc", "theirs/acc")


def test_an_override_reaches_what_a_suite_brings(folder: Path):
    recipe, evaluate = read(folder, "evaluate.tasks.theirs.limit=5", "sources.more.max_rows=6")
    assert evaluate.tasks[2].limit == 5 and recipe.sources["more"].max_rows == 6
    assert read(folder, "evaluate.suites=[]")[1].tasks[1:] == read(folder)[1].tasks[1:2]


def test_rows_of_ones_own_that_are_not_given_are_left_out_and_said(folder: Path):
    recipe, evaluate = read(folder)
    assert "usmle" not in recipe.sources
    assert evaluate.absent == {"usmle": "its rows are your own to bring: --set sources.usmle.path=FOLDER"}
    pipeline.build_plan(recipe, folder / "store", folder)  # the average that lacks it is no mistake
    recipe, evaluate = read(folder, f"sources.usmle.path={folder}")
    assert not evaluate.absent and evaluate.tasks[-1].label == "usmle" and recipe.sources["usmle"].path == str(folder)


def test_a_gate_on_what_is_left_out_is_refused(folder: Path):
    recipe, _ = read(folder, "gate={rules: [{metric: usmle/acc, may_fall_by: 2}]}",
                     "rounds=[{name: first, data: [facts], max_length: 64, global_batch_size: 4, learning_rate: 1.0e-4}]")  # fmt: skip
    with pytest.raises(UserError, match="'usmle/acc' cannot be measured: its rows are your own to bring"):
        pipeline.checks.gate(recipe, recipe.gate, recipe.rounds[0], folder)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("suites: [own]", "suites: [med43-v2]", r"own.yaml: evaluate.suites: no suite 'med43-v2' .* did you mean 'med42-v2'"),
        ("name: mine", "name: both", "averages.both: a task has this name"),
        ("suites: [own]", "suites: [own, own]", r"own.yaml:\d+: evaluate.suites: one name stands twice in own, own"),
    ],
)
def test_a_mistake_in_the_recipe_names_its_place(folder: Path, old: str, new: str, says: str):
    (folder / "own.yaml").write_text(RECIPE.replace(old, new))
    with pytest.raises(UserError, match=says):
        read(folder)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("limit: 7", "limits: 7", r"suites/own.yaml:\d+: evaluate.tasks.0.limits: unknown field"),
        ("[both, usmle/acc]", "[both, all]", r"suites/own.yaml:\d+: evaluate.averages.all: is a mean of itself: all -> all"),
        (
            "  max_length: 99",
            "  suites: [safety]",
            r"suites/own.yaml: evaluate.suites: a suite takes in no other \(safety\): name both in the recipe",
        ),
        ("[mine/acc, theirs/acc]", "[mine/acc, mine/acc]", "averages.both.mean_of: mine/acc stands twice: each counts as much"),
        ("about: A suite of the tests.", "", "suites/own.yaml: about: required field is missing"),
    ],
)
def test_a_mistake_in_a_suite_names_its_file_and_line(folder: Path, old: str, new: str, says: str):
    file = folder / "suites" / "own.yaml"
    file.write_text(file.read_text().replace(old, new))
    with pytest.raises(UserError, match=says):
        read(folder)


def test_an_average_of_what_nobody_measures_is_refused(folder: Path):
    recipe, _ = read(folder, "evaluate.averages.both.mean_of=[mine/acc, them/acc]")
    with pytest.raises(UserError, match=r"evaluate\.averages\.both: 'them/acc' is not measured"):
        pipeline.build_plan(recipe, folder / "store", folder)


def test_a_published_column_that_nothing_stands_for_is_refused(folder: Path):
    published = "evaluate.published={source: a paper, protocol: its own, columns: [mine/acc, %s], rows: {A: [1, 2]}}"
    for column in ("both", "usmle/acc"):  # what is left out has no score, and its column stays
        pipeline.build_plan(read(folder, published % column)[0], folder / "store", folder)
    with pytest.raises(UserError, match=r"evaluate\.published\.columns: 'mine/ac' is not measured; .* did you mean 'mine/acc'"):
        pipeline.build_plan(read(folder, published % "mine/ac")[0], folder / "store", folder)


def test_a_suite_that_asks_a_recipes_rows_needs_the_recipe(folder: Path, monkeypatch: pytest.MonkeyPatch):
    (folder / "suites" / "bare.yaml").write_text("about: Rows of the recipe.\nevaluate: {conversations: told}\n")
    monkeypatch.chdir(folder)
    with pytest.raises(UserError, match="--suite bare: brings no `sources` of its own, so a recipe with them must be named: --recipe FILE"):
        recipes.of_suites(("bare",))


def test_an_average_of_what_should_rise_and_what_should_fall_is_refused_before_anything_runs(folder: Path):
    loss = ("evaluate.conversations=told", "sources.told={source: clinic_facts, split: heldout_answers}")
    recipe, _ = read(folder, *loss, "evaluate.averages.odd={mean_of: [both, conversations/loss]}")
    with pytest.raises(UserError, match=r"averages\.odd: of conversations/loss less is better, of others more"):
        pipeline.build_plan(recipe, folder / "store", folder)


GATE = "rounds=[{name: first, data: [facts], max_length: 64, global_batch_size: 4, learning_rate: 1.0e-4}]"


@pytest.mark.parametrize(
    ("metric", "settings", "says"),
    [
        ("both", ("evaluate.tasks.mine.limit=9", "evaluate.tasks.theirs.limit=9"), "both is measured on 18 rows at most"),
        ("both", ("evaluate.tasks.mine.limit=9", "evaluate.tasks.theirs.limit=29"), None),
        ("notes/numbers", ("sources.asked={source: aci_bench, split: valid}",), "notes/numbers is measured on 20 rows at most"),
        ("notes/numbers", ("sources.asked={source: aci_bench, split: valid, path: own.jsonl}",), None),
    ],
    ids=str,
)
def test_a_gate_on_too_few_is_refused_where_the_number_is_known(folder: Path, metric: str, settings: tuple[str, ...], says: str | None):
    """Of an average its parts together; of a published set its rows, but not of a person's own file."""
    answers = "evaluate.answers=[{name: notes, source: asked, max_new_tokens: 9}]"
    recipe, _ = read(folder, *settings, GATE, answers, f"gate={{rules: [{{metric: {metric}, may_fall_by: 2}}]}}")
    assert recipe.gate
    if says is None:
        pipeline.checks.gate(recipe, recipe.gate, recipe.rounds[0], folder)
        return
    with pytest.raises(UserError, match=says):
        pipeline.checks.gate(recipe, recipe.gate, recipe.rounds[0], folder)


@pytest.mark.parametrize("name", suites.names())
def test_every_shipped_suite_is_read_alone(name: str, tmp_path: Path):
    recipe = recipes.of_suites((name,))
    assert recipe.evaluate and recipe.evaluate.suites == (name,)
    file = shipped.RECIPES / "suites" / f"{name}.yaml"
    assert file.read_text().startswith(f"# evaluate: {{suites: [{name}]}}")


def test_the_papers_averages_are_its_columns_and_its_rows_add_up():
    """The mean of the seven printed scores is the printed average, to the printed digit."""
    evaluate = recipes.of_suites(("med42-v2",)).evaluate
    assert evaluate and evaluate.published
    *seven, paper = evaluate.published.columns
    assert evaluate.averages[paper].mean_of == tuple(seven)
    for *scores, average in evaluate.published.rows.values():
        known = [score for score in scores if score is not None]
        assert len(known) == 7 and average is not None and abs(sum(known) / 7 - average) < 0.051
