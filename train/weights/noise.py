"""What a model does at random while it trains: dropout, skipped layers, jitter of routers. DPO compares a policy with stored
numbers of a reference, so there it is off.

Also in functions: most models keep the probability as a number of the module (`attention_dropout`, `layerdrop`, `jitter_noise`) and
hand it to a function, which TRL's `disable_dropout_in_model` does not see.
"""

import re
from collections.abc import Iterator

import torch
from torch.nn.modules.dropout import _DropoutNd

_PROBABILITY = re.compile(r"drop|jitter", re.IGNORECASE)


def sources(model: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module, str]]:
    """Find what is random in training mode: a name for a person, the module, and the attribute that holds the probability."""
    for name, module in model.named_modules():
        if isinstance(module, _DropoutNd):
            if module.p:
                yield name, module, "p"
            continue
        for attribute, value in vars(module).items():
            if _PROBABILITY.search(attribute) and isinstance(value, float) and value > 0:
                yield f"{name}.{attribute}", module, attribute


def switch_off(model: torch.nn.Module) -> list[str]:
    """Set all of it to 0; returns what was on, by the last part of its name."""
    found = list(sources(model))
    for _, module, attribute in found:
        setattr(module, attribute, 0.0)
    return sorted({name.rpartition(".")[2] for name, _, _ in found})
