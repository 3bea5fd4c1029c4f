"""Score preference pairs under one policy, as one process or as many ranks: what stage `reference` stores.

In: a loaded model and token rows. Out: for each pair the log-probabilities of both answers. The pairs are cut into blocks of
batches of like length; the ranks take the blocks in turn, and each finished block is a file, so that a run that was interrupted
scores no block twice.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers import PreTrainedModel
from transformers.integrations import HfDeepSpeedConfig
from trl.trainer.dpo_trainer import DataCollatorForPreference
from trl.trainer.utils import add_fused_lm_head

from rounds.data_prep.errors import UserError
from rounds.data_prep.whole import whole
from rounds.train.config.cluster import Machine
from rounds.train.engine import ranks
from rounds.train.tokens import packed_pairs
from rounds.train.weights import packed_attention

Tokens = tuple[list[int], list[int], list[int]]
"""Prompt, chosen and rejected answer of a pair."""
_BLOCK_BATCHES = 32
_LAG_SECONDS = 120
"""Longest wait for another node's file: twice what NFS keeps a folder's state for by default (acdirmax, 60 s)."""
_NAMES = ("ref_chosen_logps", "ref_rejected_logps", "ref_chosen_shared_logps", "ref_rejected_shared_logps")
SCHEMA = pa.schema([("id", pa.string()), *((name, pa.float32()) for name in _NAMES)])


class Scores(NamedTuple):
    """Log-probabilities in nats: summed over each answer, and over as many of its first tokens as the shorter answer has."""

    chosen: float
    rejected: float
    chosen_shared: float
    rejected_shared: float


class Sharding:
    """ZeRO-3 for a model that is only scored with: made before the model is loaded, it lets each rank keep only its share."""

    def __init__(self, machine: Machine) -> None:
        self.config = {
            "zero_optimization": (machine.deepspeed or {}).get("zero_optimization", {}),
            "train_micro_batch_size_per_gpu": 1,
            "bf16": {"enabled": machine.precision == "bf16"},
        }
        self.needed = in_shards(machine)
        # transformers asks for this object when a model is loaded, and holds it by a weak reference only.
        self.loading = HfDeepSpeedConfig(self.config) if self.needed else None
        self.engine: Any = None

    def __enter__(self) -> "Sharding":
        return self

    def __exit__(self, *raised: object) -> None:
        """Let go of the weights, for a model that comes after in this process. Not by forgetting the engine: DeepSpeed 0.19.8 keeps
        what it once wrapped for as long as the process lives."""
        if self.engine is not None:
            self.engine.destroy()
            for parameter in self.engine.module.parameters():
                parameter.ds_tensor.data = parameter.ds_tensor.data.new_empty(0)
                parameter.data = parameter.data.new_empty(0)
        self.engine = self.loading = None

    def wrap(self, model: PreTrainedModel) -> Any:
        """Return the model, or DeepSpeed's engine around its shards."""
        if not self.needed:
            return model
        import deepspeed

        self.engine = deepspeed.initialize(model=model, config=self.config)[0]
        return self.engine


def prepare(model: PreTrainedModel, machine: Machine, sharding: Sharding | None = None) -> Callable[[Sequence[Tokens]], list[Scores]]:
    """Make a loaded model ready, and return what scores one batch of pairs with it."""
    add_fused_lm_head(model)
    batching = packed_attention.choose(machine.pair_batching, model)
    if batching != "padded":
        packed_attention.install(model)
    model.eval()
    wrapped = sharding.wrap(model) if sharding else model
    collate: Any = (
        DataCollatorForPreference(pad_token_id=0)  # any id: padding is masked by position
        if batching == "padded"
        else packed_pairs.PairCollator(share_prefix=batching == "shared_prefix")
    )
    device = next(model.parameters()).device

    @torch.no_grad()
    def score(pairs: Sequence[Tokens]) -> list[Scores]:
        rows = [dict(zip(("prompt_ids", "chosen_ids", "rejected_ids"), pair, strict=True)) for pair in pairs]
        batch = {name: value.to(device) for name, value in collate(rows).items()}
        mask = batch.pop("completion_mask")
        labels = batch["input_ids"].masked_fill(mask == 0, -100)
        found = wrapped(**batch, labels=labels, use_cache=False, fused_lm_head=True).log_probs.float()
        mask = mask[:, 1:]
        found = found[:, -mask.shape[1] :] * mask
        shorter = torch.minimum(*mask.sum(1).chunk(2)).repeat(2)
        shared = found * (mask.cumsum(1) <= shorter[:, None])
        chosen, rejected = found.sum(1).chunk(2)
        chosen_shared, rejected_shared = shared.sum(1).chunk(2)
        columns = (chosen, rejected, chosen_shared, rejected_shared)
        return [Scores(*values) for values in zip(*(column.tolist() for column in columns), strict=True)]

    return score


