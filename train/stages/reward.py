"""Stage `reward`: a reward model on pairs with TRL's RewardTrainer (Bradley and Terry 1952; Ouyang et al. 2022, eq. 1).

In: `policy` (whose weights it starts from), `pairs` (token rows, `whole`: what a reward model reads of a pair).
Out: `model/`, a sequence classifier of one label with its tokenizer and chat template, which `judging/reward_model.py` opens like any
other; and `metrics.jsonl`. It is no policy.

Its head starts as zeros, so all scores are 0 and the first loss is ln 2, to the last digit: a first loss that is another is refused. The
loss is the mean over the pairs of the whole global batch, whatever the micro-batch.
"""

import logging
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import Dataset
from trl import RewardConfig, RewardTrainer

from rounds.data_prep.errors import UserError
from rounds.train.config.cluster import Machine
from rounds.train.engine import policy, ranks
from rounds.train.engine.params import RewardParams
from rounds.train.engine.records import PAIRS, Counts
from rounds.train.tokens import packed_pairs
from rounds.train.training import arguments, checkpoints
from rounds.train.training import train as training
from rounds.train.training import trainer as stage_trainer
from rounds.train.weights import models, noise, reward_head

logger = logging.getLogger(__name__)

_SIDES = ("chosen_ids", "rejected_ids")
_ROUNDING = 1e-6
"""Of ln 2 in fp32: the scores are exact zeros."""


def run(params: RewardParams, inputs: dict[str, Path], out: Path, machine: Machine) -> Counts:
    """Train from the last complete checkpoint on, or from the start after checking the first loss."""
    arguments.prepare(machine, params.seed)
    start = policy.read(inputs["policy"])
    with ranks.first():
        pairs = _conversations(inputs["pairs"], out / "cache")
    going_on = bool(ranks.agree(checkpoints.last_checkpoint(out / "checkpoints") is not None))
    folder = reward_head.on_disk(start, machine, out / "cache")
    args = RewardConfig(
        **arguments.arguments(params.training, machine, params.seed, out),
        max_length=None,  # the pairs are already within the judge's max_length
        center_rewards_coefficient=params.center_rewards_coefficient,
    )
    trainer = HeadTrainer(
        model=reward_head.load(start, machine, folder),
        args=args,
        train_dataset=pairs,
        processing_class=models.load_tokenizer(start),
    )
    trainer.check_first_loss = not going_on
    counts = training.run(trainer, out, None, params.training, machine)
    return {**counts, "pairs": len(pairs)}


class HeadTrainer(stage_trainer.StageTrainer, RewardTrainer):
    """RewardTrainer on rows that are already tokens, from a head of zeros."""

    check_first_loss = False

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if off := noise.switch_off(self.accelerator.unwrap_model(self.model)):  # type: ignore[arg-type]
            logger.info("off in training: %s", ", ".join(off))
        rows: Any = self.train_dataset
        chosen, rejected = (pc.call_function("list_value_length", [rows.data.table[side]]).to_pylist() for side in _SIDES)
        costs = [max(each) for each in zip(chosen, rejected, strict=True)]
        self.arrange = packed_pairs.arrangement(costs, "padded", self.args.per_device_train_batch_size)
        self.row_sizes = {"tokens": [sum(each) for each in zip(chosen, rejected, strict=True)]}

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        """Compute TRL's loss; the first one must be that of scores that are all 0. Raises `UserError` otherwise."""
        result: Any = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if self.check_first_loss:
            self.check_first_loss = False
            loss = float((result[0] if return_outputs else result).detach())
            if not abs(loss - math.log(2)) <= _ROUNDING:  # no number is refused too
                raise UserError(
                    f"a reward model starts with a head of zeros, so its first loss must be ln 2 = {math.log(2):.6f}, and it is "
                    f"{loss:.6f}: the policy's own layers give values that are no finite numbers here. Set precision: fp32 or another "
                    "attn_implementation in the cluster row, or look at the policy that it starts from"
                )
        return result


def _conversations(folder: Path, cache: Path) -> Dataset:
    """Join the prompt to each side of each pair: what RewardTrainer takes, under its names."""
    cache.mkdir(exist_ok=True)
    if ranks.rank() == 0:
        file = pq.ParquetFile(folder / PAIRS)
        schema = pa.schema([(side, pa.list_(pa.int32())) for side in _SIDES])
        with pq.ParquetWriter(cache / "conversations.parquet", schema) as writer:
            for batch in file.iter_batches(batch_size=4096, columns=["prompt_ids", *_SIDES]):
                rows = batch.to_pydict()
                joined = {side: [p + a for p, a in zip(rows["prompt_ids"], rows[side], strict=True)] for side in _SIDES}
                writer.write_table(pa.table(joined, schema=schema))
    dataset = Dataset.from_parquet(str(cache / "conversations.parquet"), cache_dir=str(cache))
    assert isinstance(dataset, Dataset)
    return dataset
