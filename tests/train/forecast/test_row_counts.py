"""What follows from published sizes before anything is fetched: rows, tokens and steps of the paper's recipes."""

import json
from pathlib import Path

import pytest

from rounds.train.config import recipe
from rounds.train.config.training import Training
from rounds.train.engine import batches, store
from rounds.train.engine.params import DpoParams, SftParams
from rounds.train.forecast import row_counts
from rounds.train.plan.pipeline import Plan, build_plan

RECIPES = Path(__file__).resolve().parents[3] / "recipes"


def plan_of(name: str, root: Path, *overrides: str) -> Plan:
    file = RECIPES / f"{name}.yaml"
    return build_plan(recipe.load(file, overrides), root, file.parent)


def training_of(plan: Plan, name: str) -> Training:
    params = plan.stage(name).params
    assert isinstance(params, SftParams | DpoParams)
    return params.training


def steps_of(plan: Plan, root: Path, *names: str) -> list[int]:
    sizes = row_counts.sizes(plan, root)
    return [batches.steps(sizes[name].rows, training_of(plan, name)) for name in names]


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("med42-v2-8b", [317, 78, 79]),
        ("med42-v2-llama3.1-8b", [317, 78, 79]),
        ("med42-v2-70b", [633, 156, 157]),
        ("med42-v2-llama3.1-70b", [633, 156, 157]),
    ],
)
def test_the_papers_dpo_steps_follow_from_the_split_sizes(tmp_path: Path, name: str, wanted: list[int]):
    """80,901, 19,958 and 19,996 pairs in batches of 256 (8B) and 128 (70B)."""
    assert steps_of(plan_of(name, tmp_path), tmp_path, "dpo.first", "dpo.second", "dpo.third") == wanted


def test_the_papers_settings(tmp_path: Path):
    eight, seventy = plan_of("med42-v2-8b", tmp_path), plan_of("med42-v2-70b", tmp_path)
    for plan, batch, pairs, beta in ((eight, 32, 256, 0.1), (seventy, 48, 128, 0.01)):
        sft = plan.stage("sft").params.stored()["training"]
        assert (sft["global_batch_size"], sft["max_length"], sft["num_train_epochs"]) == (batch, 8192, 2)
        assert (sft["learning_rate"], sft["weight_decay"], sft["adam_beta1"], sft["adam_beta2"]) == (
            5e-6,
            0.01,
            0.9,
            0.95,
        )
        for stage in (stage for stage in plan.stages if stage.kind.name == "dpo"):
            training, dpo = stage.params.stored()["training"], stage.params.stored()["dpo"]
            assert (training["optim"], training["learning_rate"], training["global_batch_size"]) == (
                "rmsprop",
                1e-6,
                pairs,
            )
            assert (training["max_length"], training["num_train_epochs"], dpo["beta"]) == (4096, 1, beta)
            assert stage.params.stored()["reference_is_start"]


def test_the_papers_sft_steps_follow_from_its_rows_and_mean_length():
    """1,296,471 samples of 538 tokens in two epochs of 32 x 8,192, as the paper packs them: chunks without a gap."""
    rows = round(1_296_471 * row_counts.MEAN_TOKENS / 8192)
    for batch, published in ((32, 5321), (48, 3549)):
        found = batches.steps(rows, Training(learning_rate=5e-6, max_length=8192, global_batch_size=batch, num_train_epochs=2))
        assert found == pytest.approx(published, rel=1e-3)


def test_a_finished_stage_counts_more_than_what_is_published(tmp_path: Path):
    plan = plan_of("med42-v2-8b", tmp_path)
    assert not row_counts.sizes(plan, tmp_path)["dpo.second"].counted
    folder = store.folder(tmp_path, plan.stage("tokenize.second"))
    folder.mkdir(parents=True)
    (folder / "done.json").write_text(json.dumps({"status": "done", "counts": {"pairs": 513}}))
    sizes = row_counts.sizes(plan, tmp_path)
    assert (sizes["dpo.second"].rows, sizes["dpo.second"].counted) == (513, True)
    assert steps_of(plan, tmp_path, "dpo.second") == [3]


def test_a_mix_is_sized_by_its_fractions_and_limits(tmp_path: Path):
    plan = plan_of(
        "med42-v2-8b",
        tmp_path,
        "rounds.first.data=[{name: ultrafeedback, keep_fraction: 0.5, max_rows: 100}, {name: snorkel_1, keep_fraction: 0.1}]",
    )
    size = row_counts.sizes(plan, tmp_path)["data.first"]
    assert size.rows == 100 + 1977
    assert size.answer_tokens == pytest.approx((100 * 275 + 1977 * 375) / 2077)


def test_what_nobody_knows_has_no_size(tmp_path: Path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"question": "Is it?", "answer": "Yes."}\n')
    plan = plan_of(
        "med42-v2-8b", tmp_path, f"sources.own={{source: file, path: {rows}, format: question_answer, licence: ours}}", "sft.data=[own]"
    )
    sizes = row_counts.sizes(plan, tmp_path)
    assert "sft" not in sizes and "dpo.first" in sizes
