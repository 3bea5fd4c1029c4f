"""Pairs in one row give the numbers that TRL's padded batch gives: log-probabilities, losses, metrics and gradients.

Covers: train/weights/packed_attention.
"""

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM
from trl import DPOConfig
from trl.trainer.utils import hash_module

from rounds.data_prep.errors import UserError
from rounds.data_prep.records import Pair
from rounds.train.config.cluster import Machine, PairBatching
from rounds.train.config.training import Training
from rounds.train.engine import policy
from rounds.train.stages.dpo import StoredReferenceTrainer
from rounds.train.tokens import packed_pairs
from rounds.train.weights import models, packed_attention

Run = Callable[..., tuple[Path, dict]]
MODES: tuple[PairBatching, ...] = ("padded", "packed", "shared_prefix")
LOSSES = ["sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired",
          "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm"]  # fmt: skip
TOKENS = 61


def example(prompt: list[int], chosen: list[int], rejected: list[int]) -> dict[str, Any]:
    return {"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected,
            "ref_chosen_logps": -4.0 * len(chosen) - 0.3, "ref_rejected_logps": -4.0 * len(rejected) + 0.2}  # fmt: skip


@pytest.fixture(scope="module")
def trainers(made_base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, StoredReferenceTrainer]:
    """One trainer per mode, all with the same small model with grouped heads."""
    found = {}
    for mode in MODES:
        torch.manual_seed(3)
        config = LlamaConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            head_dim=8,
            num_key_value_heads=2,
            vocab_size=TOKENS,
            max_position_embeddings=512,
        )
        model = LlamaForCausalLM(config)
        torch.nn.init.normal_(model.lm_head.weight, std=0.5)
        found[mode] = StoredReferenceTrainer(
            model=model,
            args=DPOConfig(
                output_dir=str(tmp_path_factory.mktemp(mode)),
                use_cpu=True,
                bf16=False,
                report_to=[],
                activation_checkpointing=False,
                precompute_ref_log_probs=True,
                label_smoothing=0.1,
                max_length=None,
                use_weighting=True,
            ),
            train_dataset=Dataset.from_list([example([1], [2], [3])]),
            processing_class=models.load_tokenizer(policy.read(made_base)),
            pair_batching=mode,
        )
        found[mode].use_weighting = False
    return found


def step(trainer: StoredReferenceTrainer, examples: list[dict]) -> tuple[float, dict[str, float], torch.Tensor]:
    """Loss, metrics and gradients of one batch."""
    model: Any = trainer.model
    model.train()
    model.zero_grad()
    trainer._metrics["train"].clear()
    loss: Any = trainer.compute_loss(model, trainer.data_collator(examples))
    loss.backward()
    metrics = {name: values[-1] for name, values in trainer._metrics["train"].items() if name != "num_tokens"}
    return loss.item(), metrics, torch.cat([p.grad.flatten() for p in model.parameters()])


def assert_all_agree(trainers: dict[str, StoredReferenceTrainer], examples: list[dict]) -> None:
    loss, metrics, gradient = step(trainers["padded"], examples)
    for mode in MODES[1:]:
        found_loss, found_metrics, found_gradient = step(trainers[mode], examples)
        assert found_loss == pytest.approx(loss, rel=1e-5, abs=1e-5)
        assert found_metrics == pytest.approx(metrics, rel=1e-5, abs=1e-5)
        scale = max(1.0, float(gradient.abs().max()))
        assert float((found_gradient - gradient).abs().max()) <= 1e-5 * scale


tokens = st.integers(1, TOKENS - 1)
answers = st.lists(tokens, min_size=1, max_size=20)


@st.composite
def made_pairs(draw: st.DrawFn) -> dict[str, Any]:
    """A pair whose answers may begin or end alike, be cut short by one another, or have one token only."""
    seed, length = draw(st.integers(0, 10**6)), draw(st.one_of(st.integers(1, 12), st.integers(100, 250)))
    prompt = random.Random(seed).choices(range(1, TOKENS), k=length)
    alike, end = draw(st.lists(tokens, max_size=5)), draw(st.lists(tokens, max_size=3))
    chosen, rejected = alike + draw(answers) + end, alike + draw(answers) + end
    if draw(st.booleans()) and len(chosen) > 1:
        rejected = chosen[: draw(st.integers(1, len(chosen) - 1))]
    pair = (chosen, rejected) if draw(st.booleans()) else (rejected, chosen)
    return example(prompt, *pair)


@settings(max_examples=30, deadline=None)
@given(examples=st.lists(made_pairs(), min_size=1, max_size=4))
def test_any_pairs_give_the_numbers_of_a_padded_batch(trainers: dict[str, StoredReferenceTrainer], examples: list[dict]):
    assert_all_agree(trainers, examples)


