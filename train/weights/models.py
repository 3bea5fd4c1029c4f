"""Weights and tokenizers, from a `Policy` and back. Safetensors only; remote code is never run."""

import logging
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import is_flash_attn_2_available, is_liger_kernel_available

from rounds.data_prep.errors import UserError
from rounds.train.config.cluster import Machine
from rounds.train.engine.policy import Policy
from rounds.train.tokens import chat
from rounds.train.weights import experts, merging

logger = logging.getLogger(__name__)


def device_of(machine: Machine) -> str:
    """Return the torch device that a cluster row means here. Raises `UserError` for `cuda` without a GPU."""
    if machine.device == "cuda" and not torch.cuda.is_available():
        raise UserError("the cluster file says device: cuda, but torch sees no GPU here; set device: cpu or auto")
    return "cuda" if machine.device != "cpu" and torch.cuda.is_available() else "cpu"


def attention_obstacle(machine: Machine) -> str | None:
    """Say why a row's attention cannot run here, or return None."""
    if machine.attn_implementation != "flash_attention_2":
        return None
    lacks = []
    if device_of(machine) == "cpu":
        lacks.append("a GPU, and there is none here or the row says device: cpu")
    if machine.precision != "bf16":
        lacks.append(f"precision: bf16, and the row says {machine.precision}")
    if not is_flash_attn_2_available():
        lacks.append("the package flash-attn (2.3.3 or newer), which is not installed")
    if not lacks:
        return None
    return (
        f"attn_implementation: flash_attention_2 needs {'; '.join(lacks)}. Set that right, or take the line out of the cluster "
        "file: sdpa needs nothing more, and on a GPU in bf16 runs the FlashAttention that torch brings"
    )


def check_attention(machine: Machine) -> None:
    """Raise `UserError` for a row whose attention cannot run here."""
    reason = attention_obstacle(machine)
    if reason:
        raise UserError(reason)


def liger_obstacle(machine: Machine) -> str | None:
    """Say why the row's Liger kernels cannot run here, or return None."""
    if not machine.use_liger_kernel or (device_of(machine) == "cuda" and is_liger_kernel_available()):
        return None
    return (
        "the cluster row says use_liger_kernel: true, which needs a GPU and the package liger-kernel (pip install "
        "liger-kernel): install it, or take the line out"
    )


def set_threads(machine: Machine) -> None:
    """Use as many CPU threads as the row says."""
    if machine.threads:
        torch.set_num_threads(machine.threads)


