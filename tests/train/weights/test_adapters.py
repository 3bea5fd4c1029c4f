"""DoRA and QLoRA train, adapters go on or start anew as the recipe says, and a reference that is the start gives ln 2.

Covers: train/engine/policy, train/weights/merging.
"""

import contextlib
import dataclasses
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file

from rounds.data_prep.errors import UserError
from rounds.data_prep.records import Conversation, Pair
from rounds.train.config import recipe
from rounds.train.config.cluster import Machine
from rounds.train.config.training import DpoLoss, Lora, Training
from rounds.train.engine import policy
from rounds.train.plan import pipeline
from rounds.train.weights import adapters, merging, models
from tests import staged

Run = Callable[..., tuple[Path, dict]]
REPOSITORY = Path(__file__).resolve().parents[3]
CPU = Machine(device="cpu", threads=1)
KNOBS = {"learning_rate": 1e-3, "global_batch_size": 4, "max_length": 96}


def lora(**changes: object) -> dict:
    return Lora.model_validate({"r": 4, "lora_alpha": 8, **changes}).model_dump(mode="json")


def params(adapter: dict) -> dict:
    training = Training.model_validate({**KNOBS, "lora": adapter}).model_dump(mode="json")
    return {"training": training, "dpo": DpoLoss().model_dump(mode="json"), "reference_is_start": True, "seed": 5}


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def tokens(run_stage: Run, shelf: Path, put: Callable, pairs: list[Pair]) -> Path:
    """The made pairs, tokenised."""
    return run_stage("tokenize", "pairs", {"max_length": 96}, {"tokenizer": shelf / "base", "data": put("data", pairs)})[0]


@pytest.fixture
def a_round(run_stage: Run, tokens: Path) -> Callable[..., Path]:
    """Score the start as a round's reference is scored, and run the round."""

    def run(name: str, start: Path, adapter: dict, scored_as: dict | None = None) -> Path:
        arithmetic = {"lora": scored_as or adapter}
        reference, _ = run_stage("reference", f"reference-{name}", arithmetic, {"policy": start, "pairs": tokens}, CPU)
        return run_stage("dpo", name, params(adapter), {"policy": start, "pairs": tokens, "reference": reference}, CPU)[0]

    return run


def logits(model: torch.nn.Module, tokens: Path) -> torch.Tensor:
    ids = torch.tensor([pq.read_table(tokens / "pairs.parquet").to_pylist()[0]["prompt_ids"]])
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits.clone()


def test_dora_is_merged_as_peft_would_apply_it(a_round: Callable, shelf: Path, tokens: Path):
    out = a_round("dora", shelf / "base", lora(use_dora=True))
    assert losses(out)[0] == pytest.approx(math.log(2), abs=1e-4)
    assert any("magnitude" in name for name in load_file(out / "adapter" / "adapter_model.safetensors"))
    start = models.load_model(policy.read(shelf / "base"), CPU)
    before = logits(start, tokens)
    applied = logits(PeftModel.from_pretrained(start, str(out / "adapter")), tokens)
    merged = logits(models.load_model(policy.read(out), CPU), tokens)
    assert float((merged - applied).abs().max()) < 1e-5 < float((merged - before).abs().max())


def test_a_round_goes_on_with_the_adapter_before_it(a_round: Callable, shelf: Path, tokens: Path):
    one = a_round("one", shelf / "base", lora())
    two = a_round("two", one, lora(start="continue"))
    assert losses(two)[0] == pytest.approx(math.log(2), abs=1e-4)
    assert policy.read(two).adapters == (two / "adapter",)
    assert policy.read(two).weights == policy.read(shelf / "base").weights
    before = load_file(one / "adapter" / "adapter_model.safetensors")
    after = load_file(two / "adapter" / "adapter_model.safetensors")
    moved = {name: float((after[name] - value).abs().max()) for name, value in before.items()}
    # Four steps of 1e-3 move no weight by more: it was trained further, and not from new random values.
    assert after.keys() == before.keys() and 1e-5 < max(moved.values()) < 0.02
    assert not (two / "adapter" / "ref").exists()
    three = a_round("three", two, lora())
    assert policy.read(three).adapters == (two / "adapter", three / "adapter")


