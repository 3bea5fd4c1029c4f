"""What each training stage needs of a cluster, and what to change where it does not fit. For `rounds plan --cluster`."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from data_prep.errors import UserError
from train import cost, evaluation_tokens, expected, memory, shape, sizes, store, yaml_file
from train.cluster import Cluster, Row
from train.devices import GPUS
from train.graph import Stage
from train.memory import Memory, Setting
from train.pipeline import Plan
from train.recipe import Lora, Training
from train.shape import Shape

GIB = 2**30


@dataclass(frozen=True)
class Forecast:
    """One stage on one cluster row. Times are None where the GPU's kind or the number of rows is not known."""

    stage: str
    row: Row
    need: Memory
    micro_batch: int
    accumulation: int
    hours: float | None = None
    tokens_per_second: float | None = None
    """Of one GPU."""
    advice: str = ""
    """What to change, where it does not fit."""

    devices: int | None = None
    """GPUs that one process spreads the model over; None where each process has one."""

    @property
    def gpus(self) -> int:
        """GPUs that the stage holds."""
        return self.devices or self.row.world_size

    @property
    def gpu_hours(self) -> float | None:
        """Hours times GPUs."""
        return None if self.hours is None else self.hours * self.gpus


def forecasts(plan: Plan, cluster: Cluster, root: Path) -> tuple[list[Forecast], Shape, str]:
    """Return a forecast for every SFT, reference, DPO and evaluation stage, with the shape of the model and where that is from.

    Raises `UserError` where no config of the model is at hand. Where a row's processes do not divide a batch, the advice of
    that stage says so.
    """
    model, origin = shape.of(plan.recipe.base, root)
    known = expected.sizes(plan, root)
    found = []
    for stage in plan.stages:
        if stage.function in ("sft", "dpo"):
            rows = stage.inputs.get("rows", stage)
            data = rows.inputs.get("data") if isinstance(rows, Stage) else None
            mean = _mean(known.get(data.name if isinstance(data, Stage) else stage.name))
            try:
                found.append(_training(stage, model, cluster.row(stage.row, stage.name), known.get(stage.name), mean))
            except UserError as error:
                found.append(
                    Forecast(stage.name, cluster.row(stage.row, stage.name), Memory(), 0, 0, advice=str(error))
                )
        elif stage.function == "reference":
            found.append(_scoring(stage, model, cluster.row(stage.row, stage.name), known.get(stage.name)))
        elif stage.function == "evaluate":
            reading = evaluation_tokens.of(stage, known)
            found.append(_evaluating(stage, model, cluster.row(stage.row, stage.name), reading))
    return found, model, origin


def _mean(size: expected.Size | None) -> float:
    """Mean tokens of a conversation, or of a prompt with one answer."""
    return size.tokens / size.rows if size and size.rows else expected.MEAN_TOKENS


def _training(stage: Stage, model: Shape, row: Row, size: expected.Size | None, mean: float) -> Forecast:
    training = Training.model_validate(stage.params["training"])
    how, micro, accumulation = setting(stage.function, training, row)
    need = memory.training(model, how)
    hours = rate = None
    if row.gpu is not None and size is not None:
        hours, rate = _time(stage.function, training, model, row, size, mean)
    return Forecast(
        stage.name, row, need, micro, accumulation, hours, rate, _advice(stage.function, training, model, row)
    )