PAIRS = [
    example([5, 6, 7], [8, 9, 10, 11], [8, 9, 12]),
    example(random.Random(1).choices(range(1, TOKENS), k=300), [4], [5]),
    example([9], [1, 2], [1, 2, 3, 4]),
    example([9, 9], [7, 7, 7, 1], [2, 7, 7, 1]),
]


@pytest.mark.parametrize("loss_type", LOSSES)
def test_every_loss_of_trl_works(trainers: dict[str, StoredReferenceTrainer], loss_type: str, monkeypatch: pytest.MonkeyPatch):
    for trainer in trainers.values():
        monkeypatch.setattr(trainer, "loss_types", [loss_type])
    assert_all_agree(trainers, PAIRS)


@pytest.mark.parametrize("option", [{"ld_alpha": 0.4}, {"use_weighting": True}, {"f_divergence_type": "js_divergence"}], ids=str)
def test_every_weighting_of_trl_works(trainers: dict[str, StoredReferenceTrainer], option: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    for trainer in trainers.values():
        for name, value in {"loss_types": ["sigmoid", "ipo"], "loss_weights": [1.0, 0.5], **option}.items():
            monkeypatch.setattr(trainer, name, value)
    assert_all_agree(trainers, PAIRS)


def test_what_both_sides_share_is_computed_once():
    pairs = [(row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]) for row in PAIRS]
    for share, wanted in ((False, [7 + 6, 602, 3 + 5, 12]), (True, [8, 302, 5, 10])):
        for pair, tokens in zip(pairs, wanted, strict=True):
            row = packed_pairs.pack([pair], share)
            assert row.input_ids.shape == row.position_ids.shape == (1, tokens)
            assert sum(segment.length for segment in row.segments) == tokens
        assert packed_pairs.pack(pairs, share).input_ids.shape == (1, sum(wanted))


