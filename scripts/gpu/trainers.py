"""TRL's own trainers and ours on the same random model and rows, and one optimizer step of each, for measuring.

`dpo` and `sft` return a trainer; its batches are `data_collator(rows)`. Everything heavy is imported inside, so that a machine
that lacks a package is told so by the check that needs it.
"""

import tempfile
import time
from typing import Any, NamedTuple, cast

from gpu import rows as random_rows
from gpu.rows import Rows

DPO_WAYS = ("stock", "padded", "packed", "shared_prefix")
SFT_WAYS = ("padded", "bfd", "wrapped", "ours")


class Asked(NamedTuple):
    """How a trainer is to compute."""

    device: str = "cpu"
    bf16: bool = False
    activation_checkpointing: bool = False
    micro_batch: int = 8
    liger: bool = False


DEFAULT = Asked()


def model(shape: dict[str, Any], asked: Asked = DEFAULT, seed: int = 0, **changes: Any) -> Any:
    """Return a Llama of random weights in fp32, drawn on the CPU so that they are the same everywhere, or, beyond a billion, on
    the card, which is 50 times faster at it."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = random_rows.config(shape, **changes)
    config.pop("model_type")
    torch.manual_seed(seed)
    large = shape["hidden_size"] >= 2048 and asked.device == "cuda"
    with torch.device("cuda" if large else "cpu"):
        made: Any = LlamaForCausalLM(LlamaConfig(**config))
    if asked.activation_checkpointing:
        made.gradient_checkpointing_enable({"use_reentrant": False})
    return made.to(asked.device)


def dpo(way: str, net: Any, rows: Rows, asked: Asked, adapter: Any = None) -> Any:
    """Return a trainer that takes `rows` in order: TRL's own (`stock`), or ours in one of its layouts. `adapter` is PEFT's config."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    from rounds.train.stages.dpo import StoredReferenceTrainer

    config = DPOConfig(**_shared(asked), max_length=None, precompute_ref_log_probs=True)
    kwargs: dict[str, Any] = {"model": net, "args": config, "train_dataset": Dataset.from_list(rows),
                              "processing_class": tokenizer(), "peft_config": adapter}  # fmt: skip
    if way != "stock":
        return StoredReferenceTrainer(**kwargs, pair_batching=cast(Any, way))

    class Stock(DPOTrainer):
        """TRL's trainer on token rows with reference numbers: only what it prepares beforehand is left out."""

        def _prepare_dataset(self, dataset, *args, **kwargs):
            return dataset

        def _precompute_ref_logps(self, dataset, *args, **kwargs):
            return dataset

    return Stock(**kwargs)


def sft(way: str, net: Any, asked: Asked, length: int | None = None, adapter: Any = None) -> Any:
    """Return a trainer: TRL's own, padded or packed in one of its ways into rows of `length`, or ours."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    from rounds.train.stages.sft import PackedRows, PackedTrainer

    strategy: dict[str, Any] = (
        {"packing": True, "packing_strategy": way, "max_length": length} if way in ("bfd", "wrapped") else {"max_length": None}
    )
    config = SFTConfig(**_shared(asked), dataset_kwargs={"skip_prepare_dataset": True}, **strategy)
    kwargs: dict[str, Any] = {
        "model": net, "args": config, "processing_class": tokenizer(), "peft_config": adapter,
        "train_dataset": Dataset.from_list([{"input_ids": [3, 4], "labels": [-100, 4], "seq_lengths": [2]}]),
    }  # fmt: skip
    return PackedTrainer(**kwargs, data_collator=PackedRows(0)) if way == "ours" else SFTTrainer(**kwargs)


def _shared(asked: Asked) -> dict[str, Any]:
    return {"output_dir": tempfile.mkdtemp(), "use_cpu": asked.device == "cpu", "bf16": asked.bf16, "report_to": [],
            "gradient_checkpointing": False, "logging_strategy": "no", "remove_unused_columns": False, "learning_rate": 1e-6,
            "per_device_train_batch_size": asked.micro_batch, "use_liger_kernel": asked.liger}  # fmt: skip


def tokenizer() -> Any:
    """Return a tokenizer that nothing is written with: TRL's trainers want one."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<pad>": 0, "<unk>": 1}, "<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<pad>")


def packed(rows: Rows, length: int, strategy: str, at_once: int | None = None) -> Rows:
    """Pack by TRL's function, all conversations at once, as stage `pack` does for up to 256 rows, or so many at a time."""
    from datasets import Dataset
    from trl import pack_dataset

    found: Any = pack_dataset(Dataset.from_list(rows), length, strategy, {"batch_size": at_once})
    return found.to_list()


def optimizer(trainer: Any) -> Any:
    """Return AdamW over what is trained."""
    import torch

    return torch.optim.AdamW([p for p in trainer.model.parameters() if p.requires_grad], lr=1e-6, fused=True)


class Step(NamedTuple):
    """One optimizer step."""

    seconds: float
    processor_seconds: float
    tokens: int
    """Computed, padding included."""


def on_device(trainer: Any, rows: Rows) -> dict[str, Any]:
    """Collate rows and move them to the trainer's device."""
    return {name: part.to(trainer.args.device) if hasattr(part, "to") else part for name, part in trainer.data_collator(rows).items()}


def step(trainer: Any, optimiser: Any, micro_batches: list[Rows]) -> Step:
    """One optimizer step over one global batch, of pairs or of conversations."""
    wait = _waiter(trainer.args.device)
    items: dict[str, Any] = {}
    if "labels" in micro_batches[0][0]:
        items = {"num_items_in_batch": sum(map(random_rows.learnt, micro_batches))}
    share = 1 if items else len(micro_batches)  # SFT's loss is divided by the tokens of the whole batch already
    trainer.model.train()
    wait()
    began, worked, tokens = time.perf_counter(), time.process_time(), 0
    for rows in micro_batches:
        batch = on_device(trainer, rows)
        row = batch.get("packed_row")
        tokens += (row.input_ids if row is not None else batch["input_ids"]).numel()
        with arithmetic(trainer):
            loss = trainer.compute_loss(trainer.model, batch, **items)
        (loss / share).backward()
    optimiser.step()
    optimiser.zero_grad()
    wait()
    return Step(time.perf_counter() - began, time.process_time() - worked, tokens)


def arithmetic(trainer: Any) -> Any:
    """Return the trainer's arithmetic for a pass outside of `train()`: Trainer leaves autocast to accelerate, which wraps a model only
    there, so that `compute_loss_context_manager` is empty and a pass would silently be in fp32."""
    import torch

    return torch.autocast(trainer.args.device.type, dtype=torch.bfloat16, enabled=trainer.args.bf16)


def _waiter(device: Any) -> Any:
    """Return what waits for a card to be done: its work is only begun when a call returns."""
    import torch

    return torch.cuda.synchronize if device.type == "cuda" else lambda: None
