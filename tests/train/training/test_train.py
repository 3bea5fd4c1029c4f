"""Training stops and goes on without a trace: the weights of a resumed run are those of an undisturbed one, bit for bit.

Covers: train/stages/sft, train/training/checkpoints, train/training/watcher.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, FalconMambaConfig

from rounds.data_prep.errors import UserError
from rounds.data_prep.records import Conversation, Pair
from rounds.train.config.cluster import Machine
from rounds.train.config.training import Training
from rounds.train.engine import policy, ranks
from rounds.train.engine.digests import file_digest
from rounds.train.training import arguments, checkpoints
from rounds.train.weights import models

Run = Callable[..., tuple[Path, dict]]
KNOBS = {"learning_rate": 5e-3, "num_train_epochs": 1.0, "global_batch_size": 2, "max_length": 96}
LORA = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.2, "target_modules": "all-linear"}


def knobs(**changes: object) -> dict:
    return Training.model_validate({**KNOBS, **changes}).model_dump(mode="json")


def machine(save_steps: int = 100, micro: int = 8) -> Machine:
    return Machine(device="cpu", threads=1, micro_batch_size=micro, save_steps=save_steps, save_total_limit=9)


@pytest.fixture
def rows(run_stage: Run, shelf: Path, put: Callable, conversations: list[Conversation]) -> Path:
    """Packed rows: enough for eight steps or more of two."""
    inputs = {"tokenizer": shelf / "base", "data": put("data", conversations)}
    return run_stage("pack", "pack", {"max_length": 96}, inputs)[0]


@pytest.fixture
def scored(run_stage: Run, shelf: Path, put: Callable, pairs: list[Pair]) -> dict[str, Path]:
    """Sixteen pairs as tokens, and their log-probabilities under the base model."""
    inputs = {"tokenizer": shelf / "base", "data": put("pair-data", pairs)}
    tokens = run_stage("tokenize", "pairs", {"max_length": 96}, inputs)[0]
    logps = run_stage("reference", "reference", {}, {"policy": shelf / "base", "pairs": tokens})[0]
    return {"policy": shelf / "base", "pairs": tokens, "reference": logps}


def weights(folder: Path, kind: str) -> bytes:
    name = "adapter_model.safetensors" if kind == "adapter" else "model.safetensors"
    return (folder / kind / name).read_bytes()


def curve(folder: Path) -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines]


DPO = {"beta": 0.1, "loss_type": ["sigmoid"], "loss_weights": None, "label_smoothing": 0.0}


def test_a_model_whose_generation_settings_contradict_each_other_can_be_trained_and_saved(run_stage: Run, shelf: Path, rows: Path):
    settings = shelf / "base" / "model" / "generation_config.json"
    had = json.loads(settings.read_text())
    settings.write_text(json.dumps({**had, "temperature": 0.6, "do_sample": False, "pad_token_id": -1}))
    params = {"training": knobs(num_train_epochs=0.1), "seed": 5}
    out, _ = run_stage("sft", "sft", params, {"policy": shelf / "base", "rows": rows}, machine())
    saved = json.loads((out / "model" / "generation_config.json").read_text())
    assert "temperature" not in saved and saved["eos_token_id"] == had["eos_token_id"]


def test_a_training_of_one_step_learns_and_says_that_rows_fill_up_its_batch(run_stage: Run, shelf: Path, rows: Path):
    """By transformers' own warm-up its only step is made at a learning rate of 0."""
    count = pq.read_metadata(rows / "rows.parquet").num_rows
    params = {"training": knobs(global_batch_size=2 * count, num_train_epochs=1.0), "seed": 5}
    out, counts = run_stage("sft", "sft", params, {"policy": shelf / "base", "rows": rows}, machine())
    assert counts["steps"] == 1 and weights(out, "model") != weights(shelf / "base", "model")
    filled, warm = counts["notes"]
    assert f"global_batch_size {2 * count} is more than the {count} rows of the set" in filled and "has no warm-up" in warm


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant_with_warmup"])
def test_the_warm_up_is_transformers_and_a_short_training_says_what_it_costs(run_stage: Run, shelf: Path, rows: Path, schedule: str):
    params = {"training": knobs(num_train_epochs=0.8, warmup_steps=3, lr_scheduler_type=schedule), "seed": 5}
    out, counts = run_stage("sft", "sft", params, {"policy": shelf / "base", "rows": rows}, machine())
    assert 5 < counts["steps"] <= 20
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    peak = params["training"]["learning_rate"]
    assert [line["learning_rate"] / peak for line in lines[:4]] == pytest.approx([0, 1 / 3, 2 / 3, 1.0])
    assert counts["notes"] == [
        f"the first of {counts['steps']} steps warms up from a learning rate of 0 and changes nothing; `warmup_steps: 0` lets it learn"
    ]