def in_batches(score: Callable[[Sequence[Tokens]], list[Scores]], pairs: pa.Table, places: Sequence[int], machine: Machine) -> list[Scores]:
    """Score the pairs at some places, as many at once as `in_blocks` does."""
    return [each for batch in _cut(places, _pairs_at_once(machine)) for each in score(_tokens(pairs, batch))]


def in_blocks(
    score: Callable[[Sequence[Tokens]], list[Scores]],
    pairs: pa.Table,
    machine: Machine,
    folder: Path,
    progress: Callable[[int], None],
) -> list[Scores]:
    """Score all pairs, on all ranks; rank 0 returns the scores in the order of `pairs`, the others none.

    `folder` keeps finished blocks. Under ZeRO-3 each forward pass is one of all ranks together, so a rank that has no batch left
    scores one again.
    """
    size = _pairs_at_once(machine)
    costs = packed_pairs.costs(pairs, machine.pair_batching)
    order = sorted(range(len(costs)), key=lambda place: -costs[place])  # longest first: memory trouble shows at once
    batches = _cut(order, size)
    per_block = max(1, min(_BLOCK_BATCHES, -(-len(batches) // ranks.world_size())))
    blocks = _cut(batches, per_block)
    folder = folder / f"blocks-{size}-{per_block}"
    folder.mkdir(parents=True, exist_ok=True)
    # Rank 0 looks for all: under ZeRO-3 ranks that saw different files would wait for each other for ever. A node that has not looked
    # for a file also has not noted that it is absent, as NFS does for up to a minute.
    todo = ranks.agree_on([number for number in range(len(blocks)) if not _file(folder, number).is_file()] if ranks.rank() == 0 else [])
    done = len(order) - sum(len(batch) for number in todo for batch in blocks[number])
    for turn in _cut(todo, ranks.world_size()):
        mine = turn[ranks.rank()] if ranks.rank() < len(turn) else None
        block = blocks[mine] if mine is not None else ()
        found = [score(_tokens(pairs, batch)) for batch in block]
        if in_shards(machine):
            for _ in range(per_block - len(block)):
                score(_tokens(pairs, batches[-1]))
        if mine is not None:
            _write(folder, mine, [place for batch in block for place in batch], [each for batch in found for each in batch])
        done += sum(len(batch) for number in turn for batch in blocks[number])
        progress(done)
    ranks.barrier()
    return _joined(folder, len(blocks), len(order)) if ranks.rank() == 0 else []


def in_shards(machine: Machine) -> bool:
    """Tell whether a model is spread over the ranks, so that each forward pass is one of all of them together."""
    return machine.zero_stage == 3 and ranks.world_size() > 1


def _pairs_at_once(machine: Machine) -> int:
    return max(1, machine.eval_batch_size // 2)


def _tokens(pairs: pa.Table, places: Sequence[int]) -> list[Tokens]:
    rows = pairs.take(list(places)).to_pylist()
    return [(row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]) for row in rows]


def _file(folder: Path, number: int) -> Path:
    return folder / f"{number:06}.parquet"


def _write(folder: Path, number: int, places: list[int], scores: list[Scores]) -> None:
    columns = dict(zip(_NAMES, map(list, zip(*scores, strict=True)), strict=True))
    with whole(_file(folder, number)) as partial:
        pq.write_table(pa.table({"place": places, **columns}), partial)


def _joined(folder: Path, blocks: int, pairs: int) -> list[Scores]:
    found: list[Scores | None] = [None] * pairs
    for number in range(blocks):
        _wait_for(_file(folder, number))
        for row in pq.read_table(_file(folder, number)).to_pylist():
            found[row["place"]] = Scores(*(row[name] for name in _NAMES))
    assert all(each is not None for each in found)
    return [each for each in found if each is not None]


def _wait_for(file: Path) -> None:
    """Wait for a file that another rank has written, until this node's view of a shared file system has it too."""
    until = time.monotonic() + _LAG_SECONDS
    while not file.is_file():
        if time.monotonic() > until:
            raise UserError(
                f"rank {ranks.rank()} on {ranks.node()} does not see {file}, which another rank has written: is the store "
                "the same folder on every node? Run again to go on from what is scored"
            )
        time.sleep(0.5)


def _cut(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [items[start : start + size] for start in range(0, len(items), size)]