def test_a_round_that_may_continue_starts_an_adapter_where_there_is_none(a_round: Callable, shelf: Path):
    out = a_round("first", shelf / "base", lora(start="continue"))
    assert json.loads((out / "policy.json").read_text())["kind"] == "adapter"


def test_another_shape_cannot_be_continued(a_round: Callable, shelf: Path):
    one = a_round("one", shelf / "base", lora())
    with pytest.raises(UserError, match=r"the adapter of one has r 4 and this stage says 2.*lora.start: merge"):
        a_round("two", one, lora(start="continue", r=2))
    with pytest.raises(UserError, match=r"other target_modules than this stage"):
        a_round("three", one, lora(start="continue", target_modules=["q_proj"]))


@pytest.fixture
def wide(shelf: Path, conversations: list[Conversation], put: Callable) -> Path:
    """A base as wide as one quantisation block of 64, below which bitsandbytes' CPU kernels fail."""
    tiny = {"kind": "tiny", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2,
            "vocab_size": 400, "max_position_embeddings": 256}  # fmt: skip
    (shelf / "wide").mkdir()
    template = (REPOSITORY / "recipes" / "chat_templates" / "llama3.jinja").read_text()
    staged.run(
        "base",
        {"base": tiny, "chat_template": template, "seed": 7},
        {"corpus": put("corpus", conversations)},
        shelf / "wide",
        CPU,
    )
    return shelf / "wide"


@pytest.mark.parametrize("start", ["merge", "continue"])
def test_qlora_is_measured_against_the_quantised_start(a_round: Callable, wide: Path, start: str):
    pytest.importorskip("bitsandbytes", reason="QLoRA needs bitsandbytes: pip install 'rounds[qlora]'")
    four_bit = lora(load_in_4bit=True)
    tolerance = 2e-3  # TRL holds such adapters in bf16, and bitsandbytes' kernels for scoring on a CPU compute in bf16
    one = a_round("one", wide, four_bit)
    assert losses(one)[0] == pytest.approx(math.log(2), abs=tolerance)
    two = a_round("two", one, lora(load_in_4bit=True, start=start))
    assert losses(two)[0] == pytest.approx(math.log(2), abs=tolerance)
    assert len(policy.read(two).adapters) == (1 if start == "continue" else 2)


def test_a_quantised_reference_is_another_one(run_stage: Run, wide: Path, tokens: Path):
    pytest.importorskip("bitsandbytes", reason="QLoRA needs bitsandbytes: pip install 'rounds[qlora]'")
    found = []
    for name, arithmetic in (("whole", {}), ("quantised", {"lora": lora(load_in_4bit=True)})):
        out, _ = run_stage("reference", name, arithmetic, {"policy": wide, "pairs": tokens}, CPU)
        found.append(pq.read_table(out / "logps.parquet")["ref_chosen_logps"].to_pylist())
    assert max(abs(a - b) for a, b in zip(*found, strict=True)) > 0.01


def test_qlora_is_refused_where_bitsandbytes_cannot_be_imported(a_round: Callable, shelf: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UserError, match=r"needs bitsandbytes, which cannot be used here.*pip install 'rounds\[qlora\]'"):
        a_round("one", shelf / "base", lora(load_in_4bit=True))


@pytest.mark.parametrize(
    ("modules", "wrong"),
    [
        (["q_proj", "wrong_proj"], "LlamaForCausalLM has no layer wrong_proj"),
        (r".*\.wrong_proj", r"LlamaForCausalLM has no layer .*\.wrong_proj"),
        (["proj"], "LlamaForCausalLM has no layer proj"),
        (["q_proj", "norm"], "model.norm of LlamaForCausalLM is a LlamaRMSNorm, to which no adapter can be added"),
        (["self_attn.q_proj", "embed_tokens"], None),
        (r".*[qv]_proj", None),
    ],
)
def test_a_layer_that_the_model_has_not_is_refused_though_others_match(shelf: Path, modules: object, wrong: str | None):
    asked = Lora.model_validate({"r": 4, "target_modules": modules})
    refused = pytest.raises(UserError) if wrong else contextlib.nullcontext()
    with refused as told:
        adapters.load_start(policy.read(shelf / "base"), CPU, asked, shelf / "cache")
    if told:
        assert f"{wrong}. Its linear layers are down_proj, " in str(told.value)


