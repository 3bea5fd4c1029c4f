"""What SFT and DPO share: trainer arguments from a recipe section and a cluster row, resuming, watching, saving.

Checkpoints are written under `checkpoints/` of the stage's folder. One is resumed only when it carries its `complete`
mark, which is written after everything else; a half-written one is passed over for the one before.
"""

import json
import logging
import math
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import set_seed

from data_prep import progress
from data_prep.errors import UserError
from train import adapters, models, tracking
from train.cluster import Row
from train.recipe import Lora, Training

logger = logging.getLogger(__name__)

COMPLETE = "rounds-complete.json"


def arguments(training: Training, row: Row, seed: int, out: Path) -> dict[str, Any]:
    """Return the arguments that SFTConfig and DPOConfig share.

    The micro-batch is the largest that divides the recipe's global batch and is no larger than the cluster row's, so that
    accumulation makes up exactly the batch of the recipe.
    """
    device = models.device_of(row)
    micro = max(n for n in range(1, row.micro_batch_size + 1) if training.global_batch_size % n == 0)
    knobs = training.model_dump(exclude={"global_batch_size", "max_length", "lora"})
    return {
        **knobs,
        "output_dir": str(out / "checkpoints"),
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": training.global_batch_size // micro,
        "use_cpu": device == "cpu",
        "bf16": row.precision == "bf16",
        "activation_checkpointing": row.activation_checkpointing,
        "seed": seed,
        "data_seed": seed,
        "save_strategy": "steps",
        "save_steps": row.save_steps,
        "save_total_limit": row.save_total_limit,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "report_to": [],
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "dataloader_num_workers": 0,
    }


def prepare(row: Row, seed: int) -> None:
    """Set threads and seeds before a model is made."""
    models.set_threads(row)
    set_seed(seed)


def run(trainer: Trainer, out: Path, start: Path, lora: Lora | None) -> dict[str, Any]:
    """Train from the last complete checkpoint, if any, and save the policy. Returns counts for `done.json`.

    `start` is the stage folder of the policy that training started from; with `lora` an adapter was trained.
    """
    trainer.add_callback(_Watcher(out))
    last = last_checkpoint(out / "checkpoints")
    if last:
        logger.info("going on from %s", last.name)
    began = time.monotonic()
    result = trainer.train(resume_from_checkpoint=str(last) if last else None)
    _check_finite(trainer)
    _save(trainer, out, start, lora)
    _write_metrics(out, trainer.state.log_history)
    return {
        "steps": trainer.state.global_step,
        "train_loss": result.training_loss,
        "seconds_training": round(time.monotonic() - began, 2),
        "resumed_from": last.name if last else None,
        **models.count_parameters(_model(trainer)),
    }


def last_checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint that was written to its end, or None."""
    complete = [path.parent for path in folder.glob(f"checkpoint-*/{COMPLETE}")]
    return max(complete, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


class _Watcher(TrainerCallback):
    """Tells progress and metrics to the stage's folder and to wandb, and marks checkpoints complete."""

    def __init__(self, out: Path) -> None:
        self.out = out

    def on_train_begin(self, args, state, control, **kwargs):
        progress.write(self.out, state.global_step, state.max_steps, "steps")

    def on_log(self, args, state, control, logs=None, **kwargs):
        numbers = {key: value for key, value in (logs or {}).items() if isinstance(value, int | float)}
        if "loss" not in numbers:
            return
        if not math.isfinite(numbers["loss"]):
            raise UserError(f"the loss became {numbers['loss']} at step {state.global_step}: lower learning_rate, or check the "
                            f"data of this stage")  # fmt: skip
        shown = {name: numbers[key] for key, name in _SHOWN.items() if key in numbers}
        progress.write(self.out, state.global_step, state.max_steps, "steps", **shown)
        tracking.log(numbers, state.global_step)

    def on_save(self, args, state, control, **kwargs):
        folder = self.out / "checkpoints" / f"checkpoint-{state.global_step}"
        (folder / COMPLETE).write_text(json.dumps({"step": state.global_step}))
        _write_metrics(self.out, state.log_history)


_SHOWN = {"loss": "loss", "rewards/margins": "margin", "rewards/accuracies": "accuracy", "learning_rate": "lr"}


def _model(trainer: Trainer) -> torch.nn.Module:
    assert isinstance(trainer.model, torch.nn.Module)
    return trainer.model


def _check_finite(trainer: Trainer) -> None:
    for name, parameter in _model(trainer).named_parameters():
        if not torch.isfinite(parameter).all():
            raise UserError(f"training ended with non-finite weights in {name}: lower learning_rate, or check the data")


def _save(trainer: Trainer, out: Path, start: Path, lora: Lora | None) -> None:
    """Write the new policy under a temporary name first, so that a folder of that name is always whole."""
    name = "model" if lora is None else "adapter"
    partial = out / f"{name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    trainer.save_model(str(partial))
    for extra in ("training_args.bin", "README.md"):  # a pickle and a stub that nothing here reads
        (partial / extra).unlink(missing_ok=True)
    shutil.rmtree(out / name, ignore_errors=True)
    partial.rename(out / name)
    adapters.write_policy(out, start, lora)


def _write_metrics(out: Path, history: list[dict[str, Any]]) -> None:
    """Write the numbers of every step so far; after a resume this is the one unbroken curve."""
    lines = [json.dumps(entry) for entry in history if "loss" in entry]
    partial = out / "metrics.jsonl.partial"
    partial.write_text("".join(f"{line}\n" for line in lines))
    partial.rename(out / "metrics.jsonl")