@pytest.mark.parametrize(("function", "lora"), [("sft", None), ("sft", LORA), ("dpo", None), ("dpo", LORA)],
                         ids=["sft", "sft lora with dropout", "dpo", "dpo lora"])  # fmt: skip
def test_a_resumed_run_ends_with_the_very_weights_of_an_undisturbed_one(
    request: pytest.FixtureRequest, run_stage: Run, shelf: Path, function: str, lora: dict | None
):
    if function == "sft":
        inputs = {"policy": shelf / "base", "rows": request.getfixturevalue("rows")}
        params = {"training": knobs(lora=lora), "seed": 5}
    else:
        inputs = request.getfixturevalue("scored")
        params = {"training": knobs(lora=lora, learning_rate=1e-3), "dpo": DPO, "reference_is_start": True, "seed": 5}
    kind = "adapter" if lora else "model"
    straight, counts = run_stage(function, "straight", params, inputs, machine())
    steps = counts["steps"]
    assert steps >= 8 and counts["resumed_from"] is None

    out, _ = run_stage(function, "stopped", params, inputs, machine(save_steps=4))
    assert weights(out, kind) == weights(straight, kind), "writing checkpoints changed the answer"
    # As after a kill between the fourth step and the end: later checkpoints half written or absent, no policy yet.
    shutil.rmtree(out / kind)
    (out / "policy.json").unlink()
    for checkpoint in (out / "checkpoints").glob("checkpoint-*"):
        number = int(checkpoint.name.rpartition("-")[2])
        spoilt = next(checkpoint.glob("*.safetensors"))
        if number == 8 and lora:  # a bit is another, in the last number
            content = bytearray(spoilt.read_bytes())
            content[-1] ^= 1
            spoilt.write_bytes(content)
        elif number == 8:
            (checkpoint / checkpoints.COMPLETE).unlink()
            spoilt.write_bytes(b"half")
        elif number > 8:
            shutil.rmtree(checkpoint)
    _, again = run_stage(function, "stopped", params, inputs, machine(save_steps=3))
    assert again["resumed_from"] == "checkpoint-4"
    assert (out / "checkpoints" / "checkpoint-6").is_dir()
    assert (again["steps"], again["train_loss"]) == (steps, counts["train_loss"])
    assert weights(out, kind) == weights(straight, kind)
    assert curve(out) == curve(straight)
    tokens = [[json.loads(line).get("num_tokens") for line in (each / "metrics.jsonl").open()] for each in (out, straight)]
    assert tokens[0] == tokens[1], "tokens are counted on from where it goes on"
    assert policy.read(out) == policy.Policy(
        str(out / "model") if not lora else str(shelf / "base" / "model"),
        None,
        (out / "adapter",) if lora else (),
        shelf / "base" / "tokenizer",
    )


def test_training_changed_the_weights_and_lowered_the_loss(run_stage: Run, shelf: Path, rows: Path):
    params = {"training": knobs(num_train_epochs=4.0), "seed": 5}
    out, counts = run_stage("sft", "sft", params, {"policy": shelf / "base", "rows": rows}, machine())
    assert weights(out, "model") != weights(shelf / "base", "model")
    losses = [loss for _, loss in curve(out)]
    assert len(losses) == counts["steps"]
    assert losses[-1] < losses[0] - 0.5
    assert not (out / "model" / "training_args.bin").exists()


