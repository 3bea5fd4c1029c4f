"""What the planner says that training needs: real skeletons, formulas that move the right way, and advice that helps.

Covers: train/config/gpus, train/config/training, train/display/forecast, train/forecast/advice, train/forecast/arithmetic,
train/forecast/evaluation_tokens, train/forecast/memory, train/forecast/model_shape, train/forecast/skeleton.
"""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from rounds.data_prep.errors import UserError
from rounds.train.config import cluster, recipe
from rounds.train.config.cluster import Cluster, Machine
from rounds.train.config.recipe import Hub, Tiny
from rounds.train.config.training import Lora, Training
from rounds.train.engine import kinds
from rounds.train.forecast import advice, evaluation_tokens, forecast, memory, model_shape, row_counts, skeleton
from rounds.train.forecast.memory import Setting
from rounds.train.forecast.model_shape import Shape
from rounds.train.plan.pipeline import build_plan

RECIPES = Path(__file__).resolve().parents[3] / "recipes"
ZERO = {stage: json.loads((RECIPES / "deepspeed" / f"zero{stage}.json").read_text()) for stage in (2, 3)}

pytestmark = pytest.mark.xdist_group("forecast")  # one store, which remembers models' shapes


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that remembers the shapes that were counted."""
    return tmp_path_factory.mktemp("store")


def on_cluster(root: Path, name: str, cluster_name: str) -> list[forecast.Forecast]:
    file = RECIPES / f"{name}.yaml"
    plan = build_plan(recipe.load(file), root, file.parent)
    found, _, _ = forecast.forecasts(plan, cluster.load(RECIPES / "clusters" / f"{cluster_name}.yaml"), root)
    return found


def trained(found: list[forecast.Forecast]) -> list[forecast.Forecast]:
    return [each for each in found if each.stage.startswith(("sft", "dpo"))]


def paper(root: Path, name: str, **row: object) -> list[forecast.Forecast]:
    file = RECIPES / f"{name}.yaml"
    settings = {"gpu": "h100-80", "precision": "bf16", "attn_implementation": "flash_attention_2", **row}
    plan = build_plan(recipe.load(file), root, file.parent)
    cluster = Cluster(kind="slurm", train=Machine.model_validate(settings))
    return trained(forecast.forecasts(plan, cluster, root)[0])


@pytest.fixture(scope="module")
def eight(root: Path) -> Shape:
    """Llama-3-8B's shape."""
    return model_shape.of(recipe.load(RECIPES / "med42-v2-8b.yaml").base, root)[0]


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
    first = model_shape.of(base, tmp_path)
    remembered = json.loads((tmp_path / "shapes.json").read_text())
    (digest,) = remembered
    (tmp_path / "shapes.json").write_text(json.dumps({digest: {**remembered[digest], "parameters": 7}}))
    assert model_shape.of(base, tmp_path)[0].parameters == 7
    assert first[0].parameters == 1_721_664


def test_a_model_without_a_config_is_one_message(tmp_path: Path):
    with pytest.raises(UserError, match=r"nobody/knows.*neither in the hub's cache nor in recipes/configs"):
        model_shape.of(Hub(kind="hub", id="nobody/knows", revision="0" * 40), tmp_path)


@pytest.mark.parametrize(
    ("name", "machines", "sft_hours", "dpo_hours", "gib"),
    [
        ("med42-v2-8b", "slurm-2x8h100", 2.5, 0.5, 34),
        ("med42-v2-70b", "slurm-8xh100", 7.7, 2.2, 61),
        ("llama3-8b-qlora-1gpu", "one-gpu", 10.0, 9.2, 9.9),
    ],
)
def test_each_recipe_fits_the_hardware_and_takes_the_hours_that_its_head_says(
    root: Path, name: str, machines: str, sft_hours: float, dpo_hours: float, gib: float
):
    sft, *dpo = trained(on_cluster(root, name, machines))
    assert not any(each.advice for each in (sft, *dpo))
    assert sft.hours == pytest.approx(sft_hours, rel=0.05)
    assert sum(each.hours or 0 for each in dpo) == pytest.approx(dpo_hours, rel=0.1)
    assert max(each.need.peak for each in (sft, *dpo)) / advice.GIB == pytest.approx(gib, rel=0.05)


def test_a_reference_is_scored_in_the_shards_of_training(root: Path):
    found = {each.stage: each for each in on_cluster(root, "med42-v2-70b", "slurm-8xh100")}
    sharded = found["reference.first"]
    assert sharded.need.weights == pytest.approx(2 * 70_553_706_496 / sharded.machine.world_size, rel=0.01)
    assert not sharded.advice and sharded.hours


