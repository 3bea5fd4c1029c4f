"""What SFT and DPO share: trainer arguments from a recipe section and a cluster row, resuming, watching, saving.

A stage calls, on every rank and in this order: `prepare`, `adapters.merged_on_disk`, `arguments`, `adapters.load_start` (under
ZeRO-3 each rank keeps only its share, which needs the trainer's arguments to have been made), and `run`.

Checkpoints are written under `checkpoints/` of the stage's folder. One is resumed only when it carries its `complete` mark,
which rank 0 writes after every rank has written its part, and all files that the mark lists; a half-written one is passed
over for the one before.
"""

import copy
import json
import logging
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import psutil
import torch
from transformers import Trainer, TrainerCallback
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.trainer_utils import set_seed

from rounds.data_prep import progress
from rounds.data_prep.errors import UserError
from rounds.train.config.cluster import Row
from rounds.train.config.recipe import Lora, Training
from rounds.train.engine import ranks, store, tracking
from rounds.train.engine.batches import micro_batches
from rounds.train.tokens.order import Arrange, GlobalBatches, steps_per_epoch
from rounds.train.weights import adapters, models

logger = logging.getLogger(__name__)

COMPLETE = "rounds-complete.json"
OWN_FIELDS = {"global_batch_size", "max_length", "lora", "stop_on_loss_above", "stop_after_steps"}
"""Fields of `recipe.Training` that are turned into something else here, or read by the watcher."""


def arguments(training: Training, row: Row, seed: int, out: Path) -> dict[str, Any]:
    """Return the arguments that SFTConfig and DPOConfig share.

    Accumulation makes up exactly the batch of the recipe; see `sizes.micro_batches`.
    """
    micro, accumulation = micro_batches(training.global_batch_size, row, training.per_device_train_batch_size)
    knobs = training.model_dump(exclude=OWN_FIELDS)
    return {
        **knobs,
        "output_dir": str(out / "checkpoints"),
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": accumulation,
        "use_cpu": models.device_of(row) == "cpu",
        "bf16": row.precision == "bf16",
        # Without kwargs it is torch's non-reentrant kind. TRL 1.16 wants the reentrant one for adapters under ZeRO-3, but says so under
        # the old name `gradient_checkpointing_kwargs`, which transformers 5.23 has by then read. DeepSpeed 0.19.8 needs it no more: it
        # keeps frozen weights until the backward pass that recomputes with them is through (its pull request 8148); a test trains so.
        "activation_checkpointing": row.activation_checkpointing,
        "use_liger_kernel": _liger(row),
        "deepspeed": deepspeed_config(training, row),
        "average_tokens_across_devices": True,  # SFT's loss is a mean over the tokens of the whole global batch
        "ddp_find_unused_parameters": False,
        "seed": seed,
        "data_seed": seed,
        "save_strategy": "steps",
        "save_steps": row.steps_between_saves,
        "save_total_limit": row.save_total_limit,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "report_to": [],
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "dataloader_num_workers": 0,
    }


def _liger(row: Row) -> bool:
    reason = models.liger_obstacle(row)
    if reason:
        raise UserError(reason)
    return row.use_liger_kernel


def deepspeed_config(training: Training, row: Row) -> dict[str, Any] | None:
    """Return the row's DeepSpeed file, with what follows from the recipe left for transformers to fill in."""
    if row.deepspeed is None:
        return None
    config = copy.deepcopy(row.deepspeed)
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


def prepare(row: Row, seed: int) -> None:
    """Set threads and seeds before a model is made."""
    models.set_threads(row)
    set_seed(seed)


