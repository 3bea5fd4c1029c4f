"""What the stages of a run will do with its base, tried out on a cut-down model of the same architecture before anything is paid for.

In: the folder of stage `base`, and what each later stage that loads the policy asks (`engine.params.Trial`). Out: nothing, or a
`UserError` that names the stage, the cause and the way on. Each kind's own code makes one step, on a CPU in fp32, with random weights.

A model is refused only where a cut-down one runs forward by itself and a stage fails on it, and fails again on one that is cut less
where that is small enough: what cannot be cut down is tried by its stages.
"""

import json
import logging
import shutil
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import transformers
import trl
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from rounds.data_prep.errors import UserError
from rounds.train.config.cluster import Machine
from rounds.train.config.slurm import Resources
from rounds.train.config.training import Lora, Training
from rounds.train.engine import params, policy, worker
from rounds.train.engine.kinds import KINDS, REFERENCE, Kind
from rounds.train.engine.params import AnswersParams, DpoParams, EvaluateParams, ReferenceParams, Trial
from rounds.train.engine.records import PAIRS, ROWS
from rounds.train.weights import adapters, cut_down, models

logger = logging.getLogger(__name__)

_LARGEST = 100_000_000
"""Parameters of the model that is cut less: with gradients and a copy on disk about 1.5 GB, and some seconds."""
_HERE: dict[str, Any] = {
    "device": "cpu",
    "precision": "fp32",
    "deepspeed": None,
    "nodes": 1,
    "processes": 1,
    "use_liger_kernel": False,
    "device_map": None,
    "micro_batch_size": 2,
    "eval_batch_size": 4,
    "save_steps": None,
    "save_minutes": None,
    "slurm": Resources(),
}
_TEACHING: dict[str, Any] = {
    "learning_rate": 1e-4,
    "global_batch_size": 2,
    "max_length": 64,
    "optim": "sgd",
    "lr_scheduler_type": "constant",
    "warmup_steps": 0.0,
}
_LENGTHS = (9, 14)
_SECONDS = 60
"""No more trials are begun after so many: on a busy machine some are better than none."""


@dataclass(frozen=True)
class _Step:
    """A trial with its params read."""

    stages: str
    kind: Kind
    asked: Any
    machine: Machine

    @property
    def lora(self) -> Lora | None:
        return self.asked.training.lora if self.kind.trains else None

    @property
    def row(self) -> str:
        return f"the cluster file's row `{self.kind.row}`" + (" (`infer` where there is none)" if self.kind.row == "generate" else "")


def run(folder: Path, trials: Sequence[Trial], machine: Machine) -> None:
    """Try out what stages will ask of the policy that `folder` begins with. Raises `UserError` for what they would die of."""
    described = policy.read(folder)
    config = AutoConfig.from_pretrained(described.weights, revision=described.revision or "main", trust_remote_code=False)
    whole = cut_down.on_paper(config)
    steps = [_read(trial) for trial in trials]
    for step in steps:
        adapters.check_targets(whole, step.lora)
    _refuse_attention_that_is_not_there(steps, whole)
    if (folder / "model").is_dir():
        return  # of our own making: a Llama
    began, small = time.monotonic(), _Small(config, whole, folder / "cache" / "trial")
    for step in _each_once(steps, machine, whole):
        if time.monotonic() - began > _SECONDS:
            logger.warning("%s: not tried out on a cut-down model, as others took long enough", step.stages)
            continue
        _try(step, small)
    logger.info("%s: tried out on a cut-down model in %.1f s", ", ".join(step.stages for step in steps), time.monotonic() - began)


def _read(trial: Trial) -> _Step:
    kind = KINDS[trial.function]
    return _Step(", ".join(trial.stages), kind, params.record_of(kind).read_stored(trial.params), trial.machine)


def _refuse_attention_that_is_not_there(steps: Iterable[_Step], whole: PreTrainedModel) -> None:
    """Refuse, for all rows at once, attention that the model's class does not have: no weights are needed to tell."""
    there = {"eager"} | ({"sdpa"} if whole._supports_sdpa else set()) | ({"flash_attention_2"} if whole._supports_flash_attn else set())
    wrong: dict[str, list[str]] = {}
    for step in steps:
        if step.machine.attn_implementation not in there:
            wrong.setdefault(f"{step.row} says attn_implementation: {step.machine.attn_implementation}", []).append(step.stages)
    if wrong:
        told = "; ".join(f"{says} ({', '.join(stages)})" for says, stages in wrong.items())
        raise UserError(f"{type(whole).__name__} does not have it: {told}. Set attn_implementation: {' or '.join(sorted(there))} there")


