"""A reward model that the run trains: from ln 2 down, stopped and resumed to the very weights, and read by the judge as it was trained.

Covers: train/weights/reward_head.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BartConfig,
    GPT2Config,
    GraniteConfig,
    PreTrainedConfig,
)
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from rounds.data_prep.errors import UserError
from rounds.data_prep.records import Pair
from rounds.train.config.cluster import Machine
from rounds.train.config.judging import RewardModel
from rounds.train.config.training import Training
from rounds.train.engine import policy, ranks
from rounds.train.judging import reward_model
from rounds.train.weights import models, reward_head
from tests.train.judging.answers import sample
from tests.train.tokens import families

Run = Callable[..., tuple[Path, dict]]
CPU = Machine(device="cpu", threads=1)
KNOBS = {"learning_rate": 2e-3, "num_train_epochs": 3.0, "global_batch_size": 4, "max_length": 96}


def params(**changes: object) -> dict:
    own = {name: changes.pop(name) for name in ("center_rewards_coefficient",) if name in changes}
    return {"training": Training.model_validate({**KNOBS, **changes}).model_dump(mode="json"), "seed": 5, **own}


@pytest.fixture
def tokens(run_stage: Run, shelf: Path, put: Callable, pairs: list[Pair]) -> Path:
    """The made pairs, as a reward model reads them."""
    return run_stage("tokenize", "pairs", {"max_length": 96, "whole": True}, {"tokenizer": shelf / "base", "data": put("data", pairs)})[0]


@pytest.fixture
def inputs(shelf: Path, tokens: Path) -> dict[str, Path]:
    return {"policy": shelf / "base", "pairs": tokens}


def curve(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights(folder: Path) -> bytes:
    return (folder / "model" / "model.safetensors").read_bytes()


def both_sides(pairs: list[Pair]) -> list:
    """Chosen and rejected answers in turn, as samples."""
    return [
        (pair.prompt, sample(number, text, prompt_id=pair.id)) for pair in pairs for number, text in enumerate((pair.chosen, pair.rejected))
    ]


def scored(folder: Path, pairs: list[Pair], batch_size: int) -> list[float]:
    judge = RewardModel(kind="reward_model", path="model", max_length=96)
    opened = reward_model.opened(judge, str(folder / "model"), CPU.model_copy(update={"eval_batch_size": batch_size}))
    found = reward_model.score(opened, both_sides(pairs))
    assert all(each.score is not None and not each.reason for each in found)
    return [each.score or 0.0 for each in found]


def test_it_learns_from_ln_2_on_and_its_folder_is_a_judge(run_stage: Run, inputs: dict[str, Path], pairs: list[Pair]):
    out, counts = run_stage("reward", "own", params(), inputs, CPU)
    lines = curve(out)
    assert (counts["pairs"], counts["steps"], len(lines)) == (16, 12, 12)
    assert lines[0]["loss"] == pytest.approx(math.log(2), abs=1e-6) and lines[0]["margin"] == 0
    assert lines[-1]["loss"] < 0.5 and lines[-1]["margin"] > 0.5
    assert lines[0].keys() >= {"accuracy", "tokens_per_second", "memory_gib", "grad_norm", "num_tokens"}
    assert not (out / "policy.json").exists(), "it is no policy"
    alone = scored(out, pairs, 1)
    assert scored(out, pairs, 7) == pytest.approx(alone, abs=1e-4)
    assert sum(chosen > rejected for chosen, rejected in zip(alone[::2], alone[1::2], strict=True)) >= 14
    with pytest.raises(UserError, match=r"policy\.json"):
        policy.read(out)


def test_the_judge_reads_the_very_tokens_of_its_training(run_stage: Run, shelf: Path, tokens: Path, pairs: list[Pair], put: Callable):
    """Also where the template writes something after an answer's end, at whose last token a score stands."""
    chatml = families.byte_level([pair.chosen for pair in pairs], families.CONTROL, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    chatml.chat_template = families.CHATML
    (shelf / "other").mkdir()
    chatml.save_pretrained(shelf / "other" / "tokenizer")
    policy.write_base(shelf / "other", "nowhere", None)
    given = {"tokenizer": shelf / "other", "data": put("again", pairs)}
    newline, _ = run_stage("tokenize", "chatml", {"max_length": 256, "whole": True}, given)
    shorter, _ = run_stage("tokenize", "shorter", {"max_length": 256}, given)
    for folder, tokenizer in ((tokens, models.load_tokenizer(policy.read(shelf / "base"))), (newline, chatml)):
        rows = pq.read_table(folder / "pairs.parquet").to_pylist()
        read = reward_model._encoded(tokenizer, both_sides(pairs))
        assert [row["prompt_ids"] + row[f"{side}_ids"] for row in rows for side in ("chosen", "rejected")] == read
    last = pq.read_table(newline / "pairs.parquet")["chosen_ids"].to_pylist()
    assert [row[:-1] for row in last] == pq.read_table(shorter / "pairs.parquet")["chosen_ids"].to_pylist()
    assert {str(chatml.decode(row[-1:])) for row in last} == {"\n"}


def test_stopped_and_resumed_it_ends_with_the_very_weights(run_stage: Run, shelf: Path, inputs: dict[str, Path]):
    straight, counts = run_stage("reward", "straight", params(), inputs, CPU)
    (shelf / "own").mkdir()
    (shelf / "own" / "stop").touch()
    with pytest.raises(ranks.Stopped, match="stopped at step 1 of 12"):
        run_stage("reward", "own", params(), inputs, CPU)
    assert not (shelf / "own" / "model").exists()
    (shelf / "own" / "stop").unlink()
    out, again = run_stage("reward", "own", params(), inputs, CPU)
    assert again["resumed_from"] == "checkpoint-1" and again["train_loss"] == counts["train_loss"]
    assert weights(out) == weights(straight)
    same = ("step", "loss", "margin", "accuracy", "num_tokens", "grad_norm")
    assert [[line[name] for name in same] for line in curve(out)] == [[line[name] for name in same] for line in curve(straight)]


def test_the_answer_is_that_of_any_micro_batch(run_stage: Run, inputs: dict[str, Path]):
    whole, _ = run_stage("reward", "whole", params(), inputs, CPU.model_copy(update={"micro_batch_size": 4}))
    parts, _ = run_stage("reward", "parts", params(), inputs, CPU.model_copy(update={"micro_batch_size": 1}))
    assert [line["loss"] for line in curve(parts)] == pytest.approx([line["loss"] for line in curve(whole)], abs=2e-5)
    assert [line["accuracy"] for line in curve(parts)][-1] == curve(whole)[-1]["accuracy"]


def test_sums_of_scores_cost_loss_where_it_is_asked_for(run_stage: Run, inputs: dict[str, Path]):
    free, _ = run_stage("reward", "free", params(num_train_epochs=1.0), inputs, CPU)
    centred, _ = run_stage("reward", "centred", params(num_train_epochs=1.0, center_rewards_coefficient=100.0), inputs, CPU)
    first, second = ([line["loss"] for line in curve(folder)] for folder in (free, centred))
    assert second[0] == first[0] == pytest.approx(math.log(2), abs=1e-6)
    assert second[2] > first[2] + 1e-5, "after one step, the same in both, scores are no longer 0"


def test_an_adapter_of_the_policy_is_merged_and_the_policy_is_left_as_it_was(run_stage: Run, shelf: Path, inputs: dict[str, Path]):
    lora = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "target_modules": "all-linear"}
    scores = run_stage("reference", "reference", {}, inputs, CPU)[0]
    dpo = {"beta": 0.1, "loss_type": ["sigmoid"], "loss_weights": None, "label_smoothing": 0.0}
    asked = {**params(lora=lora), "dpo": dpo, "reference_is_start": True}
    start, _ = run_stage("dpo", "dpo", asked, {**inputs, "reference": scores}, CPU)
    model = reward_head.of_policy(policy.read(start), CPU)
    with torch.no_grad():
        ids = torch.arange(5, 25)[None]
        wanted = models.load_model(policy.read(start), CPU).base_model(input_ids=ids).last_hidden_state
        plain = models.load_model(policy.read(shelf / "base"), CPU).base_model(input_ids=ids).last_hidden_state
        found = model.base_model(input_ids=ids).last_hidden_state
        assert torch.equal(found, wanted) and not torch.equal(found, plain)
        assert model(input_ids=ids).logits.tolist() == [[0.0]]


