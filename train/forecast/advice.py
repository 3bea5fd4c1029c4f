"""Does a stage fit the GPUs of its row, and if not, the least change that makes it fit. For train/forecast/forecast.py."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import psutil

from rounds.data_prep.errors import UserError
from rounds.train.config import shipped, slurm
from rounds.train.config.cluster import Cluster, Machine, PairBatching
from rounds.train.config.gpus import GPUS
from rounds.train.config.training import Lora, Training
from rounds.train.engine import batches, store
from rounds.train.engine.kinds import Kind
from rounds.train.forecast import memory
from rounds.train.forecast.memory import Memory, Setting
from rounds.train.forecast.model_shape import Shape

GIB = 2**30


@dataclass(frozen=True)
class Place:
    """What of a cluster limits the changes that can be advised."""

    many_nodes: bool

    def host_memory(self, machine: Machine) -> float | None:
        """Bytes of a node's own memory, as the row asks for it or, for a run on this machine, as it has; None is not known."""
        if not self.many_nodes:
            return float(psutil.virtual_memory().total)
        return slurm.memory_bytes(machine.slurm)


def place(cluster: Cluster) -> Place:
    """Return what a cluster file says of that."""
    return Place(many_nodes=cluster.kind == "slurm")


def setting(kind: Kind, training: Training, machine: Machine) -> tuple[Setting, int, int]:
    """Return how a stage trains on a row, at the longest pairs that its recipe allows, with micro-batch and accumulation.

    Raises `UserError` where the row's processes do not divide the batch.
    """
    micro, accumulation = batches.micro_batches(training.global_batch_size, machine, training.per_device_train_batch_size)
    rows = 2 * micro if kind.on_pairs else micro  # both sides of a pair
    how = Setting(
        micro_tokens=rows * training.max_length,
        longest=training.max_length,
        optimizer=training.optim,
        accumulation=accumulation,
        lora=training.lora,
        precision=machine.precision,
        activation_checkpointing=machine.activation_checkpointing,
        ranks=machine.world_size,
        deepspeed=machine.deepspeed,
        on_gpu=on_gpu(machine),
        dense_mask=dense_mask(kind, machine),
    )
    return how, micro, accumulation


def dense_mask(kind: Kind, machine: Machine) -> bool:
    """Tell whether attention is given a mask of rows x rows, and so computes what the mask hides: for padded pairs, unless there is
    FlashAttention, and for packed rows with eager."""
    if not kind.on_pairs:
        return machine.attn_implementation == "eager"
    return machine.attn_implementation != "flash_attention_2" and layout(kind, machine) == "padded"


def layout(kind: Kind, machine: Machine) -> PairBatching:
    """Return how a stage lays out pairs: a reward model reads each side padded, whatever the row says."""
    return "padded" if kind.is_judge else machine.pair_batching


def on_gpu(machine: Machine) -> bool:
    """Tell whether a row means GPUs, as far as it can be told without looking for one."""
    return machine.gpu is not None or machine.device == "cuda"


def room(machine: Machine) -> float | None:
    """Return the bytes of a device that tensors may take, or None where its kind is not known."""
    return None if machine.gpu is None else GPUS[machine.gpu].memory * GIB - memory.RESERVE


def advice(kind: Kind, training: Training, model: Shape, machine: Machine, place: Place) -> str:
    """Say nothing where a stage fits, else the least change that was found to make it fit."""
    space = room(machine)
    if space is None:
        return ""
    how, _, _ = setting(kind, training, machine)
    short = _host_lack(model, how, machine, place)
    if memory.training(model, how).peak <= space and not short:
        return ""
    wrong = f"does not fit: {short}" if short else "does not fit"
    hosts = ""
    for words, other_training, other_row in _alternatives(training, machine, place):
        if kind.is_judge and other_training.lora:  # which a recipe may not ask of it
            continue
        try:
            how, _, _ = setting(kind, other_training, other_row)
        except UserError:  # the ranks do not divide the batch
            continue
        peak = memory.training(model, how).peak
        if peak > space:
            continue
        lack = _host_lack(model, how, other_row, place)
        if lack:
            hosts = hosts or f"; {', '.join(words)} would, but {lack}"
            continue
        return f"{wrong}: try {', '.join(words)} (then {peak / GIB:.1f} GiB{_host_need(model, how, other_row)})"
    more = "8 times the nodes" if place.many_nodes else "8 GPUs"
    return f"{wrong}, nor with ZeRO-3, offload, {more} or QLoRA: a larger GPU or a smaller model is needed{hosts}"