@given(st.lists(st.integers(1, 500), min_size=1, max_size=60), st.integers(1, 8), st.randoms())
def test_pairs_of_a_global_batch_are_put_together_by_length(lengths: list[int], micro: int, chance: random.Random):
    batch = chance.sample(range(len(lengths)), k=len(lengths) // micro * micro)
    padded = packed_pairs.arrangement(lengths, "padded", micro)(batch)
    assert sorted(padded) == sorted(batch)
    assert [lengths[i] for i in padded] == sorted((lengths[i] for i in batch), reverse=True)
    packed = packed_pairs.arrangement(lengths, "shared_prefix", micro)(batch)
    assert sorted(packed) == sorted(batch)

    def fullest(order: list[int]) -> int:
        return max((sum(lengths[i] for i in order[start : start + micro]) for start in range(0, len(order), micro)), default=0)

    assert fullest(packed) <= fullest(padded)


def test_packed_micro_batches_hold_about_the_same_number_of_tokens():
    lengths = [round(400 * random.Random(i).lognormvariate(0, 0.8)) for i in range(256)]
    order = packed_pairs.arrangement(lengths, "packed", 8)(list(range(256)))
    sums = [sum(lengths[i] for i in order[start : start + 8]) for start in range(0, 256, 8)]
    assert max(sums) < 1.1 * sum(sums) / len(sums)


def test_a_pairs_length_is_what_its_layout_computes():
    table = pa.Table.from_pylist([example([1] * 10, [2] * 3, [3] * 5), example([1] * 4, [2] * 9, [3])])
    wanted = {"padded": [15, 13], "packed": [28, 18], "shared_prefix": [18, 14]}
    assert {mode: packed_pairs.costs(table, mode) for mode in MODES} == wanted


@pytest.mark.parametrize("loss_type", ["sigmoid", "aot"])
def test_losses_that_look_at_several_pairs_keep_them_as_they_come(trainers: dict[str, StoredReferenceTrainer], loss_type: str):
    first = trainers["padded"]
    args: Any = replace(first.args, loss_type=[loss_type], use_weighting=False)  # type: ignore[call-arg]
    made = StoredReferenceTrainer(
        model=first.model, args=args, train_dataset=first.train_dataset, processing_class=first.processing_class, pair_batching="padded"
    )
    assert (made.arrange is None) == (loss_type == "aot")


# Whole rounds


@pytest.fixture
def scored(run_stage: Run, shelf: Path, put: Callable, pairs: list[Pair]) -> dict[str, Path]:
    tokens = run_stage("tokenize", "pairs", {"max_length": 96}, {"tokenizer": shelf / "base", "data": put("data", pairs)})[0]
    logps = run_stage("reference", "reference", {}, {"policy": shelf / "base", "pairs": tokens})[0]
    return {"policy": shelf / "base", "pairs": tokens, "reference": logps}


@pytest.mark.parametrize(
    ("lora", "checkpointing"),
    [(None, False), ({"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}, True)],
    ids=["full", "lora and activation checkpointing"],
)
def test_a_round_is_the_same_however_its_pairs_are_laid_out(
    run_stage: Run, scored: dict[str, Path], lora: dict | None, checkpointing: bool
):
    asked = Training.model_validate({"learning_rate": 1e-3, "global_batch_size": 8, "max_length": 96, "num_train_epochs": 2.0,
                                     "lora": lora})  # fmt: skip
    params = {"training": asked.model_dump(mode="json"), "reference_is_start": True, "seed": 5,
              "dpo": {"beta": 0.1, "loss_type": ["sigmoid"], "loss_weights": None, "label_smoothing": 0.0}}  # fmt: skip
    curves, configs = [], []
    for mode in MODES:
        machine = Machine(device="cpu", threads=1, micro_batch_size=4, pair_batching=mode, activation_checkpointing=checkpointing)
        out, _ = run_stage("dpo", mode, params, scored, machine)
        curves.append([json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()])
        configs.append(sorted((path.name, path.read_text()) for path in out.glob("[ma][od]*/*config.json")))
    assert len(curves[0]) == 4 and configs[0] and configs[0] == configs[1] == configs[2]
    for curve in curves[1:]:
        for found, wanted in zip(curve, curves[0], strict=True):
            for name in ("loss", "grad_norm", "rewards/chosen", "rewards/rejected", "logps/chosen", "logps/rejected"):
                assert found[name] == pytest.approx(wanted[name], rel=1e-4, abs=2e-5)
            assert found["num_tokens"] == wanted["num_tokens"]


def test_no_weights_are_hashed_when_a_round_starts(trainers: dict[str, StoredReferenceTrainer]):
    trainer = trainers["padded"]
    model: Any = trainer.model
    assert trainer._precompute_model_hash == hash_module(torch.nn.Identity()) != hash_module(model)
    assert len(model.state_dict()) == len(list(model.parameters()))


# Models and kernels


def test_a_model_that_cannot_take_packed_rows_is_padded_or_refused():
    config = MistralConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        head_dim=8,
        num_key_value_heads=2,
        vocab_size=20,
        sliding_window=8,
    )
    model = MistralForCausalLM(config)
    assert packed_attention.choose("auto", model) == packed_attention.choose("padded", model) == "padded"
    with pytest.raises(UserError, match="pair_batching: packed does not work for MistralForCausalLM: not every layer attends"):
        packed_attention.choose("packed", model)
    config.sliding_window = None
    assert packed_attention.choose("auto", MistralForCausalLM(config)) == "shared_prefix"


def test_the_ranges_for_variable_length_kernels_describe_the_same_attention():
    """The kernel itself needs a GPU; here its documented rule is spelled out: keys KEY_ENDS[i]..KEY_ENDS[i+1] for queries
    QUERY_ENDS[i]..QUERY_ENDS[i+1], causal, the last query at the last key."""
    pairs = [(row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]) for row in PAIRS]
    for share in (False, True):
        row = packed_pairs.pack(pairs, share)
        torch.manual_seed(0)
        query, key, value = (torch.randn(1, 2, row.input_ids.shape[1], 8) for _ in range(3))
        wanted = packed_attention._by_segment(query, key, value, None, 0.0, row)
        ranges, found = row.ranges, []
        keys = torch.arange(row.input_ids.shape[1]) if ranges.keys is None else ranges.keys
        assert (ranges.keys is None) is not share
        for place in range(len(row.segments)):
            own = slice(*ranges.query_ends[place : place + 2].tolist())
            seen = keys[slice(*ranges.key_ends[place : place + 2].tolist())]
            count, width = own.stop - own.start, len(seen)
            assert count <= ranges.longest_query and width <= ranges.longest_key
            mask = torch.ones(count, width, dtype=torch.bool).tril(width - count)
            found.append(F.scaled_dot_product_attention(query[:, :, own], key[:, :, seen], value[:, :, seen], attn_mask=mask))
        assert torch.allclose(torch.cat(found, dim=2).transpose(1, 2), wanted, atol=1e-6)


def test_token_rows_of_the_stage_can_be_packed(scored: dict[str, Path]):
    rows = pq.read_table(scored["pairs"] / "pairs.parquet").to_pylist()
    batch = packed_pairs.PairCollator(share_prefix=True)([dict(row, ref_chosen_logps=0.0, ref_rejected_logps=0.0) for row in rows])
    assert batch["completion_mask"].sum() == sum(len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in rows)
    moved = batch["packed_row"].to("meta")
    assert moved.input_ids.device.type == "meta" and moved.segments == batch["packed_row"].segments