class StageTrainer(Trainer):
    """Mixed into TRL's trainers: our order of rows, checkpoints without what nobody reads, and more numbers per step."""

    arrange: Arrange | None = None
    """How the rows of a global batch are put together into micro-batches; None leaves them as they come."""
    order: GlobalBatches
    """The rows of each step; made when training begins."""
    row_sizes: Mapping[str, Sequence[int]] = MappingProxyType({})
    """Numbers of each row that are logged as their mean over a step's rows, such as the length of an answer; `tokens`, of which
    there must be one, is logged per second instead."""
    _logged_at: float

    def _get_train_sampler(self, train_dataset: Any = None) -> GlobalBatches:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        args = self.args
        batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        assert dataset is not None and args.data_seed is not None
        self.order = GlobalBatches(len(dataset), batch, args.data_seed, self.arrange)  # type: ignore[arg-type]
        return self.order

    def _prepare_input(self, data: Any) -> Any:
        """Move a batch to the device, but leave numbers as they are: under DeepSpeed transformers would round them to bf16.

        They are reference log-probabilities, and one of -150 nats would be off by up to half a nat.
        """
        if isinstance(data, torch.Tensor) and data.is_floating_point():
            return data.to(self.args.device)
        return super()._prepare_input(data)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log a step with more numbers: they follow from its rows, so no rank need be asked."""
        if "loss" in logs:
            logs |= self._more_numbers()
        super().log(logs, start_time)

    def _more_numbers(self) -> dict[str, float]:
        rows, now = self.order.batch(self.state.global_step - 1), time.monotonic()
        means = {name: sum(sizes[i] for i in rows) / len(rows) for name, sizes in self.row_sizes.items()}
        per_second = means.pop("tokens") * len(rows) / (now - self._logged_at)
        self._logged_at = now
        return {"tokens_per_second": round(per_second, 1), "memory_gib": round(_memory_gib(), 3), **means}

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the policy; in a checkpoint of DeepSpeed, which has its own shards, not the gathered weights besides.

        For 70B that would be 140 GB through rank 0 at every checkpoint, and resuming does not read it. Where every rank has all
        weights, the others need do nothing, and accelerate would have each copy them to its node's memory: 16 GB a rank for 8B.
        """
        in_shards = self.is_deepspeed_enabled and is_deepspeed_zero3_enabled()
        if self.is_deepspeed_enabled and (_internal_call or not (in_shards or self.args.should_save)):
            return
        super().save_model(output_dir, _internal_call)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Write weights, but tied ones once: gathered by DeepSpeed they are copies, in which transformers sees no tie."""
        tied = getattr(self.model, "all_tied_weights_keys", None) or {}
        if state_dict:
            state_dict = {name: value for name, value in state_dict.items() if name not in tied}
        super()._save(output_dir, state_dict)


def _memory_gib() -> float:
    """Return the most that this rank has held on its GPU, or what its process holds now where there is none."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated() / 2**30
    return psutil.Process().memory_info().rss / 2**30


def run(trainer: StageTrainer, out: Path, start: Path, training: Training, row: Row) -> dict[str, Any]:
    """Train from the last complete checkpoint, if any, and save the policy. Returns counts for `done.json`.

    `start` is the stage folder of the policy that training started from. Raises `ranks.Stopped` when it was asked to stop.
    """
    watcher = Watcher(trainer, out, training, row)
    trainer.add_callback(watcher)
    last = resumable(out / "checkpoints")
    if last:
        logger.info("going on from %s", last.name)
        _fit_shards(trainer, last, row)
    began = time.monotonic()
    trainer.train(resume_from_checkpoint=str(last) if last else None)
    if watcher.stopped and trainer.state.global_step < trainer.state.max_steps:
        ranks.barrier()  # the first rank to leave makes srun and torchrun end the others: not before rank 0 has marked the checkpoint
        raise ranks.Stopped(
            f"stopped at step {trainer.state.global_step} of {trainer.state.max_steps}, as asked; {watcher.goes_on_from()}"
        )
    _save(trainer, out, start, training.lora)
    if ranks.rank() == 0:
        _write_metrics(out, trainer.state.log_history)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {
        "steps": trainer.state.global_step,
        "train_loss": sum(losses) / len(losses),  # Trainer's own is over the steps since the last resume
        "seconds_training": round(time.monotonic() - began, 2),
        "resumed_from": last.name if last else None,
        **models.count_parameters(_model(trainer)),
    }


