"""Stored reference log-probabilities: the right numbers, checked at the first step, and as good as a reference model.

Covers: train/training/trainer, train/weights/experts, train/weights/logprobs, train/weights/pair_logprobs.
"""

import json
import math
import threading
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset
from peft import PeftModel
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3MoeConfig
from trl import DPOConfig, DPOTrainer

from rounds.data_prep.errors import UserError
from rounds.data_prep.records import Pair
from rounds.train.config.cluster import Machine
from rounds.train.config.training import Training
from rounds.train.engine import policy
from rounds.train.training import arguments as trainer_arguments
from rounds.train.training import trainer
from rounds.train.weights import models, pair_logprobs

Run = Callable[..., tuple[Path, dict]]
CPU = Machine(device="cpu", threads=1)
DPO = {"beta": 0.1, "loss_type": ["sigmoid"], "loss_weights": None, "label_smoothing": 0.0}
KNOBS = {"learning_rate": 1e-3, "num_train_epochs": 1.0, "global_batch_size": 4, "max_length": 96}
LORA = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "target_modules": "all-linear"}


def knobs(**changes: object) -> dict:
    return Training.model_validate({**KNOBS, **changes}).model_dump(mode="json")


@pytest.fixture
def tokens(run_stage: Run, shelf: Path, put: Callable, pairs: list[Pair]) -> Path:
    """The made pairs, tokenised."""
    inputs = {"tokenizer": shelf / "base", "data": put("data", pairs)}
    out, counts = run_stage("tokenize", "pairs", {"max_length": 96}, inputs)
    assert (counts["pairs"], counts["dropped"]) == (16, {})
    return out


@pytest.fixture
def reference(run_stage: Run, shelf: Path, tokens: Path) -> Path:
    """Their log-probabilities under the base model."""
    return run_stage("reference", "reference", {}, {"policy": shelf / "base", "pairs": tokens}, CPU)[0]


@pytest.fixture
def other(shelf: Path) -> Path:
    """A stage folder with other weights of the same shape."""
    start = policy.read(shelf / "base")
    model = models.load_model(start, CPU)
    torch.manual_seed(11)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    (shelf / "other").mkdir()
    models.save_model(model, models.load_tokenizer(start), shelf / "other" / "model")
    policy.write_weights(shelf / "other", shelf / "base")
    return shelf / "other"


@torch.no_grad()
def plain_logprob(model: torch.nn.Module, prompt: list[int], answer: list[int]) -> float:
    """The textbook computation, one row at a time, without padding."""
    ids = torch.tensor([prompt + answer])
    logps = model(input_ids=ids).logits.double().log_softmax(-1)[0, :-1].gather(-1, ids[0, 1:, None])[:, 0]
    return float(logps[len(prompt) - 1 :].sum())


def columns(folder: Path) -> dict[str, list]:
    return pq.read_table(folder / "logps.parquet").to_pydict()


def test_reference_log_probabilities_are_the_plain_ones(run_stage: Run, tokens: Path, other: Path):
    out, counts = run_stage("reference", "scored", {}, {"policy": other, "pairs": tokens}, CPU)
    rows, found = pq.read_table(tokens / "pairs.parquet").to_pylist(), columns(out)
    model = models.load_model(policy.read(other), CPU).eval()
    assert found["id"] == [row["id"] for row in rows]
    for side in ("chosen", "rejected"):
        wanted = [plain_logprob(model, row["prompt_ids"], row[f"{side}_ids"]) for row in rows]
        assert found[f"ref_{side}_logps"] == pytest.approx(wanted, abs=1e-4)
        assert counts[f"mean_{side}"] == pytest.approx(sum(wanted) / len(wanted), abs=1e-4)
        assert len(set(found[f"ref_{side}_logps"])) > 8


def test_reference_log_probabilities_do_not_depend_on_the_batch(run_stage: Run, shelf: Path, tokens: Path):
    inputs = {"policy": shelf / "base", "pairs": tokens}
    found = []
    for size in (1, 5, 64):
        machine = Machine(device="cpu", threads=1, eval_batch_size=size)
        found.append(columns(run_stage("reference", f"by{size}", {}, inputs, machine)[0]))
    for side in ("ref_chosen_logps", "ref_rejected_logps"):
        assert found[0][side] == pytest.approx(found[1][side], abs=1e-4)
        assert found[0][side] == pytest.approx(found[2][side], abs=1e-4)


