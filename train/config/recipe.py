"""The schema of a recipe, and `load`: YAML in, one frozen `Recipe` out, or one message that says what to mend.

Every field has its meaning, unit and default here and nowhere else. Trainer knobs keep TRL's and transformers' names.
What changes where or how fast a stage runs is not in a recipe but in `recipes/clusters/`.
"""

import datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from rounds.data_prep.errors import UserError
from rounds.data_prep.schema import Between, Count, FieldError, Filters, FilterUse, Later, Mix, Name, Section, SourceUse, listed
from rounds.train.config import suites, yaml_file
from rounds.train.config.evaluation import Evaluate, Gate
from rounds.train.config.prompts import Prompts
from rounds.train.config.reward import RecipeJudge
from rounds.train.config.training import Round, Sft

_Width = Annotated[int, Between(1, 65536, "no model is wider")]
_Depth = Annotated[int, Between(1, 1024, "no model has more")]


def _date(value: Any) -> Any:
    """YAML reads 2024-07-26 as a date, and a key is made of text."""
    return value.isoformat() if type(value) is datetime.date else value


def _is_date(value: str) -> str:
    datetime.datetime.strptime(value, "%Y-%m-%d")
    return value


class StartDated(Section):
    """What is said of every start model."""

    template_date: Annotated[
        str, BeforeValidator(_date), Field(pattern=r"^\d{4}-\d{2}-\d{2}$"), AfterValidator(_is_date), Later("2024-07-26")
    ] = "2024-07-26"
    """The day, as YYYY-MM-DD, that a chat template writes where it would write today's, as Llama 3.1's does; the default is the day that
    Llama 3.1's own template falls back to. Other templates write none."""


class StartTiny(StartDated):
    """A small random Llama: what a stage's key says of it."""

    kind: Literal["tiny"]
    hidden_size: _Width = 192
    """Width of the residual stream; a multiple of num_attention_heads."""
    intermediate_size: _Width = 512
    """Width of the feed-forward layers."""
    num_hidden_layers: _Depth = 3
    num_attention_heads: _Depth = 6
    vocab_size: Annotated[int, Between(300, 1_000_000, "256 bytes and the control tokens must fit")] = 2048
    """Size that the BPE tokenizer grows to, control tokens included."""
    max_position_embeddings: Annotated[int, Between(1, 10_000_000, "no model reads more")] = 512
    """Longest sequence, in tokens."""
    tie_word_embeddings: bool = True
    """Share the input and output embeddings."""

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        if self.hidden_size % (2 * self.num_attention_heads):
            raise ValueError(
                f"hidden_size {self.hidden_size} does not divide into {self.num_attention_heads} heads of an even width; "
                f"nearest that does: {max(1, round(self.hidden_size / 2 / self.num_attention_heads)) * 2 * self.num_attention_heads}"
            )
        return self


class Tiny(StartTiny):
    """A small random Llama with a BPE tokenizer trained on the instruction set: no download, learns in minutes."""

    chat_template: str = "chat_templates/llama3.jinja"
    """Jinja file of the chat template; relative to the recipe, or one of the project's own."""
    tokenizer_data: Mix | None = None
    """Conversations to train the tokenizer on; None takes the sft data. Give it where there is no SFT."""


class StartLocal(StartDated):
    """A model folder, whose content enters a stage's key by its digest."""

    kind: Literal["local"]


class Local(StartLocal):
    """A Hugging Face model folder on this machine: config, safetensors weights, tokenizer."""

    path: str
    """The folder; relative to the recipe. Its contents, not its path, are part of the stage key."""
    chat_template: str | None = None
    """Jinja file to use instead of the tokenizer's own template; needed where the tokenizer has none."""


class StartHub(StartDated):
    """A model on the hub, at a commit: what a stage's key says of it."""

    kind: Literal["hub"]
    id: str
    """Repository, such as `meta-llama/Meta-Llama-3-8B-Instruct`."""
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]
    """Full commit hash. A branch name would let the same recipe mean different weights."""


class Hub(StartHub):
    """A model on the Hugging Face hub."""

    chat_template: str | None = None
    """Jinja file to use instead of the tokenizer's own template; needed where the tokenizer has none."""


