"""Whether a model keeps conversations apart that share a row, asked of the model itself: two packed and each alone.

Attention can be kept inside a conversation by positions that start anew (transformers then makes a block-diagonal mask); the state of
a recurrent layer or a convolution runs on into the next conversation, unless the model's own code knows about the border.
"""

from typing import Any

import torch
from transformers import PreTrainedModel

_LEAKS = {True: 3e-2, False: 1e-3}
"""Of the largest logit, for weights in half precision and others. Rounding stays below 1e-2 and 1e-5; what leaked was 1e-2 and more."""
_LENGTHS = (9, 14)


@torch.no_grad()
def leak(model: PreTrainedModel) -> str | None:
    """Say how conversations in one row change each other under this model, or return None where they do not.

    The row is as `PackedRows` of stage `sft` makes it: positions that start anew, and no attention mask. The model must be whole on
    its device. It is left in the mode that it was in.
    """
    training, device = model.training, next(model.parameters()).device
    half = any(p.itemsize < 4 for p in model.parameters())
    model.eval()
    embedded: Any = model.get_input_embeddings()
    words: int = embedded.num_embeddings
    draw = torch.Generator().manual_seed(0)
    parts = [torch.randint(min(3, words - 1), words, (1, n), generator=draw).to(device) for n in _LENGTHS]
    positions = torch.cat([torch.arange(n, device=device) for n in _LENGTHS])[None]
    asked: dict[str, Any] = {"use_cache": False}
    try:
        packed = model(input_ids=torch.cat(parts, dim=1), position_ids=positions, **asked).logits
        alone = torch.cat([model(input_ids=part, attention_mask=torch.ones_like(part), **asked).logits for part in parts], dim=1)
    except Exception as error:  # a model that takes no positions, for one
        return f"it does not run a packed row ({type(error).__name__})"
    finally:
        model.train(training)
    differs, most = float((packed - alone).abs().max()), float(alone.abs().max())
    if differs <= _LEAKS[half] * max(most, 1e-6):
        return None
    return f"two conversations in one row change each other's logits by up to {differs:.2g} (of {most:.2g})"
