"""What is mixed into TRL's trainers: our order of rows, checkpoints without what nobody reads, more numbers per step."""

import time
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import psutil
import torch
from torch.optim.lr_scheduler import LRScheduler
from transformers import Trainer
from transformers.integrations import is_deepspeed_zero3_enabled

from rounds.train.tokens.order import Arrange, GlobalBatches


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

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> LRScheduler:
        """Make transformers' schedule of the learning rate. Its warm-up makes the first step at 0; a training of one step has none."""
        if num_training_steps == 1:
            self.args.warmup_steps = 0
        return super().create_scheduler(num_training_steps, optimizer)

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
