"""What SFT, DPO and reward models share: trainer arguments from a recipe section and a cluster row, resuming, watching, saving.

A stage calls, on every rank and in this order: `prepare`, `adapters.merged_on_disk`, `arguments`, `adapters.load_start` (under
ZeRO-3 each rank keeps only its share, which needs the trainer's arguments to have been made), and `run`.

Checkpoints are written under `checkpoints/` of the stage's folder. One is resumed only when it carries its `complete` mark,
which rank 0 writes after every rank has written its part, and all files that the mark lists; a half-written one is passed
over for the one before.
"""

import logging
import shutil
import time
from pathlib import Path

import torch
from transformers import Trainer, TrainerState

from rounds.train.config.cluster import Machine
from rounds.train.config.training import Lora, Training
from rounds.train.engine import batches, ranks
from rounds.train.engine.records import Counts
from rounds.train.training.checkpoints import fit_shards, resumable
from rounds.train.training.trainer import StageTrainer
from rounds.train.training.watcher import Watcher, write_metrics
from rounds.train.weights import adapters, models

logger = logging.getLogger(__name__)


def run(trainer: StageTrainer, out: Path, start: Path | None, training: Training, machine: Machine) -> Counts:
    """Train from the last complete checkpoint, if any, and save what was trained. Returns counts for `done.json`.

    `start` is the stage folder of the policy that a new policy was trained from; None is for what is no policy. Raises `ranks.Stopped`
    when it was asked to stop.
    """
    watcher = Watcher(trainer, out, training, machine)
    trainer.add_callback(watcher)
    last = resumable(out / "checkpoints")
    if last:
        logger.info("going on from %s", last.name)
        fit_shards(trainer, last, machine)
        trainer.__dict__["_total_train_tokens"] = _tokens_seen(last)  # TRL counts anew from where it resumes
    began = time.monotonic()
    notes = batches.notes(_rows(trainer), training)
    for note in notes:
        logger.warning("%s", note)
    trainer.train(resume_from_checkpoint=str(last) if last else None)
    if watcher.stopped and trainer.state.global_step < trainer.state.max_steps:
        ranks.barrier()  # the first rank to leave makes srun and torchrun end the others: not before rank 0 has marked the checkpoint
        raise ranks.Stopped(f"stopped at step {trainer.state.global_step} of {trainer.state.max_steps}, as asked; {watcher.goes_on_from()}")
    _save(trainer, out, start, training.lora)
    if ranks.rank() == 0:
        write_metrics(out, trainer.state.log_history)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {
        "steps": trainer.state.global_step,
        "train_loss": sum(losses) / len(losses),  # Trainer's own is over the steps since the last resume
        "seconds_training": round(time.monotonic() - began, 2),
        "resumed_from": last.name if last else None,
        **models.count_parameters(_model(trainer)),
        **({"notes": notes} if notes else {}),
    }


def _rows(trainer: Trainer) -> int:
    return len(trainer.train_dataset)  # type: ignore[arg-type]


def _model(trainer: Trainer) -> torch.nn.Module:
    assert isinstance(trainer.model, torch.nn.Module)
    return trainer.model


def _tokens_seen(checkpoint: Path) -> int:
    """Return how many tokens the steps before a checkpoint had."""
    history = TrainerState.load_from_json(str(checkpoint / "trainer_state.json")).log_history
    return int(next((entry["num_tokens"] for entry in reversed(history) if "num_tokens" in entry), 0))


def _save(trainer: Trainer, out: Path, start: Path | None, lora: Lora | None) -> None:
    """Write the new weights under a temporary name first, so that a folder of that name is always whole.

    One folder in one piece, whatever the ranks: under ZeRO-3 rank 0 gathers the weights one after the other on its CPU.
    """
    name = "model" if lora is None else "adapter"
    partial = out / f"{name}.partial"
    if ranks.rank() == 0:
        shutil.rmtree(partial, ignore_errors=True)
    ranks.barrier()
    trainer.save_model(str(partial))
    ranks.barrier()
    if ranks.rank() != 0:
        return
    models.check_finite(partial, "training ended with non-finite weights in {name}: lower learning_rate, or check the data")
    for extra in ("training_args.bin", "README.md"):  # a pickle and a stub that nothing here reads
        (partial / extra).unlink(missing_ok=True)
    shutil.rmtree(out / name, ignore_errors=True)
    partial.rename(out / name)
    if start is not None:
        adapters.write_policy(out, start, lora)