def _each_once(steps: Iterable[_Step], machine: Machine, whole: PreTrainedModel) -> list[_Step]:
    """Reduce what stages ask to what a trial looks at; those that are alike in it are one, with all their names."""
    found: dict[str, _Step] = {}
    for step in steps:
        row = step.machine.model_copy(update={**_HERE, "threads": machine.threads})
        if row.attn_implementation == "flash_attention_2":  # which wants a GPU
            row = row.model_copy(update={"attn_implementation": "sdpa" if whole._supports_sdpa else "eager"})
        asked = _reduced(step.asked)
        key = json.dumps([step.kind.name, asked.stored(), row.model_dump(mode="json")], sort_keys=True)
        stages = f"{found[key].stages}, {step.stages}" if key in found else step.stages
        found[key] = _Step(stages, step.kind, asked, row)
    return list(found.values())


def _reduced(asked: Any) -> Any:
    """Take the size of a training out of its params: one step that learns."""
    if isinstance(asked, EvaluateParams):
        return asked.model_copy(update={"tasks": (), "averages": {}, "max_length": 64})
    if isinstance(asked, AnswersParams):
        engines = {each.engine: each.model_copy(update={"name": each.engine, "max_rows": 1, "system_prompt": None}) for each in asked.sets}
        return asked.model_copy(update={"sets": tuple(engines.values()), "max_length": 64, "seed": 0})
    training = asked.training
    own, lora = training.per_device_train_batch_size, training.lora
    changes = {**_TEACHING, "router_aux_loss_coef": training.router_aux_loss_coef, "per_device_train_batch_size": own and 2}
    changes["lora"] = lora and lora.model_copy(update={"load_in_4bit": False, "start": "merge", "r": min(lora.r, 4)})
    reduced = asked.model_copy(update={"training": Training(**changes), "seed": 0})
    if isinstance(reduced, DpoParams):
        return reduced.model_copy(update={"dpo": reduced.dpo.model_copy(update={"beta": 0.1}), "reference_is_start": True})
    return reduced


class _Small:
    """The cut-down models of one config, each written when it is first wanted."""

    def __init__(self, config: PreTrainedConfig, whole: PreTrainedModel, folder: Path) -> None:
        self.config, self.whole, self.folder = config, whole, folder
        self.known: dict[bool, PreTrainedConfig | None] = {}

    def config_of(self, narrow: bool) -> PreTrainedConfig | None:
        """Return the config; None where it cannot be made, is too large, or its model does not even run forward."""
        if narrow not in self.known:
            try:
                self.known[narrow] = self._made(narrow)
            except Exception as error:  # whatever a model's code makes of sizes that nobody published
                logger.info("not cut down%s: %s", " in width" if narrow else " in layers alone", _said(error))
                self.known[narrow] = None
        return self.known[narrow]

    def place(self, narrow: bool) -> Path:
        """Return the folder in which it is a base, with rows beside it."""
        return self.folder / ("narrow" if narrow else "shallow")

    def _made(self, narrow: bool) -> PreTrainedConfig | None:
        small = cut_down.cut(self.config, self.whole, narrow)
        if sum(each.numel() for each in cut_down.on_paper(small).parameters()) > _LARGEST:
            return None
        torch.manual_seed(0)
        model = cut_down.build(small, "eager").eval()
        with torch.no_grad():
            model(input_ids=_ids(max(_LENGTHS))[None], use_cache=False)
        _write_base(model, self.place(narrow))
        return small


def _try(step: _Step, small: _Small) -> None:
    failed: list[tuple[Exception, PreTrainedConfig, Path]] = []
    for narrow in (True, False):
        config = small.config_of(narrow)
        if config is None:
            continue
        error = _ends_in(step, config, small.place(narrow))
        if error is None:
            return
        failed.append((error, config, small.place(narrow)))
    if not failed:
        logger.warning("%s: %s cannot be cut down, so it was not tried out", step.stages, small.config.model_type)
        return
    error, config, place = failed[0]
    raise UserError(
        f"{step.stages}: one step on a cut-down model of this architecture ({_size(config)}, random weights) ends in {_said(error)}. "
        f"{_way_on(step, config, place)}"
    ) from error


def _size(config: PreTrainedConfig) -> str:
    text = config.get_text_config()
    return f"{config.model_type}, {text.num_hidden_layers} layers of width {text.hidden_size}"


def _said(error: Exception) -> str:
    """Return what an error says in one line."""
    if isinstance(error, UserError):
        return str(error)
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")
    return f"{type(error).__name__}: {line[:300]}"


def _ids(length: int, first: int = 3) -> torch.Tensor:
    return torch.arange(first, first + length)


