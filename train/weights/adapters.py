"""Adapters through PEFT (LoRA, DoRA, QLoRA): the weights that one sits on, and how it is started or continued.

In: a policy and the `lora` section of a stage. Out: the model as training sees it before its first step, and the same
model for scoring, so that a reference that is the start gives rewards of exactly 0.
"""

import importlib
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.pytorch_utils import Conv1D

from rounds.data_prep.errors import UserError
from rounds.data_prep.whole import whole
from rounds.train.config.cluster import Machine
from rounds.train.config.training import QUANTISATION, Lora
from rounds.train.engine import policy, ranks
from rounds.train.engine.batches import FOUR_BIT_IN_SHARDS
from rounds.train.engine.policy import Policy
from rounds.train.weights import models

_ADAPTED = (torch.nn.Linear, torch.nn.Embedding, Conv1D)
"""Layers of language models that PEFT adds an adapter to; quantised ones are kinds of them."""


def config(lora: Lora | None) -> LoraConfig | None:
    """Turn a recipe's `lora` section into PEFT's."""
    if lora is None:
        return None
    modules = lora.target_modules if isinstance(lora.target_modules, str) else list(lora.target_modules)
    knobs = lora.model_dump(exclude={"start", "target_modules", *QUANTISATION})
    return LoraConfig(task_type="CAUSAL_LM", target_modules=modules, **knobs)


def _apart(start: Policy, lora: Lora | None) -> Path | None:
    """Return the adapter that is not merged: the last one, where a stage goes on with adapters."""
    return start.adapters[-1] if lora is not None and lora.start == "continue" and start.adapters else None


def continued(start: Policy, lora: Lora | None) -> Path | None:
    """Return the adapter that a stage goes on with: None where it has none, or starts a new one.

    A round that may continue but whose start is full weights (a gate took the policy back to them) starts a new one.
    Raises `UserError` when the adapter at hand has another shape than the recipe's.
    """
    adapter, wanted = _apart(start, lora), config(lora)
    if adapter is None or wanted is None:
        return None
    found = LoraConfig.from_pretrained(str(adapter))
    for name in ("r", "lora_alpha", "use_dora", "use_rslora"):
        if getattr(found, name) != getattr(wanted, name):
            raise UserError(
                f"lora.start is `continue`, but the adapter of {adapter.parent.name} has {name} {getattr(found, name)} and this "
                f"stage says {getattr(wanted, name)}: give both the same, or set lora.start: merge"
            )
    return adapter


def merged_on_disk(start: Policy, machine: Machine, lora: Lora | None, cache: Path) -> Policy:
    """Return the same policy with what is to be merged already merged, in a folder in `cache`, where it must be before loading.

    Under ZeRO-3 no rank ever holds the whole model, and weights are quantised from a file. Rank 0 merges, the others find the
    folder. To be called before the trainer's arguments are made: from then on every model is loaded in shards.
    """
    apart = _apart(start, lora)
    below = replace(start, adapters=start.adapters[:-1]) if apart else start
    quantised = lora is not None and lora.load_in_4bit
    if not below.adapters or not (machine.zero_stage == 3 or quantised):
        return start
    with ranks.first():
        merged = _merged(below, machine, torch.float32 if quantised else models.training_dtype(machine), cache)
    return replace(merged, adapters=(apart,) if apart else ())


def _merged(start: Policy, machine: Machine, dtype: torch.dtype, cache: Path) -> Policy:
    """Merge a policy's adapters into a folder of its own in `cache`, unless it is there."""
    folder = cache / f"merged-{start.adapters[-1].parent.name}"
    if not folder.is_dir():
        with whole(folder) as partial:
            models.load_model(start, machine, dtype).save_pretrained(partial)
    return Policy(str(folder), None, (), start.tokenizer)


def load_start(start: Policy, machine: Machine, lora: Lora | None, cache: Path) -> PreTrainedModel:
    """Load the weights that training starts from, on the CPU, or quantised on this process's device.

    Everything that came before is merged into them, but for an adapter that the stage goes on with: its weights are set by
    `restore` once the trainer has made its modules. `cache` is a folder for merged weights that are to be quantised.
    """
    if _apart(start, lora):
        start = replace(start, adapters=start.adapters[:-1])
    if lora is not None and lora.load_in_4bit:
        model = _quantised(start, machine, lora, cache)
    else:
        model = models.load_model(start, machine, models.training_dtype(machine))
    check_targets(model, lora)
    return model