def test_a_batch_that_does_not_divide_is_told_beside_the_stages_that_do(root: Path):
    """The paper trained 70B on 48 GPUs and aligned it on 32: 128 pairs do not divide over 48."""
    row = {"processes": 8, "deepspeed": ZERO[3], "micro_batch_size": 1, "activation_checkpointing": True}
    sft, *refused = paper(root, "med42-v2-70b", nodes=6, **row)
    assert not sft.advice and sft.gpu_hours
    assert all("global_batch_size 128 does not divide" in each.advice for each in refused)


def test_what_does_not_fit_is_told_with_a_change_that_makes_it_fit(root: Path):
    sft = paper(root, "med42-v2-70b", micro_batch_size=2)[0]
    assert "does not fit: try" in sft.advice and "zero3.json" in sft.advice and "nodes" in sft.advice
    small = paper(root, "med42-v2-8b", gpu="rtx4090-24", micro_batch_size=1)[0]
    assert "does not fit: try" in small.advice


def test_what_does_not_fit_anywhere_is_told_so(root: Path, eight: Shape):
    training = Training(learning_rate=1e-6, global_batch_size=1, max_length=131_072)
    machine = Machine(gpu="rtx4090-24", precision="bf16", micro_batch_size=1)
    assert "a larger GPU or a smaller model" in advice.advice(kinds.SFT, training, eight, machine, advice.Place(many_nodes=True))


LARGE = Training(learning_rate=1e-6, global_batch_size=128, max_length=2048)


def test_on_one_machine_no_nodes_are_advised_but_more_of_its_gpus():
    machine = Machine(processes=2)
    here, cluster = (
        [" ".join(words) for words, _, _ in advice._alternatives(LARGE, machine, advice.Place(many))] for many in (False, True)
    )
    assert any("processes: 8" in words for words in here) and any("nodes: 8" in words for words in cluster)
    assert not any("nodes" in words or "processes: 16" in words for words in here)
    assert not any("processes" in words for words in cluster)


@pytest.mark.parametrize(("memory_asked", "says"), [(None, "and 120 GiB of each node's own memory"), ("64G", "in the recipe lora")])
def test_offload_says_what_it_takes_of_the_host_and_is_not_advised_where_that_is_not_there(
    eight: Shape, memory_asked: str | None, says: str
):
    slurm = {"memory": memory_asked} if memory_asked else {}
    machine = Machine.model_validate({"gpu": "a100-40", "precision": "bf16", "micro_batch_size": 1, "activation_checkpointing": True,
                              "slurm": slurm})  # fmt: skip
    alone = LARGE.model_copy(update={"global_batch_size": 1})  # more GPUs would not divide it
    assert says in advice.advice(kinds.SFT, alone, eight, machine, advice.Place(many_nodes=True))


def test_a_row_that_offloads_more_than_its_host_has_does_not_fit(eight: Shape):
    zero = {**ZERO[2], "zero_optimization": {**ZERO[2]["zero_optimization"], "offload_optimizer": {"device": "cpu"}}}
    machine = Machine.model_validate({"gpu": "h100-80", "precision": "bf16", "micro_batch_size": 1, "activation_checkpointing": True,
                              "processes": 8, "deepspeed": zero, "slurm": {"memory": "64G"}})  # fmt: skip
    told = advice.advice(kinds.SFT, LARGE, eight, machine, advice.Place(many_nodes=True))
    assert told.startswith("does not fit: offload needs 120 GiB of a node's own memory, and a job of this row asks for 64: try")


def test_a_reference_that_fits_no_device_is_told_what_would_do(root: Path):
    file = RECIPES / "med42-v2-70b.yaml"
    plan = build_plan(recipe.load(file), root, file.parent)
    machine = Machine(gpu="h100-80", precision="bf16", eval_batch_size=8, processes=1)
    found = forecast.forecasts(plan, Cluster(kind="slurm", train=machine), root)[0]
    told = next(each.advice for each in found if each.stage == "reference.first")
    assert "deepspeed: deepspeed/zero3.json, nodes: 2 (then " in told, told


def test_weights_in_4_bits_and_zero_3_are_not_advised_together(eight: Shape):
    machine = Machine(gpu="rtx4090-24", precision="bf16", micro_batch_size=1, deepspeed=ZERO[3])
    for _, training, changed in advice._alternatives(LARGE, machine, advice.Place(many_nodes=True)):
        assert not (training.lora and training.lora.load_in_4bit and changed.zero_stage == 3)


def test_a_row_without_a_gpu_has_memory_and_no_time(root: Path):
    for each in on_cluster(root, "quickstart", "local"):
        assert each.need.peak > 0 and each.hours is None and not each.advice