def test_a_recurrent_model_learns_each_conversation_as_if_it_were_alone(run_stage: Run, shelf: Path, rows: Path):
    """Its state would run on from one conversation of a row into the next."""
    tokenizer = models.load_tokenizer(policy.read(shelf / "base"))
    torch.manual_seed(1)
    shape: dict[str, Any] = {"pad_token_id": tokenizer.pad_token_id, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}
    config = FalconMambaConfig(vocab_size=len(tokenizer), initializer_range=0.5, **shape)
    model = AutoModelForCausalLM.from_config(config)
    (shelf / "recurrent").mkdir()
    models.save_model(model, tokenizer, shelf / "recurrent" / "model")
    policy.write_weights(shelf / "recurrent", shelf / "base")
    table = pq.read_table(rows / "rows.parquet").to_pylist()
    row = machine(micro=len(table)).model_copy(update={"attn_implementation": "eager"})
    params = {"training": knobs(global_batch_size=len(table), num_train_epochs=1.0), "seed": 5}
    out, counts = run_stage("sft", "sft", params, {"policy": shelf / "recurrent", "rows": rows}, row)
    assert counts["steps"] == 1 and any(len(packed["seq_lengths"]) > 1 for packed in table)
    total, tokens = 0.0, 0
    for packed in table:
        parts = (torch.tensor(packed[name]).split(packed["seq_lengths"]) for name in ("input_ids", "labels"))
        for ids, labels in zip(*parts, strict=True):
            logits = model.eval()(input_ids=ids[None]).logits[0, :-1].detach()
            total += float(torch.nn.functional.cross_entropy(logits, labels[1:], ignore_index=-100, reduction="sum"))
            tokens += int((labels[1:] != -100).sum())
    assert curve(out)[0][1] == pytest.approx(total / tokens, abs=1e-4)


def test_the_seed_decides_the_order(run_stage: Run, shelf: Path, rows: Path):
    inputs = {"policy": shelf / "base", "rows": rows}
    made = [run_stage("sft", f"seed{i}", {"training": knobs(), "seed": seed}, inputs, machine())[0] for i, seed in enumerate((1, 1, 2))]
    assert weights(made[0], "model") == weights(made[1], "model") != weights(made[2], "model")


def test_the_micro_batch_does_not_change_the_answer(run_stage: Run, shelf: Path, rows: Path):
    """SFT's loss is the mean over the answer tokens of the global batch, whatever it is divided into."""
    inputs = {"policy": shelf / "base", "rows": rows}
    params = {"training": knobs(global_batch_size=4, optim="sgd", learning_rate=0.1), "seed": 5}
    one, four = (run_stage("sft", f"micro{micro}", params, inputs, machine(micro=micro))[0] for micro in (1, 4))
    assert [step for step, _ in curve(one)] == [step for step, _ in curve(four)]
    for (_, a), (_, b) in zip(curve(one), curve(four), strict=True):
        assert a == pytest.approx(b, abs=1e-4)


@pytest.mark.parametrize("together", [None, 2])
def test_the_micro_batch_does_not_change_a_dpo_round(run_stage: Run, scored: dict[str, Path], together: int | None):
    """A loss that compares the pairs of a micro-batch keeps the recipe's own, whatever the cluster row says."""
    params = {
        "training": knobs(global_batch_size=4, learning_rate=1e-3, per_device_train_batch_size=together),
        "dpo": {**DPO, "loss_type": ["aot_unpaired", "sft"] if together else ["sigmoid"]},
        "reference_is_start": True,
        "seed": 5,
    }
    one, four = (run_stage("dpo", f"micro{micro}", params, scored, machine(micro=micro))[0] for micro in (1, 4))
    for (_, a), (_, b) in zip(curve(one), curve(four), strict=True):
        assert a == pytest.approx(b, abs=1e-4)


@given(batch=st.integers(1, 300), limit=st.integers(1, 64))
def test_micro_batch_times_accumulation_is_the_recipes_batch(batch: int, limit: int):
    asked = Training.model_validate({**KNOBS, "global_batch_size": batch})
    found = arguments.arguments(asked, machine(micro=limit), 0, Path("out"))
    micro, accumulation = found["per_device_train_batch_size"], found["gradient_accumulation_steps"]
    assert micro * accumulation == batch
    assert micro <= limit
    assert not any(batch % larger == 0 for larger in range(micro + 1, limit + 1)), "a larger one would divide too"


def test_the_machine_decides_no_knob_of_the_recipe():
    asked = Training.model_validate(KNOBS)
    one = arguments.arguments(asked, Machine(device="cpu", micro_batch_size=1, threads=1), 3, Path("a"))
    two = arguments.arguments(asked, Machine(device="cpu", micro_batch_size=2, precision="bf16", save_steps=3), 3, Path("b"))
    may_differ = {"output_dir", "per_device_train_batch_size", "gradient_accumulation_steps", "bf16", "save_steps"}
    assert {name for name in one if one[name] != two[name]} <= may_differ
    assert one["learning_rate"] == KNOBS["learning_rate"] and one["seed"] == one["data_seed"] == 3


