"""A trainer of one page in torch alone, without TRL, Trainer, packing or shared prefixes, comes to the same losses and weights.

Of ours it takes the rows, which of them are in which step, and the model's forward pass.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from torch.nn import functional

from rounds.data_prep.records import Conversation, Pair
from rounds.train.config.cluster import Machine
from rounds.train.config.training import DpoLoss, Training
from rounds.train.engine import policy
from rounds.train.tokens.order import GlobalBatches
from rounds.train.weights import models

Run = Callable[..., tuple[Path, dict]]
CPU = Machine(device="cpu", threads=1, micro_batch_size=3)
SEED, BATCH, DECAY, BETA = 5, 3, 0.05, 0.3
TRAINING = {"learning_rate": 3e-3, "num_train_epochs": 2.0, "global_batch_size": BATCH, "max_length": 96, "weight_decay": DECAY}
Loss = Callable[[Any, list[dict[str, Any]]], torch.Tensor]


def rate(step: int, steps: int) -> float:
    """Share of the peak: up to it over a tenth of the steps, then half a cosine."""
    warm = math.ceil(0.1 * steps)
    return step / warm if step < warm else 0.5 * (1 + math.cos(math.pi * (step - warm) / (steps - warm)))


def trained(start: Path, rows: list[dict[str, Any]], loss_of: Loss) -> tuple[Any, list[float]]:
    """AdamW (Loshchilov and Hutter 2019), no decay of norms, gradients clipped to a norm of 1."""
    model: Any = models.load_model(policy.read(start), CPU)
    named = dict(model.named_parameters())
    norms = [value for name, value in named.items() if "norm" in name]
    others = [value for name, value in named.items() if "norm" not in name]
    groups = [{"params": others, "weight_decay": DECAY}, {"params": norms, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.999), eps=1e-8)
    order, losses = GlobalBatches(len(rows), BATCH, SEED), []
    steps = 2 * math.ceil(len(rows) / BATCH)
    for step in range(steps):
        loss = loss_of(model, [rows[place] for place in order.batch(step)])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = TRAINING["learning_rate"] * rate(step, steps)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return model, losses


def log_prob(model: Any, prompt: list[int], answer: list[int]) -> torch.Tensor:
    """Sum of the log-probabilities of an answer's tokens behind its prompt."""
    logits = model(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1).gather(1, torch.tensor(answer)[:, None]).sum()


def same(model: Any, losses: list[float], out: Path) -> None:
    told = [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert told == pytest.approx(losses, abs=2e-5) and abs(losses[0] - losses[-1]) > 0.01
    ours = models.load_model(policy.read(out), CPU).state_dict()
    before = models.load_model(policy.read(out.parent / "base"), CPU).state_dict()
    for name, value in model.state_dict().items():
        assert torch.allclose(ours[name], value, atol=2e-5), name
    assert max(float((ours[name] - before[name]).abs().max()) for name in before) > 1e-2


def test_sft(run_stage: Run, shelf: Path, put: Callable, conversations: list[Conversation]):
    inputs = {"tokenizer": shelf / "base", "data": put("data", conversations)}
    packed, _ = run_stage("pack", "pack", {"max_length": 96}, inputs)
    asked = {"training": Training.model_validate(TRAINING).model_dump(mode="json"), "seed": SEED}
    out, _ = run_stage("sft", "sft", asked, {"policy": shelf / "base", "rows": packed}, CPU)

    def loss(model: Any, rows: list[dict[str, Any]]) -> torch.Tensor:
        """Mean over the answers' tokens of the step, each conversation by itself."""
        total, tokens = torch.zeros(()), 0
        for row in rows:
            ids, labels = (torch.tensor(row[name]).split(row["seq_lengths"]) for name in ("input_ids", "labels"))
            for one, label in zip(ids, labels, strict=True):
                logits = model(input_ids=one[None]).logits[0, :-1]
                total = total + functional.cross_entropy(logits, label[1:], ignore_index=-100, reduction="sum")
                tokens += int((label[1:] != -100).sum())
        return total / tokens

    same(*trained(shelf / "base", pq.read_table(packed / "rows.parquet").to_pylist(), loss), out)


def test_dpo(run_stage: Run, shelf: Path, put: Callable, pairs: list[Pair]):
    inputs = {"tokenizer": shelf / "base", "data": put("data", pairs)}
    tokens, _ = run_stage("tokenize", "pairs", {"max_length": 96}, inputs)
    scored, _ = run_stage("reference", "reference", {}, {"policy": shelf / "base", "pairs": tokens}, CPU)
    asked = {"training": Training.model_validate(TRAINING).model_dump(mode="json"), "dpo": DpoLoss(beta=BETA).model_dump(mode="json")}
    asked |= {"reference_is_start": True, "seed": SEED}
    out, _ = run_stage("dpo", "dpo", asked, {"policy": shelf / "base", "pairs": tokens, "reference": scored}, CPU)
    reference = models.load_model(policy.read(shelf / "base"), CPU)

    def loss(model: Any, rows: list[dict[str, Any]]) -> torch.Tensor:
        """Rafailov et al. 2023, equation 7."""
        found = []
        for row in rows:
            sides = [(row["prompt_ids"], row[f"{side}_ids"]) for side in ("chosen", "rejected")]
            with torch.no_grad():
                chosen_before, rejected_before = (log_prob(reference, *side) for side in sides)
            chosen, rejected = (log_prob(model, *side) for side in sides)
            found.append(-functional.logsigmoid(BETA * ((chosen - chosen_before) - (rejected - rejected_before))))
        return torch.stack(found).mean()

    same(*trained(shelf / "base", pq.read_table(tokens / "pairs.parquet").to_pylist(), loss), out)
