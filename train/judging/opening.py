"""Opening a judge's weights: safetensors alone, no remote code, and no weight that transformers would draw at random."""

from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from rounds.data_prep.errors import UserError
from rounds.train.config.cluster import Machine
from rounds.train.weights import models


def config_of(where: str, revision: str | None) -> PretrainedConfig:
    """Read a judge's config. Raises `UserError` where transformers has no such model of its own."""
    try:
        return AutoConfig.from_pretrained(where, revision=revision or "main", trust_remote_code=False)
    except Exception as error:  # each model's config checks itself, with errors of its own kind
        raise UserError(
            f"judge {where}: its config.json cannot be used without running code that came with it: {models.said(error)}"
        ) from error


def tokenizer_of(where: str, revision: str | None) -> PreTrainedTokenizerBase:
    """Read a judge's own tokenizer. Raises `UserError` where there is none."""
    try:
        return AutoTokenizer.from_pretrained(where, revision=revision or "main", trust_remote_code=False)
    except Exception as error:
        raise UserError(f"judge {where}: its tokenizer cannot be loaded: {models.said(error)}") from error


def model_of(kind: Any, where: str, revision: str | None, config: PretrainedConfig, machine: Machine, **asked: Any) -> PreTrainedModel:
    """Load a judge by a class of transformers, or one of ours, on the row's device.

    Raises `UserError` for weights that are missing or of another size than the config says: transformers only reports them, and such a
    judge, above all one without its head, would give random verdicts.
    """
    models.check_attention(machine)
    try:
        opened: Any = kind.from_pretrained(
            where,
            revision=revision or "main",
            config=config,
            dtype=torch.bfloat16 if machine.precision == "bf16" else torch.float32,
            device_map=machine.device_map,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            use_safetensors=True,
            **asked,
        )
    except Exception as error:
        raise UserError(f"judge {where}: its weights cannot be opened as safetensors: {models.said(error)}") from error
    model, found = opened
    mismatched = [name for name, *_ in found["mismatched_keys"]]
    for what, names in (("are of another size than its config.json says", mismatched), ("are not in its files", found["missing_keys"])):
        if names:
            raise UserError(
                f"judge {where}: {len(names)} of its weights {what}, such as {min(names)}: its verdicts would be random. Take config.json "
                "and weights from one place, and a model that was trained as a judge of this kind"
            )
    return (model if machine.device_map else models.place(model, machine)).eval()


def longest_input(config: PretrainedConfig, wanted: int) -> int:
    """Return how many tokens a judge may be given: no more than it has positions for."""
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    return min(wanted, positions) if isinstance(positions, int) and positions > 0 else wanted
