"""What the planner says that training needs: real skeletons, formulas that move the right way, and advice that helps."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from data_prep.errors import UserError
from train import cluster, forecast, memory, recipe, shape, skeleton
from train.cluster import Cluster, Row
from train.memory import Setting
from train.pipeline import build_plan
from train.recipe import Hub, Lora, Tiny, Training
from train.shape import Shape

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
ZERO = {stage: json.loads((RECIPES / "deepspeed" / f"zero{stage}.json").read_text()) for stage in (2, 3)}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that remembers the shapes that were counted."""
    return tmp_path_factory.mktemp("store")


def paper(root: Path, name: str, **row: object) -> list[forecast.Forecast]:
    file = RECIPES / f"{name}.yaml"
    settings = {"gpu": "h100-80", "precision": "bf16", "attn_implementation": "flash_attention_2", **row}
    plan = build_plan(recipe.load(file), root, file.parent)
    return forecast.forecasts(plan, Cluster(train=Row.model_validate(settings)), root)[0]


@pytest.fixture(scope="module")
def eight(root: Path) -> Shape:
    """Llama-3-8B's shape."""
    return shape.of(recipe.load(RECIPES / "med42-v2-8b.yaml").base, root)[0]


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("Meta-Llama-3-8B-Instruct", 8_030_261_248),
        ("Llama-3.1-8B-Instruct", 8_030_261_248),
        ("Meta-Llama-3-70B-Instruct", 70_553_706_496),
        ("Llama-3.1-70B-Instruct", 70_553_706_496),
    ],
)
def test_the_skeleton_of_each_published_config_has_the_known_number_of_parameters(name: str, parameters: int):
    """Built on the meta device: the numbers that the models' weight files have."""
    counted = skeleton.count(json.loads((RECIPES / "configs" / f"{name}.json").read_text()))
    assert counted["parameters"] == parameters
    assert counted["largest_module"] == counted["vocabulary"] * counted["hidden"]


def test_every_recipe_with_a_hub_model_has_a_config_to_plan_with():
    for file in RECIPES.glob("*.yaml"):
        base = recipe.load(file).base
        if isinstance(base, Hub):
            assert (RECIPES / "configs" / f"{base.id.rpartition('/')[2]}.json").is_file(), file.name


def test_a_shape_is_counted_once_and_remembered(tmp_path: Path):
    base = Tiny(kind="tiny")
    first = shape.of(base, tmp_path)
    remembered = json.loads((tmp_path / "shapes.json").read_text())
    (digest,) = remembered
    (tmp_path / "shapes.json").write_text(json.dumps({digest: {**remembered[digest], "parameters": 7}}))
    assert shape.of(base, tmp_path)[0].parameters == 7
    assert first[0].parameters == 1_721_664


def test_a_model_without_a_config_is_one_message(tmp_path: Path):
    with pytest.raises(UserError, match=r"nobody/knows.*neither in the hub's cache nor in recipes/configs"):
        shape.of(Hub(kind="hub", id="nobody/knows", revision="0" * 40), tmp_path)


def test_the_paper_fits_on_the_papers_hardware(root: Path):
    """8B on 2 x 8 H100, 70B on 6 x 8 for SFT and 4 x 8 for DPO (tables 2 and 3)."""
    for each in paper(root, "med42-v2-8b", nodes=2, processes=8, deepspeed=ZERO[2], micro_batch_size=2,
                      activation_checkpointing=True):  # fmt: skip
        assert not each.advice and each.hours and each.gpu_hours
    row = {"processes": 8, "deepspeed": ZERO[3], "micro_batch_size": 1, "activation_checkpointing": True}
    sft, *refused = paper(root, "med42-v2-70b", nodes=6, **row)
    assert not sft.advice and sft.hours and 2 < sft.hours < 24
    assert all("global_batch_size 128 does not divide" in each.advice for each in refused)
    _, *dpo = paper(root, "med42-v2-70b", nodes=4, **row)
    assert not any(each.advice for each in dpo)


def test_what_does_not_fit_is_told_with_a_change_that_makes_it_fit(root: Path):
    sft = paper(root, "med42-v2-70b", micro_batch_size=2)[0]
    assert "does not fit: try" in sft.advice and "zero3.json" in sft.advice and "nodes" in sft.advice
    small = paper(root, "med42-v2-8b", gpu="rtx4090-24", micro_batch_size=1)[0]
    assert "does not fit: try" in small.advice


def test_what_does_not_fit_anywhere_is_told_so(root: Path, eight: Shape):
    training = Training(learning_rate=1e-6, global_batch_size=1, max_length=131_072)
    row = Row(gpu="rtx4090-24", precision="bf16", micro_batch_size=1)
    assert "a larger GPU or a smaller model" in forecast._advice("sft", training, eight, row)


def test_a_row_without_a_gpu_has_memory_and_no_time(root: Path):
    file = RECIPES / "quickstart.yaml"
    plan = build_plan(recipe.load(file), root, file.parent)
    for each in forecast.forecasts(plan, cluster.load(RECIPES / "clusters" / "local.yaml"), root)[0]:
        assert each.need.peak > 0 and each.hours is None and not each.advice


def test_each_saving_saves(eight: Shape):
    plain = Setting(
        micro_tokens=8192, longest=8192, optimizer="adamw_torch", accumulation=2, ranks=8, deepspeed=ZERO[2]
    )
    before = memory.training(eight, plain)
    assert memory.training(eight, replace(plain, deepspeed=ZERO[3])).peak < before.peak
    assert memory.training(eight, replace(plain, activation_checkpointing=True)).activations < before.activations / 5
    assert memory.training(eight, replace(plain, optimizer="rmsprop")).optimizer < before.optimizer
    assert memory.training(eight, replace(plain, ranks=16)).optimizer == before.optimizer / 2
    lora = memory.training(eight, replace(plain, lora=Lora()))
    assert lora.optimizer < before.optimizer / 50 and lora.gradients < before.gradients / 50
    zero = {**ZERO[2], "zero_optimization": {**ZERO[2]["zero_optimization"], "offload_optimizer": {"device": "cpu"}}}
    assert memory.training(eight, replace(plain, deepspeed=zero)).optimizer == 0


def test_the_sixteen_bytes_of_mixed_precision(eight: Shape):
    """Rajbhandari et al. 2020, section 3.1: 2 + 2 bytes of weights and gradients, 12 of Adam's states, sharded by stage."""
    parameters = eight.parameters
    one = Setting(micro_tokens=1, longest=1, optimizer="adamw_torch", ranks=4, deepspeed=ZERO[2])
    held = memory.training(eight, one)
    assert (held.weights, held.gradients, held.optimizer) == (2 * parameters, 2 * parameters / 4, 12 * parameters / 4)
    held = memory.training(eight, replace(one, deepspeed=ZERO[3]))
    assert (held.weights, held.gradients, held.optimizer) == tuple(n * parameters / 4 for n in (2, 2, 12))


def test_adapter_parameters_are_those_that_peft_makes(tmp_path: Path):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                         num_key_value_heads=2, vocab_size=300)  # fmt: skip
    counted = skeleton.count(json.loads(config.to_json_string(use_diff=False)))
    linears = tuple(tuple(each) for each in counted.pop("linears"))
    made = Shape(linears=linears, **counted)
    with torch.device("meta"):
        for targets in ("all-linear", ["q_proj", "down_proj"]):
            model = get_peft_model(LlamaForCausalLM(config), LoraConfig(r=4, target_modules=targets))
            trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
            lora = Lora(r=4, target_modules=targets if isinstance(targets, str) else tuple(targets))
            assert made.adapter_parameters(lora) == trained