def test_under_zero_3_it_starts_from_a_folder(shelf: Path):
    """Which holds the same as the model in memory, head and all, so that no rank draws anything."""
    row = Machine.model_validate({"device": "cpu", "deepspeed": {"zero_optimization": {"stage": 3}}})
    start = policy.read(shelf / "base")
    (shelf / "cache").mkdir()
    assert reward_head.on_disk(start, CPU, shelf / "cache") is None
    folder = reward_head.on_disk(start, row, shelf / "cache")
    assert folder is not None
    found, said = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    assert not said["missing_keys"] and not said["unexpected_keys"]
    wanted = reward_head.of_policy(start, CPU).state_dict()
    assert found.state_dict().keys() == wanted.keys() and all(
        torch.equal(value, wanted[name]) for name, value in found.state_dict().items()
    )


def test_a_policy_that_gives_no_numbers_is_refused_at_the_first_step(run_stage: Run, shelf: Path, inputs: dict[str, Path]):
    start = policy.read(shelf / "base")
    model = models.load_model(start, CPU)
    with torch.no_grad():
        next(model.base_model.parameters())[:] = float("nan")
    (shelf / "broken").mkdir()
    models.save_model(model, models.load_tokenizer(start), shelf / "broken" / "model")
    policy.write_weights(shelf / "broken", shelf / "base")
    with pytest.raises(UserError, match=r"must be ln 2 = 0\.693147, and it is nan"):
        run_stage("reward", "own", params(), {**inputs, "policy": shelf / "broken"}, CPU)
    assert not (shelf / "own" / "model").exists()