def test_reference_log_probabilities_do_not_depend_on_the_layout(run_stage: Run, other: Path, tokens: Path):
    found = []
    for layout in ("padded", "packed", "shared_prefix"):
        row = CPU.model_copy(update={"pair_batching": layout})
        found.append(columns(run_stage("reference", layout, {}, {"policy": other, "pairs": tokens}, row)[0]))
    for name in ("ref_chosen_logps", "ref_rejected_logps", "ref_chosen_shared_logps", "ref_rejected_shared_logps"):
        assert found[1][name] == pytest.approx(found[0][name], abs=1e-4)
        assert found[2][name] == pytest.approx(found[0][name], abs=1e-4)


def params(is_start: bool = True, lora: dict | None = None, **dpo: object) -> dict:
    return {"training": knobs(lora=lora), "dpo": {**DPO, **dpo}, "reference_is_start": is_start, "seed": 5}


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_round_that_starts_from_its_reference_starts_at_ln_2(run_stage: Run, shelf: Path, tokens: Path, reference: Path):
    inputs = {"policy": shelf / "base", "pairs": tokens, "reference": reference}
    out, counts = run_stage("dpo", "dpo", params(), inputs, CPU)
    assert (counts["pairs"], counts["steps"]) == (16, 4)
    first, last = metrics(out)[0], metrics(out)[-1]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert first["rewards/chosen"] == pytest.approx(0, abs=1e-4)
    assert last["rewards/margins"] > 0.01


@pytest.mark.parametrize("kind", ["dropout in functions", "router"])
def test_what_a_model_adds_in_training_does_not_stop_the_round(run_stage: Run, shelf: Path, tokens: Path, kind: str):
    small = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
    tokenizer = models.load_tokenizer(policy.read(shelf / "base"))
    shape = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, **small}
    experts = {
        "head_dim": 16,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "output_router_logits": True,
        "router_aux_loss_coef": 0.5,
    }
    config = Qwen3MoeConfig(**shape, **experts) if kind == "router" else LlamaConfig(**shape, attention_dropout=0.3)
    (shelf / "special").mkdir()
    models.save_model(AutoModelForCausalLM.from_config(config), tokenizer, shelf / "special" / "model")
    policy.write_weights(shelf / "special", shelf / "base")
    reference = run_stage("reference", "of_special", {}, {"policy": shelf / "special", "pairs": tokens}, CPU)[0]
    inputs = {"policy": shelf / "special", "pairs": tokens, "reference": reference}
    out, _ = run_stage("dpo", "round", params(), inputs, CPU)
    first = json.loads((out / "metrics.jsonl").read_text().splitlines()[0])
    balance = 0.5 * first["aux_loss"] if kind == "router" else 0.0
    assert first["loss"] - balance == pytest.approx(math.log(2), abs=1e-4)
    assert (balance > 0.4) == (kind == "router")


def test_a_reference_of_another_model_stops_the_round(run_stage: Run, tokens: Path, other: Path, reference: Path):
    inputs = {"policy": other, "pairs": tokens, "reference": reference}
    with pytest.raises(UserError, match=r"must be ln 2.*stored log-probabilities are not this policy's"):
        run_stage("dpo", "dpo", params(), inputs, CPU)
    assert not list((tokens.parent / "dpo").glob("model*"))


@pytest.mark.parametrize(
    "dpo",
    [{"loss_type": ["ipo"]}, {"loss_type": ["sigmoid", "sft"]}, {"label_smoothing": 0.1}, {"use_weighting": True}],
    ids=str,
)
def test_the_first_step_is_checked_under_any_loss(run_stage: Run, shelf: Path, tokens: Path, reference: Path, other: Path, dpo: dict):
    good = {"policy": shelf / "base", "pairs": tokens, "reference": reference}
    run_stage("dpo", "good", params(**dpo), good, CPU)
    with pytest.raises(UserError, match="stored log-probabilities"):
        run_stage("dpo", "bad", params(**dpo), {**good, "policy": other}, CPU)