def test_a_row_that_saves_by_the_clock_saves_by_steps_only_if_it_says_so(run_stage: Run, shelf: Path, rows: Path):
    assert Machine().steps_between_saves == 100 and Machine(save_minutes=5, save_steps=7).steps_between_saves == 7
    params, inputs = {"training": knobs(), "seed": 5}, {"policy": shelf / "base", "rows": rows}
    machine = Machine(device="cpu", threads=1, save_minutes=600)
    _, counts = run_stage("sft", "sft", params, inputs, machine)
    last = [path.name for path in (shelf / "sft" / "checkpoints").glob("checkpoint-*")]
    assert last == [f"checkpoint-{counts['steps']}"]


def test_kernels_that_cannot_run_here_are_refused(tmp_path: Path):
    knobs = Training.model_validate({"learning_rate": 1e-3, "global_batch_size": 6, "max_length": 64})
    with pytest.raises(UserError, match="use_liger_kernel: true, which needs a GPU and the package liger-kernel"):
        arguments.arguments(knobs, Machine(device="cpu", use_liger_kernel=True), 0, tmp_path)


def test_flash_attention_is_refused_where_it_cannot_run(run_stage: Run, shelf: Path, rows: Path):
    machine = Machine(device="cpu", attn_implementation="flash_attention_2")
    with pytest.raises(UserError, match=r"needs a GPU.*; precision: bf16, and the row says fp32; the package flash-attn.*sdpa"):
        run_stage("sft", "flash", {"training": knobs(), "seed": 5}, {"policy": shelf / "base", "rows": rows}, machine)


def test_a_checkpoint_counts_only_with_its_mark(tmp_path: Path):
    assert checkpoints.last_checkpoint(tmp_path / "none") is None
    for step in (4, 8, 12, 100):
        (tmp_path / f"checkpoint-{step}").mkdir()
    assert checkpoints.last_checkpoint(tmp_path) is None
    for step in (4, 8, 12):
        (tmp_path / f"checkpoint-{step}" / checkpoints.COMPLETE).write_text("{}")
    assert checkpoints.last_checkpoint(tmp_path) == tmp_path / "checkpoint-12"
    weights = tmp_path / "checkpoint-12" / "model.safetensors"
    weights.write_bytes(bytes(10))
    (tmp_path / "checkpoint-12" / checkpoints.COMPLETE).write_text('{"files": {"model.safetensors": 10}}')
    assert checkpoints.last_checkpoint(tmp_path) == tmp_path / "checkpoint-12"
    digested = {"files": {"model.safetensors": 10}, "digests": {"model.safetensors": file_digest(weights)}}
    (tmp_path / "checkpoint-12" / checkpoints.COMPLETE).write_text(json.dumps(digested))
    assert checkpoints.last_checkpoint(tmp_path) == tmp_path / "checkpoint-12"
    weights.write_bytes(bytes(9) + b"x")
    assert checkpoints.last_checkpoint(tmp_path) == tmp_path / "checkpoint-8", "a byte is another"
    weights.write_bytes(bytes(9))
    assert checkpoints.last_checkpoint(tmp_path) == tmp_path / "checkpoint-8", "a file was cut"
    (tmp_path / "checkpoint-8" / checkpoints.COMPLETE).write_bytes(b"")
    assert checkpoints.last_checkpoint(tmp_path) == tmp_path / "checkpoint-4", "the mark itself was cut"


def test_a_loss_that_is_no_number_ends_the_stage_with_a_message(run_stage: Run, shelf: Path, rows: Path):
    params = {"training": knobs(learning_rate=10.0, optim="sgd", max_grad_norm=1e9, num_train_epochs=3.0), "seed": 5}
    with pytest.raises(UserError, match="lower learning_rate"):
        run_stage("sft", "sft", params, {"policy": shelf / "base", "rows": rows}, machine())
    assert not (shelf / "sft" / "policy.json").exists()


