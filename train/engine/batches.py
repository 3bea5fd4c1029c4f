"""How a recipe's global batch is divided over the ranks of a cluster row. No torch: planning refuses what cannot be."""

from collections.abc import Iterable

from rounds.data_prep.errors import UserError
from rounds.train.config.cluster import Cluster, Machine
from rounds.train.config.training import Training
from rounds.train.engine.graph import Stage
from rounds.train.engine.params import DpoParams, RewardParams, SftParams

FOUR_BIT_IN_SHARDS = (
    "lora.load_in_4bit and ZeRO-3 do not go together here: each device holds all 4-bit weights. Use deepspeed/zero2.json, or no "
    "DeepSpeed, in the cluster's `train` row"
)

BF16_UNSHARDED = (
    "a DeepSpeed file of stage 0 trains wrongly in bf16: DeepSpeed 0.19.8 begins with an optimizer step on empty gradients, after which "
    "Adam's first updates come out too small (by a seventh, measured). Leave `deepspeed` out of the cluster's `train` row, which spreads "
    "as little, or take stage 1 or 2"
)


def check(stages: Iterable[Stage], cluster: Cluster) -> None:
    """Refuse a cluster file that a training stage cannot run by, whatever the machine: whose ranks do not divide its batch, that would
    shard weights in 4 bits, or that DeepSpeed does not train right by. Raises `UserError`, a line for each."""
    wrong = []
    for stage in stages:
        if isinstance(stage.params, SftParams | DpoParams | RewardParams):
            training, machine = stage.params.training, cluster.machine(stage.row, stage.name)
            try:
                micro_batches(training.global_batch_size, machine, training.per_device_train_batch_size)
            except UserError as error:
                wrong.append(f"{stage.name}: {error}")
            if (training.lora and training.lora.load_in_4bit) and machine.zero_stage == 3:
                wrong.append(f"{stage.name}: {FOUR_BIT_IN_SHARDS}")
            if machine.deepspeed is not None and machine.zero_stage == 0 and machine.precision == "bf16":
                wrong.append(f"{stage.name}: {BF16_UNSHARDED}")
    if wrong:
        raise UserError("\n".join(wrong))


_FEW_STEPS = 20
"""Up to so many, the step that transformers' warm-up makes at a rate of 0 is a twentieth of the training or more."""


def steps(rows: int, training: Training) -> int:
    """Optimizer steps as transformers' Trainer counts them: the last batch of an epoch is filled up to a whole one."""
    per_epoch = -(-rows // training.global_batch_size)
    return -(-int(per_epoch * training.num_train_epochs * 1000) // 1000)


def notes(rows: int, training: Training) -> list[str]:
    """Say what of a training of so many rows would be in vain: rows that only fill up a batch, steps that only warm up."""
    found = []
    batch, wanted, warm = training.global_batch_size, steps(rows, training), training.warmup_steps
    if batch > rows:
        found.append(
            f"global_batch_size {batch:,} is more than the {rows:,} rows of the set: each step computes them {batch / rows:.3g} times. "
            f"{rows:,} at most learns the same with less work"
        )
    if not warm or training.lr_scheduler_type == "constant":
        return found
    if wanted == 1:
        found.append("a training of one step has no warm-up: its only step is made at the full learning rate")
    elif warm >= wanted:
        found.append(
            f"warmup_steps {warm:,.0f} is no less than the {wanted:,} steps of the training: the learning rate never comes to "
            f"{training.learning_rate:g}. A number below 1 is a share of the steps, such as 0.1"
        )
    elif wanted <= _FEW_STEPS:
        found.append(f"the first of {wanted} steps warms up from a learning rate of 0 and changes nothing; `warmup_steps: 0` lets it learn")
    return found


def micro_batches(global_batch_size: int, machine: Machine, fixed: int | None = None) -> tuple[int, int]:
    """Return (micro-batch, accumulation) with micro-batch x accumulation x ranks = the global batch.

    The micro-batch is `fixed`, the recipe's own, or else the largest that divides and is no larger than the row's. Raises
    `UserError` where the ranks do not divide the batch, naming the nearest numbers that do.
    """
    ranks = machine.world_size
    if global_batch_size % ranks:
        raise UserError(
            f"global_batch_size {global_batch_size} does not divide over {machine.nodes} nodes x {machine.processes} processes = {ranks} "
            f"ranks: {_nearest(global_batch_size, machine)}"
        )
    share = global_batch_size // ranks
    if fixed is not None and share % fixed:
        raise UserError(
            f"per_device_train_batch_size {fixed} does not divide a rank's share, {share} of {global_batch_size} pairs over {ranks} "
            f"ranks: take fewer nodes or processes in the cluster file, or in the recipe one of {_divisors(share)}"
        )
    if fixed is not None:
        return fixed, share // fixed
    micro = max(n for n in range(1, min(machine.micro_batch_size, share) + 1) if share % n == 0)
    return micro, share // micro


def _divisors(number: int) -> str:
    return ", ".join(str(n) for n in range(1, number + 1) if number % n == 0)


def _nearest(global_batch_size: int, machine: Machine) -> str:
    ranks = machine.world_size
    below, above = global_batch_size // ranks * ranks, -(-global_batch_size // ranks) * ranks
    batches = " or ".join(str(n) for n in (below, above) if n)
    fits = [
        (nodes, processes)
        for nodes in range(1, machine.nodes + 1)
        for processes in range(1, machine.processes + 1)
        if global_batch_size % (nodes * processes) == 0
    ]
    nodes, processes = max(fits, key=lambda each: (each[0] * each[1], each[1]))
    told = [f"{name}: {n}" for name, n, had in (("nodes", nodes, machine.nodes), ("processes", processes, machine.processes)) if n != had]
    return f"set global_batch_size to {batches}, or in the cluster file {', '.join(told)}"
