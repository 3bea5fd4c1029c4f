"""The callback that tells progress, stops what diverges or is asked to stop, and marks checkpoints complete."""

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from rounds.data_prep import progress
from rounds.data_prep.errors import UserError
from rounds.data_prep.whole import whole
from rounds.train.config.cluster import Machine
from rounds.train.config.training import Training
from rounds.train.engine import ranks, store, tracking
from rounds.train.engine.digests import file_digest
from rounds.train.engine.records import METRICS, STOP
from rounds.train.tokens.order import steps_per_epoch
from rounds.train.training.checkpoints import COMPLETE, READ_BACK, last_checkpoint, step_of
from rounds.train.training.trainer import StageTrainer


class Watcher(TrainerCallback):
    """Tells progress and metrics to the stage's folder and to wandb, stops what diverges or is asked to stop, and marks
    checkpoints complete. On every rank, since ranks must agree when to save and when to stop."""

    def __init__(self, trainer: StageTrainer, out: Path, training: Training, machine: Machine) -> None:
        self.trainer, self.out, self.training, self.machine = trainer, out, training, machine
        self.stopped = False
        self.saved = time.monotonic()
        self.above = 0

    def on_train_begin(self, args, state, control, **kwargs):
        self.trainer._logged_at = time.monotonic()
        state.compute_steps(args, state.max_steps)  # a checkpoint remembers how often it was to be saved then
        self._tell(state)

    def on_epoch_begin(self, args, state, control, **kwargs):
        """Choose the epoch's order: accelerate does not find the sampler in an epoch that is resumed in its middle."""
        order = self.trainer.order
        order.set_epoch(state.global_step // steps_per_epoch(order.rows, order.global_batch_size))

    def on_step_end(self, args, state, control, **kwargs):
        """Save when time is up; save and stop when a file `stop` lies in the stage's folder. Rank 0 looks, all do it."""
        minutes = self.machine.save_minutes
        due = minutes is not None and time.monotonic() - self.saved > 60 * minutes
        wanted = ranks.agree(2 if (self.out / STOP).exists() else 1 if due else 0)
        control.should_save = control.should_save or wanted > 0
        self.stopped = wanted == 2
        control.should_training_stop = control.should_training_stop or self.stopped

    def on_log(self, args, state, control, logs=None, **kwargs):
        numbers = {key: value for key, value in (logs or {}).items() if isinstance(value, int | float)}
        if "loss" not in numbers:
            return
        self._stop_what_diverges(numbers, state, control)
        if ranks.rank() == 0:
            shown = {name: numbers[key] for key, name in _SHOWN.items() if key in numbers}
            self._tell(state, **shown)
            tracking.log(numbers, state.global_step)

    def _stop_what_diverges(self, numbers: Mapping[str, float], state: Any, control: Any) -> None:
        """Raise `UserError` for a loss or gradient that is no number, or a loss above the recipe's bound for too long.

        No checkpoint is written while the loss is above: the last good one stays. So the count need not be kept: whoever goes on
        from a checkpoint does the steps above the bound again, and counts them again.
        """
        for name in ("loss", "grad_norm"):
            if not math.isfinite(numbers.get(name, 0.0)):
                raise UserError(
                    f"the {name.replace('grad_norm', 'gradient norm')} became {numbers[name]} at step "
                    f"{state.global_step}: lower learning_rate, or check the data of this stage. {self._kept()}"
                )
        bound = self.training.stop_on_loss_above
        self.above = self.above + 1 if bound is not None and numbers["loss"] > bound else 0
        if self.above:
            control.should_save = False
        if self.above >= self.training.stop_after_steps:
            raise UserError(
                f"the loss was above stop_on_loss_above = {bound} for {self.above} steps, at step {state.global_step} "
                f"{numbers['loss']:.4g}: the run diverges. Lower learning_rate or beta, or raise the bound. {self._kept()}"
            )

    def goes_on_from(self) -> str:
        """Say where a run that was asked to stop will go on: not where it stopped, if that was above the bound."""
        last = last_checkpoint(self.out / "checkpoints")
        if last and step_of(last) == self.trainer.state.global_step:
            return "a checkpoint is written"
        where = f"from {last.name}" if last else "from the start of this stage"
        return f"the loss was above stop_on_loss_above, so no checkpoint was written, and it goes on {where}"

    def _kept(self) -> str:
        last = last_checkpoint(self.out / "checkpoints")
        return f"The last good checkpoint is {last}" if last else "No checkpoint was written before"

    def on_save(self, args, state, control, **kwargs):
        """Mark a checkpoint as complete once every rank has written its part."""
        ranks.barrier()
        self.saved = time.monotonic()
        if ranks.rank() != 0:
            return
        mark = {"step": state.global_step, "world_size": self.machine.world_size, "deepspeed": self.machine.deepspeed is not None,
                "zero_stage": self.machine.zero_stage}  # fmt: skip
        folder = self.out / "checkpoints" / f"checkpoint-{state.global_step}"
        # Another node's files may still look shorter from here than they are, but never longer.
        files = {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
        read = self.machine.nodes == 1 and sum(files.values()) <= READ_BACK
        digests = {name: file_digest(folder / name) for name in files} if read else {}
        store.write_json(folder / COMPLETE, {**mark, "files": files, "digests": digests})
        write_metrics(self.out, state.log_history)

    def _tell(self, state: Any, **numbers: float) -> None:
        if ranks.rank() == 0:
            progress.write(self.out, state.global_step, state.max_steps, "steps", **numbers)


_SHOWN = {
    "loss": "loss",
    "rewards/margins": "margin",
    "margin": "margin",
    "rewards/accuracies": "accuracy",
    "accuracy": "accuracy",
    "learning_rate": "lr",
}
"""DPOTrainer's and RewardTrainer's keys, and how they are told."""


def write_metrics(out: Path, history: list[dict[str, Any]]) -> None:
    """Write the numbers of every step so far; after a resume this is the one unbroken curve."""
    lines = [json.dumps(entry) for entry in history if "loss" in entry]
    with whole(out / METRICS) as partial:
        partial.write_text("".join(f"{line}\n" for line in lines))