def test_a_lora_stage_writes_an_adapter_and_leaves_the_start_alone(run_stage: Run, shelf: Path, rows: Path):
    before = weights(shelf / "base", "model")
    params = {"training": knobs(lora=LORA), "seed": 5}
    out, counts = run_stage("sft", "sft", params, {"policy": shelf / "base", "rows": rows}, machine())
    assert (out / "adapter" / "adapter_model.safetensors").is_file() and not (out / "model").exists()
    assert weights(shelf / "base", "model") == before
    assert 0 < counts["trainable_parameters"] < counts["parameters"]
    config = json.loads((out / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (4, 8, 0.2)


def test_a_loss_above_the_bound_for_too_long_stops_and_keeps_the_last_good_checkpoint(run_stage: Run, shelf: Path, rows: Path):
    asked = knobs(
        learning_rate=3.0,
        optim="sgd",
        num_train_epochs=3.0,
        stop_on_loss_above=6.2,
        stop_after_steps=3,
        max_grad_norm=1e9,
    )
    with pytest.raises(UserError, match=r"above stop_on_loss_above = 6.2 for 3 steps.*last good checkpoint is .*checkpoint-"):
        run_stage(
            "sft",
            "sft",
            {"training": asked, "seed": 5},
            {"policy": shelf / "base", "rows": rows},
            machine(save_steps=1),
        )
    last = checkpoints.last_checkpoint(shelf / "sft" / "checkpoints")
    assert last is not None
    history = json.loads((last / "trainer_state.json").read_text())["log_history"]
    assert history[-1]["loss"] <= 6.2


def test_asked_to_stop_above_the_bound_it_says_that_it_goes_on_from_before_and_counts_anew(run_stage: Run, shelf: Path, rows: Path):
    inputs = {"policy": shelf / "base", "rows": rows}
    asked = {
        "learning_rate": 3.0,
        "optim": "sgd",
        "num_train_epochs": 3.0,
        "max_grad_norm": 1e9,
        "stop_on_loss_above": 1.0,
    }
    (shelf / "sft").mkdir()
    (shelf / "sft" / "stop").touch()
    with pytest.raises(ranks.Stopped, match="no checkpoint was written, and it goes on from the start of this stage"):
        run_stage("sft", "sft", {"training": knobs(**asked, stop_after_steps=2), "seed": 5}, inputs, machine(save_steps=1))
    assert not list((shelf / "sft" / "checkpoints").glob("*/"))
    (shelf / "sft" / "stop").unlink()
    with pytest.raises(UserError, match="for 2 steps, at step 2 "):
        run_stage("sft", "sft", {"training": knobs(**asked, stop_after_steps=2), "seed": 5}, inputs, machine(save_steps=1))


def test_the_file_stop_ends_a_stage_with_a_checkpoint_and_it_goes_on_from_there(run_stage: Run, shelf: Path, rows: Path):
    inputs, params = {"policy": shelf / "base", "rows": rows}, {"training": knobs(), "seed": 5}
    straight, _ = run_stage("sft", "straight", params, inputs, machine())
    (shelf / "sft").mkdir()
    (shelf / "sft" / "stop").touch()
    with pytest.raises(ranks.Stopped, match="stopped at step 1"):
        run_stage("sft", "sft", params, inputs, machine())
    (shelf / "sft" / "stop").unlink()
    out, counts = run_stage("sft", "sft", params, inputs, machine())
    assert counts["resumed_from"] == "checkpoint-1"
    assert weights(out, "model") == weights(straight, "model") and curve(out) == curve(straight)


def test_every_step_says_its_tokens_memory_and_lengths(run_stage: Run, shelf: Path, rows: Path, scored: dict[str, Path]):
    out, _ = run_stage("sft", "sft", {"training": knobs(), "seed": 5}, {"policy": shelf / "base", "rows": rows}, machine())
    params = {"training": knobs(learning_rate=1e-3), "dpo": DPO, "reference_is_start": True, "seed": 5}
    round_, _ = run_stage("dpo", "dpo", params, scored, machine())
    wanted = {out: {"answer_tokens"}, round_: {"log_ratio", "tokens/chosen", "tokens/rejected"}}
    for folder, own in wanted.items():
        for line in (folder / "metrics.jsonl").read_text().splitlines():
            step = json.loads(line)
            assert {"grad_norm", "tokens_per_second", "memory_gib", *own} <= step.keys()
            assert step["tokens_per_second"] > 0 and step["memory_gib"] > 0
            if "log_ratio" in own:
                assert step["log_ratio"] == pytest.approx((step["rewards/chosen"] + step["rewards/rejected"]) / 2 / 0.1)
