"""What is random in training is found and switched off, in modules and in functions."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from rounds.train.weights import noise


def test_dropout_in_functions_is_switched_off():
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, attention_dropout=0.5
    )
    model = LlamaForCausalLM(config).train()
    ids = torch.arange(16)[None]
    assert not torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)
    assert noise.switch_off(model) == ["attention_dropout"]
    assert torch.equal(model(input_ids=ids).logits, model.eval()(input_ids=ids).logits)
    assert noise.switch_off(model) == []
