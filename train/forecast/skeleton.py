"""A model's skeleton: built from its config on torch's meta device, where weights have shapes but no memory, and counted.

`python -m rounds.train.forecast.skeleton < config.json` prints the counts as JSON. Planning runs it as a process of its own, so that it
imports no torch itself: 70B takes as long as 8B, a few seconds for the imports.
"""

import json
import sys
from collections import Counter
from typing import Any


def count(config: dict[str, Any]) -> dict[str, Any]:
    """Build the causal language model that a config describes, without memory for it, and count what it is made of."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    made = AutoConfig.for_model(**config)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(made, attn_implementation="eager")  # whatever its config names
    head: Any = model.get_output_embeddings()
    linears = Counter(
        (name.rpartition(".")[2], module.in_features, module.out_features)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    )
    own = [sum(p.numel() for p in module.parameters(recurse=False)) for module in model.modules()]
    text = made.get_text_config()
    heads = text.num_attention_heads
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "linears": [[*linear, times] for linear, times in sorted(linears.items())],
        "largest_module": max(own),
        "tied": head is not None and head.weight is model.get_input_embeddings().weight,
        "layers": text.num_hidden_layers,
        "hidden": text.hidden_size,
        "heads": heads,
        "key_value_heads": getattr(text, "num_key_value_heads", None) or heads,
        "head_width": getattr(text, "head_dim", None) or text.hidden_size // heads,
        "intermediate": text.intermediate_size,
        "vocabulary": text.vocab_size,
    }


if __name__ == "__main__":
    print(json.dumps(count(json.load(sys.stdin))))
