"""The schema of a recipe, and `load`: YAML in, one frozen `Recipe` out, or one message that says what to mend.

Every field has its meaning, unit and default here and nowhere else. Trainer knobs keep TRL's and transformers' names.
What changes where or how fast a stage runs is not in a recipe but in `recipes/clusters/`.
"""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from rounds.data_prep.schema import Filters, FilterUse, Mix, Section, SourceUse
from rounds.train.config import yaml_file

LossType = Literal[
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired", "apo_zero",
    "apo_down", "discopop", "sft", "sigmoid_norm",
]  # fmt: skip
"""TRL's DPO loss types; a test holds them against TRL's own."""
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=60)]
Count = Annotated[int, Field(gt=0)]
Positive = Annotated[float, Field(gt=0)]


class Tiny(Section):
    """A small random Llama with a BPE tokenizer trained on the instruction set: no download, learns in minutes."""

    kind: Literal["tiny"]
    hidden_size: Count = 192
    """Width of the residual stream; a multiple of num_attention_heads."""
    intermediate_size: Count = 512
    """Width of the feed-forward layers."""
    num_hidden_layers: Count = 3
    num_attention_heads: Count = 6
    vocab_size: Annotated[int, Field(ge=300)] = 2048
    """Size that the BPE tokenizer grows to, control tokens included."""
    max_position_embeddings: Count = 512
    """Longest sequence, in tokens."""
    tie_word_embeddings: bool = True
    """Share the input and output embeddings."""
    chat_template: str = "chat_templates/llama3.jinja"
    """Jinja file of the chat template; relative to the recipe, or one of the project's own."""
    tokenizer_data: Mix | None = None
    """Conversations to train the tokenizer on; None takes the sft data. Give it where there is no SFT."""

    @model_validator(mode="after")
    def _heads_fit(self) -> "Tiny":
        if self.hidden_size % (2 * self.num_attention_heads):
            raise ValueError(
                f"hidden_size {self.hidden_size} does not divide into {self.num_attention_heads} heads of an even width; "
                f"nearest that does: {max(1, round(self.hidden_size / 2 / self.num_attention_heads)) * 2 * self.num_attention_heads}"
            )
        return self


class Local(Section):
    """A Hugging Face model folder on this machine: config, safetensors weights, tokenizer."""

    kind: Literal["local"]
    path: str
    """The folder; relative to the recipe. Its contents, not its path, are part of the stage key."""
    chat_template: str | None = None
    """Jinja file to use instead of the tokenizer's own template; needed where the tokenizer has none."""


class Hub(Section):
    """A model on the Hugging Face hub."""

    kind: Literal["hub"]
    id: str
    """Repository, such as `meta-llama/Meta-Llama-3-8B-Instruct`."""
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]
    """Full commit hash. A branch name would let the same recipe mean different weights."""
    chat_template: str | None = None
    """Jinja file to use instead of the tokenizer's own template; needed where the tokenizer has none."""


Base = Annotated[Tiny | Local | Hub, Field(discriminator="kind")]


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

    r: Annotated[int, Field(gt=0)] = 16
    """Rank of the update."""
    lora_alpha: Positive = 32
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
        named = (
            any(name.rpartition(".")[2] == "lm_head" for name in value)
            if isinstance(value, tuple)
            else _matches(value, "lm_head")
        )
        if named:
            raise ValueError("target_modules names lm_head: an adapter there would never be trained; take it out")
        return value

    def same_adapter(self, other: "Lora | None") -> bool:
        """Tell whether an adapter of `other` can be trained further under this section."""
        fields = ("r", "lora_alpha", "target_modules", "use_dora", "use_rslora", *QUANTISATION)
        return other is not None and all(getattr(self, name) == getattr(other, name) for name in fields)


