"""The order of rows: seeded, whole global batches, the same through accelerate's sharding at every number of ranks."""

import pytest
from accelerate.data_loader import BatchSamplerShard
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import BatchSampler

from rounds.data_prep.errors import UserError
from rounds.train.config.cluster import Cluster, Machine
from rounds.train.engine.batches import check, micro_batches
from rounds.train.tokens.order import GlobalBatches, steps_per_epoch
from tests import staged

KNOBS = {"learning_rate": 1e-5, "global_batch_size": 8, "max_length": 64}


def through_accelerate(order: GlobalBatches, micro: int, ranks: int) -> list[set[int]]:
    """Return the rows of each global batch as the ranks get them, micro-batch by micro-batch."""
    shards = [list(BatchSamplerShard(BatchSampler(order, micro, False), ranks, place)) for place in range(ranks)]
    assert len({len(shard) for shard in shards}) == 1
    accumulation = order.global_batch_size // micro // ranks
    found = []
    for start in range(0, len(shards[0]), accumulation):
        found.append(sorted(row for shard in shards for batch in shard[start : start + accumulation] for row in batch or []))
    return found


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 60),
    micro=st.integers(1, 3),
    ranks=st.integers(1, 4),
    accumulation=st.integers(1, 3),
    epoch=st.integers(0, 3),
)
def test_every_number_of_ranks_sees_the_same_global_batches(rows: int, micro: int, ranks: int, accumulation: int, epoch: int):
    batch = micro * ranks * accumulation
    order = GlobalBatches(rows, batch, seed=3)
    order.set_epoch(epoch)
    whole = list(order)
    assert len(whole) == len(order) == steps_per_epoch(rows, batch) * batch
    assert sorted(whole[:rows]) == list(range(rows)), "an epoch is every row once, then the first ones again"
    assert whole[rows:] == (whole[:rows] * batch)[: len(whole) - rows]
    expected = [sorted(whole[start : start + batch]) for start in range(0, len(whole), batch)]
    assert through_accelerate(order, micro, ranks) == expected
    steps = steps_per_epoch(rows, batch)
    assert [sorted(order.batch(epoch * steps + step)) for step in range(steps)] == expected


def test_an_arrangement_changes_what_is_put_together_and_not_what_is_in_a_batch():
    plain, sorted_ = GlobalBatches(20, 8, 1), GlobalBatches(20, 8, 1, arrange=sorted)
    assert through_accelerate(plain, 2, 2) == through_accelerate(sorted_, 2, 2)
    assert list(plain) != list(sorted_)


def test_seed_and_epoch_decide_the_order():
    def order(seed: int, epoch: int) -> list[int]:
        made = GlobalBatches(50, 10, seed)
        made.set_epoch(epoch)
        return list(made)

    assert order(0, 1) == order(0, 1)
    assert len({tuple(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


@pytest.mark.parametrize(
    ("batch", "nodes", "processes", "says"),
    [
        (128, 6, 8, "set global_batch_size to 96 or 144, or in the cluster file nodes: 4"),
        (12, 1, 8, "set global_batch_size to 8 or 16, or in the cluster file processes: 6"),
        (4, 1, 8, "set global_batch_size to 8, or in the cluster file processes: 4"),
    ],
)
def test_ranks_that_do_not_divide_the_batch_are_refused_with_the_nearest_that_do(batch: int, nodes: int, processes: int, says: str):
    with pytest.raises(UserError, match=says):
        micro_batches(batch, Machine(nodes=nodes, processes=processes))


def test_weights_in_4_bits_and_zero_3_are_refused_while_planning():
    stage = staged.stage("dpo.first", "dpo", {"training": {**KNOBS, "lora": {"load_in_4bit": True}}})
    rows = {stage: {"deepspeed": {"zero_optimization": {"stage": stage}}} for stage in (2, 3)}
    check([stage], Cluster.model_validate({"train": rows[2]}))
    with pytest.raises(UserError, match=r"dpo.first: lora.load_in_4bit and ZeRO-3 do not go together"):
        check([stage], Cluster.model_validate({"train": rows[3]}))


def test_deepspeed_without_shards_is_refused_in_bf16_where_its_adam_starts_wrongly():
    stage = staged.stage("sft", "sft", {"training": KNOBS})
    train = {"precision": "bf16", "deepspeed": {"zero_optimization": {"stage": 1}}}
    check([stage], Cluster.model_validate({"train": train}))
    cluster = {"train": train, "stages": {"sft": {"deepspeed": {"zero_optimization": {"stage": 0}}}}}
    with pytest.raises(UserError, match=r"^sft: a DeepSpeed file of stage 0 trains wrongly in bf16.* take stage 1 or 2$"):
        check([stage], Cluster.model_validate(cluster))


def test_a_micro_batch_that_is_the_recipes_is_kept_or_refused():
    assert micro_batches(64, Machine(processes=8, micro_batch_size=1), 4) == (4, 2)
    with pytest.raises(UserError, match=r"per_device_train_batch_size 4 does not .* 2 of 64 .* in the recipe one of 1, 2$"):
        micro_batches(64, Machine(nodes=4, processes=8), 4)


@given(share=st.integers(1, 40), nodes=st.integers(1, 3), processes=st.integers(1, 8), limit=st.integers(1, 16))
def test_micro_batch_accumulation_and_ranks_make_up_the_batch(share: int, nodes: int, processes: int, limit: int):
    machine = Machine(nodes=nodes, processes=processes, micro_batch_size=limit)
    micro, accumulation = micro_batches(share * machine.world_size, machine)
    assert micro * accumulation * machine.world_size == share * machine.world_size and micro <= limit