def _write_base(model: PreTrainedModel, place: Path) -> None:
    """Write what the stages before training leave: a base, packed conversations, and pairs."""
    shutil.rmtree(place, ignore_errors=True)
    words = {f"w{number}": number for number in range(cut_down.VOCABULARY)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="w0")), bos_token="w0", eos_token="w1", pad_token="w2"
    )
    base = place / "base"
    models.save_model(model, tokenizer, base / "model")
    tokenizer.save_pretrained(base / "tokenizer")
    policy.write_base(base, "model", None)
    for name in ("pack", "tokenize"):
        (place / name).mkdir()
    ids = [number for length in _LENGTHS for number in _ids(length).tolist()]
    labels = [-100 if at in (0, _LENGTHS[0]) else number for at, number in enumerate(ids)]
    pq.write_table(pa.table({"input_ids": [ids] * 2, "labels": [labels] * 2, "seq_lengths": [list(_LENGTHS)] * 2}), place / "pack" / ROWS)
    prompts = [_ids(length).tolist() for length in _LENGTHS]
    sides = {f"{side}_ids": [_ids(length, 30 + 30 * n).tolist() for length in _LENGTHS] for n, side in enumerate(("chosen", "rejected"))}
    pq.write_table(pa.table({"id": ["a", "b"], "prompt_ids": prompts, **sides}), place / "tokenize" / PAIRS)


def _ends_in(step: _Step, config: PreTrainedConfig, place: Path) -> Exception | None:
    """Let a stage's own code make its step; returns what it fails of."""
    out = _new(place / step.kind.name)
    inputs = {"policy": place / "base"}
    try:
        asked = _with_layers_that_are_left(step, config)
        if step.kind.measures or step.kind.writes:
            _measure(asked, inputs["policy"], step.machine)
            return None
        if step.kind.on_pairs:
            inputs["pairs"] = place / "tokenize"
        else:
            inputs["rows"] = place / "pack"
        if step.kind.is_round:
            scored = _new(place / REFERENCE.name)
            worker.code_of(REFERENCE)(ReferenceParams(), inputs, scored, step.machine)
            inputs["reference"] = scored
        worker.code_of(step.kind)(asked, inputs, out, step.machine)
    except Exception as error:  # what it may be is what the trial is for
        logger.info("the trial of %s ends in %s", step.stages, _said(error), exc_info=not isinstance(error, UserError))
        return error
    return None


def _new(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def _with_layers_that_are_left(step: _Step, config: PreTrainedConfig) -> Any:
    """Adapt what is left of the layers that a recipe names, or all linear ones: it may name one by a number that was cut away."""
    if step.lora is None:
        return step.asked
    try:
        adapters.check_targets(cut_down.on_paper(config), step.lora)
    except UserError:
        return _with(step.asked, lora=step.lora.model_copy(update={"target_modules": "all-linear"}))
    return step.asked


def _with(asked: Any, **changes: Any) -> Any:
    return asked.model_copy(update={"training": asked.training.model_copy(update=changes)})


@torch.no_grad()
def _measure(asked: EvaluateParams | AnswersParams, base: Path, machine: Machine) -> None:
    """Score rows that begin with padding, or write two tokens after them, as an evaluation does. What another engine writes is its own."""
    if isinstance(asked, AnswersParams) and all(each.engine != "transformers" for each in asked.sets):
        return
    model: Any = models.load_to_score(policy.read(base), machine)
    ids = _ids(max(_LENGTHS)).repeat(2, 1)
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    if isinstance(asked, AnswersParams):
        model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=2, do_sample=False, pad_token_id=2)
    else:
        model(input_ids=ids, attention_mask=mask)


def _way_on(step: _Step, config: PreTrainedConfig, place: Path) -> str:
    """Say what to change: the first of the changes that are known to help under which the step is made."""
    ways: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
        (f"set attn_implementation: {name} in {step.row}", {"attn_implementation": name}, {})
        for name in ("eager", "sdpa")
        if name != step.machine.attn_implementation
    ]
    if step.machine.activation_checkpointing:
        ways.append((f"take activation_checkpointing out of {step.row}", {"activation_checkpointing": False}, {}))
    if step.machine.pair_batching != "padded":
        ways.append((f"set pair_batching: padded in {step.row}", {"pair_batching": "padded"}, {}))
    if step.kind.trains and not step.kind.is_judge:
        ways.append(("set router_aux_loss_coef: 0 in the recipe", {}, {"router_aux_loss_coef": 0.0}))
    if step.lora:
        ways.append(("train all weights, or an adapter of other target_modules: take `lora` out of the recipe", {}, {"lora": None}))
    for told, machine, training in ways:
        asked = _with(step.asked, **training) if training else step.asked
        if _ends_in(replace(step, asked=asked, machine=step.machine.model_copy(update=machine)), config, place) is None:
            return f"With one change it is made: {told}"
    return (
        f"transformers {transformers.__version__} and TRL {trl.__version__} do not make this step for this kind of model: take another "
        "base, or versions that do"
    )