MINI = Path(__file__).parents[1] / "mini.yaml"


def planned(tmp_path: Path, **edits: object) -> pipeline.Plan:
    data = yaml.safe_load(MINI.read_text())
    data["sft"]["lora"], data["rounds"][0]["lora"] = edits["sft"], edits["first"]
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(data))
    return pipeline.build_plan(recipe.load(path), tmp_path / "store", tmp_path)


def test_a_plan_scores_the_reference_in_the_arithmetic_of_its_round(tmp_path: Path):
    fresh = planned(tmp_path, sft={"r": 4}, first={"r": 4}).stage("reference.first")
    assert fresh.params.stored() == {}
    assert planned(tmp_path, sft={"r": 4}, first={"r": 8}).stage("reference.first").key == fresh.key
    continued = planned(tmp_path, sft={"r": 4}, first={"r": 4, "start": "continue"}).stage("reference.first")
    assert continued.params.stored()["lora"]["start"] == "continue" and continued.key != fresh.key


@pytest.mark.parametrize(
    ("sft", "first", "message"),
    [
        ({"r": 4, "start": "continue"}, None, r"sft.lora.start: nothing comes before sft"),
        (None, {"r": 4, "start": "continue"}, r"rounds.first.lora.start: `continue` needs an adapter.*lora not set"),
        (
            {"r": 8},
            {"r": 4, "start": "continue"},
            r"rounds.first.lora.start: `continue` needs an adapter of the same r",
        ),
    ],
)
def test_a_plan_refuses_to_continue_what_is_not_there(tmp_path: Path, sft: object, first: object, message: str):
    with pytest.raises(UserError, match=message):
        planned(tmp_path, sft=sft, first=first)


def test_several_adapters_are_rounded_to_bf16_once(shelf: Path, tmp_path: Path):
    """In fp32 the same as PEFT's own merging, one after the other; in bf16 that, rounded."""
    published = models.load_model(policy.read(shelf / "base"), CPU, torch.bfloat16)
    published.save_pretrained(tmp_path / "published")
    start = dataclasses.replace(policy.read(shelf / "base"), weights=str(tmp_path / "published"))
    one_by_one, chain = models.load_model(start, CPU), []
    for number in range(3):
        # Each of another shape, and with DoRA in the middle: it is scaled by the norm of what the one before made.
        config = LoraConfig(r=2 + number, target_modules=["q_proj", "down_proj"][: 1 + number], use_dora=number == 1)
        torch.manual_seed(number)
        adapted: Any = get_peft_model(models.load_model(start, CPU), config)
        with torch.no_grad():
            for name, parameter in adapted.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=1e-3)
        chain.append(tmp_path / str(number))
        adapted.save_pretrained(chain[-1])
        one_by_one = PeftModel.from_pretrained(one_by_one, str(chain[-1])).merge_and_unload()
    described = dataclasses.replace(start, adapters=tuple(chain))
    wanted, whole = one_by_one.state_dict(), models.load_model(described, CPU).state_dict()
    rounded, before = models.load_model(described, CPU, torch.bfloat16).state_dict(), published.state_dict()
    assert sum(not torch.equal(wanted[name], before[name].float()) for name in wanted) >= 2
    for name, value in wanted.items():
        assert torch.equal(whole[name], value) and torch.equal(rounded[name], value.to(torch.bfloat16)), name