def open_folder(where: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Open a Hugging Face model folder without its weights, which stay on torch's meta device: only the headers of their files are
    compared with the config.

    Raises `UserError` for a folder that cannot be used, and where weights are missing, damaged, or of other sizes than the
    config says: transformers would draw them at random and train on. Weights that the model does not use are a warning.
    """
    try:
        config = AutoConfig.from_pretrained(where, trust_remote_code=False)
        tokenizer = without_place(AutoTokenizer.from_pretrained(where, trust_remote_code=False))
    except Exception as error:  # each model's config checks itself, with errors of its own kind
        raise UserError(f"{where} is not a usable Hugging Face model folder: {said(error)}") from error
    if method := (getattr(config, "quantization_config", None) or {}):
        raise UserError(
            f"{where}: its weights are quantised ({dict(method).get('quant_method', 'by a method without a name')}), and such weights "
            "cannot be trained or merged into: take the model before its quantisation; lora.load_in_4bit quantises it for training"
        )
    try:
        opened: Any = AutoModelForCausalLM.from_pretrained(
            where,
            config=config,
            attn_implementation="eager",  # a config may name a kernel on the hub, which transformers would fetch and run
            device_map="meta",
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            use_safetensors=True,
            trust_remote_code=False,
        )
    except Exception as error:
        raise UserError(f"the weights in {where} cannot be opened as safetensors: {said(error)}") from error
    model, found = opened
    for what, names in (
        ("have other sizes than its config.json says", [name for name, *_ in found["mismatched_keys"]]),
        ("are not there", found["missing_keys"]),
    ):
        if names:
            raise UserError(
                f"{where}: {len(names)} of the model's weights {what}, such as {min(names)}; take config.json and weights from one place"
            )
    if found["unexpected_keys"]:
        logger.warning(
            "%s: the model that config.json describes does not use %d of the weights, such as %s",
            where,
            len(found["unexpected_keys"]),
            min(found["unexpected_keys"]),
        )
    return model, tokenizer


def check_finite(folder: Path, says: str) -> None:
    """Read weights back, one tensor at a time: under ZeRO-3 no rank has them whole. Raises `UserError`, which `says` what it means,
    for the first tensor with a value that is no finite number."""
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118
                tensor = weights.get_tensor(name)
                tensor = tensor.float() if tensor.is_floating_point() and tensor.itemsize == 1 else tensor
                if not torch.isfinite(tensor).all():
                    raise UserError(f"{says.format(name=name)}")


def said(error: Exception) -> str:
    """Return the beginning of what an error says, in one line."""
    return textwrap.shorten(str(error), 300, placeholder=" ...")


def load_tokenizer(policy: Policy) -> PreTrainedTokenizerBase:
    """Load the run's tokenizer, with its chat template."""
    return without_place(AutoTokenizer.from_pretrained(policy.tokenizer))


def without_place(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Forget how a tokenizer was read, which transformers would write into its config: HF_HUB_OFFLINE changed an exported file."""
    for name in ("is_local", "local_files_only"):
        tokenizer.init_kwargs.pop(name, None)
    return tokenizer


def place(model: PreTrainedModel, machine: Machine, as_in_training: bool = False) -> PreTrainedModel:
    """Put a model on the row's device. With precision bf16 its weights become bf16 too, unless `as_in_training`, where
    they stay fp32 and `autocast` computes in bf16."""
    if machine.precision == "bf16" and not as_in_training:
        cast(model, torch.bfloat16)
    torch.nn.Module.to(model, device=device_of(machine))  # in place; the class's own `to` hides its type
    return model


def autocast(machine: Machine) -> torch.autocast:
    """Return the arithmetic of a forward pass in training on this row. Under DeepSpeed the weights themselves are bf16."""
    enabled = machine.precision == "bf16" and machine.deepspeed is None
    return torch.autocast(device_of(machine), dtype=torch.bfloat16, enabled=enabled)


def arithmetic(machine: Machine) -> str:
    """Name what a pass in training computes in: two rows that differ in it agree on a log-probability only roughly."""
    return "bf16 autocast over fp32 weights" if machine.precision == "bf16" and machine.deepspeed is None else machine.precision


def training_dtype(machine: Machine) -> torch.dtype:
    """Return the type of the weights while training: fp32 with autocast above it, or DeepSpeed's bf16 with fp32 masters."""
    return torch.bfloat16 if machine.deepspeed is not None and machine.precision == "bf16" else torch.float32


def load_to_score(policy: Policy, machine: Machine) -> PreTrainedModel:
    """Load a policy for evaluation, on the row's device or, with its `device_map`, spread over all GPUs."""
    if machine.device_map is None:
        return place(load_model(policy, machine), machine).eval()
    dtype = torch.bfloat16 if machine.precision == "bf16" else torch.float32
    return load_model(policy, machine, dtype, machine.device_map).eval()


def load_model(
    policy: Policy, machine: Machine, dtype: Any = torch.float32, device_map: str | None = None, attention: str | None = None
) -> PreTrainedModel:
    """Load the weights, merge the adapters into them in order, and return the model on the CPU, or where `device_map` says.

    `dtype` is torch's, or "auto" for that of the files. `attention` takes the place of the row's.

    Raises `UserError` when the weights are not where the policy says, or the row's attention cannot run here.
    """
    if attention is None:
        check_attention(machine)
        attention = machine.attn_implementation
    try:
        model = AutoModelForCausalLM.from_pretrained(
            policy.weights,
            revision=policy.revision or "main",
            dtype=dtype,
            device_map=device_map,
            attn_implementation=attention,
            use_safetensors=True,
            trust_remote_code=False,
        )
    except OSError as error:
        raise UserError(f"cannot load the model {policy.weights}: {str(error).splitlines()[0]}") from error
    except ValueError as error:
        if "attn_implementation" not in str(error):
            raise
        raise UserError(
            f"the model in {policy.weights} has no attention through {attention}: set another attn_implementation in the cluster file, "
            f"such as eager ({said(error)})"
        ) from error
    _let_it_be_saved(model)
    if experts.obstacle(model.config):
        model.config.get_text_config().output_router_logits = False  # TRL's LM head would compute a loss that it cannot
    if policy.adapters:
        model = merging.merged(model, policy.adapters)
    return model.requires_grad_(True)  # PEFT froze what it merged into


def cast(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Give all weights a type. Buffers stay: rotary frequencies in bf16 turn far positions by the wrong angle."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    for config in (model.config, model.config.get_text_config()):
        config.dtype = dtype


def generation_settings(policy: Policy) -> GenerationConfig:
    """Return how a policy's model was published to write: sampling, penalties, tokens; empty where it says nothing."""
    try:
        found = GenerationConfig.from_pretrained(policy.weights, revision=policy.revision or "main")
    except OSError:
        return GenerationConfig()
    return _that_can_be_saved(found)


def end_tokens(settings: Sequence[GenerationConfig | None], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokens that end an answer: the one that the chat template ends a turn with, and those that settings of generation name."""
    stop: Any = tokenizer.convert_tokens_to_ids(chat.check_template(tokenizer))
    known = [each.eos_token_id for each in settings if each]
    return sorted({stop, *(token for each in known if each is not None for token in (each if isinstance(each, list) else [each]))})


def _let_it_be_saved(model: PreTrainedModel) -> None:
    """Take settings of generation that contradict each other from a model: transformers loads such a file, and refuses to save it,
    after hours of training. Some published models have them: a temperature beside `do_sample: false`. Tokens stay."""
    model.generation_config = _that_can_be_saved(model.generation_config)


def _that_can_be_saved(settings: Any) -> Any:
    try:
        settings.validate(strict=True)
    except ValueError as error:
        told = "; ".join(line.strip() for line in str(error).splitlines() if line.startswith("- "))
        logger.warning("of the model's generation_config.json only the special tokens are kept: %s", told or error)
        names = ("bos_token_id", "eos_token_id", "pad_token_id")
        tokens = {name: getattr(settings, name) for name in names}
        return GenerationConfig(**{name: n for name, n in tokens.items() if n != -1})
    return settings


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write an ordinary Hugging Face folder: safetensors, config, generation config, tokenizer and chat template."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def count_parameters(model: torch.nn.Module) -> dict[str, int]:
    """Count all and trainable parameters, tied ones once, and those that ZeRO-3 has sharded whole (DeepSpeed's `ds_numel`)."""
    sizes = [(getattr(p, "ds_numel", p.numel()), p.requires_grad) for p in model.parameters()]
    return {
        "parameters": sum(size for size, _ in sizes),
        "trainable_parameters": sum(size for size, trainable in sizes if trainable),
    }