class Training(Section):
    """Optimizer knobs that SFT and DPO share, under transformers' names."""

    learning_rate: Positive
    """Peak learning rate."""
    num_train_epochs: Positive = 1.0
    """Passes over the data."""
    global_batch_size: Annotated[int, Field(gt=0, le=1_000_000)]
    """Packed rows (SFT) or pairs (DPO) per optimizer step over all devices; accumulation is computed from it."""
    per_device_train_batch_size: Annotated[int, Field(gt=0)] | None = None
    """Pairs of a micro-batch, for the DPO losses `aot`, `aot_unpaired` and `sft`, which look at them together; it takes the place of
    the cluster row's micro_batch_size there. All others give the same answer whatever the micro-batch, so that is the row's."""
    max_length: Annotated[int, Field(gt=1)]
    """Tokens per packed row (SFT), or per prompt plus answer (DPO)."""
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "cosine"
    """Shape of the learning rate after warm-up."""
    warmup_steps: Annotated[float, Field(ge=0)] = 0.1
    """Warm-up: steps, or a share of all steps when below 1 (transformers 5)."""
    optim: Literal["adamw_torch", "adamw_torch_fused", "rmsprop", "sgd"] = "adamw_torch"
    """Optimizer. The paper used AdamW for SFT and RMSprop for DPO."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    adam_beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    adam_beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    max_grad_norm: Positive = 1.0
    """Gradients are clipped to this norm."""
    lora: Lora | None = None
    """Train an adapter instead of all weights."""
    stop_on_loss_above: float | None = None
    """The run has diverged when the loss, in nats, stays above this: the stage stops, keeps its last good checkpoint and says
    why. None stops only for a loss or gradient that is no number. Set it well above the first loss."""
    stop_after_steps: Annotated[int, Field(gt=0)] = 10
    """How many steps in a row the loss must be above `stop_on_loss_above`."""


class Sft(Training):
    """Supervised fine-tuning on the answers of conversations."""

    data: Mix
    """Sources under `sources`, each a name or {name, max_rows, keep_fraction, epochs, share}."""
    filters: Filters | None = None
    """Filters for this set in place of the recipe's own."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01

    @model_validator(mode="after")
    def _micro_batch_is_the_clusters(self) -> "Sft":
        if self.per_device_train_batch_size is not None:
            raise ValueError("per_device_train_batch_size: SFT's loss is the mean over the tokens of the whole global batch, whatever the "
                             "micro-batch; set micro_batch_size in the cluster file")  # fmt: skip
        return self


class Rule(Section):
    """One condition on one metric, comparing the round's new policy with the one it started from."""

    metric: str
    """`task/metric` as in scores.json: `clinic_facts/acc`, `preferences/accuracy`, `conversations/loss`, ..."""
    may_fall_by: Annotated[float, Field(ge=0)] | None = None
    may_rise_by: Annotated[float, Field(ge=0)] | None = None
    must_rise_by: Annotated[float, Field(ge=0)] | None = None
    must_fall_by: Annotated[float, Field(ge=0)] | None = None
    at_least: float | None = None
    """The new policy's own value, whatever the old one's."""
    at_most: float | None = None
    unit: Literal["stderr", "absolute"] = "stderr"
    """Unit of the four differences: standard errors of the paired difference over the same items, or the metric's own."""

    @model_validator(mode="after")
    def _one_condition(self) -> "Rule":
        given = [name for name in self.conditions() if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"a rule needs exactly one of {', '.join(self.conditions())}; found {given or 'none'}")
        return self

    @staticmethod
    def conditions() -> tuple[str, ...]:
        """Name the fields of which a rule sets exactly one."""
        return ("may_fall_by", "may_rise_by", "must_rise_by", "must_fall_by", "at_least", "at_most")


class Gate(Section):
    """Decides after a round whether its policy goes on."""

    rules: Annotated[tuple[Rule, ...], Field(min_length=1)]
    """The new policy is accepted when all hold."""
    on_reject: Literal["continue", "stop"] = "continue"
    """`continue`: the next round starts from the policy before this round. `stop`: later rounds are skipped."""


SORTING_LOSSES = {"aot", "aot_unpaired"}
"""Losses that compare sorted margins, each with that of another pair (Melnyk et al. 2024)."""
BATCH_LOSSES = SORTING_LOSSES | {"sft"}
"""Losses whose value depends on which pairs share a micro-batch: those, and `sft`, a mean over its tokens."""
F_DIVERGENCE_LOSSES = {"sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop", "sft"}
"""Losses of the difference of two rewards, in which a divergence's normaliser cancels; TRL takes no other."""


def _named(names: set[str]) -> str:
    return ", ".join(sorted(names))


def _listed(value: Any) -> Any:
    """Let a recipe write one name, or none, where a list of names would do."""
    return [] if value is None else [value] if isinstance(value, str) else value