def filled(model: Any, folder: Path, **knobs: Any) -> Path:
    """Write an adapter of a model whose factors are all random, as if it had been trained."""
    torch.manual_seed(0)
    adapted: Any = get_peft_model(model, LoraConfig(r=4, task_type="CAUSAL_LM", **knobs))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.3)
    adapted.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_adapter_on_the_embeddings_leaves_the_head_alone_merged_too(shelf: Path, tmp_path: Path, tied: bool, dtype: torch.dtype):
    """Merged into a table that is the head too, it would change what the head was trained without."""
    start = policy.read(shelf / "base")
    plain = models.load_model(start, CPU)
    plain.config.tie_word_embeddings = tied
    if not tied:
        plain.lm_head.weight = torch.nn.Parameter(plain.lm_head.weight.detach().clone())
        plain.all_tied_weights_keys = {}
    models.save_model(plain, models.load_tokenizer(start), tmp_path / "start")
    start = dataclasses.replace(start, weights=str(tmp_path / "start"))
    adapter = filled(models.load_model(start, CPU), tmp_path / "adapter", target_modules=["embed_tokens", "q_proj"])
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        trained = PeftModel.from_pretrained(models.load_model(start, CPU, dtype), str(adapter)).eval()(input_ids=ids).logits
        merged = models.load_model(dataclasses.replace(start, adapters=(adapter,)), CPU, dtype).eval()
        assert not torch.equal(merged(input_ids=ids).logits, models.load_model(start, CPU, dtype).eval()(input_ids=ids).logits)
        assert (merged(input_ids=ids).logits - trained).abs().max() < (1e-4 if dtype == torch.float32 else 0.1)
        models.save_model(merged, models.load_tokenizer(start), tmp_path / "whole")  # as the export does
        again = models.load_model(dataclasses.replace(start, weights=str(tmp_path / "whole")), CPU, dtype).eval()
        assert torch.equal(again(input_ids=ids).logits, merged(input_ids=ids).logits)


def test_a_merge_that_answers_otherwise_than_as_trained_is_refused(shelf: Path, tmp_path: Path):
    """Two layers share their weights, as some models' do, and one of them has an adapter: merged, it changes both."""

    def shared() -> Any:
        model: Any = models.load_model(policy.read(shelf / "base"), CPU)
        attention = model.model.layers[0].self_attn
        attention.k_proj.weight = attention.q_proj.weight
        return model

    adapter = filled(shared(), tmp_path / "adapter", target_modules=["q_proj"])
    with pytest.raises(UserError, match=r"merged into the weights, answers otherwise than as it was trained: by up to .* nats"):
        merging.merged(shared(), [adapter])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dora_on_top_of_adapters_is_merged_as_it_was_trained(shelf: Path, tmp_path: Path, dtype: torch.dtype):
    start, ids = policy.read(shelf / "base"), torch.tensor([[5, 6, 7, 8]])
    chain: list[Path] = []
    for number, knobs in enumerate([{}, {"use_dora": True}, {"use_dora": True}, {}]):
        below = models.load_model(dataclasses.replace(start, adapters=tuple(chain)), CPU)
        chain.append(filled(below, tmp_path / str(number), target_modules=["q_proj", "down_proj"], **knobs))
    with torch.no_grad():
        below = models.load_model(dataclasses.replace(start, adapters=tuple(chain[:-1])), CPU)
        trained = PeftModel.from_pretrained(below, str(chain[-1])).eval()(input_ids=ids).logits
        merged = models.load_model(dataclasses.replace(start, adapters=tuple(chain)), CPU, dtype).eval()(input_ids=ids).logits
    assert (merged - trained).abs().max() < (1e-4 if dtype == torch.float32 else 0.3)


@pytest.mark.parametrize(("wrong", "dtype"), [(0, torch.float32), (1, torch.float32), (2, torch.float32), (2, torch.bfloat16)])
def test_of_a_chain_with_dora_each_merge_is_compared(shelf: Path, tmp_path: Path, wrong: int, dtype: torch.dtype):
    """The adapter whose merge changes a second layer, which shares the first's weights, is the one that is named."""

    def shared() -> Any:
        model: Any = models.load_model(policy.read(shelf / "base"), CPU, dtype)
        attention = model.model.layers[0].self_attn
        attention.k_proj.weight = attention.q_proj.weight
        return model

    chain = [
        filled(shared(), tmp_path / f"round{n}" / "adapter", target_modules=["q_proj" if n == wrong else "down_proj"], use_dora=n != 0)
        for n in range(3)
    ]
    with pytest.raises(UserError, match=f"the adapter of round{wrong}, merged into the weights, answers otherwise than as it was trained"):
        merging.merged(shared(), chain)