def made(shelf: Path, config: PreTrainedConfig) -> policy.Policy:
    """A policy with random weights of some architecture."""
    (shelf / "special").mkdir()
    tokenizer = AutoTokenizer.from_pretrained(shelf / "base" / "tokenizer")
    models.save_model(AutoModelForCausalLM.from_config(config), tokenizer, shelf / "special" / "model")
    policy.write_weights(shelf / "special", shelf / "base")
    return policy.read(shelf / "special")


SMALL: dict[str, Any] = {"vocab_size": 400, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def test_another_architecture_with_such_a_classifier_is_trained(run_stage: Run, shelf: Path, inputs: dict[str, Path], pairs: list[Pair]):
    made(shelf, GPT2Config(vocab_size=400, n_embd=32, n_layer=1, n_head=2, n_positions=128, bos_token_id=1, eos_token_id=2))
    out, _ = run_stage("reward", "own", params(), {**inputs, "policy": shelf / "special"}, CPU)
    assert curve(out)[0]["loss"] == pytest.approx(math.log(2), abs=1e-6) and curve(out)[-1]["loss"] < 0.69
    assert scored(out, pairs, 5) == pytest.approx(scored(out, pairs, 1), abs=1e-4)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (GraniteConfig(**SMALL, num_key_value_heads=2), "transformers has no sequence classifier for it"),
        (
            BartConfig(vocab_size=400, d_model=32, decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=32, is_decoder=True),
            "expected score",
        ),
    ],
    ids=["none", "of other parts"],
)
def test_an_architecture_without_a_classifier_of_the_same_layers_is_refused(shelf: Path, config: PreTrainedConfig, says: str):
    with pytest.raises(UserError, match=f"a reward model cannot be made of {type(config).__name__[:4]}.*{says}"):
        reward_head.of_policy(made(shelf, config), CPU)


@pytest.mark.slow
def test_in_shards_it_learns_the_same(run_stage: Run, inputs: dict[str, Path], pairs: list[Pair]):
    row = Machine.model_validate({"device": "cpu", "threads": 1, "deepspeed": {"zero_optimization": {"stage": 3}}})
    plain, _ = run_stage("reward", "plain", params(), inputs, CPU)
    out, _ = run_stage("reward", "own", params(), inputs, row)
    unset_hf_deepspeed_config()  # a stage has a process of its own
    assert [line["loss"] for line in curve(out)] == pytest.approx([line["loss"] for line in curve(plain)], abs=1e-4)
    assert scored(out, pairs, 4) == pytest.approx(scored(plain, pairs, 4), abs=1e-3)
