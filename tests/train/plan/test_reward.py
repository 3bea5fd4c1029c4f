"""A judge that the run trains is three stages, shared by all that ask it, and what it cannot be is said by its field.

Covers: train/config/reward.
"""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from rounds.data_prep.errors import UserError
from rounds.train.config import recipe as recipes
from rounds.train.config.recipe import Recipe
from rounds.train.config.reward import Trained
from rounds.train.engine.graph import Stage, parents_first
from rounds.train.forecast import row_counts
from rounds.train.plan import held_out, pipeline, reward
from rounds.train.plan.rows import Planning

REPOSITORY = Path(__file__).resolve().parents[3]
KNOBS: dict[str, Any] = {
    "kind": "trained",
    "data": [{"name": "pairs_1"}],
    "learning_rate": 1e-4,
    "global_batch_size": 16,
    "max_length": 256,
}


def judge(**fields: Any) -> Trained:
    return Trained.model_validate({**KNOBS, **fields})


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return recipes.load(REPOSITORY / "recipes" / "quickstart.yaml")


def planned(recipe: Recipe, root: Path, asked: Trained, *names: str) -> Stage:
    planning = Planning(recipe, root, REPOSITORY / "recipes", True, held_out.held_out(recipe))
    plan = pipeline.build_plan(recipe, root, REPOSITORY / "recipes")
    return reward.reward_of(planning, "own", asked, {name: plan.stage(name) for name in names or ("base", "sft")})


def test_it_is_trained_on_pairs_as_a_judge_reads_them_from_a_policys_weights(recipe: Recipe, tmp_path: Path):
    made = planned(recipe, tmp_path, judge())
    names = [stage.name for stage in parents_first([made])]
    assert names[-1] == "reward.own" and {"sft", "data.reward.own", "tokenize.reward.own", "source.pairs_1"} <= set(names)
    tokens = made.inputs["pairs"]
    assert isinstance(tokens, Stage) and tokens.params.stored() == {"max_length": 256, "whole": True}
    assert made.inputs["policy"].name == "sft"  # type: ignore[union-attr]
    assert "sft" not in [stage.name for stage in parents_first([planned(recipe, tmp_path, judge(policy="base"), "base")])][-1:]
    assert made.params.stored()["training"]["learning_rate"] == 1e-4


def test_pairs_that_a_round_has_are_made_once(recipe: Recipe, tmp_path: Path):
    plan = pipeline.build_plan(recipe, tmp_path, REPOSITORY / "recipes")
    made = {stage.name: stage.key for stage in parents_first([planned(recipe, tmp_path, judge())])}
    assert made["data.reward.own"] == plan.stage("data.first").key
    assert made["tokenize.reward.own"] != plan.stage("tokenize.first").key


def test_what_changes_its_answer_is_in_its_key_and_nothing_else(recipe: Recipe, tmp_path: Path):
    key = planned(recipe, tmp_path, judge()).key
    for other in (
        {"policy": "base"},
        {"center_rewards_coefficient": 0.01},
        {"data": ["pairs_2"]},
        {"learning_rate": 2e-4},
        {"filters": []},
    ):
        assert planned(recipe, tmp_path, judge(**other)).key != key
    assert planned(recipe, tmp_path, judge(max_missing_share=0.5)).key == key


def test_who_asks_it_sees_a_reward_model():
    asked = judge(max_missing_share=0.1).as_reward_model
    assert (asked.kind, asked.max_length, asked.max_missing_share) == ("reward_model", 256, 0.1)


