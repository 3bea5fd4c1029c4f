"""What a recipe says of training: SFT's and a round's data, optimizer, adapter and loss, under TRL's and PEFT's names."""

import re
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from rounds.data_prep.schema import Between, FieldError, Filters, Later, Mix, Name, Section, listed
from rounds.train.config.evaluation import Gate
from rounds.train.config.judging import PairRules, Rank
from rounds.train.config.sampling import SAMPLED, Sampling

LossType = Literal[
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired", "apo_zero",
    "apo_down", "discopop", "sft", "sigmoid_norm",
]  # fmt: skip
"""TRL's DPO loss types; a test holds them against TRL's own."""


def _matches(pattern: str, name: str) -> bool:
    """Tell whether a pattern, as PEFT reads it, fits a layer's name."""
    try:
        return re.fullmatch(pattern, name) is not None
    except re.error as error:
        raise ValueError(f"{pattern!r} is no regular expression of layers' names: {error}") from None


QUANTISATION = ("load_in_4bit", "bnb_4bit_quant_type", "bnb_4bit_use_double_quant")
"""Fields of `Lora` that are transformers' BitsAndBytesConfig's."""


class Lora(Section):
    """Low-rank adapters (Hu et al. 2021) through PEFT, under PEFT's names; with `use_dora` DoRA (Liu et al. 2024), with
    `load_in_4bit` QLoRA (Dettmers et al. 2023).

    The reference of a DPO round is a policy, not a way to load one: `previous` is the policy before the round with its
    adapters applied, `base` is the base model with every adapter off.
    """

    r: Annotated[int, Between(1, 8192, "from the width of the layers on, an update is of full rank and none is spared")] = 16
    """Rank of the update."""
    lora_alpha: Annotated[float, Between(1e-3, 1e5, "the update is scaled by lora_alpha / r, a number near 1")] = 32
    """The update is scaled by lora_alpha / r."""
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout on the adapter's input during SFT; DPO turns dropout off."""
    target_modules: str | tuple[str, ...] = "all-linear"
    """Which linear layers get an adapter; PEFT's `all-linear` leaves out the LM head."""
    use_dora: bool = False
    """Train the magnitude of each weight column apart from its direction: often better at small ranks, slower."""
    use_rslora: bool = False
    """Scale the update by lora_alpha / sqrt(r) (Kalajdzievski 2023); for ranks of 64 and more."""
    start: Literal["merge", "continue"] = "merge"
    """`merge`: the adapter of the stage before becomes part of the weights, and a new one starts at zero. `continue`: that
    adapter is trained further; it needs the same r, lora_alpha and target_modules there."""
    load_in_4bit: bool = False
    """QLoRA: hold the frozen weights in 4 bits through bitsandbytes. The adapter is later merged into the unquantised ones."""
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = "nf4"
    """4-bit data type; nf4 suits weights that are normally distributed, as trained ones are."""
    bnb_4bit_use_double_quant: bool = True
    """Quantise the quantisation constants too: saves 0.4 bits a weight."""

    @field_validator("target_modules")
    @classmethod
    def _head_is_not_adapted(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        """Refuse what TRL's trainers refuse: they multiply by the LM head's own weight, past any adapter on it."""
        named = any(name.rpartition(".")[2] == "lm_head" for name in value) if isinstance(value, tuple) else _matches(value, "lm_head")
        if named:
            raise ValueError("target_modules names lm_head: an adapter there would never be trained; take it out")
        return value

    def same_adapter(self, other: "Lora | None") -> bool:
        """Tell whether an adapter of `other` can be trained further under this section."""
        fields = ("r", "lora_alpha", "target_modules", "use_dora", "use_rslora", *QUANTISATION)
        return other is not None and all(getattr(self, name) == getattr(other, name) for name in fields)


_DECAY = Between(0, 10, "a weight shrinks by learning_rate x weight_decay at each step, which must be far below 1")


class Training(Section):
    """Optimizer knobs that SFT and DPO share, under transformers' names."""

    learning_rate: Annotated[float, Between(1e-12, 10, "below, fp32 rounds every step of a weight away; above, every optimizer diverges")]
    """Peak learning rate."""
    num_train_epochs: Annotated[float, Between(1e-6, 1000, "a thousand passes learn the rows by heart")] = 1.0
    """Passes over the data."""
    global_batch_size: Annotated[int, Field(gt=0, le=1_000_000)]
    """Packed rows (SFT) or pairs (DPO) per optimizer step over all devices; accumulation is computed from it."""
    per_device_train_batch_size: Annotated[int, Between(1, 65536, "a device holds no more pairs at once")] | None = None
    """Pairs of a micro-batch, for the DPO losses `aot`, `aot_unpaired` and `sft`, which look at them together; it takes the place of
    the cluster row's micro_batch_size there. All others give the same answer whatever the micro-batch, so that is the row's."""
    max_length: Annotated[int, Between(8, 10_000_000, "a chat template alone takes some tokens, and no model reads more")]
    """Tokens per packed row (SFT), or per prompt plus answer (DPO)."""
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "cosine"
    """Shape of the learning rate after warm-up."""
    warmup_steps: Annotated[float, Between(0, 10_000_000, "no run has more steps")] = 0.1
    """Warm-up: steps, or a share of all steps when below 1 (transformers 5)."""
    optim: Literal["adamw_torch", "adamw_torch_fused", "rmsprop", "sgd"] = "adamw_torch"
    """Optimizer. The paper used AdamW for SFT and RMSprop for DPO."""
    weight_decay: Annotated[float, _DECAY] = 0.0
    """Share by which a weight shrinks at each step, times the learning rate."""
    adam_beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    adam_beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    max_grad_norm: Annotated[float, Between(1e-6, 1e9, "below, nothing is learnt; a million is as good as no limit")] = 1.0
    """Gradients are clipped to this norm."""
    lora: Lora | None = None
    """Train an adapter instead of all weights."""
    router_aux_loss_coef: Annotated[float | None, Field(ge=0, le=1), Later(None)] = None
    """Mixtures of experts: weight of the loss that keeps the router's load balanced, added to that of SFT and DPO. None is the one of
    the model's own config, 0 trains without. It is balanced within each micro-batch, as transformers does it, so the cluster row's
    `micro_batch_size` changes it a little (in the third digit, measured); how many ranks there are does not."""
    stop_on_loss_above: Annotated[float, Between(-1000, 1000, "guessing at random costs about 12 nats a token")] | None = None
    """The run has diverged when the loss, in nats, stays above this: the stage stops, keeps its last good checkpoint and says
    why. None stops only for a loss or gradient that is no number. Set it well above the first loss."""
    stop_after_steps: Annotated[int, Between(1, 1_000_000, "longer, and it would never stop")] = 10
    """How many steps in a row the loss must be above `stop_on_loss_above`."""


class Sft(Training):
    """Supervised fine-tuning on the answers of conversations."""

    data: Mix
    """Sources under `sources`, each a name or {name, max_rows, keep_fraction, epochs, share}."""
    filters: Filters | None = None
    """Filters for this set in place of the recipe's own."""
    each_answer: Annotated[bool, Later(False)] = False
    """For chat templates that write an answer otherwise once there is more, as Qwen3's and gpt-oss's do: a row of its own for each answer
    that is not learnt in its conversation, up to that answer. Off learns the last answer of each conversation there."""
    weight_decay: Annotated[float, _DECAY] = 0.01

    @model_validator(mode="after")
    def _micro_batch_is_the_clusters(self) -> "Sft":
        if self.per_device_train_batch_size is not None:
            raise ValueError(
                "per_device_train_batch_size: SFT's loss is the mean over the tokens of the whole global batch, whatever the "
                "micro-batch; set micro_batch_size in the cluster file"
            )
        return self


SORTING_LOSSES = {"aot", "aot_unpaired"}
"""Losses that compare sorted margins, each with that of another pair (Melnyk et al. 2024)."""


BATCH_LOSSES = SORTING_LOSSES | {"sft"}
"""Losses whose value depends on which pairs share a micro-batch: those, and `sft`, a mean over its tokens."""


F_DIVERGENCE_LOSSES = {"sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop", "sft"}
"""Losses of the difference of two rewards, in which a divergence's normaliser cancels; TRL takes no other."""


def _named(names: set[str]) -> str:
    return ", ".join(sorted(names))


class DpoLoss(Section):
    """What a round's loss is, under TRL's names."""

    beta: Annotated[float, Between(1e-5, 100, "below, the loss does not see the pairs; above, it is flat on both sides of 0")] = 0.1
    """Strength of the pull to the reference."""
    loss_type: Annotated[tuple[LossType, ...], Field(min_length=1), BeforeValidator(listed)] = ("sigmoid",)
    """One of TRL's DPO loss types, or several, summed with `loss_weights`."""
    loss_weights: tuple[Annotated[float, Between(0, 1000, "a negative weight would teach the opposite")], ...] | None = None
    """One weight per loss type; None is 1.0 each."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Assumed share of flipped labels, for the losses that use it."""
    f_divergence_type: Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"] = "reverse_kl"
    """Divergence from the reference that the loss regularises by (Wang et al. 2023); DPO's own is reverse_kl."""
    f_alpha_divergence_coef: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Alpha of `alpha_divergence`."""
    use_weighting: bool = False
    """Weight each pair by how likely the policy finds it (WPO, Zhou et al. 2024): off-policy pairs count less."""
    ld_alpha: Annotated[float, Field(ge=0, le=1)] | None = None
    """LD-DPO (Liu et al. 2024): weight of the tokens by which the longer answer outlasts the shorter; None is 1, as in DPO."""
    discopop_tau: Annotated[float, Between(1e-4, 100, "its paper takes 0.05; far off, one of its two losses is all that is left")] = 0.05
    """Temperature of the loss type `discopop`."""

    @model_validator(mode="after")
    def _weights_match(self) -> "DpoLoss":
        if self.loss_weights is not None and len(self.loss_weights) != len(self.loss_type):
            raise ValueError(f"loss_weights has {len(self.loss_weights)} values for {len(self.loss_type)} loss types: give one each")
        return self

    @model_validator(mode="after")
    def _trl_computes_it(self) -> "DpoLoss":
        """Refuse at planning what DPOTrainer refuses when it is made, hours later."""
        asked: set[str] = set(self.loss_type)
        if "exo_pair" in asked and not self.label_smoothing:
            raise ValueError("loss_type exo_pair takes the logarithm of label_smoothing: set that above 0 (its paper says 0.001)")
        if self.use_weighting and asked & SORTING_LOSSES:
            raise ValueError(f"use_weighting weighs each pair, and {_named(asked & SORTING_LOSSES)} takes pairs apart: set it to false")
        if self.f_divergence_type != "reverse_kl" and asked - F_DIVERGENCE_LOSSES:
            raise ValueError(
                f"f_divergence_type {self.f_divergence_type} is not defined for {_named(asked - F_DIVERGENCE_LOSSES)}: "
                f"leave it out, or take of {', '.join(sorted(F_DIVERGENCE_LOSSES))}"
            )
        return self


class Round(Training, DpoLoss):
    """One round of Direct Preference Optimization (Rafailov et al. 2023), starting from the last accepted policy."""

    name: Name
    """Unique in the recipe; later rounds may name it as their reference."""
    data: Mix
    """Sources of pairs under `sources`, each a name or {name, max_rows, keep_fraction, epochs, share}; `sampled` are the pairs that are
    made of the policy's own answers."""
    sample: Annotated[Sampling | None, Later(None)] = None
    """Let the policy that the round starts from answer prompts; None trains on ready-made pairs alone."""
    rank: Annotated[Rank | None, Later(None)] = None
    """Who ranks these answers."""
    pairs: Annotated[PairRules | None, Later(None)] = None
    """How pairs are made of ranked answers; None takes the defaults."""
    filters: Filters | None = None
    """Filters for this set in place of the recipe's own."""
    reference: str = "previous"
    """Policy that the loss is measured against: `previous` (where the round starts), `sft`, `base`, or an earlier round."""
    gate: Gate | None = None
    """Gate for this round in place of the recipe's own."""

    @model_validator(mode="after")
    def _samples_become_pairs(self) -> "Round":
        if self.sample is None:
            for field in ("rank", "pairs"):
                if getattr(self, field) is not None:
                    raise FieldError("goes with `sample`, which says whose answers to which prompts: add that, or take this out", field)
            return self
        if self.rank is None:
            raise FieldError("required with `sample`: names of judges, such as {by: [gold]}", "rank")
        if all(item.name != SAMPLED for item in self.data):
            raise FieldError(f"names no {SAMPLED!r}, so what `sample` asks for would be for nothing: add it, or take `sample` out", "data")
        if self.sample.max_new_tokens >= self.max_length:
            told = (
                f"expected less than the round's max_length {self.max_length}, found {self.sample.max_new_tokens}: a prompt stands before"
            )
            raise FieldError(told, "sample", "max_new_tokens")
        return self

    @model_validator(mode="after")
    def _micro_batch_is_said_where_it_counts(self) -> "Round":
        own, together = self.per_device_train_batch_size, BATCH_LOSSES.intersection(self.loss_type)
        if together and own is None:
            raise ValueError(
                f"per_device_train_batch_size: {_named(together)} looks at the pairs of a micro-batch together, so the answer depends "
                "on how many they are: say it here, such as 8"
            )
        if own is not None and not together:
            raise ValueError(
                f"per_device_train_batch_size: only for {_named(BATCH_LOSSES)}, whose answer depends on it; set "
                "micro_batch_size in the cluster file"
            )
        if own is not None and self.global_batch_size % own:
            raise ValueError(f"per_device_train_batch_size {own} does not divide global_batch_size {self.global_batch_size}")
        return self