class DpoLoss(Section):
    """What a round's loss is, under TRL's names."""

    beta: Positive = 0.1
    """Strength of the pull to the reference."""
    loss_type: Annotated[tuple[LossType, ...], Field(min_length=1), BeforeValidator(_listed)] = ("sigmoid",)
    """One of TRL's DPO loss types, or several, summed with `loss_weights`."""
    loss_weights: tuple[float, ...] | None = None
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
    discopop_tau: Positive = 0.05
    """Temperature of the loss type `discopop`."""

    @model_validator(mode="after")
    def _weights_match(self) -> "DpoLoss":
        if self.loss_weights is not None and len(self.loss_weights) != len(self.loss_type):
            raise ValueError(
                f"loss_weights has {len(self.loss_weights)} values for {len(self.loss_type)} loss types: give one each"
            )
        return self

    @model_validator(mode="after")
    def _trl_computes_it(self) -> "DpoLoss":
        """Refuse at planning what DPOTrainer refuses when it is made, hours later."""
        asked: set[str] = set(self.loss_type)
        if "exo_pair" in asked and not self.label_smoothing:
            raise ValueError(
                "loss_type exo_pair takes the logarithm of label_smoothing: set that above 0 (its paper says 0.001)"
            )
        if self.use_weighting and asked & SORTING_LOSSES:
            raise ValueError(
                f"use_weighting weighs each pair, and {_named(asked & SORTING_LOSSES)} takes pairs apart: set it to false"
            )
        if self.f_divergence_type != "reverse_kl" and asked - F_DIVERGENCE_LOSSES:
            raise ValueError(f"f_divergence_type {self.f_divergence_type} is not defined for {_named(asked - F_DIVERGENCE_LOSSES)}: "
                             f"leave it out, or take of {', '.join(sorted(F_DIVERGENCE_LOSSES))}")  # fmt: skip
        return self


class Round(Training, DpoLoss):
    """One round of Direct Preference Optimization (Rafailov et al. 2023), starting from the last accepted policy."""

    name: Name
    """Unique in the recipe; later rounds may name it as their reference."""
    data: Mix
    """Sources of pairs under `sources`, each a name or {name, max_rows, keep_fraction, epochs, share}."""
    filters: Filters | None = None
    """Filters for this set in place of the recipe's own."""
    reference: str = "previous"
    """Policy that the loss is measured against: `previous` (where the round starts), `sft`, `base`, or an earlier round."""
    gate: Gate | None = None
    """Gate for this round in place of the recipe's own."""

    @model_validator(mode="after")
    def _micro_batch_is_said_where_it_counts(self) -> "Round":
        own, together = self.per_device_train_batch_size, BATCH_LOSSES.intersection(self.loss_type)
        if together and own is None:
            raise ValueError(
                f"per_device_train_batch_size: {_named(together)} looks at the pairs of a micro-batch together, so the answer depends "
                "on how many they are: say it here, such as 8"
            )
        if own is not None and not together:
            raise ValueError(f"per_device_train_batch_size: only for {_named(BATCH_LOSSES)}, whose answer depends on it; set "
                             "micro_batch_size in the cluster file")  # fmt: skip
        if own is not None and self.global_batch_size % own:
            raise ValueError(
                f"per_device_train_batch_size {own} does not divide global_batch_size {self.global_batch_size}"
            )
        return self


class TaskUse(Section):
    """One lm-eval task."""

    task: str
    """A file in recipes/eval_tasks, or any task or group that lm-eval ships."""
    name: Name | None = None
    """What its scores are called; None takes the task's own name."""
    source: str | None = None
    """For tasks of recipes/eval_tasks: the name under `sources` whose questions are asked."""
    num_fewshot: Annotated[int, Field(ge=0)] = 0
    limit: Annotated[int, Field(gt=0)] | None = None
    """Ask only the first this many."""

    @property
    def label(self) -> str:
        """The name that heads the task's metrics."""
        return self.name or self.task


def _task(value: Any) -> Any:
    return {"task": value} if isinstance(value, str) else value


