"""What each training stage needs of a cluster, and what to change where it does not fit. For `rounds plan --cluster`."""

from dataclasses import dataclass, replace
from pathlib import Path

from rounds.data_prep.errors import UserError
from rounds.train.config.cluster import Cluster, Machine
from rounds.train.config.gpus import GPUS
from rounds.train.config.training import Training
from rounds.train.engine import batches
from rounds.train.engine.graph import Stage
from rounds.train.engine.kinds import Kind
from rounds.train.engine.params import (
    AnswersParams,
    DpoParams,
    EvaluateParams,
    ReferenceParams,
    RewardParams,
    SftParams,
    TokenizeParams,
)
from rounds.train.forecast import advice as advice_
from rounds.train.forecast import arithmetic, evaluation_tokens, memory, model_shape, row_counts
from rounds.train.forecast.memory import Memory, Setting
from rounds.train.forecast.model_shape import Shape
from rounds.train.plan.pipeline import Plan


@dataclass(frozen=True)
class Forecast:
    """One stage on one cluster row. Times are None where the GPU's kind or the number of rows is not known."""

    stage: str
    machine: Machine
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
        return self.devices or self.machine.world_size

    @property
    def gpu_hours(self) -> float | None:
        """Hours times GPUs."""
        return None if self.hours is None else self.hours * self.gpus


def forecasts(plan: Plan, cluster: Cluster, root: Path) -> tuple[list[Forecast], Shape, str]:
    """Return a forecast for every stage that trains, scores, writes or evaluates, with the shape of the model and where that is from.

    Raises `UserError` where no config of the model is at hand. Where a row's processes do not divide a batch, the advice of
    that stage says so.
    """
    model, origin = model_shape.of(plan.recipe.base, root)
    known, place = row_counts.sizes(plan, root), advice_.place(cluster)
    found = []
    for stage in plan.stages:
        if stage.kind.trains:
            rows = stage.inputs.get("rows", stage)
            data = rows.inputs.get("data") if isinstance(rows, Stage) else None
            mean = _mean(known.get(data.name if isinstance(data, Stage) else stage.name))
            try:
                found.append(_training(stage, model, cluster.machine(stage.row, stage.name), known.get(stage.name), mean, place))
            except UserError as error:
                found.append(Forecast(stage.name, cluster.machine(stage.row, stage.name), Memory(), 0, 0, advice=str(error)))
        elif stage.kind.scores_pairs:
            found.append(_scoring(stage, model, cluster.machine(stage.row, stage.name), known.get(stage.name), place))
        elif stage.kind.measures:
            reading = evaluation_tokens.of(stage, known)
            found.append(_evaluating(stage, model, cluster.machine(stage.row, stage.name), reading))
        elif stage.kind.writes:
            found.append(_writing(stage, model, cluster.machine(stage.row, stage.name), evaluation_tokens.written(stage, known)))
    return found, model, origin


def _mean(size: row_counts.Size | None) -> float:
    """Mean tokens of a conversation, or of a prompt with one answer."""
    return size.tokens / size.rows if size and size.rows else row_counts.MEAN_TOKENS


def _training(stage: Stage, model: Shape, machine: Machine, size: row_counts.Size | None, mean: float, place: advice_.Place) -> Forecast:
    assert isinstance(stage.params, SftParams | DpoParams | RewardParams)
    training = stage.params.training
    how, micro, accumulation = advice_.setting(stage.kind, training, machine)
    need = memory.training(model, how)
    hours = rate = None
    if machine.gpu is not None and size is not None:
        hours, rate = _time(stage.kind, training, model, machine, size, mean)
    return Forecast(
        stage.name,
        machine,
        need,
        micro,
        accumulation,
        hours,
        rate,
        advice_.advice(stage.kind, training, model, machine, place),
    )


def _scoring(stage: Stage, model: Shape, machine: Machine, size: row_counts.Size | None, place: advice_.Place) -> Forecast:
    """Score every pair once on all ranks, in the arithmetic and with the sharding of training."""
    pairs = stage.inputs["pairs"]
    assert isinstance(pairs, Stage) and isinstance(pairs.params, TokenizeParams)
    assert isinstance(stage.params, ReferenceParams)
    longest, lora = pairs.params.max_length, stage.params.lora

    def need(machine: Machine) -> Memory:
        how = Setting(
            micro_tokens=machine.eval_batch_size * longest,
            longest=longest,
            optimizer="sgd",
            lora=lora,
            precision=machine.precision,
            ranks=machine.world_size,
            deepspeed=machine.deepspeed,
            on_gpu=advice_.on_gpu(machine),
        )
        return memory.scoring(model, how)

    hours = rate = None
    if machine.gpu is not None and size is not None:
        tokens = size.rows * arithmetic.pair_tokens(size.prompt_tokens, size.answer_tokens, machine.pair_batching)
        work = arithmetic.Work((size.prompt_tokens + size.answer_tokens) / 2, forward_only=True)
        flops = tokens * arithmetic.flops_per_token(model, work)
        seconds = arithmetic.seconds(flops, GPUS[machine.gpu], machine.world_size, machine.precision)
        hours, rate = seconds / 3600, tokens / seconds / machine.world_size
    advice = advice_.advice_to_score(machine, need, place)
    return Forecast(stage.name, machine, need(machine), machine.eval_batch_size, 1, hours, rate, advice)