def check_targets(model: PreTrainedModel, lora: Lora | None) -> None:
    """Raise `UserError` for a name in `target_modules` that no layer has: PEFT trains on with the others, or says less."""
    wanted = config(lora)
    if wanted is None or wanted.target_modules == "all-linear":
        return
    given = wanted.target_modules
    layers = dict(model.named_modules())
    if isinstance(given, str):
        meant = {given: [name for name in layers if re.fullmatch(given, name)]}
    else:
        meant = {each: [name for name in layers if f".{name}".endswith(f".{each}")] for each in sorted(given or ())}
    lacking = [each for each, names in meant.items() if not names]
    others = [name for names in meant.values() for name in names if not isinstance(layers[name], _ADAPTED)]
    if lacking or others:
        kind = type(model).__name__
        wrong = (
            f"{kind} has no layer {', '.join(lacking)}"
            if lacking
            else f"{others[0]} of {kind} is a {type(layers[others[0]]).__name__}, to which no adapter can be added"
        )
        linear = {name.rpartition(".")[2] for name, module in layers.items() if isinstance(module, torch.nn.Linear)}
        raise UserError(
            f"lora.target_modules: {wrong}. Its linear layers are {', '.join(sorted(linear - {'lm_head'}))}; all-linear takes every one"
        )


def restore(model: Any, start: Policy, lora: Lora | None) -> None:
    """Give the trainer's new adapter the weights of the one that it continues; else do nothing."""
    adapter = continued(start, lora)
    if adapter is None:
        return
    weights = load_file(adapter / "adapter_model.safetensors")
    expected = get_peft_model_state_dict(model, save_embedding_layers=False)
    if weights.keys() != expected.keys():
        name = sorted(weights.keys() ^ expected.keys())[0]
        raise UserError(
            f"lora.start is `continue`, but the adapter of {adapter.parent.name} has other target_modules than this stage "
            f"({name} is in one of them only): give both the same, or set lora.start: merge"
        )
    set_peft_model_state_dict(model, weights)


def load_scorer(described: Policy, machine: Machine, lora: Lora | None, cache: Path) -> PreTrainedModel:
    """Load a policy on the row's device, in the arithmetic that a stage with this `lora` section trains it in."""
    model: Any = load_start(described, machine, lora, cache)
    adapter = _apart(described, lora)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, str(adapter)).get_base_model()  # its layers hold the adapter now
    if lora is not None and lora.load_in_4bit:
        return _as_trl_does(model).to(models.device_of(machine))
    if is_deepspeed_zero3_enabled():
        return model  # in shards, which DeepSpeed places
    return models.place(model, machine, as_in_training=True)


def _as_trl_does(model: Any) -> Any:
    """TRL trains adapters on quantised weights in bf16, but for DoRA's magnitudes."""
    for name, parameter in model.named_parameters():
        if "lora_" in name and "lora_magnitude_vector" not in name:
            parameter.data = parameter.data.to(torch.bfloat16)
    return model


def _quantised(start: Policy, machine: Machine, lora: Lora, cache: Path) -> PreTrainedModel:
    """Load weights in 4 bits (Dettmers et al. 2023). What was merged is quantised as a whole, from a folder in `cache`."""
    reason = four_bit_obstacle(machine)
    if reason:
        raise UserError(reason)
    models.check_attention(machine)
    if start.adapters:
        start = _merged(start, machine, torch.float32, cache)
    dtype = torch.bfloat16 if machine.precision == "bf16" else torch.float32
    settings = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=lora.bnb_4bit_quant_type,
        bnb_4bit_use_double_quant=lora.bnb_4bit_use_double_quant,
        bnb_4bit_compute_dtype=dtype,
    )
    on_gpu = models.device_of(machine) == "cuda"
    return AutoModelForCausalLM.from_pretrained(
        start.weights,
        revision=start.revision or "main",
        dtype=dtype,
        attn_implementation=machine.attn_implementation,
        use_safetensors=True,
        trust_remote_code=False,
        quantization_config=settings,
        device_map={"": torch.cuda.current_device()} if on_gpu else None,
    )


def four_bit_obstacle(machine: Machine) -> str | None:
    """Say why weights in 4 bits cannot be used on a row here, or return None."""
    if machine.zero_stage == 3:
        return FOUR_BIT_IN_SHARDS
    try:
        importlib.import_module("bitsandbytes")
    except Exception as error:  # its own import looks for CUDA libraries and fails in many ways
        return (
            f"lora.load_in_4bit needs bitsandbytes, which cannot be used here ({type(error).__name__}: "
            f"{str(error).splitlines()[0] if str(error) else 'no message'}). Install it with pip install 'rounds[qlora]', or train "
            f"the adapter on unquantised weights: remove load_in_4bit"
        )
    return None


def write_policy(out: Path, start_folder: Path, lora: Lora | None) -> None:
    """Describe the policy that a training stage leaves: full weights, a new adapter, or one that was continued."""
    if lora is None:
        policy.write_weights(out, start_folder)
    else:
        goes_on = continued(policy.read(start_folder), lora) is not None
        policy.write_adapter(out, start_folder, continues=goes_on)
