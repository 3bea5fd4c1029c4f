"""vLLM for real, in an environment of its own: its answers depend on their seeds, and it counts log-probabilities as we do.

`scripts/setup_vllm` makes that environment, or ROUNDS_VLLM_PYTHON names one's Python.

Covers: train/generation/vllm_worker.
"""

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from rounds.data_prep.errors import UserError
from rounds.data_prep.records import Conversation, Message
from rounds.train.config.cluster import Machine
from rounds.train.config.decoding import Decoding
from rounds.train.engine import policy
from rounds.train.generation import decoding, engine, vllm
from rounds.train.generation.engine import Ask, Reply, Subject
from rounds.train.tokens import chat
from rounds.train.weights import logprobs, models, requirements
from tests import staged
from tests.train.conftest import ASKED, FACTS

_PLACE = Path(os.environ.get("ROUNDS_VLLM_PYTHON", Path(__file__).parents[3] / ".venv-vllm" / "bin" / "python"))
PYTHON = str(_PLACE) if _PLACE.is_file() else None
PROMPTS = [[Message("user", ASKED[n % 4].format(FACTS[n % 8][0]) + " Please." * (n % 5))] for n in range(16)]


def subject(folder: Path, python: str | None, room: Path) -> Subject:
    described = policy.read(folder)
    ends = models.end_tokens([models.generation_settings(described)], models.load_tokenizer(described))
    return Subject(described, ends, Machine(device="cpu", threads=1, engine_python=python), 128, room)


def test_without_the_other_python_it_says_what_is_missing(tmp_path: Path):
    assert "`engine_python`" in str(requirements.vllm_obstacle(Machine()))
    assert "cannot be run" in str(requirements.vllm_obstacle(Machine(engine_python="/nowhere/python")))
    import sys

    if not PYTHON or sys.executable != PYTHON:
        assert "has no package vllm" in str(requirements.vllm_obstacle(Machine(engine_python=sys.executable)))


def test_the_worker_does_not_take_itself_for_a_rank(monkeypatch: pytest.MonkeyPatch):
    ours = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "here", "SLURM_PROCID": "1", "PYTHONPATH": "/x"}
    for name, value in ours.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    kept = vllm.environment()
    assert not ours.keys() & kept.keys() and kept["CUDA_VISIBLE_DEVICES"] == "3"


def test_a_worker_that_dies_is_told_of(made_base: Path, tmp_path: Path):
    """One that has a package of that name, and no engine in it."""
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\n[ "$2" = -c ] && exit 0\nexit 9\n')
    python.chmod(0o755)
    with (
        pytest.raises(UserError, match="ended with exit code 9"),
        engine.opened("vllm", subject(made_base, str(python), tmp_path)) as write,
    ):
        write([Ask([1, 2], 3)], Decoding(engine="vllm"))


@pytest.fixture
def wide(shelf: Path, put: Callable, conversations: list[Conversation]) -> Path:
    """A tiny model with heads as wide as vLLM's attention on CPUs needs, 32."""
    (shelf / "wide").mkdir()
    tiny = {"kind": "tiny", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2,
            "vocab_size": 400, "max_position_embeddings": 256}  # fmt: skip
    template = str(models.load_tokenizer(policy.read(shelf / "base")).chat_template)
    inputs = {"corpus": put("corpus", conversations)}
    staged.run("base", {"base": tiny, "chat_template": template, "seed": 7}, inputs, shelf / "wide", Machine())
    return shelf / "wide"


@pytest.mark.slow
@pytest.mark.skipif(
    not PYTHON, reason=f"no vLLM at {_PLACE}: scripts/setup_vllm makes it there, or name one's interpreter in ROUNDS_VLLM_PYTHON"
)
def test_seeds_decide_and_log_probabilities_are_ours(wide: Path, tmp_path: Path):
    described = policy.read(wide)
    tokenizer = models.load_tokenizer(described)
    encoded = [ids for ids in chat.encode_prompts(tokenizer, [tuple(prompt) for prompt in PROMPTS]) if not isinstance(ids, str)]
    asks = [Ask(ids, decoding.seed_of(5, f"p{n}", number)) for n, ids in enumerate(encoded) for number in range(2)]
    how = Decoding(max_new_tokens=16, temperature=1.0, top_p=0.95, num_answers=2, engine="vllm")
    shuffled = random.Random(1).sample(range(len(asks)), len(asks))
    (tmp_path / "room").mkdir()
    with engine.opened("vllm", subject(wide, PYTHON, tmp_path / "room")) as write:
        once, again = write(asks, how), write(asks, how)
        other = write([asks[n] for n in shuffled], how)
        threes = [reply for start in range(0, len(asks), 3) for reply in write(asks[start : start + 3], how)]
        greedy = write(asks[::2], Decoding(max_new_tokens=16, engine="vllm"))
    assert len(asks) == 32 and len({tuple(reply.token_ids) for reply in once}) > 24

    def said(replies: list[Reply]) -> list[tuple[list[int], bool]]:
        return [(reply.token_ids, reply.ended) for reply in replies]

    assert said(once) == said(again) == said(threes)
    assert said([other[shuffled.index(n)] for n in range(len(asks))]) == said(once)
    model = models.load_to_score(described, Machine(device="cpu", threads=1))
    cut = [(ask, reply) for ask, reply in zip(asks, once, strict=True) if not reply.ended]
    ours = logprobs.answer_logprobs(model, [(ask.prompt_ids, reply.token_ids) for ask, reply in cut], 4)
    assert cut and [reply.logprob for _, reply in cut] == pytest.approx(ours, abs=1e-3)
    with engine.opened("transformers", subject(wide, None, tmp_path)) as write:
        assert said(write(asks[::2], Decoding(max_new_tokens=16))) == said(greedy)
