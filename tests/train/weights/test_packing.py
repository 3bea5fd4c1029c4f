"""A model shows by itself whether conversations in one row reach each other."""

from typing import Any

import pytest
from transformers import AutoModelForCausalLM, BambaConfig, FalconMambaConfig, LlamaConfig, MixtralConfig

from rounds.train.weights import packing

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
