"""A model shows by itself whether conversations in one row reach each other."""

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, BambaConfig, FalconMambaConfig, LlamaConfig, MixtralConfig, StableLmConfig

from rounds.train.weights import packed_attention, packing

SMALL: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}


@pytest.mark.parametrize("config", [LlamaConfig(**SMALL), MixtralConfig(**SMALL, num_local_experts=4)], ids=lambda each: each.model_type)
def test_attention_keeps_them_apart(config):
    assert packing.leak(AutoModelForCausalLM.from_config(config)) is None


def test_a_recurrent_state_runs_on():
    config = FalconMambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=4)
    assert "two conversations in one row" in (packing.leak(AutoModelForCausalLM.from_config(config)) or "")


def test_so_does_a_hybrids():
    config = BambaConfig(**SMALL, mamba_n_heads=4, mamba_d_head=16, mamba_d_state=8, attn_layer_indices=[1])
    assert "two conversations in one row" in (packing.leak(AutoModelForCausalLM.from_config(config)) or "")


def test_a_model_whose_attention_would_not_see_the_row_does_not_get_packed_ones():
    """StableLM's layers pass nothing on to their attention: it died in SFT of a mask that is none."""
    model = AutoModelForCausalLM.from_config(StableLmConfig(**SMALL))
    assert packed_attention.obstacle(model) == "its layers do not hand on to their attention what the model is given"
    assert packed_attention.choose("auto", model) == "padded" and packing.leak(model) is None
    packed_attention._HANDS_ON.clear()
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SMALL))
    state = torch.get_rng_state()
    assert packed_attention.obstacle(model) is None and torch.equal(state, torch.get_rng_state()), "no random number is drawn for it"
