"""A policy's weights under a head that gives a conversation one score: where a reward model starts.

In: a policy. Out: transformers' sequence classifier of the same architecture, with the policy's own layers and a head of zeros, so that
every first score is 0, whoever draws random numbers. Nothing is drawn, and no weight is missing.
"""

from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, PreTrainedModel
from transformers.integrations import is_deepspeed_zero3_enabled

from rounds.data_prep.errors import UserError
from rounds.data_prep.whole import whole
from rounds.train.config.cluster import Machine
from rounds.train.engine import ranks
from rounds.train.engine.policy import Policy
from rounds.train.weights import models

HEAD = "score"
"""What transformers calls the head of a decoder that classifies."""


def on_disk(start: Policy, machine: Machine, cache: Path) -> Path | None:
    """Under ZeRO-3, where no rank ever holds the whole model, write where training starts to a folder in `cache`, and return it; else
    None. To be called before the trainer's arguments are made: from then on every model is loaded in shards."""
    if machine.zero_stage != 3:
        return None
    folder = cache / "start"
    with ranks.first():
        if not folder.is_dir():
            with whole(folder) as partial:
                of_policy(start, machine).save_pretrained(partial)
    return folder


def load(start: Policy, machine: Machine, folder: Path | None) -> PreTrainedModel:
    """Load where training starts: on the CPU or, from what `on_disk` wrote, in shards."""
    if folder is None:
        return of_policy(start, machine)
    assert is_deepspeed_zero3_enabled()
    models.check_attention(machine)
    return AutoModelForSequenceClassification.from_pretrained(
        folder,
        dtype=models.training_dtype(machine),
        attn_implementation=machine.attn_implementation,
        use_safetensors=True,
        trust_remote_code=False,
    )


def of_policy(start: Policy, machine: Machine) -> PreTrainedModel:
    """Put the layers of a policy, adapters merged, under a head of zeros. Raises `UserError` where transformers has no such classifier for
    the architecture, or one that is made of other parts."""
    dtype = models.training_dtype(machine)
    policy = models.load_model(start, machine, dtype)
    config, kind = policy.config, type(policy).__name__
    config.num_labels = 1
    try:
        with torch.device("meta"):
            model = AutoModelForSequenceClassification.from_config(
                config, dtype=dtype, attn_implementation=machine.attn_implementation, trust_remote_code=False
            )
    except ValueError as error:
        raise UserError(
            f"a reward model cannot be made of {kind}: transformers has no sequence classifier for it ({models.said(error)}). Take a judge "
            "of another kind, or a base of another architecture"
        ) from error
    prefix = model.base_model_prefix
    rest = [name for name, _ in model.named_parameters() if not name.startswith(f"{prefix}.")]
    if type(model.base_model) is not type(policy.base_model) or model.base_model is model or rest != [f"{HEAD}.weight"]:
        raise UserError(
            f"a reward model cannot be made of {kind}: {type(model).__name__} has {', '.join(rest) or 'no head'} on "
            f"{type(model.base_model).__name__}, expected {HEAD}.weight on {type(policy.base_model).__name__}. Take a judge of another "
            "kind, or a base of another architecture"
        )
    setattr(model, prefix, policy.base_model)
    head = model.get_submodule(HEAD).to_empty(device="cpu")
    torch.nn.init.zeros_(head.get_parameter("weight"))
    return model.requires_grad_(True)