def test_reference_numbers_that_are_a_little_off_are_noticed(run_stage: Run, shelf: Path, tokens: Path, reference: Path):
    table = pq.read_table(reference / "logps.parquet")
    wrong = [value + 0.05 for value in table["ref_chosen_logps"].to_pylist()]
    (shelf / "wrong").mkdir()
    pq.write_table(table.set_column(1, "ref_chosen_logps", pa.array(wrong, pa.float32())), shelf / "wrong" / "logps.parquet")
    inputs = {"policy": shelf / "base", "pairs": tokens, "reference": shelf / "wrong"}
    with pytest.raises(UserError, match="stored log-probabilities"):
        run_stage("dpo", "dpo", params(), inputs, CPU)


@pytest.mark.parametrize("is_start", [True, False])
def test_in_bf16_what_rounding_does_to_a_short_answer_is_no_mismatch(run_stage: Run, shelf: Path, tokens: Path, is_start: bool):
    """Up to 0.6 nats of one answer, up and down, as measured on a real model: see `dpo.Rounding`."""
    machine = Machine(device="cpu", threads=1, precision="bf16")
    scored, _ = run_stage("reference", "scored", {}, {"policy": shelf / "base", "pairs": tokens}, machine)
    table = pq.read_table(scored / "logps.parquet")
    for name, off in (("rounded", [0.3, -0.3]), ("wrong", [2.0, 2.0])):
        moved = [value + off[place % 2] for place, value in enumerate(table["ref_chosen_logps"].to_pylist())]
        (shelf / name).mkdir()
        pq.write_table(table.set_column(1, "ref_chosen_logps", pa.array(moved, pa.float32())), shelf / name / "logps.parquet")
    inputs = {"policy": shelf / "base", "pairs": tokens, "reference_policy": shelf / "base"}
    run_stage("dpo", "good", params(is_start=is_start), {**inputs, "reference": shelf / "rounded"}, machine)
    with pytest.raises(UserError, match=r"stored (log-probabilities|numbers) are not th"):
        run_stage("dpo", "bad", params(is_start=is_start), {**inputs, "reference": shelf / "wrong"}, machine)


def test_without_a_start_that_is_the_reference_nothing_is_demanded(run_stage: Run, shelf: Path, tokens: Path, other: Path, reference: Path):
    inputs = {"policy": other, "pairs": tokens, "reference": reference, "reference_policy": shelf / "base"}
    out, _ = run_stage("dpo", "dpo", params(is_start=False), inputs, CPU)
    assert abs(metrics(out)[0]["rewards/chosen"]) > 1e-3


@pytest.mark.parametrize("change", ["order", "fewer"])
def test_reference_rows_of_other_pairs_are_refused(run_stage: Run, shelf: Path, tokens: Path, reference: Path, change: str):
    table = pq.read_table(reference / "logps.parquet")
    table = table.take(list(range(16))[::-1]) if change == "order" else table.slice(0, 15)
    (shelf / "shuffled").mkdir()
    pq.write_table(table, shelf / "shuffled" / "logps.parquet")
    inputs = {"policy": shelf / "base", "pairs": tokens, "reference": shelf / "shuffled"}
    with pytest.raises(UserError, match="shuffled was not computed on the pairs of pairs"):
        run_stage("dpo", "dpo", params(), inputs, CPU)


def test_a_reference_in_other_arithmetic_is_refused_also_where_both_are_called_bf16(
    run_stage: Run, shelf: Path, tokens: Path, reference: Path
):
    """bf16 without DeepSpeed is autocast over fp32 weights; with it the weights themselves are bf16."""
    autocast = Machine(device="cpu", threads=1, precision="bf16")
    _, counts = run_stage("reference", "reference", {}, {"policy": shelf / "base", "pairs": tokens}, autocast)
    (reference / "done.json").write_text(json.dumps({"status": "done", "counts": counts}))
    inputs = {"policy": shelf / "base", "pairs": tokens, "reference": reference}
    pure = Machine.model_validate({"device": "cpu", "precision": "bf16", "deepspeed": {"zero_optimization": {"stage": 2}}})
    with pytest.raises(UserError, match="computed in bf16 autocast over fp32 weights, and this cluster's row `train` means bf16:"):
        run_stage("dpo", "dpo", params(), inputs, pure)
    with pytest.raises(UserError, match="means fp32"):
        run_stage("dpo", "dpo", params(), inputs, CPU)