def _evaluating(stage: Stage, model: Shape, machine: Machine, reading: evaluation_tokens.Reading) -> Forecast:
    """Score and write in one process, on one GPU or, with `device_map`, through the GPUs of a node one after the other."""
    devices = max(1, machine.slurm.gpus) if machine.device_map else 1
    width = 2 if machine.precision == "bf16" else 4
    assert isinstance(stage.params, EvaluateParams)
    longest = stage.params.max_length
    how = Setting(
        micro_tokens=machine.eval_batch_size * longest,
        longest=longest,
        optimizer="sgd",
        precision=machine.precision,
        deepspeed={},  # no autocast: the weights themselves are in the row's precision
        on_gpu=advice_.on_gpu(machine),
    )
    # The project's own measurements have a fused LM head; lm-eval holds all logits of its questions, and once more in fp32.
    asked = machine.eval_batch_size * 2 * evaluation_tokens.QUESTION_TOKENS
    asking = memory.scoring(model, replace(how, micro_tokens=asked))
    asking = replace(asking, logits=asked * model.vocabulary * (width + 4))
    need = max(asking, memory.scoring(model, how), key=lambda each: each.peak)
    need = replace(need, weights=width * model.parameters / devices)
    hours = rate = None
    if machine.gpu is not None:
        work = arithmetic.Work(evaluation_tokens.QUESTION_TOKENS / 2, forward_only=True)
        scoring = arithmetic.seconds(reading.scored * arithmetic.flops_per_token(model, work), GPUS[machine.gpu], 1, machine.precision)
        writing = arithmetic.writing_seconds(
            model, GPUS[machine.gpu], reading.answers, reading.answer_tokens, machine.eval_batch_size, width
        )
        hours, rate = (scoring + writing) / 3600, reading.scored / scoring / devices if scoring else None
    space, advice = advice_.room(machine), ""
    if space is not None and need.peak > space:
        smaller = "a smaller eval_batch_size" if need.weights < 0.9 * space else "device_map: auto and more GPUs of a node"
        advice = f"does not fit: try {smaller}"
    return Forecast(stage.name, machine, need, machine.eval_batch_size, 1, hours, rate, advice, devices)


def _writing(stage: Stage, model: Shape, machine: Machine, sets: list[evaluation_tokens.Reading]) -> Forecast:
    """Answer prompts on all processes of the row, each with the whole model; hours are those of answers as long as they may be."""
    assert isinstance(stage.params, AnswersParams)
    devices = max(1, machine.slurm.gpus) if machine.device_map else 1
    width = 2 if machine.precision == "bf16" else 4
    rows = min(machine.eval_batch_size, max(1, *(each.answers for each in sets)))
    need = memory.writing(model, rows, stage.params.max_length, width)
    need = replace(need, weights=need.weights / devices)
    hours = rate = None
    if machine.gpu is not None:
        gpu, work = GPUS[machine.gpu], arithmetic.Work(stage.params.max_length / 4, forward_only=True)
        flops = sum(each.scored for each in sets) * arithmetic.flops_per_token(model, work)
        seconds = arithmetic.seconds(flops, gpu, 1, machine.precision) + sum(
            arithmetic.writing_seconds(model, gpu, each.answers, each.answer_tokens, machine.eval_batch_size, width) for each in sets
        )
        tokens = sum(each.answers * each.answer_tokens for each in sets)
        hours = seconds / machine.world_size / 3600
        rate = tokens / seconds / devices if tokens else None
    space, advice = advice_.room(machine), ""
    if space is not None and need.peak > space:
        smaller = "a smaller eval_batch_size" if need.weights < 0.9 * space else "device_map: auto and more GPUs of a node"
        advice = f"does not fit: try {smaller}"
    spread = devices * machine.nodes if machine.device_map else None
    return Forecast(stage.name, machine, need, machine.eval_batch_size, 1, hours, rate, advice, spread)


def _time(kind: Kind, training: Training, model: Shape, machine: Machine, size: row_counts.Size, mean: float) -> tuple[float, float]:
    """Return hours, and tokens per second and GPU. `mean` is that of a conversation, or of a prompt with one answer."""
    assert machine.gpu is not None
    if not kind.on_pairs:
        per_row, longest = float(training.max_length), float(training.max_length)
    else:
        per_row = arithmetic.pair_tokens(size.prompt_tokens, size.answer_tokens, advice_.layout(kind, machine))
        longest = min(training.max_length, mean * arithmetic.PADDING)
    span = arithmetic.span(longest, mean, skips_masked=not advice_.dense_mask(kind, machine))
    work = arithmetic.Work(span, machine.activation_checkpointing, frozen=training.lora is not None)
    tokens = batches.steps(size.rows, training) * training.global_batch_size * per_row
    seconds = arithmetic.seconds(tokens * arithmetic.flops_per_token(model, work), GPUS[machine.gpu], machine.world_size, machine.precision)
    seconds /= arithmetic.DPO_SHARE if kind.is_round else 1
    return seconds / 3600, tokens / seconds / machine.world_size
