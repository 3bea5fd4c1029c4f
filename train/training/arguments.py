"""The trainer's arguments, from a recipe's section and a cluster row."""

import copy
from pathlib import Path
from typing import Any

from transformers import TrainingArguments
from transformers.trainer_utils import set_seed

from rounds.data_prep.errors import UserError
from rounds.train.config.cluster import Machine
from rounds.train.config.training import Training
from rounds.train.engine.batches import micro_batches
from rounds.train.weights import models

OWN_FIELDS = {"global_batch_size", "max_length", "lora", "router_aux_loss_coef", "stop_on_loss_above", "stop_after_steps"}
"""Fields of `recipe.Training` that are turned into something else here, or read by the watcher."""
_CHECKPOINTING = next(
    name for name in ("activation_checkpointing", "gradient_checkpointing") if name in TrainingArguments.__dataclass_fields__
)
"""Its name in transformers 5.23, and in 5.17, which a machine may have on which nothing can be installed."""


def arguments(training: Training, machine: Machine, seed: int, out: Path) -> dict[str, Any]:
    """Return the arguments that SFTConfig and DPOConfig share.

    Accumulation makes up exactly the batch of the recipe; see `sizes.micro_batches`.
    """
    micro, accumulation = micro_batches(training.global_batch_size, machine, training.per_device_train_batch_size)
    knobs = training.model_dump(exclude=OWN_FIELDS)
    return {
        **knobs,
        "output_dir": str(out / "checkpoints"),
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": accumulation,
        "use_cpu": models.device_of(machine) == "cpu",
        "bf16": machine.precision == "bf16",
        # Without kwargs it is torch's non-reentrant kind. TRL 1.16 wants the reentrant one for adapters under ZeRO-3, but says so under
        # the old name `gradient_checkpointing_kwargs`, which transformers 5.23 has by then read. DeepSpeed 0.19.8 needs it no more: it
        # keeps frozen weights until the backward pass that recomputes with them is through (its pull request 8148); a test trains so.
        _CHECKPOINTING: machine.activation_checkpointing,
        "use_liger_kernel": _liger(machine),
        "deepspeed": deepspeed_config(training, machine),
        "average_tokens_across_devices": True,  # SFT's loss is a mean over the tokens of the whole global batch
        # Besides experts that no token was sent to, for the sake of its side effect: DDP's buckets stay as they are. Rebuilt after the
        # first step, as without it, three ranks and more would sum a resumed run's first step in another order.
        "ddp_find_unused_parameters": True,
        "seed": seed,
        "data_seed": seed,
        "save_strategy": "steps",
        "save_steps": machine.steps_between_saves,
        "save_total_limit": machine.save_total_limit,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "report_to": [],
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "dataloader_num_workers": 0,
    }


def _liger(machine: Machine) -> bool:
    reason = models.liger_obstacle(machine)
    if reason:
        raise UserError(reason)
    return machine.use_liger_kernel


def deepspeed_config(training: Training, machine: Machine) -> dict[str, Any] | None:
    """Return the row's DeepSpeed file, with what follows from the recipe left for transformers to fill in."""
    if machine.deepspeed is None:
        return None
    config = copy.deepcopy(machine.deepspeed)
    zero = config["zero_optimization"]
    if zero["stage"] == 3:
        zero["stage3_gather_16bit_weights_on_model_save"] = True  # in the compute dtype, whatever the name says
    if "offload_optimizer" in zero and not training.optim.startswith("adamw"):
        config["zero_force_ds_cpu_optimizer"] = False  # DeepSpeed's own CPU optimizer is an Adam
    return {
        **config,
        "bf16": {"enabled": "auto"},
        "gradient_clipping": "auto",
        "gradient_accumulation_steps": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "train_batch_size": "auto",
    }


def prepare(machine: Machine, seed: int) -> None:
    """Set threads and seeds before a model is made."""
    models.set_threads(machine)
    set_seed(seed)