def test_each_saving_saves(eight: Shape):
    plain = Setting(micro_tokens=8192, longest=8192, optimizer="adamw_torch", accumulation=2, ranks=8, deepspeed=ZERO[2])
    before = memory.training(eight, plain)
    assert memory.training(eight, replace(plain, deepspeed=ZERO[3])).peak < before.peak
    assert memory.training(eight, replace(plain, activation_checkpointing=True)).activations < before.activations / 5
    assert memory.training(eight, replace(plain, optimizer="rmsprop")).optimizer < before.optimizer
    assert memory.training(eight, replace(plain, ranks=16)).optimizer == before.optimizer / 2
    lora = memory.training(eight, replace(plain, lora=Lora()))
    assert lora.optimizer < before.optimizer / 50 and lora.gradients < before.gradients / 50
    zero = {**ZERO[2], "zero_optimization": {**ZERO[2]["zero_optimization"], "offload_optimizer": {"device": "cpu"}}}
    assert memory.training(eight, replace(plain, deepspeed=zero)).optimizer == 0


def test_weights_in_4_bits_have_no_second_copy_in_bf16(eight: Shape):
    """bitsandbytes makes a weight of 16 bits of one matrix at a time; autocast over fp32 weights keeps one of each."""
    whole = Setting(micro_tokens=1, longest=1, optimizer="adamw_torch", lora=Lora())
    quantised = replace(whole, lora=Lora(load_in_4bit=True))
    largest = 2 * eight.hidden * eight.intermediate
    for made in (memory.scoring, memory.training):
        saved = made(eight, whole).activations - made(eight, quantised).activations
        assert saved == pytest.approx(2 * eight.linear_parameters - largest, rel=1e-3)
    deep = replace(quantised, activation_checkpointing=True, micro_tokens=8192, longest=8192)
    stream = eight.layers * 8192 * 2 * eight.hidden  # in bf16, since nothing is fp32 but the master of the adapter
    assert memory.training(eight, deep).activations < stream + 8192 * memory.layer_bytes(eight, deep) * 1.5 + largest


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

    config = LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=300
    )
    made = model_shape.from_counts(skeleton.count(json.loads(config.to_json_string(use_diff=False))))
    with torch.device("meta"):
        for targets in ("all-linear", ["q_proj", "down_proj"]):
            model = get_peft_model(LlamaForCausalLM(config), LoraConfig(r=4, target_modules=targets))
            trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
            lora = Lora(r=4, target_modules=targets if isinstance(targets, str) else tuple(targets))
            assert made.adapter_parameters(lora) == trained


def test_evaluations_are_forecast_with_all_that_the_recipe_measures(root: Path):
    file = RECIPES / "med42-v2-70b.yaml"
    plan = build_plan(recipe.load(file), root, file.parent)
    known = row_counts.sizes(plan, root)
    stage = next(stage for stage in plan.stages if stage.name == "evaluate.third")
    reading = evaluation_tokens.of(stage, known)
    pairs, talks = known["source.ultrafeedback_test"], known["source.ultrachat_test"]
    questions = 12_032 + 3_382 + 4_183 + 1_273 + 500 + 940  # the paper's columns but USMLE, whose rows are the user's own
    heldout = pairs.rows * 2 * (pairs.prompt_tokens + pairs.answer_tokens) + talks.tokens
    ours = questions * (evaluation_tokens.QUESTION_TOKENS + 3 * evaluation_tokens.CHOICE_TOKENS)
    assert reading.scored == pytest.approx(ours + heldout)
    assert (reading.answers, reading.answer_tokens) == (0, 0)
    asked, *suites = evaluation_tokens.written(plan.stage("answers.third"), known)
    assert [(each.answers, each.answer_tokens) for each in suites] == [(450, 128), (400, 512), (0, 512)]
    assert (asked.answers, asked.answer_tokens, asked.scored) == (64, 512, 64 * talks.prompt_tokens)
    found = {each.stage: each for each in on_cluster(root, "med42-v2-70b", "slurm-8xh100")}["evaluate.third"]
    assert found.gpus == 8 and found.gpu_hours == pytest.approx(8 * found.hours)  # type: ignore[operator]
    assert found.need.weights == pytest.approx(2 * 70_553_706_496 / 8) and not found.advice
    # One GPU of the eight computes at a time: 2 floating-point operations a weight and token at the assumed share of its peak.
    least = reading.scored * 2 * 69.5e9 / (989e12 * 0.34) / 3600
    assert least < found.hours < 2 * least  # type: ignore[operator]
    one = Cluster(infer=Machine.model_validate({"gpu": "h100-80", "precision": "bf16"}))
    alone = {each.stage: each for each in forecast.forecasts(plan, one, root)[0]}["evaluate.third"]
    assert alone.advice == "does not fit: try device_map: auto and more GPUs of a node"
