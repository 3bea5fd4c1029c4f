"""A policy that judges by its log-probability of a letter is truly biased towards a place, and the two orders take the bias out.

Covers: train/judging/rubric.
"""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rounds.data_prep.records import Message
from rounds.train.config.cluster import Machine
from rounds.train.engine import policy
from rounds.train.judging import likelihood, rubric, verdicts
from rounds.train.weights import logprobs
from tests.train.conftest import ASKED, FACTS
from tests.train.judging.answers import sample

RUBRIC = "Which is better?"


@pytest.fixture
def judge(shelf: Path) -> likelihood.Opened:
    """The tiny base with larger random weights: it has opinions, mostly on places."""
    found = likelihood.opened(policy.read(shelf / "base"), Machine(device="cpu", threads=1, eval_batch_size=4))
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in found.model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return found


def asked():
    return [
        (
            (Message("user", ASKED[number % 4].format(drug)),),
            sample(0, f"It {acts}.", 20, prompt_id=f"p{number}"),
            sample(1, "Nobody knows." + " Really." * (number % 4), 30, prompt_id=f"p{number}"),
        )
        for number, (drug, acts) in enumerate(FACTS * 2)
    ]


def test_a_judge_that_goes_by_place_decides_nothing(judge: likelihood.Opened):
    found = likelihood.compare(judge, RUBRIC, asked())
    assert all(each.outcome is not None for each in found)
    told = verdicts.counts(found)
    assert not 0.1 < told["first_place_share"] < 0.9, "it is truly biased, towards the first place or the second"
    assert told["flip_share"] > 0.75 and told["tie_share"] == told["flip_share"]
    unswapped = sum((each.forward or 0) > 0 for each in found) / len(found)
    assert not 0.1 < unswapped < 0.9, "one order alone would have called it a clear win"
    assert sum(each.outcome or 0 for each in found) / len(found) == pytest.approx(0.5, abs=0.13)


def test_the_other_way_round_is_the_same_verdict(judge: likelihood.Opened):
    found = likelihood.compare(judge, RUBRIC, asked())
    turned = likelihood.compare(judge, RUBRIC, [(prompt, other, one) for prompt, one, other in asked()])
    for one, other in zip(found, turned, strict=True):
        assert (one.first, one.second, one.first_tokens) == (other.second, other.first, other.second_tokens)
        assert (one.forward, one.backward) == pytest.approx((-(other.backward or 0), -(other.forward or 0)), abs=1e-4)


def test_a_preference_is_the_difference_of_the_two_log_probabilities(judge: likelihood.Opened):
    prompt, one, other = asked()[0]
    (verdict,) = likelihood.compare(judge, RUBRIC, [(prompt, one, other)])
    text = rubric.asked(RUBRIC, prompt, one.answer, other.answer)
    assert text.index(RUBRIC) < text.index(prompt[0].content) < text.index(one.answer) < text.index(other.answer)
    ids = judge.tokenizer.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True, return_dict=False)
    first, second = logprobs.answer_logprobs(judge.model, [(list(ids), letter) for letter in judge.letters], 1)  # type: ignore[arg-type]
    assert verdict.forward == pytest.approx(first - second, abs=1e-4)


def test_what_is_too_long_or_writes_control_tokens_is_missing(judge: likelihood.Opened):
    prompt, one, other = asked()[0]
    long, marked = replace(one, answer="so " * 400), replace(one, answer="<|eot_id|>")
    found = likelihood.compare(judge, RUBRIC, [(prompt, long, other), (prompt, marked, other), (prompt, one, other)])
    assert [(each.outcome is None, each.reason) for each in found] == [(True, "too_long"), (True, "control_token_in_text"), (False, "")]
