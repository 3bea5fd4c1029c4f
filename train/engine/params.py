"""What each kind of stage is asked to do, as frozen records: what `plan/` writes, `stage.json` holds, and the stages, the forecast
and the preview read. They stand without torch. Those of `source` and `data` are in `data_prep/schema.py`.
"""

import importlib
from functools import cache
from typing import Annotated, Any, Literal

from pydantic import Field

from rounds.data_prep.schema import Beside, DataParams, Later, Section
from rounds.train.config.cluster import Machine, RowName
from rounds.train.config.decoding import Decoding, EngineName
from rounds.train.config.evaluation import Gate, Published
from rounds.train.config.judging import Judge, PairRules, Rank
from rounds.train.config.recipe import Start
from rounds.train.config.training import DpoLoss, Lora, Training
from rounds.train.engine.kinds import Kind


@cache
def record_of(kind: Kind) -> type[Section]:
    """Return the class of a kind's params."""
    module, _, name = kind.params.partition(":")
    return getattr(importlib.import_module(module), name)


class BaseParams(Section):
    """The start model."""

    base: Start
    chat_template: str | None
    """Text of the template to use instead of the tokenizer's own."""
    seed: Annotated[int | None, Later(None)] = None
    """Of a tiny model's random weights."""


class PackParams(Section):
    """Conversations to packed rows of tokens."""

    max_length: int
    each_answer: Annotated[bool, Later(False)] = False
    """An answer that is not learnt in its conversation, since the chat template writes it otherwise there, has a row that ends with it."""


class TokenizeParams(Section):
    """Pairs to rows of tokens."""

    max_length: int
    whole: Annotated[bool, Later(False)] = False
    """With what the chat template writes after the token that ends an answer, such as ChatML's newline: a reward model reads it too, and
    its score stands at the last token."""


class PromptsParams(DataParams):
    """Sources to prompts: filtered and mixed as training sets are, and divided into parts."""

    parts: int


class SftParams(Section):
    """Supervised fine-tuning."""

    training: Training
    seed: int


class ReferenceParams(Section):
    """Log-probabilities under the reference."""

    lora: Annotated[Lora | None, Later(None)] = None
    """The round's, where it changes the arithmetic: weights in 4 bits, or an adapter that stays apart."""


class DpoParams(Section):
    """One round of DPO."""

    training: Training
    dpo: DpoLoss
    reference_is_start: bool
    """The reference is the policy that training starts from, so the first loss is known."""
    seed: int


class RewardParams(Section):
    """A reward model."""

    training: Training
    seed: int
    center_rewards_coefficient: Annotated[float | None, Later(None)] = None


class CardParams(Section):
    """What is asked of a judge to know it by."""

    name: str
    """What the recipe calls it."""
    judge: Judge


class Task(Section):
    """One task: of lm-eval by its name, or asking a source's questions, by a file whose text stands here or as this project scores choices
    itself."""

    task: str
    name: str
    source: str | None
    num_fewshot: int
    limit: int | None
    yaml: str | None

    @property
    def built_in(self) -> bool:
        """Whether the likelihoods of its choices are computed without lm-eval."""
        return self.source is not None and self.yaml is None


class EvaluateParams(Section):
    """What a policy is asked."""

    tasks: tuple[Task, ...]
    max_length: int
    averages: Annotated[dict[str, tuple[str, ...]], Later({})] = Field(default_factory=dict)
    """Scores that are means of others."""
    too_long: Literal["drop", "fail"] = "drop"


class PromptSet(Decoding):
    """Prompts to answer; the input `prompts.NAME` has them."""

    name: str
    max_rows: int | None
    system_prompt: str | None
    """Text that is said first where a prompt says nothing first."""
    part: Annotated[int | None, Later(None)] = None
    """Of a set in parts (`train/generation/parts.py`) the one to answer, from 1; None answers all."""


class AnswersParams(Section):
    """What a policy writes. Nothing of what is made of it: another metric, or another judge, writes nothing anew."""

    sets: tuple[PromptSet, ...]
    max_length: int
    """Longest prompt with its answer, in tokens."""
    seed: int


