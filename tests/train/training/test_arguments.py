"""Every knob of a recipe is one that the trainers have, so an upgrade of TRL breaks a test and not a run."""

from dataclasses import fields
from inspect import signature
from pathlib import Path
from typing import Any, get_args

import pytest
from peft import LoraConfig
from transformers import BitsAndBytesConfig
from transformers.trainer_utils import SchedulerType
from transformers.training_args import OptimizerNames
from trl import DPOConfig, RewardConfig, SFTConfig

from rounds.train.config import recipe
from rounds.train.config.cluster import Machine
from rounds.train.config.recipe import Local
from rounds.train.config.reward import Trained
from rounds.train.config.training import BATCH_LOSSES, QUANTISATION, Lora, Round, Sft, Training
from rounds.train.engine import params, worker
from rounds.train.plan.pipeline import Plan, build_plan
from rounds.train.training import arguments
from rounds.train.weights import adapters

REPOSITORY = Path(__file__).resolve().parents[3]
RECIPES = sorted((REPOSITORY / "recipes").glob("*.yaml"))

# Ours: read by a stage of our own, or turned into what the trainers have by `training.arguments`.
OWN_TRAINING = {"global_batch_size", "lora", "stop_on_loss_above", "stop_after_steps"}
OWN_SFT = {"data", "filters", "each_answer"}
OWN_ROUND = {"name", "data", "sample", "rank", "pairs", "filters", "reference", "gate"}
OWN_TRAINED = {"kind", "data", "filters", "policy", "max_missing_share"}
LOSS_TYPES = ["sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired",
              "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm"]  # fmt: skip
KNOBS: dict[str, Any] = {"learning_rate": 1e-3, "global_batch_size": 6, "max_length": 64}


def names(config: type) -> set[str]:
    return {field.name for field in fields(config)}


def test_every_sft_knob_is_trls():
    assert set(Sft.model_fields) - OWN_TRAINING - OWN_SFT <= names(SFTConfig)


def test_every_dpo_knob_is_trls():
    assert set(Round.model_fields) - OWN_TRAINING - OWN_ROUND <= names(DPOConfig)


def test_every_knob_of_a_reward_model_is_trls():
    assert set(Trained.model_fields) - OWN_TRAINING - OWN_TRAINED - {"router_aux_loss_coef"} <= names(RewardConfig)


def test_every_lora_knob_is_pefts():
    assert set(Lora.model_fields) - {"start"} - set(QUANTISATION) <= names(LoraConfig)
    assert set(QUANTISATION) <= set(signature(BitsAndBytesConfig).parameters)


def test_what_is_ours_is_not_a_trainers_by_accident():
    assert (OWN_TRAINING | OWN_SFT | OWN_ROUND | OWN_TRAINED).isdisjoint(names(SFTConfig) | names(DPOConfig) | names(RewardConfig))
    assert set(Training.model_fields) >= OWN_TRAINING and set(Sft.model_fields) >= OWN_SFT
    assert set(Round.model_fields) >= OWN_ROUND


def choices(field: str) -> tuple[str, ...]:
    return get_args(Training.model_fields[field].annotation)


def test_every_optimizer_and_schedule_on_offer_is_known_to_transformers():
    assert set(choices("optim")) <= {name.value for name in OptimizerNames}
    assert set(choices("lr_scheduler_type")) <= {name.value for name in SchedulerType}


CPU = Machine(device="cpu", threads=1)


@pytest.mark.parametrize("optim", choices("optim"))
@pytest.mark.parametrize("schedule", choices("lr_scheduler_type"))
def test_the_arguments_build_both_configs(tmp_path: Path, optim: str, schedule: str):
    asked = Training(**KNOBS, optim=optim, lr_scheduler_type=schedule, weight_decay=0.1, warmup_steps=3)  # type: ignore[arg-type]
    for config in (SFTConfig, DPOConfig, RewardConfig):
        made = config(**arguments.arguments(asked, CPU, 9, tmp_path))
        assert (made.optim, made.lr_scheduler_type, made.learning_rate) == (optim, schedule, 1e-3)
        assert (made.weight_decay, made.warmup_steps, made.seed, made.data_seed) == (0.1, 3, 9, 9)
        assert made.per_device_train_batch_size * made.gradient_accumulation_steps == 6
        assert made.report_to == [] and made.remove_unused_columns is False


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_every_loss_type_of_trl_is_accepted(tmp_path: Path, loss_type: str):
    own = {"per_device_train_batch_size": 2} if loss_type in BATCH_LOSSES else {}
    item = Round(name="r", data=({"name": "a"},), **KNOBS, **own, loss_type=(loss_type,), label_smoothing=0.1)  # type: ignore[arg-type]
    made = DPOConfig(
        loss_type=list(item.loss_type),
        label_smoothing=0.1,
        **arguments.arguments(item_training(item), CPU, 0, tmp_path),
    )
    assert made.loss_type == [loss_type]


def item_training(item: Round) -> Training:
    return Training.model_validate(item.model_dump(include=set(Training.model_fields)))


def test_the_loss_types_are_all_that_trl_computes():
    """Read from TRL's own help, since the config takes any text."""
    described = next(field for field in fields(DPOConfig) if field.name == "loss_type").metadata["help"]
    named = {word.strip("`'\".,") for word in described.replace("[", " ").replace("]", " ").split() if word[:1] in "`'\""}
    assert {name for name in named if name and name != "loss_weights"} <= set(LOSS_TYPES) | {""}


def test_lora_becomes_pefts_config():
    made = adapters.config(Lora(r=3, lora_alpha=6, lora_dropout=0.1, target_modules=("q_proj", "v_proj")))
    assert made is not None and (made.r, made.lora_alpha, made.lora_dropout) == (3, 6, 0.1)
    assert made.target_modules == {"q_proj", "v_proj"} and made.task_type == "CAUSAL_LM"
    everything = adapters.config(Lora())
    assert everything is not None and everything.target_modules == "all-linear"
    assert adapters.config(None) is None


# Params of planned stages


def plan(file: Path, root: Path) -> Plan:
    read, overrides = recipe.load(file), []
    for name, use in read.sources.items():
        if use.path:
            (root / name).write_text("{}\n")
            overrides.append(f"sources.{name}.path={root / name}")
    if isinstance(read.base, Local):
        (root / "base").mkdir()
        overrides.append(f"base.path={root / 'base'}")
    return build_plan(recipe.load(file, tuple(overrides)), root / "store", file.parent)


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_the_params_of_every_planned_stage_are_what_its_code_reads(file: Path, tmp_path: Path):
    checked = set()
    for stage in plan(file, tmp_path).stages:
        assert callable(worker.code_of(stage.kind))
        section = params.record_of(stage.kind)
        given = stage.params.stored()
        assert section.read_stored(given, stage.params.beside()).stored() == given, "a param is read as something else"
        checked.add(stage.kind.name)
    assert {"base", "evaluate", "export", "pack", "sft"} <= checked