@pytest.mark.parametrize(
    ("fields", "names", "says"),
    [
        ({}, ("base",), r"judges\.own\.policy: it is to start from 'sft', and the recipe has no section of that name: set `policy: base`"),
        ({"max_length": 4096}, ("base", "sft"), r"judges\.own\.max_length: 4096 tokens, and the model's config says"),
        ({"data": ["pairs_9"]}, ("base", "sft"), r"judges\.own\.data: no source is named 'pairs_9'"),
        ({"data": ["facts"]}, ("base", "sft"), r"judges\.own\.data: source 'facts' holds conversations, expected pairs"),
        ({"data": ["pairs_heldout"]}, ("base", "sft"), r"judges\.own\.data: split 'heldout_pairs' of clinic_facts is for evaluation only"),
    ],
)
def test_what_cannot_be_is_refused(recipe: Recipe, tmp_path: Path, fields: dict[str, Any], names: tuple[str, ...], says: str):
    with pytest.raises(UserError, match=says):
        planned(recipe, tmp_path, judge(**fields), *names)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"lora": {}}, "take `lora` out"),
        ({"per_device_train_batch_size": 2}, "a mean over pairs, whatever the micro-batch"),
        ({"router_aux_loss_coef": 0.1}, "no loss that balances experts"),
        ({"policy": "first"}, "Input should be 'base' or 'sft'"),
        ({"center_rewards_coefficient": -1}, "nothing but a mean of 0 is learnt"),
        ({"beta": 0.1}, "beta"),
    ],
)
def test_a_knob_that_means_nothing_is_refused(fields: dict[str, Any], says: str):
    with pytest.raises(ValidationError, match=says):
        judge(**fields)


def test_a_round_that_it_ranks_and_its_card_ask_one_and_the_same(tmp_path: Path):
    own = "{kind: trained, data: [pairs_1], learning_rate: 1.0e-4, global_batch_size: 16, max_length: 256}"
    changed = recipes.load(
        REPOSITORY / "recipes" / "quickstart.yaml",
        (
            f"judges={{own: {own}}}",
            "prompts={asked: {data: [{name: pairs_2}]}}",
            "rounds.third.data=[sampled]",
            "rounds.third.sample={prompts: asked, part: 1, num_answers: 2, max_new_tokens: 16}",
            "rounds.third.rank={by: [own]}",
        ),
    )
    plan = pipeline.build_plan(changed, tmp_path, REPOSITORY / "recipes")
    asks = [stage for stage in plan.stages if "judge" in stage.inputs]
    assert {stage.name for stage in asks} == {"rank.third.own", "card.own"}
    assert {stage.inputs["judge"].key for stage in asks} == {plan.stage("reward.own").key}
    assert sum(stage.kind.is_judge for stage in plan.stages) == 1
    card = plan.stage("card.own").params.stored()["judge"]
    assert (
        card
        == plan.stage("rank.third.own").params.stored()["judge"]
        == {"kind": "reward_model", "id": None, "revision": None, "max_length": 256}
    )


def test_pairs_that_it_is_trained_on_are_not_held_out(recipe: Recipe, tmp_path: Path):
    held = "{source: clinic_facts, split: train_pairs_1}"
    own = "{kind: trained, data: [pairs_1], learning_rate: 1.0e-4, global_batch_size: 16, max_length: 256, policy: base}"
    changed = recipes.load(
        REPOSITORY / "recipes" / "quickstart.yaml",
        (f"judges={{own: {own}}}", "rounds=[]", "gate=null", f"sources.again={held}", "evaluate.preferences=again"),
    )
    with pytest.raises(UserError, match=r"evaluate\.preferences: source 'again' is also trained on \(as 'pairs_1'\)"):
        pipeline.build_plan(changed, tmp_path, REPOSITORY / "recipes")


def test_its_size_is_known_also_where_it_shares_its_pairs_with_a_round(tmp_path: Path):
    own = "{kind: trained, data: [snorkel_2], learning_rate: 1.0e-5, global_batch_size: 64, max_length: 4096}"
    file = REPOSITORY / "recipes" / "med42-v2-8b.yaml"
    sizes = row_counts.sizes(pipeline.build_plan(recipes.load(file, (f"judges={{own: {own}}}",)), tmp_path, file.parent), tmp_path)
    assert sizes["reward.own"].rows == sizes["dpo.second"].rows > 0
