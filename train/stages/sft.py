"""Stage `sft`: supervised fine-tuning on packed rows with TRL's SFTTrainer.

In: `policy` (where to start), `rows` (the pack stage). Out: the new policy (`model/` or `adapter/`) and `metrics.jsonl`.
The loss is the mean over answer tokens of the whole global batch, whatever the micro-batch.
"""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from datasets import Dataset
from peft import PeftModel
from trl import SFTConfig, SFTTrainer

from rounds.train.config.cluster import Machine
from rounds.train.engine import policy, ranks
from rounds.train.engine.params import SftParams
from rounds.train.engine.records import ROWS, Counts
from rounds.train.tokens.packed_row import PackedRow, Segment
from rounds.train.training import arguments
from rounds.train.training import train as training
from rounds.train.training import trainer as stage_trainer
from rounds.train.weights import adapters, experts, models, packed_attention, packing

logger = logging.getLogger(__name__)


def run(params: SftParams, inputs: dict[str, Path], out: Path, machine: Machine) -> Counts:
    """Train from the last complete checkpoint on, or from the start."""
    arguments.prepare(machine, params.seed)
    start = policy.read(inputs["policy"])
    tokenizer = models.load_tokenizer(start)
    with ranks.first():
        rows = Dataset.from_parquet(str(inputs["rows"] / ROWS), cache_dir=str(out / "cache"))
    assert isinstance(rows, Dataset)
    lora = params.training.lora
    start = adapters.merged_on_disk(start, machine, lora, out / "cache")
    args = SFTConfig(
        **arguments.arguments(params.training, machine, params.seed, out),
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    model = adapters.load_start(start, machine, lora, out / "cache")
    args.router_aux_loss_coef = experts.coefficient(model.config, params.training.router_aux_loss_coef)
    trainer = PackedTrainer(
        model=model,
        args=args,
        train_dataset=rows,
        processing_class=tokenizer,
        data_collator=PackedRows(int(tokenizer.pad_token_id), flat=machine.attn_implementation == "flash_attention_2"),  # type: ignore[arg-type]
        peft_config=adapters.config(lora),
    )
    adapters.restore(trainer.model, start, lora)
    counts = training.run(trainer, out, inputs["policy"], params.training, machine)
    return {**counts, "rows": len(rows)}


class PackedTrainer(stage_trainer.StageTrainer, SFTTrainer):
    """SFTTrainer on rows that are packed already.

    Where the model allows it and was loaded with sdpa, its attention computes each conversation by itself: sdpa with a mask would
    compute every token of a row against every other. A model that does not keep the conversations of a row apart gets each as a row.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        model: Any = self.accelerator.unwrap_model(self.model)
        model = model.get_base_model() if isinstance(model, PeftModel) else model
        if model.config._attn_implementation == "sdpa" and not packed_attention.obstacle(model):
            self.data_collator = in_segments
            packed_attention.install(model)
        elif reason := self._unpackable(model):
            logger.warning("each conversation is computed as a row of its own: %s", reason)
            self.data_collator = Alone(self.data_collator.pad_token_id)  # type: ignore[union-attr]
        rows: Any = self.train_dataset
        table = rows.data.table
        self.row_sizes = {
            "tokens": pc.call_function("list_value_length", [table["input_ids"]]).to_pylist(),
            "answer_tokens": [count for labels in table["labels"].chunks for count in learnt(labels)],
        }

    def _unpackable(self, model: Any) -> str | None:
        """Say why conversations may not share a row: they do not in these, or the model itself shows that it does not keep them apart."""
        rows: Any = self.train_dataset
        if max(pc.call_function("list_value_length", [rows.data.table["seq_lengths"]]).to_pylist()) == 1:
            return "the rows hold one each"
        in_shards = any(hasattr(parameter, "ds_id") for parameter in model.parameters())
        return None if in_shards else packing.leak(model)  # of a model in shards no rank could be asked


def learnt(labels: pa.ListArray) -> list[int]:
    """Count the tokens that are learnt in each row of a chunk. By numpy: as Python's numbers they would be gigabytes."""
    offsets = labels.offsets.to_numpy()
    before = np.concatenate([[0], np.cumsum(labels.values.to_numpy() != -100)])
    return (before[offsets[1:]] - before[offsets[:-1]]).tolist()


def in_segments(examples: list[dict[str, Any]]) -> dict[str, Any]:
    """Collate packed rows to a single row without padding, whose segments are the conversations; only tokens that are learnt
    are scored. A conversation's first token is never learnt, so what predicts one is in the same conversation."""
    ids, labels = (torch.tensor([[n for each in examples for n in each[name]]]) for name in ("input_ids", "labels"))
    lengths = [n for each in examples for n in each["seq_lengths"]]
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    learnt = (labels[0] != -100).nonzero()[:, 0]
    row = PackedRow(tuple(map(Segment, lengths)), ids, positions, learnt - 1, labels[:, learnt])
    return {"input_ids": ids, "labels": labels, "position_ids": positions, "packed_row": row}


class Alone:
    """Collates each conversation of packed rows to a row of its own, with a mask of what is no padding and no positions."""

    def __init__(self, pad_token_id: int) -> None:
        self.pad_token_id = pad_token_id

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Return `input_ids`, `labels` and `attention_mask`, each of shape (conversations, longest conversation)."""
        parts = [
            [torch.tensor(example[name]).split(list(example["seq_lengths"])) for example in examples] for name in ("input_ids", "labels")
        ]
        ids, labels = ([each for row in rows for each in row] for rows in parts)
        mask = [torch.ones_like(each) for each in ids]
        filled = ((ids, self.pad_token_id), (labels, -100), (mask, 0))
        batch = [torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value) for rows, value in filled]
        return dict(zip(("input_ids", "labels", "attention_mask"), batch, strict=True))


class PackedRows:
    """Collates packed rows to (rows, longest row) with positions that restart at each conversation.

    There is no attention mask on purpose: transformers then derives a block-diagonal one from the restarting positions,
    so conversations in a row do not see each other. With a mask of ones they would (6.35 nats of difference measured).

    For flash_attention_2 the batch is laid out as one row (`flat`): transformers derives the borders from positions there only
    when there is a single row, and would let the conversations of several rows see each other without a word. Read in 5.23.0:
    without a mask masking_utils.flash_attention_mask gives none, so modeling_flash_attention_utils._flash_attention_forward asks
    _is_packed_sequence, and prepare_fa_kwargs_from_position_ids turns every position 0 into a border of FlashAttention's
    variable-length kernel. A test holds these two to our rows; the kernel itself has not run here.
    """

    def __init__(self, pad_token_id: int, flat: bool = False) -> None:
        self.pad_token_id, self.flat = pad_token_id, flat

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Return `input_ids`, `labels` and `position_ids`, each of shape (rows, longest row), or (1, all tokens)."""
        if self.flat:
            examples = [{name: [value for example in examples for value in example[name]] for name in examples[0]}]
        width = max(len(example["input_ids"]) for example in examples)
        input_ids = torch.full((len(examples), width), self.pad_token_id)
        labels, positions = torch.full_like(input_ids, -100), torch.zeros_like(input_ids)
        for place, example in enumerate(examples):
            length = len(example["input_ids"])
            input_ids[place, :length] = torch.tensor(example["input_ids"])
            labels[place, :length] = torch.tensor(example["labels"])
            lengths = [*example["seq_lengths"], width - length]
            positions[place] = torch.cat([torch.arange(n) for n in lengths])
        return {"input_ids": input_ids, "labels": labels, "position_ids": positions}