class RankParams(Section):
    """What a judge is asked of a round's answers."""

    judge: Judge
    """With the text of its rubric in place of the file."""
    name: Annotated[str, Beside()] = ""
    """What the recipe calls it."""


class PairsParams(Section):
    """Ranked answers to pairs."""

    rank: Rank
    rules: PairRules
    seed: int


class ApiAnswersParams(Section):
    """What a model behind an endpoint writes; what that may cost, and at which address, is in no key."""

    model: str
    """What the endpoint calls it."""
    sets: tuple[PromptSet, ...]
    seed: int
    endpoint: str
    """Its name in the cluster file: two servers may call their models alike."""
    allow_outside: Annotated[bool, Beside()] = False
    max_calls: Annotated[int, Beside()]
    max_tokens: Annotated[int, Beside()]
    max_missing_share: Annotated[float, Beside()] = 0.05
    """Above this share of answers that were not to be had the stage stops."""


class JudgeParams(RankParams):
    """What a judge is asked of two policies' answers; where it may be asked is as for `rank`."""

    metric: str
    """Heads the metrics, as in `METRIC/winrate`."""
    answers: str
    """The set of answers; the inputs have it as `NAME.parquet`."""


class GateParams(Gate):
    """The rules that decide."""


class Known(Section):
    """What the recipe and the registry say of a source beyond what its stage does."""

    licence: str | None
    verified: bool
    origin: str


class ManifestParams(Section):
    """What is written down about the rows beyond what their stages counted."""

    name: str
    description: str
    sources: dict[str, Known]
    missing_benchmarks: tuple[str, ...]
    unknown_tasks: tuple[str, ...]


class ExportParams(Section):
    """What the model card says beyond what the stages did."""

    name: str
    description: str
    licence: str | None
    licences: dict[str, str]
    """Licences that the recipe states, by source name."""
    base: Start
    language: Annotated[tuple[str, ...], Later(())] = ()
    dtype: Annotated[Literal["base", "bf16", "fp32", "trained"], Later("trained")] = "trained"
    modelfile: Annotated[bool, Later(False)] = False


class ReportParams(Section):
    """What the page shows beyond what the stages did."""

    recipe: dict[str, Any]
    """The whole recipe less local paths."""


class CellParams(Section):
    """One variant under one seed."""

    seed: int
    scores: str
    stages: tuple[str, ...]


class VariantParams(Section):
    """A variant: what it asks, what it changes in the baseline's recipe, and its cells."""

    about: str
    changes: tuple[str, ...]
    cells: tuple[CellParams, ...]


class AblationReportParams(Section):
    """Which variants are compared with which."""

    name: str
    description: str
    base: str
    baseline: str
    variants: dict[str, VariantParams]
    missing: dict[str, str]


class ComparisonParams(Section):
    """Which policies are shown side by side."""

    name: str
    models: dict[str, str]
    """What a person called each, and the folder of its scores."""
    tasks: tuple[dict[str, str | None], ...]
    """Name, task and source of each: for words beside the metrics."""
    averages: dict[str, tuple[str, ...]]
    absent: dict[str, str]
    """Tasks that were left out, and why."""
    published: Published | None


class Requirement(Section):
    """What stages alike in this need of the machine that runs them."""

    stages: tuple[str, ...]
    function: str
    machine: Machine
    load_in_4bit: bool = False
    engines: tuple[EngineName, ...] = ()
    """What writes their answers."""


class Trial(Section):
    """What stages alike in this will do with the policy that a run begins with; tried out where the base is made."""

    stages: tuple[str, ...]
    function: str
    params: dict[str, Any]
    """As stored."""
    machine: Machine


class PreflightParams(Section):
    """What is looked for on the nodes of one row."""

    row: RowName
    gpus: int
    """GPUs per node that were asked for."""
    gpu_type: str | None
    need_bytes: int | None
    """Room that the plan takes in the store; None is not known."""
    paths: tuple[str, ...]
    """The recipe's own files and folders, and what was fetched for a run without the hub."""
    asks: tuple[Requirement, ...]
    """What the stages that run on such nodes need to be installed, each as its own row says."""