def advice_to_score(machine: Machine, need: Callable[[Machine], Memory], place: Place) -> str:
    """Say the same of a stage that scores on all ranks, whose need on a row `need` tells: it has neither gradients nor states."""
    space = room(machine)
    if space is None or need(machine).peak <= space:
        return ""
    sizes_of_batch = [(k, [f"eval_batch_size: {n}"], n) for k in range(1, 12) if (n := machine.eval_batch_size // 2**k)]
    zero3 = store.read_json(shipped.RECIPES / "deepspeed" / "zero3.json")
    sharded = [(6, ["deepspeed: deepspeed/zero3.json"], zero3)] if zero3 and machine.zero_stage < 3 else []
    choices = product(
        [(0, [], machine.eval_batch_size), *sizes_of_batch],
        [(0, [], machine.deepspeed), *sharded],
        _more(machine, place),
    )
    for choice in sorted(choices, key=lambda each: sum(effort for effort, _, _ in each)):
        values: list[Any] = [value for _, _, value in choice]
        batch, deepspeed, more = values
        changed = machine.model_copy(update={"eval_batch_size": batch, "deepspeed": deepspeed, **more})
        peak = need(changed).peak
        if peak <= space:
            return f"does not fit: try {', '.join(w for _, told, _ in choice for w in told)} (then {peak / GIB:.1f} GiB)"
    return "does not fit, nor in ZeRO-3's shards on 8 times as much: a larger GPU or a smaller model is needed"


def _host_need(model: Shape, how: Setting, machine: Machine) -> str:
    need = memory.host(model, how, machine.nodes)
    return f" of a GPU and {need / GIB:,.0f} GiB of each node's own memory" if need else ""


def _host_lack(model: Shape, how: Setting, machine: Machine, place: Place) -> str:
    """Say how what is offloaded does not fit the node's own memory, as far as that is known."""
    need, has = memory.host(model, how, machine.nodes), place.host_memory(machine)
    if not need or has is None or need <= has:
        return ""
    whose = "a job of this row asks for" if place.many_nodes else "this machine has"
    return f"offload needs {need / GIB:,.0f} GiB of a node's own memory, and {whose} {has / GIB:,.0f}"


def _alternatives(training: Training, machine: Machine, place: Place) -> Iterator[tuple[list[str], Training, Machine]]:
    """Yield changes from the least to the most: those of the cluster file first, those of the recipe last."""
    adapters = [
        (0, [], training.lora),
        (20, ["in the recipe lora: {r: 16}"], training.lora or Lora()),
        (30, ["in the recipe lora: {r: 16, load_in_4bit: true}"], _four_bit(training.lora)),
    ]
    choices = product(_micro(machine), _checkpointing(machine), _zero(machine), _more(machine, place), adapters)
    for choice in sorted(choices, key=lambda each: sum(effort for effort, _, _ in each)):
        values: list[Any] = [value for _, _, value in choice]
        micro, checkpointing, zero, more, lora = values
        words = [word for _, told, _ in choice for word in told]
        update = {"micro_batch_size": micro, "activation_checkpointing": checkpointing, "deepspeed": zero, **more}
        changed = machine.model_copy(update=update)
        if words and not (lora and lora.load_in_4bit and changed.zero_stage == 3):  # refused: see adapters.four_bit_obstacle
            yield words, training.model_copy(update={"lora": lora}), changed


def _micro(machine: Machine) -> list[tuple[int, list[str], int]]:
    less = [(1, [f"micro_batch_size: {n}"], n) for n in (machine.micro_batch_size // 2, 1) if 0 < n < machine.micro_batch_size]
    return [(0, [], machine.micro_batch_size), *less]


def _checkpointing(machine: Machine) -> list[tuple[int, list[str], bool]]:
    more = [] if machine.activation_checkpointing else [(2, ["activation_checkpointing: true"], True)]
    return [(0, [], machine.activation_checkpointing), *more]


def _zero(machine: Machine) -> list[tuple[int, list[str], dict | None]]:
    found: list[tuple[int, list[str], dict | None]] = [(0, [], machine.deepspeed)]
    for stage in (2, 3):
        file = store.read_json(shipped.RECIPES / "deepspeed" / f"zero{stage}.json")
        if file and (machine.deepspeed is None or stage > machine.zero_stage):
            found.append((stage, [f"deepspeed: deepspeed/zero{stage}.json"], file))
        if file and stage >= machine.zero_stage:
            zero = {**file["zero_optimization"], "offload_optimizer": {"device": "cpu", "pin_memory": True}}
            told = [f"deepspeed: a copy of deepspeed/zero{stage}.json with offload_optimizer: {{device: cpu}}"]
            found.append((8 + stage, told, {**file, "zero_optimization": zero}))
    return found


def _more(machine: Machine, place: Place) -> list[tuple[int, list[str], dict[str, int]]]:
    """More nodes of a cluster, or more GPUs of the one machine, 8 at most: no usual machine has more."""
    name, had = ("nodes", machine.nodes) if place.many_nodes else ("processes", machine.processes)
    more = [(4 * times, [f"{name}: {had * times}"], {name: had * times}) for times in (2, 4, 8) if place.many_nodes or had * times <= 8]
    return [(0, [], {}), *more]


def _four_bit(lora: Lora | None) -> Lora:
    return (lora or Lora()).model_copy(update={"load_in_4bit": True})