def test_a_reference_that_is_not_the_start_is_scored_again_in_part(run_stage: Run, shelf: Path, tokens: Path, other: Path, reference: Path):
    inputs = {"policy": shelf / "base", "pairs": tokens, "reference": reference, "reference_policy": other}
    with pytest.raises(UserError, match=r"reference says that the chosen answer of pair p\d+ .* under other, and it has"):
        run_stage("dpo", "dpo", params(is_start=False), inputs, CPU)
    assert not list((shelf / "dpo").glob("model*"))


def test_a_scored_block_is_not_scored_again(run_stage: Run, shelf: Path, tokens: Path):
    inputs, machine = {"policy": shelf / "base", "pairs": tokens}, Machine(device="cpu", threads=1, eval_batch_size=2)
    run_stage("reference", "scored", {}, inputs, machine)
    before = columns(shelf / "scored")
    (block,) = (shelf / "scored" / "cache").glob("blocks-*/000000.parquet")
    table = pq.read_table(block)
    pq.write_table(table.set_column(1, "ref_chosen_logps", pa.array([-1.0] * len(table))), block)
    run_stage("reference", "scored", {}, inputs, machine)
    assert columns(shelf / "scored")["ref_chosen_logps"] == [-1.0] * 16
    block.unlink()
    run_stage("reference", "scored", {}, inputs, machine)
    assert columns(shelf / "scored") == before


def test_a_block_of_another_node_that_shows_late_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    scores = [pair_logprobs.Scores(-1.0, -2.0, -0.5, -1.5)]
    pair_logprobs._write(tmp_path, 0, [0], scores)
    (tmp_path / "000000.parquet").rename(tmp_path / "elsewhere")
    threading.Timer(0.3, (tmp_path / "elsewhere").rename, [tmp_path / "000000.parquet"]).start()
    assert pair_logprobs._joined(tmp_path, 1, 1) == scores
    monkeypatch.setattr(pair_logprobs, "_LAG_SECONDS", 0)
    with pytest.raises(UserError, match=r"does not see .*000001.parquet, which another rank has written"):
        pair_logprobs._joined(tmp_path, 2, 1)


def test_log_probabilities_of_the_first_tokens_are_kept_apart(run_stage: Run, shelf: Path, tokens: Path, reference: Path):
    rows, found = pq.read_table(tokens / "pairs.parquet").to_pylist(), columns(reference)
    model = models.load_model(policy.read(shelf / "base"), CPU).eval()
    for side in ("chosen", "rejected"):
        shorter = [min(len(row["chosen_ids"]), len(row["rejected_ids"])) for row in rows]
        wanted = [plain_logprob(model, r["prompt_ids"], r[f"{side}_ids"][:n]) for r, n in zip(rows, shorter, strict=True)]
        assert found[f"ref_{side}_shared_logps"] == pytest.approx(wanted, abs=1e-4)


def test_ld_alpha_weighs_the_tokens_that_only_the_longer_answer_has(run_stage: Run, shelf: Path, tokens: Path, reference: Path):
    inputs = {"policy": shelf / "base", "pairs": tokens, "reference": reference}
    out, _ = run_stage("dpo", "dpo", params(ld_alpha=0.5), inputs, CPU)
    assert metrics(out)[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)


class StockInOurOrder(DPOTrainer):
    """TRL's trainer, which sees the rows in the order of `rounds.train.tokens.order`, and nothing else of ours."""

    arrange = None
    _get_train_sampler = trainer.StageTrainer._get_train_sampler