def last_checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint that was written to its end, or None."""
    return max(filter(_is_whole, folder.glob("checkpoint-*")), key=_step, default=None)


def _is_whole(checkpoint: Path) -> bool:
    """Tell whether a checkpoint has its mark, and each file that was there then, at least as long: a node that loses its power, or a
    disk that is full, can cut files that seemed to be written."""
    mark = store.read_json(checkpoint / COMPLETE)
    if mark is None:
        return False
    paths = {checkpoint / name: size for name, size in mark.get("files", {}).items()}
    return all(path.is_file() and path.stat().st_size >= size for path, size in paths.items())


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def resumable(folder: Path) -> Path | None:
    """Return the checkpoint to go on from, and remove half-written ones: kept, they would push out complete ones.

    Rank 0 chooses for all: on a shared file system another node may for a while see an older state, and ranks that go on from
    different steps would train on without a word. Raises `UserError` on a rank that does not see what was chosen.
    """
    last = last_checkpoint(folder) if ranks.rank() == 0 else None
    if ranks.rank() == 0:
        for path in folder.glob("checkpoint-*"):
            if not _is_whole(path):
                logger.info("removing %s, which was not written to its end, or has lost a part since", path.name)
                shutil.rmtree(path)
    step = ranks.agree(_step(last) if last else -1)
    if step < 0:
        return None
    chosen = folder / f"checkpoint-{step}"
    if not (chosen / COMPLETE).is_file():
        raise UserError(f"rank {ranks.rank()} on {ranks.node()} does not see {chosen}, from which rank 0 goes on: is the store the "
                        "same folder on every node? If it only lags behind, run again")  # fmt: skip
    return chosen


def _fit_shards(trainer: Trainer, checkpoint: Path, row: Row) -> None:
    """Let DeepSpeed's shards, which fit only as many ranks as wrote them, be read by another number; DDP's fit any.

    Through DeepSpeed's universal checkpoint (one file per weight), which rank 0 makes beside the shards. Measured from two ranks
    to one and back: under ZeRO-2 the curve goes on to the last digit, under ZeRO-3 it drifts by 2e-4 nats in four steps (DeepSpeed
    0.19.8), so that is refused. Raises `UserError` then, and where one kind of checkpoint is to be read as another.
    """
    wrote = json.loads((checkpoint / COMPLETE).read_text())
    here = {"deepspeed": row.deepspeed is not None, "zero_stage": row.zero_stage, "world_size": row.world_size}
    there = {name: wrote.get(name, here[name]) for name in here}
    if here == there or not (here["deepspeed"] or there["deepspeed"]):
        return
    if {**there, "world_size": None} != {**here, "world_size": None} or row.zero_stage == 3:
        raise UserError(
            f"{checkpoint.parent} was written by {_ranks_told(there)}, and this cluster file says {_ranks_told(here)}: DeepSpeed "
            f"cannot go on exactly from one to the other. Go on with a cluster file that says the former, or remove "
            f"{checkpoint.parent} to train this stage from its start"
        )
    with ranks.first():
        if ranks.rank() == 0 and not (checkpoint / "latest_universal").is_file():
            _make_universal(checkpoint)
    plugin = trainer.accelerator.state.deepspeed_plugin
    assert plugin is not None
    plugin.deepspeed_config["checkpoint"] = {"load_universal": True}


def _make_universal(checkpoint: Path) -> None:
    tag = (checkpoint / "latest").read_text().strip()
    logger.info("rewriting %s, which was written by another number of ranks", checkpoint.name)
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--input_folder", str(checkpoint / tag),
               "--output_folder", str(checkpoint / f"{tag}_universal"), "--inject_missing_state"]  # fmt: skip
    made = subprocess.run(command, env={**os.environ, "RANK": "0", "WORLD_SIZE": "1"})
    if made.returncode:
        raise UserError(
            f"DeepSpeed could not rewrite {checkpoint} for another number of ranks (see the log): go on with as many as wrote it, or "
            f"remove {checkpoint.parent} to train this stage from its start"
        )


def _ranks_told(how: dict[str, Any]) -> str:
    sharded = f"DeepSpeed ZeRO-{how['zero_stage']}" if how["deepspeed"] else "no DeepSpeed"
    return f"{how['world_size']} processes with {sharded}"


class Watcher(TrainerCallback):
    """Tells progress and metrics to the stage's folder and to wandb, stops what diverges or is asked to stop, and marks
    checkpoints complete. On every rank, since ranks must agree when to save and when to stop."""

    def __init__(self, trainer: StageTrainer, out: Path, training: Training, row: Row) -> None:
        self.trainer, self.out, self.training, self.row = trainer, out, training, row
        self.stopped = False
        self.saved = time.monotonic()
        self.above = 0

    def on_train_begin(self, args, state, control, **kwargs):
        self.trainer._logged_at = time.monotonic()
        self._tell(state)

    def on_epoch_begin(self, args, state, control, **kwargs):
        """Choose the epoch's order: accelerate does not find the sampler in an epoch that is resumed in its middle."""
        order = self.trainer.order
        order.set_epoch(state.global_step // steps_per_epoch(order.rows, order.global_batch_size))

    def on_step_end(self, args, state, control, **kwargs):
        """Save when time is up; save and stop when a file `stop` lies in the stage's folder. Rank 0 looks, all do it."""
        minutes = self.row.save_minutes
        due = minutes is not None and time.monotonic() - self.saved > 60 * minutes
        wanted = ranks.agree(2 if (self.out / "stop").exists() else 1 if due else 0)
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
                raise UserError(f"the {name.replace('grad_norm', 'gradient norm')} became {numbers[name]} at step "
                                f"{state.global_step}: lower learning_rate, or check the data of this stage. {self._kept()}")  # fmt: skip
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
        if last and _step(last) == self.trainer.state.global_step:
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
        mark = {"step": state.global_step, "world_size": self.row.world_size, "deepspeed": self.row.deepspeed is not None,
                "zero_stage": self.row.zero_stage}  # fmt: skip
        folder = self.out / "checkpoints" / f"checkpoint-{state.global_step}"
        # Another node's files may still look shorter from here than they are, but never longer.
        files = {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
        store.write_json(folder / COMPLETE, {**mark, "files": files})
        _write_metrics(self.out, state.log_history)

    def _tell(self, state: Any, **numbers: float) -> None:
        if ranks.rank() == 0:
            progress.write(self.out, state.global_step, state.max_steps, "steps", **numbers)


_SHOWN = {"loss": "loss", "rewards/margins": "margin", "rewards/accuracies": "accuracy", "learning_rate": "lr"}


def _model(trainer: Trainer) -> torch.nn.Module:
    assert isinstance(trainer.model, torch.nn.Module)
    return trainer.model


def _save(trainer: Trainer, out: Path, start: Path, lora: Lora | None) -> None:
    """Write the new policy under a temporary name first, so that a folder of that name is always whole.

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
    _check_finite(partial)
    for extra in ("training_args.bin", "README.md"):  # a pickle and a stub that nothing here reads
        (partial / extra).unlink(missing_ok=True)
    shutil.rmtree(out / name, ignore_errors=True)
    partial.rename(out / name)
    adapters.write_policy(out, start, lora)


def _check_finite(folder: Path) -> None:
    """Read the saved weights back, one tensor at a time: under ZeRO-3 no rank has them whole."""
    from safetensors import safe_open

    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118
                if not torch.isfinite(weights.get_tensor(name)).all():
                    raise UserError(
                        f"training ended with non-finite weights in {name}: lower learning_rate, or check the data"
                    )


def _write_metrics(out: Path, history: list[dict[str, Any]]) -> None:
    """Write the numbers of every step so far; after a resume this is the one unbroken curve."""
    lines = [json.dumps(entry) for entry in history if "loss" in entry]
    partial = out / "metrics.jsonl.partial"
    partial.write_text("".join(f"{line}\n" for line in lines))
    partial.rename(out / "metrics.jsonl")
