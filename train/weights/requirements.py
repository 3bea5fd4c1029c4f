"""What a cluster row asks for and a machine cannot give: a GPU, FlashAttention, Liger's kernels, weights in 4 bits, DeepSpeed, vLLM.

Asked before the first stage of a run starts (train/launch/local.py) and by preflight on every node: a stage that found it out by
itself would do so after hours of those before it. What to ask is found without torch; only the answer imports it.
"""

import contextlib
import io
import subprocess
from collections.abc import Iterable

from pydantic import ValidationError

from rounds.data_prep.errors import UserError
from rounds.train.config.cluster import Cluster, Machine
from rounds.train.config.decoding import EngineName
from rounds.train.config.training import Lora
from rounds.train.engine import ranks
from rounds.train.engine.graph import Stage, parents_first
from rounds.train.engine.kinds import KINDS
from rounds.train.engine.params import AnswersParams, DpoParams, ReferenceParams, Requirement, RewardParams, SftParams, Trial

_SECONDS_TO_ANSWER = 120
"""A Python on a cold shared file system."""


def asks(stages: Iterable[Stage], cluster: Cluster) -> list[Requirement]:
    """Return what the stages that load a model ask for, each once."""
    found: list[Requirement] = []
    for stage in stages:
        if not (stage.kind.loads_policy or stage.kind.loads_judge):
            continue
        lora = _lora(stage)
        machine = cluster.machine(stage.row, stage.name)
        sets = stage.params.sets if isinstance(stage.params, AnswersParams) else ()
        engines: tuple[EngineName, ...] = tuple(dict.fromkeys(each.engine for each in sets))
        four_bit = bool(lora and lora.load_in_4bit)
        mine = Requirement(stages=(), function=stage.kind.name, machine=machine, load_in_4bit=four_bit, engines=engines)
        known = next((n for n, each in enumerate(found) if each.model_copy(update={"stages": ()}) == mine), None)
        if known is None:
            found.append(mine.model_copy(update={"stages": (stage.name,)}))
        else:
            found[known] = mine.model_copy(update={"stages": (*found[known].stages, stage.name)})
    return found


def trials(base: Stage, stages: Iterable[Stage], cluster: Cluster) -> tuple[Trial, ...]:
    """Return what the stages that will load what `base` starts ask of it, each by its own row; of what is no start, none. A reference is
    tried out with its round."""
    if not base.kind.starts:
        return ()
    return tuple(
        Trial(
            stages=(stage.name,),
            function=stage.kind.name,
            params=stage.params.stored(),
            machine=cluster.machine(stage.row, stage.name),
        )
        for stage in stages
        if stage.kind.loads_policy and not stage.kind.scores_pairs and base.key in {each.key for each in parents_first([stage])}
    )


def _lora(stage: Stage) -> Lora | None:
    if isinstance(stage.params, SftParams | DpoParams | RewardParams):
        return stage.params.training.lora
    return stage.params.lora if isinstance(stage.params, ReferenceParams) else None


def unusable(ask: Requirement) -> list[str]:
    """Say all that cannot be had here of what stages ask for; nothing where they can run."""
    from rounds.train.weights import adapters, models

    row = ask.machine
    try:
        models.device_of(row)
    except UserError as error:
        return [str(error)]  # without the GPU the rest would only say so again
    found = [models.attention_obstacle(row)]
    if KINDS[ask.function].trains:
        found.append(models.liger_obstacle(row))
    if KINDS[ask.function].spread:
        found.append(_deepspeed_obstacle(row))
    if "vllm" in ask.engines:
        found.append(vllm_obstacle(row))
    if ask.load_in_4bit:
        found.append(adapters.four_bit_obstacle(row))
    return [reason for reason in found if reason]


def vllm_obstacle(machine: Machine) -> str | None:
    """Say why a row cannot run the engine `vllm` here, or return None."""
    python = machine.engine_python
    if python is None:
        return (
            "`engine: vllm` needs `engine_python` in the cluster file's row `generate`: the Python of an environment with vLLM, which "
            "cannot share this one"
        )
    code = "import importlib.util, sys; sys.exit(0 if importlib.util.find_spec('vllm') else 3)"
    try:
        done = subprocess.run([python, "-I", "-c", code], capture_output=True, timeout=_SECONDS_TO_ANSWER)
    except (OSError, subprocess.SubprocessError) as error:
        return f"engine_python: {python} cannot be run: {error}"
    return f"engine_python: {python} has no package vllm: install it there, or name another" if done.returncode else None


def _deepspeed_obstacle(machine: Machine) -> str | None:
    """Say what DeepSpeed would refuse of a row's file; what it does not know beside `zero_optimization` it passes over."""
    if machine.deepspeed is None:
        return None
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it says which accelerator it found
            from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    except ImportError as error:
        return f"the row's `deepspeed` needs the package deepspeed, which cannot be imported here: {error}"
    try:
        DeepSpeedZeroConfig.model_validate(machine.deepspeed["zero_optimization"])
    except ValidationError as error:
        wrong = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}; found {e['input']!r}" for e in error.errors()]
        return f"the DeepSpeed file's zero_optimization: {'. '.join(wrong)}. DeepSpeed's fields: www.deepspeed.ai/docs/config-json"
    return None


def too_few_gpus(ask: Requirement) -> str | None:
    """Say why a row's processes cannot have a GPU each on this machine, or return None."""
    import torch

    wanted = ranks.processes(KINDS[ask.function], ask.machine)[1]
    seen = torch.cuda.device_count()
    if ask.machine.device == "cpu" or not torch.cuda.is_available() or wanted <= seen:
        return None
    return f"processes: {wanted}, and torch sees {seen} GPUs here: lower it, or set device: cpu"