def _scoring(stage: Stage, model: Shape, row: Row, size: expected.Size | None) -> Forecast:
    """Score every pair once on all ranks, in the arithmetic and with the sharding of training."""
    pairs = stage.inputs["pairs"]
    assert isinstance(pairs, Stage)
    longest = pairs.params["max_length"]
    lora = stage.params.get("lora")

    def need(batch: int) -> Memory:
        how = Setting(
            micro_tokens=batch * longest,
            longest=longest,
            optimizer="sgd",
            lora=Lora.model_validate(lora) if lora else None,
            precision=row.precision,
            ranks=row.world_size,
            deepspeed=row.deepspeed,
            on_gpu=on_gpu(row),
        )
        return memory.scoring(model, how)

    hours = rate = None
    if row.gpu is not None and size is not None:
        tokens = size.rows * cost.pair_tokens(size.prompt_tokens, size.answer_tokens, row.pair_batching)
        work = cost.Work((size.prompt_tokens + size.answer_tokens) / 2, forward_only=True)
        flops = tokens * cost.flops_per_token(model, work)
        seconds = cost.seconds(flops, GPUS[row.gpu], row.world_size, row.precision)
        hours, rate = seconds / 3600, tokens / seconds / row.world_size
    space, advice = room(row), ""
    if space is not None and need(row.eval_batch_size).peak > space:
        smaller = next(
            (n for n in (row.eval_batch_size // 2**k for k in range(1, 12)) if n and need(n).peak <= space), 0
        )
        advice = (f"does not fit: try eval_batch_size: {smaller}" if smaller else
                  "does not fit: try deepspeed/zero3.json, which scores in shards, on more GPUs")  # fmt: skip
    return Forecast(stage.name, row, need(row.eval_batch_size), row.eval_batch_size, 1, hours, rate, advice)


def _evaluating(stage: Stage, model: Shape, row: Row, reading: evaluation_tokens.Reading) -> Forecast:
    """Score and write in one process, on one GPU or, with `device_map`, through the GPUs of a node one after the other."""
    devices = max(1, row.slurm.gpus) if row.device_map else 1
    width = 2 if row.precision == "bf16" else 4
    longest = stage.params["max_length"]
    how = Setting(
        micro_tokens=row.eval_batch_size * longest,
        longest=longest,
        optimizer="sgd",
        precision=row.precision,
        deepspeed={},  # no autocast: the weights themselves are in the row's precision
        on_gpu=on_gpu(row),
    )
    # The project's own measurements have a fused LM head; lm-eval holds all logits of its questions, and once more in fp32.
    asked = row.eval_batch_size * 2 * evaluation_tokens.QUESTION_TOKENS
    asking = memory.scoring(model, replace(how, micro_tokens=asked))
    asking = replace(asking, logits=asked * model.vocabulary * (width + 4))
    need = max(asking, memory.scoring(model, how), key=lambda each: each.peak)
    need = replace(need, weights=width * model.parameters / devices)
    hours = rate = None
    if row.gpu is not None:
        work = cost.Work(evaluation_tokens.QUESTION_TOKENS / 2, forward_only=True)
        scoring = cost.seconds(reading.scored * cost.flops_per_token(model, work), GPUS[row.gpu], 1, row.precision)
        writing = cost.writing_seconds(
            model, GPUS[row.gpu], reading.answers, reading.answer_tokens, row.eval_batch_size, width
        )
        hours, rate = (scoring + writing) / 3600, reading.scored / scoring / devices if scoring else None
    space, advice = room(row), ""
    if space is not None and need.peak > space:
        smaller = (
            "a smaller eval_batch_size" if need.weights < 0.9 * space else "device_map: auto and more GPUs of a node"
        )
        advice = f"does not fit: try {smaller}"
    return Forecast(stage.name, row, need, row.eval_batch_size, 1, hours, rate, advice, devices)


def setting(function: str, training: Training, row: Row) -> tuple[Setting, int, int]:
    """Return how a stage trains on a row, at the longest pairs that its recipe allows, with micro-batch and accumulation.

    Raises `UserError` where the row's processes do not divide the batch.
    """
    micro, accumulation = sizes.micro_batches(training.global_batch_size, row, training.per_device_train_batch_size)
    rows = micro if function == "sft" else 2 * micro  # both sides of a pair
    how = Setting(
        micro_tokens=rows * training.max_length,
        longest=training.max_length,
        optimizer=training.optim,
        accumulation=accumulation,
        lora=training.lora,
        precision=row.precision,
        activation_checkpointing=row.activation_checkpointing,
        ranks=row.world_size,
        deepspeed=row.deepspeed,
        on_gpu=on_gpu(row),
        dense_mask=_dense_mask(function, row),
    )
    return how, micro, accumulation


def _dense_mask(function: str, row: Row) -> bool:
    """Tell whether attention is given a mask of rows x rows, and so computes what the mask hides: for padded pairs, unless there is
    FlashAttention, and for packed rows with eager."""
    if function == "sft":
        return row.attn_implementation == "eager"
    return row.attn_implementation != "flash_attention_2" and row.pair_batching == "padded"


def on_gpu(row: Row) -> bool:
    """Tell whether a row means GPUs, as far as it can be told without looking for one."""
    return row.gpu is not None or row.device == "cuda"


def _time(
    function: str, training: Training, model: Shape, row: Row, size: expected.Size, mean: float
) -> tuple[float, float]:
    """Return hours, and tokens per second and GPU. `mean` is that of a conversation, or of a prompt with one answer."""
    assert row.gpu is not None
    if function == "sft":
        per_row, longest = float(training.max_length), float(training.max_length)
    else:
        per_row = cost.pair_tokens(size.prompt_tokens, size.answer_tokens, row.pair_batching)
        longest = min(training.max_length, mean * cost.PADDING)
    span = cost.span(longest, mean, skips_masked=not _dense_mask(function, row))
    work = cost.Work(span, row.activation_checkpointing, frozen=training.lora is not None)
    tokens = expected.steps(size.rows, training.model_dump()) * training.global_batch_size * per_row
    seconds = cost.seconds(tokens * cost.flops_per_token(model, work), GPUS[row.gpu], row.world_size, row.precision)
    seconds /= cost.DPO_SHARE if function == "dpo" else 1
    return seconds / 3600, tokens / seconds / row.world_size


def room(row: Row) -> float | None:
    """Return the bytes of a device that tensors may take, or None where its kind is not known."""
    return None if row.gpu is None else GPUS[row.gpu].memory * GIB - memory.RESERVE


def _advice(function: str, training: Training, model: Shape, row: Row) -> str:
    """Say nothing where a stage fits, else the least change that was found to make it fit."""
    space = room(row)
    if space is None or memory.training(model, setting(function, training, row)[0]).peak <= space:
        return ""
    for words, other_training, other_row in _alternatives(training, row):
        try:
            how = setting(function, other_training, other_row)[0]
        except UserError:  # the ranks do not divide the batch
            continue
        peak = memory.training(model, how).peak
        if peak <= space:
            return f"does not fit: try {', '.join(words)} (then {peak / GIB:.1f} GiB)"
    return (
        "does not fit, nor with ZeRO-3, offload, 8 times the nodes or QLoRA: a larger GPU or a smaller model is needed"
    )


def _alternatives(training: Training, row: Row) -> Iterator[tuple[list[str], Training, Row]]:
    """Yield changes from the least to the most: those of the cluster file first, those of the recipe last."""
    adapters = [
        (0, [], training.lora),
        (20, ["in the recipe lora: {r: 16}"], training.lora or Lora()),
        (30, ["in the recipe lora: {r: 16, load_in_4bit: true}"], _four_bit(training.lora)),
    ]
    choices = product(_micro(row), _checkpointing(row), _zero(row), _nodes(row), adapters)
    for choice in sorted(choices, key=lambda each: sum(effort for effort, _, _ in each)):
        micro, checkpointing, zero, nodes, lora = (value for _, _, value in choice)
        words = [word for _, told, _ in choice for word in told]
        if words:
            update = {
                "micro_batch_size": micro,
                "activation_checkpointing": checkpointing,
                "deepspeed": zero,
                "nodes": nodes,
            }
            yield words, training.model_copy(update={"lora": lora}), row.model_copy(update=update)


def _micro(row: Row) -> list[tuple[int, list[str], int]]:
    less = [(1, [f"micro_batch_size: {n}"], n) for n in (row.micro_batch_size // 2, 1) if 0 < n < row.micro_batch_size]
    return [(0, [], row.micro_batch_size), *less]


def _checkpointing(row: Row) -> list[tuple[int, list[str], bool]]:
    more = [] if row.activation_checkpointing else [(2, ["activation_checkpointing: true"], True)]
    return [(0, [], row.activation_checkpointing), *more]


def _zero(row: Row) -> list[tuple[int, list[str], dict | None]]:
    found: list[tuple[int, list[str], dict | None]] = [(0, [], row.deepspeed)]
    for stage in (2, 3):
        file = store.read_json(yaml_file.PROJECT_RECIPES / "deepspeed" / f"zero{stage}.json")
        if file and (row.deepspeed is None or stage > row.zero_stage):
            found.append((stage, [f"deepspeed: deepspeed/zero{stage}.json"], file))
        if file and stage >= row.zero_stage:
            zero = {**file["zero_optimization"], "offload_optimizer": {"device": "cpu", "pin_memory": True}}
            told = [f"deepspeed: a copy of deepspeed/zero{stage}.json with offload_optimizer: {{device: cpu}}"]
            found.append((8 + stage, told, {**file, "zero_optimization": zero}))
    return found


def _nodes(row: Row) -> list[tuple[int, list[str], int]]:
    more = [(4 * times, [f"nodes: {row.nodes * times}"], row.nodes * times) for times in (2, 4, 8)]
    return [(0, [], row.nodes), *more]


def _four_bit(lora: Lora | None) -> Lora:
    return (lora or Lora()).model_copy(update={"load_in_4bit": True})