@pytest.mark.parametrize("loss_type", [["sigmoid"], ["ipo"], ["sigmoid", "sft"]], ids="+".join)
def test_losses_are_those_of_a_stock_trainer_with_a_reference_model(
    run_stage: Run, shelf: Path, tokens: Path, reference: Path, other: Path, pairs: list[Pair], loss_type: list[str]
):
    """TRL gets the conversations and both models; we get token rows and stored numbers."""
    inputs = {"policy": other, "pairs": tokens, "reference": reference, "reference_policy": shelf / "base"}
    out, _ = run_stage("dpo", "dpo", params(is_start=False, loss_type=loss_type), inputs, CPU)

    def turn(role: str, text: str) -> list[dict[str, str]]:
        return [{"role": role, "content": text}]

    rows = [
        {
            "prompt": turn("user", pair.prompt[0].content),
            "chosen": turn("assistant", pair.chosen),
            "rejected": turn("assistant", pair.rejected),
        }
        for pair in pairs
    ]
    trainer_arguments.prepare(CPU, 5)
    start = policy.read(other)
    arguments = trainer_arguments.arguments(Training.model_validate(knobs()), CPU, 5, shelf / "stock")
    stock = StockInOurOrder(
        model=models.load_model(start, CPU),
        ref_model=models.load_model(policy.read(shelf / "base"), CPU),
        args=DPOConfig(**arguments, beta=0.1, loss_type=loss_type, max_length=None),
        train_dataset=Dataset.from_list(rows),
        processing_class=models.load_tokenizer(start),
    )
    stock.train()
    wanted = [entry for entry in stock.state.log_history if "loss" in entry]
    assert len(wanted) == 4
    for name in ("loss", "rewards/chosen", "rewards/rejected"):
        assert [entry[name] for entry in metrics(out)] == pytest.approx([entry[name] for entry in wanted], abs=1e-4)


def test_an_adapter_is_read_merged_as_peft_would_apply_it(run_stage: Run, shelf: Path, tokens: Path, reference: Path):
    inputs = {"policy": shelf / "base", "pairs": tokens, "reference": reference}
    out, _ = run_stage("dpo", "lora", params(lora=LORA), inputs, CPU)
    described = policy.read(out)
    assert described.adapters == (out / "adapter",)
    assert described.weights == str(shelf / "base" / "model")
    ids = torch.tensor([pq.read_table(tokens / "pairs.parquet").to_pylist()[0]["prompt_ids"]])
    base = AutoModelForCausalLM.from_pretrained(shelf / "base" / "model", dtype=torch.float32).eval()
    with torch.no_grad():
        before = base(input_ids=ids).logits.clone()
        applied = PeftModel.from_pretrained(base, str(out / "adapter")).eval()(input_ids=ids).logits
        merged = models.load_model(described, CPU).eval()(input_ids=ids).logits
    assert float((merged - applied).abs().max()) < 1e-5
    assert float((applied - before).abs().max()) > 1e-4, "the adapter changes nothing, so this shows nothing"


def test_a_second_adapter_sits_on_the_first(run_stage: Run, shelf: Path, tokens: Path, reference: Path):
    inputs = {"policy": shelf / "base", "pairs": tokens, "reference": reference}
    one, _ = run_stage("dpo", "one", params(lora=LORA), inputs, CPU)
    again, _ = run_stage("reference", "again", {}, {"policy": one, "pairs": tokens}, CPU)
    assert columns(again) != columns(reference)
    # The check of the first step proves that the second round's start is the policy that the reference stage scored.
    two, _ = run_stage("dpo", "two", params(lora=LORA), {"policy": one, "pairs": tokens, "reference": again}, CPU)
    assert policy.read(two).adapters == (one / "adapter", two / "adapter")
    ids = torch.tensor([pq.read_table(tokens / "pairs.parquet").to_pylist()[0]["prompt_ids"]])
    with torch.no_grad():
        start = models.load_model(policy.read(one), CPU).eval()
        before = start(input_ids=ids).logits.clone()
        applied = PeftModel.from_pretrained(start, str(two / "adapter")).eval()(input_ids=ids).logits
        merged = models.load_model(policy.read(two), CPU).eval()(input_ids=ids).logits
    assert float((merged - applied).abs().max()) < 1e-5 < float((merged - before).abs().max())
    with pytest.raises(UserError, match="stored log-probabilities"):
        run_stage("dpo", "wrong", params(lora=LORA), {"policy": one, "pairs": tokens, "reference": reference}, CPU)
