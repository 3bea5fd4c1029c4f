"""A policy with opinions, and prompts of many lengths for it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from rounds.data_prep.records import Conversation, Message
from rounds.train.config.cluster import Machine
from rounds.train.engine import policy
from rounds.train.weights import models
from tests.train.conftest import ASKED, FACTS

CPU = Machine(device="cpu", threads=1)
PROMPTS = 48


@pytest.fixture
def policy_folder(shelf: Path) -> Path:
    """A policy whose answers are of many lengths, and mostly end."""
    start = policy.read(shelf / "base")
    model = models.load_model(start, CPU)
    torch.manual_seed(4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.25 * torch.randn_like(parameter))
        end = models.load_tokenizer(start).convert_tokens_to_ids("<|eot_id|>")
        model.lm_head.weight[end] *= 2.5  # type: ignore[index]
    (shelf / "writer").mkdir()
    models.save_model(model, models.load_tokenizer(start), shelf / "writer" / "model")
    policy.write_weights(shelf / "writer", shelf / "base")
    (shelf / "writer" / "done.json").write_text(json.dumps({"status": "done"}))
    return shelf / "writer"


@pytest.fixture
def talks() -> list[Conversation]:
    """Forty-eight prompts of one to three turns, each with an answer that nobody looks at."""
    made = []
    for number in range(PROMPTS):
        (drug, acts), asked = FACTS[number % 8], ASKED[number // 8 % 4]
        turns = [Message("user", f"{asked.format(drug)} {'Please. ' * (number % 7)}{number}")]
        if number % 5 == 0:
            turns = [*turns, Message("assistant", f"It {acts}."), Message("user", "Is that certain?")]
        made.append(Conversation(f"c{number}", "made", (*turns, Message("assistant", "Yes."))))
    return made


@pytest.fixture
def prompts(put: Callable, talks: list[Conversation]) -> Path:
    """The same as a finished source."""
    return put("talks", talks)
