"""Answers that share a prompt in one row get the log-probabilities that each gets alone, whatever the batch."""

import math
import random

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    PreTrainedModel,
)

from rounds.train.weights import choice_logprobs, packed_attention

TOKENS = 61


def llama() -> LlamaForCausalLM:
    torch.manual_seed(3)
    config = LlamaConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                         vocab_size=TOKENS, max_position_embeddings=512)  # fmt: skip
    model = LlamaForCausalLM(config)
    torch.nn.init.normal_(model.lm_head.weight, std=0.5)
    return model.eval()


def drawn(number: int, seed: int = 0) -> list[choice_logprobs.Asked]:
    """Prompts of 1 to 40 tokens with 1 to 6 answers, of which some begin alike, some are the same, some a part of another."""
    draw = random.Random(seed)

    def text(most: int) -> list[int]:
        return [draw.randrange(3, TOKENS) for _ in range(draw.randint(1, most))]

    asked = []
    for _ in range(number):
        answers = [text(9) for _ in range(draw.randint(1, 4))]
        answers += draw.choice(([], [answers[0] + text(3)], [answers[0][:1]], [list(answers[-1])]))
        asked.append((text(40), answers))
    return asked


@torch.no_grad()
def alone(model: PreTrainedModel, prompt: list[int], answer: list[int]) -> float:
    tokens = torch.tensor([prompt + answer])
    logps = model(input_ids=tokens).logits.double().log_softmax(-1)[0, :-1].gather(-1, tokens[0, 1:, None])[:, 0]
    return math.fsum(logps[len(prompt) - 1 :].tolist())


@pytest.mark.parametrize("batch_size", [1, 5, 32])
def test_every_answer_is_scored_as_if_it_were_alone(batch_size: int):
    model, asked, told = llama(), drawn(40), []
    found = choice_logprobs.score(model, asked, batch_size, told.append)
    assert choice_logprobs.obstacle(model) is None
    plain = llama()
    for (prompt, answers), values in zip(asked, found, strict=True):
        assert values == pytest.approx([alone(plain, prompt, answer) for answer in answers], abs=1e-5)
    assert told == sorted(told) and told[-1] == sum(len(answers) for _, answers in asked)


def test_a_prompt_is_computed_once_for_all_its_answers():
    model, prompt = llama(), list(range(3, 53))
    answers = [[5, 6], [5, 7], [8], [9, 9, 9]]
    seen: list[int] = []
    model.base_model.layers[0].register_forward_pre_hook(lambda module, args, kwargs: seen.append(args[0].shape[1]), with_kwargs=True)
    choice_logprobs.score(model, [(prompt, answers)], 4)
    assert seen[-1] == 50 + 2 + 1 + 1 + 3  # the second answer goes along with the first for one token
    assert seen[0] == 9 + 4 + 6 + 6, "the model is asked first whether it may"


def test_a_model_keeps_its_own_attention_and_forward_pass():
    model = llama()
    before = model.config._attn_implementation
    ids = torch.tensor([list(range(3, 40))])
    logits = model(ids).logits
    choice_logprobs.score(model, drawn(3), 4)
    assert model.config._attn_implementation == before != packed_attention.NAME
    assert torch.equal(model(ids).logits, logits) and not model.base_model._forward_hooks
    again = choice_logprobs.score(model, drawn(3), 4)
    assert again == choice_logprobs.score(llama(), drawn(3), 4)


SHAPE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
         "vocab_size": TOKENS, "max_position_embeddings": 512, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
OTHERS = {
    "window": (MistralConfig(**SHAPE, sliding_window=8), True),
    "soft caps": (Gemma2Config(**SHAPE, head_dim=8), True),
    "learned positions": (
        GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=TOKENS, n_positions=64, bos_token_id=1, eos_token_id=2),
        False,
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_models_are_scored_right_too_by_rows_of_their_own_where_they_must(name: str):
    config, padded = OTHERS[name]
    torch.manual_seed(5)
    model = AutoModelForCausalLM.from_config(config).eval()
    asked = drawn(12, seed=4)
    wanted = [[alone(model, prompt, answer) for answer in answers] for prompt, answers in asked]
    assert bool(choice_logprobs.obstacle(model)) == padded
    found = choice_logprobs.score(model, asked, 4)
    for values, right in zip(found, wanted, strict=True):
        assert values == pytest.approx(right, abs=1e-4)


def test_a_model_that_lets_answers_see_each_other_is_found_out(monkeypatch: pytest.MonkeyPatch):
    """As one with a recurrent layer would: here the layers attend to the whole row."""
    model = llama()
    whole = packed_attention.attend.__globals__["sdpa_attention_forward"]
    monkeypatch.setitem(
        packed_attention.AttentionInterface._global_mapping,
        packed_attention.NAME,
        lambda module, query, key, value, mask, packed_row=None, **rest: whole(module, query, key, value, None, **rest),
    )
    assert "change each other" in str(choice_logprobs.obstacle(model))
    asked = drawn(5)
    found = choice_logprobs.score(model, asked, 4)
    for (prompt, answers), values in zip(asked, found, strict=True):
        assert values == pytest.approx([alone(llama(), prompt, answer) for answer in answers], abs=1e-4)


def test_a_model_on_several_devices_is_not_packed():
    model = llama()
    model.__dict__["hf_device_map"] = {"model.embed_tokens": 0, "lm_head": 1}
    assert choice_logprobs.obstacle(model) == "the model is spread over several devices"