class Evaluate(Section):
    """What is measured on the base model, after SFT and after every round."""

    tasks: tuple[Annotated[TaskUse, BeforeValidator(_task)], ...] = ()
    """lm-eval tasks; with the chat template applied, zero-shot unless a task says otherwise."""
    preferences: Annotated[tuple[str, ...], BeforeValidator(_listed)] = ()
    """A source of held-out pairs, or several: share and margin of pairs whose chosen answer the policy finds likelier, of all
    together and, where there are several, of each (`preferences/accuracy/NAME`)."""
    conversations: str | None = None
    """A source of held-out conversations: loss on their answers, in nats per token."""
    num_answers: Annotated[int, Field(ge=0)] = 64
    """How many held-out prompts to answer greedily, for the mean length of answers."""
    max_new_tokens: Annotated[int, Field(gt=0)] = 64
    """Longest greedy answer, in tokens."""
    max_length: Annotated[int, Field(gt=1)] = 2048
    """Longest sequence in evaluation, in tokens."""

    @model_validator(mode="after")
    def _labels_differ(self) -> "Evaluate":
        labels = [task.label for task in self.tasks]
        for label in labels:
            if labels.count(label) > 1 or label in ("preferences", "conversations", "answers"):
                raise ValueError(f"two measurements are called {label!r}: give each task a `name` of its own")
        if len(set(self.preferences)) < len(self.preferences):
            raise ValueError(f"preferences: a source stands twice in {', '.join(self.preferences)}")
        return self


class Export(Section):
    """The finished model folder."""

    model_name: str | None = None
    """Name on the model card; None takes the recipe's name."""
    licence: str | None = None
    """Licence of the resulting weights, for the model card. You know what your base and data allow; we do not."""


class Wandb(Section):
    """Weights & Biases: one group per run, one job per stage. Without a key it records offline."""

    project: str = "rounds"
    entity: str | None = None


def _wandb(value: Any) -> Any:
    """YAML 1.1 reads `wandb: off` as false and `on` as true."""
    return None if value in (False, "off") else {} if value in (True, "on") else value


class Recipe(Section):
    """A whole run: base model, data, SFT, DPO rounds with gates, evaluation, export."""

    name: Name
    """Name of the run: heads the report and groups its jobs in wandb."""
    description: str = ""
    """One line for the report and the model card."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of mixing, initialisation and training."""
    base: Base
    """Where the weights start: {kind: hub | local | tiny, ...}."""
    sources: Annotated[dict[Name, SourceUse], Field(min_length=1)]
    """Named sets of rows; each is fetched once, by a stage of its own."""
    filters: Filters = (FilterUse(name="exact_dedup"), FilterUse(name="decontaminate"))
    """Filters for every training set, in order, each a name or {name, its settings}."""
    benchmarks: tuple[Name, ...] | None = None
    """Registered sets whose test splits no training row may come from, besides all that the recipe evaluates on. None: the
    usual medical exams and preference sets, where the recipe reads the hub; see train/plan/held_out.py."""
    allow_unlicensed: tuple[Name, ...] = ()
    """Names under `sources` that may be used though no licence is stated for them; any other such source is refused."""
    sft: Sft | None = None
    """Supervised fine-tuning; without it the rounds start from the base model."""
    rounds: tuple[Round, ...] = ()
    """DPO rounds, in order."""
    evaluate: Evaluate | None = None
    """What is measured between the rounds."""
    gate: Gate | None = None
    """Gate of every round that has none of its own; None lets every round's policy go on."""
    export: Export = Export()
    published_steps: dict[Name, Count] | None = None
    """Optimizer steps that a publication reports, by `sft` or a round's name; `rounds plan` prints them beside ours."""
    wandb: Annotated[Wandb | None, BeforeValidator(_wandb)] = Wandb()
    """`off` switches it off."""

    @model_validator(mode="after")
    def _names_are_free(self) -> "Recipe":
        names = [round.name for round in self.rounds]
        for place, name in enumerate(names):
            if name in names[:place]:
                raise yaml_file.FieldError(
                    f"two rounds are named {name!r}; give each its own name", "rounds", place, "name"
                )
            if name in ("previous", "sft", "base"):
                message = f"a round may not be named {name!r}: `reference` uses that word"
                raise yaml_file.FieldError(message, "rounds", place, "name")
        return self


def load(path: Path, overrides: tuple[str, ...] = ()) -> Recipe:
    """Read a recipe, apply `--set` overrides such as `rounds.second.beta=0.05`, check it, and return it.

    Local paths become absolute: those in the file relative to its folder, those in overrides to the current one.
    Raises `UserError` with file, line, field, what was found and expected, and the nearest valid name.
    """
    return yaml_file.load(path, Recipe, overrides)
