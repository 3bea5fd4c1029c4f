"""Answers depend on their own seed alone; with torch's own generator they do not.

Covers: train/generation/transformers, train/generation/engine.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedModel

from rounds.data_prep.records import Conversation, prompt_of
from rounds.train.config.cluster import Machine
from rounds.train.config.decoding import Decoding
from rounds.train.engine import policy
from rounds.train.generation import decoding, engine
from rounds.train.generation.engine import Ask, Reply, Subject
from rounds.train.tokens import chat
from rounds.train.weights import models

SAMPLED = Decoding(max_new_tokens=16, temperature=1.0, top_p=0.95, num_answers=2)
GREEDY = Decoding(max_new_tokens=16)


@pytest.fixture
def asks(policy_folder: Path, talks: Sequence[Conversation]) -> list[Ask]:
    """Two answers to each prompt."""
    tokenizer = models.load_tokenizer(policy.read(policy_folder))
    encoded = chat.encode_prompts(tokenizer, [prompt_of(talk) for talk in talks])
    return [
        Ask(ids, decoding.seed_of(7, talk.id, number))
        for talk, ids in zip(talks, encoded, strict=True)
        if not isinstance(ids, str)
        for number in range(2)
    ]


def subject(folder: Path, batch: int) -> Subject:
    described = policy.read(folder)
    ends = models.end_tokens([models.generation_settings(described)], models.load_tokenizer(described))
    return Subject(described, ends, Machine(device="cpu", threads=1, eval_batch_size=batch), 256, folder)


def written(folder: Path, asks: Sequence[Ask], how: Decoding, batch: int) -> list[Reply]:
    with engine.opened("transformers", subject(folder, batch)) as write:
        return write(asks, how)


@pytest.mark.parametrize("how", [SAMPLED, GREEDY], ids=["sampled", "greedy"])
def test_answers_are_the_same_in_any_batch_and_order(policy_folder: Path, asks: list[Ask], how: Decoding):
    alone = written(policy_folder, asks, how, 1)
    assert len(asks) == 96 and len({tuple(reply.token_ids) for reply in alone}) > (80 if how is SAMPLED else 24)
    assert {reply.ended for reply in alone} == {True, False}, "some end and some do not"
    for batch in (7, 64):
        assert written(policy_folder, asks, how, batch) == alone  # to the last bit of the log-probability
    backwards = written(policy_folder, asks[::-1], how, 7)
    assert backwards[::-1] == alone


def test_with_torchs_own_generator_they_are_not(policy_folder: Path, asks: list[Ask]):
    """The control: what the test above would find, were tokens drawn as `generate` draws them."""
    model = models.load_to_score(policy.read(policy_folder), Machine(device="cpu", threads=1))
    rows = {batch: _drawn(model, asks[:48], batch, subject(policy_folder, 1).ends) for batch in (1, 7, 48)}
    same = sum(one == other for one, other in zip(rows[7], rows[48], strict=True))
    assert same < 24, f"{same} of 48"
    assert rows[48] == _drawn(model, asks[:48], 48, subject(policy_folder, 1).ends), "though seeded"


def _drawn(model: PreTrainedModel, asks: Sequence[Ask], batch: int, ends: list[int]) -> list[list[int]]:
    torch.manual_seed(7)
    found: list[list[int]] = []
    for start in range(0, len(asks), batch):
        part = asks[start : start + batch]
        width = max(len(ask.prompt_ids) for ask in part)
        ids = torch.tensor([[0] * (width - len(ask.prompt_ids)) + ask.prompt_ids for ask in part])
        mask = torch.tensor([[0] * (width - len(ask.prompt_ids)) + [1] * len(ask.prompt_ids) for ask in part])
        made = model.generate(  # type: ignore[operator]
            input_ids=ids, attention_mask=mask, do_sample=True, top_k=0, top_p=0.95, max_new_tokens=16, eos_token_id=ends, pad_token_id=0
        )
        found += [row[: next((n for n, token in enumerate(row) if token in ends), len(row))] for row in made[:, width:].tolist()]
    return found


@torch.no_grad()
def test_log_probabilities_are_those_of_a_plain_pass(policy_folder: Path, asks: list[Ask]):
    """Of the distribution before temperature and top_p, the end token among them."""
    how = Decoding(max_new_tokens=16, temperature=0.7, top_p=0.8)
    model = models.load_to_score(policy.read(policy_folder), Machine(device="cpu", threads=1))
    ended = set()
    for ask, reply in zip(asks, written(policy_folder, asks, how, 16), strict=True):
        ids = torch.tensor([ask.prompt_ids + reply.token_ids])
        logps = model(input_ids=ids).logits.double().log_softmax(-1)[0]
        total = sum(logps[len(ask.prompt_ids) - 1 + n, token].item() for n, token in enumerate(reply.token_ids))
        if reply.ended:
            ends = [total + logps[-1, token].item() for token in subject(policy_folder, 1).ends]
            assert min(abs(each - reply.logprob) for each in ends) < 1e-4
        else:
            assert reply.logprob == pytest.approx(total, abs=1e-4)
        ended.add(reply.ended)
    assert ended == {True, False}


def test_sums_of_the_steps_agree_with_the_pass_that_is_made_in_fp32(policy_folder: Path, asks: list[Ask]):
    with engine.opened("transformers", subject(policy_folder, 16)) as write:
        exact = write(asks[:16], SAMPLED)
    described = subject(policy_folder, 16)
    low = Subject(described.policy, described.ends, described.machine.model_copy(update={"precision": "bf16"}), 256, policy_folder)
    with engine.opened("transformers", low) as write:
        rough = write(asks[:16], SAMPLED)
    same = [(one, other) for one, other in zip(exact, rough, strict=True) if one.token_ids == other.token_ids]
    assert same and all(one.logprob == pytest.approx(other.logprob, rel=0.05, abs=0.5) for one, other in same)


def test_greedy_is_what_generate_takes(policy_folder: Path, asks: list[Ask]):
    model = models.load_to_score(policy.read(policy_folder), Machine(device="cpu", threads=1))
    ends = subject(policy_folder, 1).ends
    for ask, reply in list(zip(asks, written(policy_folder, asks, GREEDY, 16), strict=True))[:16:2]:
        ids = torch.tensor([ask.prompt_ids])
        made = model.generate(  # type: ignore[operator]
            input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=16, eos_token_id=ends, pad_token_id=0
        )[0, len(ask.prompt_ids) :].tolist()
        assert (made[:-1] if made[-1] in ends else made) == reply.token_ids


def test_uniform_numbers_are_uniform_and_of_their_own():
    numbers = [decoding.uniform(decoding.seed_of(1, f"p{n}", k), at) for n in range(20) for k in range(5) for at in range(40)]
    assert len(set(numbers)) == 4000 and all(0 <= each < 1 for each in numbers)
    assert sum(numbers) / 4000 == pytest.approx(0.5, abs=4 / math.sqrt(12 * 4000))
    assert decoding.seed_of(1, "p", 0) < 2**63, "as vLLM takes it"
    # Neighbours in place or in number tell nothing of each other.
    pairs = [(numbers[n], numbers[n + 1]) for n in range(3999)]
    assert abs(sum((a - 0.5) * (b - 0.5) for a, b in pairs) / 3999 * 12) < 4 / math.sqrt(3999)


def test_tokens_come_as_often_as_their_probability_says():
    scores = torch.tensor([[2.0, -torch.inf, 0.5, 1.0, -3.0]])
    drawn = decoding.choose(scores.repeat(20_000, 1), [decoding.uniform(3, n) for n in range(20_000)], 0.5, 1.0)
    wanted = torch.softmax(scores[0] / 0.5, -1)
    found = torch.bincount(drawn, minlength=5) / 20_000
    assert found[1] == 0
    for share, probability in zip(found.tolist(), wanted.tolist(), strict=True):
        assert abs(share - probability) <= 4 * math.sqrt(probability * (1 - probability) / 20_000) + 1e-9


@given(
    st.lists(st.floats(-20, 20), min_size=2, max_size=30),
    st.floats(0, 1, exclude_max=True),
    st.floats(0.05, 5),
    st.floats(1e-6, 1),
)
def test_a_token_is_always_among_the_likeliest_that_top_p_keeps(scores: list[float], number: float, temperature: float, top_p: float):
    given = torch.tensor([scores])
    token = int(decoding.choose(given, [number], temperature, top_p))
    probabilities = torch.softmax(given[0] / temperature, -1).double()
    likelier = probabilities[probabilities > probabilities[token]].sum()
    assert probabilities[token] > 0 and likelier < top_p + 1e-6
    assert int(decoding.choose(given, [number], temperature, 1e-6)) in (given[0] == given.max()).nonzero().flatten().tolist()