Base = Annotated[Tiny | Local | Hub, Field(discriminator="kind")]
"""The start model as a recipe gives it."""
Start = Annotated[StartTiny | StartLocal | StartHub, Field(discriminator="kind")]
"""The same as a stage's params say it: no path, and no text that is a param of its own."""


class Export(Section):
    """The finished model folder."""

    model_name: str | None = None
    """Name on the model card; None takes the recipe's name."""
    licence: str | None = None
    """Licence of the resulting weights, for the model card, under the hub's names (`llama3`, `apache-2.0`, ...). You know what your base
    and data allow; we do not."""
    language: Annotated[tuple[str, ...], BeforeValidator(listed)] = ()
    """Languages of the model, for its card: codes such as `en`, one or several. None is said where none is given."""
    dtype: Literal["base", "bf16", "fp32"] = "base"
    """Type of the weights that are written: the base's own, or another. What training keeps is not touched."""
    modelfile: Annotated[bool, Later(False)] = False
    """Write Ollama's `Modelfile` too, with the chat template in its language. A template that cannot be written so costs the file, not the
    export: the log and the counts say why."""


class Wandb(Section):
    """Weights & Biases: one group per run, one job per stage."""

    project: str = "rounds"
    """Where its jobs are listed."""
    entity: str | None = None
    """User or team that the project is of; None is that of the key."""
    mode: Literal["offline", "online"] = "offline"
    """`offline` records beside each stage, for `wandb sync`, and connects to nothing. `online` sends while it trains; without a key, or
    where wandb cannot be reached, it records offline."""


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
    prompts: Annotated[dict[Name, Prompts], Later({})] = Field(default_factory=dict)
    """Named sets of prompts for policies to answer; never trained on by themselves."""
    judges: Annotated[dict[Name, RecipeJudge], Later({})] = Field(default_factory=dict)
    """Who says which answer is better, by the names that rounds and evaluations call them by: {kind: verifiable | reward_model | trained |
    pairwise | llm | rule, ...}."""
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
    wandb: Annotated[Wandb | None, BeforeValidator(_wandb)] = None
    """What is recorded in Weights & Biases, such as {project: NAME, mode: offline}; without it, or with `off`, nothing is."""

    @model_validator(mode="after")
    def _names_are_free(self) -> "Recipe":
        names = [round.name for round in self.rounds]
        for place, name in enumerate(names):
            if name in names[:place]:
                raise FieldError(f"two rounds are named {name!r}; give each its own name", "rounds", place, "name")
            if name in ("previous", "sft", "base"):
                message = f"a round may not be named {name!r}: `reference` uses that word"
                raise FieldError(message, "rounds", place, "name")
        return self


def load(path: Path, overrides: tuple[str, ...] = ()) -> Recipe:
    """Read a recipe, apply `--set` overrides such as `rounds.second.beta=0.05`, check it, and return it.

    The suites that it names are laid beneath it (`suites.py`). Local paths become absolute: those in the file relative to its folder,
    those in overrides to the current one.
    Raises `UserError` with file, line, field, what was found and expected, and the nearest valid name.
    """
    return _settled(yaml_file.load(path, Recipe, overrides, suites.beneath))


def of_suites(names: tuple[str, ...], overrides: tuple[str, ...] = ()) -> Recipe:
    """Return what some suites measure, as a recipe that trains nothing; suites and paths are relative to the current folder."""
    data = {"name": "-".join(names), "base": {"kind": "tiny"}, "evaluate": {"suites": list(names)}}
    laid = suites.beneath(data, Path.cwd())
    if not laid["sources"]:
        raise UserError(f"--suite {', '.join(names)}: brings no `sources` of its own, so a recipe with them must be named: --recipe FILE")
    return _settled(yaml_file.check(laid, Recipe, overrides, "--suite"))


def _settled(recipe: Recipe) -> Recipe:
    if recipe.evaluate is None:
        return recipe
    evaluate, sources = suites.settled(recipe.evaluate, recipe.sources)
    return recipe.model_copy(update={"evaluate": evaluate, "sources": sources})
