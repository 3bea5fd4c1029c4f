"""The edits of an ablation's variants: what each makes of a recipe's data, and how mistakes are told."""

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from rounds.data_prep.errors import UserError
from rounds.train import cli
from rounds.train.config import recipe
from rounds.train.config.ablation import Ablation, Variant, edited
from rounds.train.config.recipe import Recipe

QUICKSTART = Path(__file__).resolve().parents[3] / "recipes" / "quickstart.yaml"


@pytest.fixture(scope="module")
def data() -> dict[str, Any]:
    """The quickstart, checked and dumped: defaults included."""
    return recipe.load(QUICKSTART).model_dump(mode="json")


def edit(data: dict[str, Any], **edits: Any) -> Recipe:
    return Recipe.model_validate(edited(data, Variant(**edits), QUICKSTART.parent))


def names(made: Recipe) -> list[str]:
    return [item.name for item in made.rounds]


def test_no_edit_is_the_recipe_itself(data):
    assert edit(data) == recipe.load(QUICKSTART)


@pytest.mark.parametrize(
    ("edits", "left"),
    [
        ({"rounds": []}, []),
        ({"rounds": ["second"]}, ["second"]),
        ({"rounds": [2, "first"]}, ["third", "first"]),
        ({"drop": ["rounds.second"]}, ["first", "third"]),
        ({"drop": ["rounds.0", "rounds.1"]}, ["third"]),
        ({"drop": ["rounds.*"]}, []),
        ({"pool": "all"}, ["all"]),
    ],
)
def test_rounds_are_kept_dropped_and_ordered(data, edits, left):
    assert names(edit(data, **edits)) == left


def test_dropping_a_field_gives_it_its_default(data):
    assert edit(data, drop=["sft"], set={"base.tokenizer_data": ["facts"]}).sft is None
    assert [use.name for use in edit(data, drop=["filters.decontaminate"]).filters] == ["exact_dedup"]


def test_pooling_takes_the_first_rounds_settings_and_everyones_data_once(data):
    made = edit(data, pool="all")
    assert [item.name for item in made.rounds[0].data] == ["pairs_1", "pairs_2", "pairs_3"]
    twice = edited(data, Variant(set={"rounds.third.data": data["rounds"][1]["data"]}), QUICKSTART.parent)
    made = edit(twice, pool="all")
    assert [item.name for item in made.rounds[0].data] == ["pairs_1", "pairs_2"]
    assert made.rounds[0].learning_rate == recipe.load(QUICKSTART).rounds[0].learning_rate


def test_a_star_reaches_every_element_and_a_missing_section_is_made(data):
    made = edit(data, set={"rounds.*.beta": 0.01, "sft.lora.r": 4})
    assert [item.beta for item in made.rounds] == [0.01] * 3
    assert made.sft and made.sft.lora and made.sft.lora.r == 4


def test_scaling_is_exact_in_decimals(data):
    made = edit(data, set={"rounds.0.learning_rate": 1e-6}, scale={"rounds.*.learning_rate": 10, "sft.global_batch_size": 2})
    assert made.rounds[0].learning_rate == 1e-5
    assert made.sft and made.sft.global_batch_size == 8


def test_a_new_path_is_relative_to_the_file_that_says_so(data, tmp_path):
    changed = edited(data, Variant(set={"sources.own": {"source": "file", "path": "rows.jsonl"}, "base.path": "model"}), tmp_path)
    assert changed["sources"]["own"]["path"] == str(tmp_path / "rows.jsonl")
    assert changed["base"]["path"] == str(tmp_path / "model")


@pytest.mark.parametrize(
    ("edits", "needles"),
    [
        ({"rounds": ["frist"]}, ["rounds", "'frist'", "did you mean 'first'?"]),
        ({"rounds": [0, "first"]}, ["rounds", "twice"]),
        ({"drop": ["rounds.0.data.7"]}, ["drop.rounds.0.data.7", "no element '7'", "pairs_1"]),
        ({"drop": ["sfd"]}, ["drop.sfd", "did you mean 'sft'?"]),
        ({"drop": ["name.x"]}, ["drop.name.x", "no fields"]),
        ({"rounds": [], "pool": "all"}, ["pool", "no round"]),
        ({"set": {"rounds.4.beta": 1}}, ["set.rounds.4.beta", "no element '4'"]),
        ({"scale": {"sft.optim": 2}}, ["scale.sft.optim", "number", "adamw_torch"]),
        ({"scale": {"export.licence": 2}}, ["scale.export.licence", "number"]),
    ],
)
def test_an_edit_that_leads_nowhere_names_its_field(data, edits, needles):
    with pytest.raises(UserError) as error:
        edit(data, **edits)
    assert all(needle in str(error.value) for needle in needles), str(error.value)


def test_a_grid_is_every_combination_under_names_that_tell_it():
    file = {"name": "g", "base": "r.yaml", "baseline": "beta=0.1+loss_type=plain", "variants": {"other": None},
            "grid": {"rounds.*.beta": [0.1, 0.01], "rounds.*.loss_type": {"plain": ["sigmoid"], "ipo": ["ipo"]}}}  # fmt: skip
    made = Ablation.model_validate(file).all()
    assert list(made) == ["other", "beta=0.1+loss_type=plain", "beta=0.1+loss_type=ipo",
                          "beta=0.01+loss_type=plain", "beta=0.01+loss_type=ipo"]  # fmt: skip
    assert made["beta=0.01+loss_type=ipo"].set == {"rounds.*.beta": 0.01, "rounds.*.loss_type": ["ipo"]}


def test_grid_paths_that_end_alike_are_named_in_full():
    file = {"name": "g", "base": "r.yaml", "baseline": "a", "variants": {"a": None},
            "grid": {"rounds.0.beta": [0.1], "rounds.1.beta": [0.2]}}  # fmt: skip
    assert list(Ablation.model_validate(file).all()) == ["a", "rounds.0.beta=0.1+rounds.1.beta=0.2"]


def test_a_grid_may_stand_alone_and_its_labels_are_shown_as_they_are_written(tmp_path):
    file = tmp_path / "grid.yaml"
    file.write_text(
        f"name: g\nbase: {QUICKSTART}\nbaseline: 'data=[pairs_1]+beta=[/red] :smile:'\n"
        "grid: {rounds.0.data: [[pairs_1], [pairs_2]], rounds.0.beta: {'[/red] :smile:': 0.2}}\n"
    )
    done = CliRunner().invoke(cli.app, ["plan", str(file), "--store", str(tmp_path)])
    assert done.exit_code == 0 and "data=[pairs_2]+beta=[/red] :smile:" in done.output, done.output


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"seeds": [1, 2, 1], "variants": {"a": None}}, "a seed stands twice"),
        ({"variants": {}}, "no variant is left"),
        ({"variants": {"a": None}, "grid": {"seed": {"x\ny": 1}}}, "holds a line break"),
    ],
)
def test_an_ablation_that_cannot_be_told_apart_is_refused(fields, said):
    with pytest.raises(ValueError, match=said):
        Ablation.model_validate({"name": "g", "base": "r.yaml", "baseline": "a", **fields})
