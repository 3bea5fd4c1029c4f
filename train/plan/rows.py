"""The stages that make rows: one per set, however often it is used, and one per training set that is mixed of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rounds.data_prep import sources
from rounds.data_prep.errors import UserError
from rounds.data_prep.records import READABLE
from rounds.data_prep.render import system_prompt
from rounds.data_prep.schema import DataParams, Filters, FilterUse, Mix, RowsUse, SourceParams, SourceUse
from rounds.train.config import own_file, yaml_file
from rounds.train.config.evaluation import AnswerSet
from rounds.train.config.prompts import Prompts
from rounds.train.config.recipe import Recipe, Tiny
from rounds.train.engine import digests, kinds
from rounds.train.engine.graph import Asset, Stage
from rounds.train.engine.params import PromptSet, PromptsParams
from rounds.train.plan import checks
from rounds.train.plan.held_out import HeldOut

_FOLDER_READER = 2
"""Of `SourceParams.folder_reader`. 2: a folder gives the rows that its files give one by one."""


@dataclass(frozen=True)
class Planning:
    """A recipe that is being planned: where its files are, what it holds out, and the sources that are stages already."""

    recipe: Recipe
    root: Path
    """The store, where digests of the user's files are remembered."""
    recipe_folder: Path
    """Where shared files such as `eval_tasks/` are looked for first."""
    read_files: bool
    """Whether the user's own files must be there."""
    held_out: HeldOut
    sources: dict[str, Stage] = field(default_factory=dict)
    """Filled as they are asked for."""

    @property
    def uses(self) -> dict[str, SourceUse]:
        """Every set by its name: the recipe's, and the benchmarks'."""
        return {**self.held_out.uses, **self.recipe.sources}

    def asset(self, path: str, where: str, patterns: tuple[str, ...] = ("*",)) -> Asset:
        """Digest one of the user's files, or a folder's files that fit a pattern."""
        if not self.read_files:
            return Asset(Path(path), f"not read: {path}", patterns)
        try:
            return digests.asset(self.root, Path(path), patterns)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None

    def text(self, path: str, where: str) -> str:
        """Read a small file whose text is part of a key: the recipe's, or one that all recipes share."""
        try:
            file = yaml_file.find(path, self.recipe_folder) or Path(path)
            own_file.refuse_empty(file)
            return own_file.text(file)
        except (UserError, OSError) as error:
            raise UserError(f"{where}: {error}") from None


def source(planning: Planning, name: str, where: str, training: bool) -> Stage:
    """Fetch one set of rows, the recipe's or a benchmark's."""
    use = planning.uses[name]
    registered = checks.registered(name, use)
    if training:
        checks.for_training(use, registered, where)
    if name not in planning.sources:
        home = registered.home(use)
        inputs = {"path": planning.asset(use.path, f"sources.{name}.path")} if use.path else {}
        params = SourceParams(
            # A licence that is stated later, or better, must not train everything again.
            use=RowsUse.model_validate(use.model_dump(include=set(RowsUse.model_fields))),
            source_version=registered.version,
            repository=home.repository if home else None,
            revision=home.revision if home and not use.path else None,
            # A source that names its files has read them one by one all along.
            folder_reader=_FOLDER_READER if use.path and not (registered.files or registered.origin) and Path(use.path).is_dir() else 1,
            **changes(name, use, registered),
        )
        checks.licence(planning.recipe, name, use, registered)
        planning.sources[name] = Stage(f"source.{name}", kinds.SOURCE, params, inputs)
    return planning.sources[name]


def changes(name: str, use: SourceUse, registered: sources.Source) -> dict[str, Any]:
    """Return what is done to every row of a source: a system prompt said first, and the mask over who a person is."""
    done: dict[str, Any] = {}
    if use.system_prompt:
        done["system_prompt"] = system_text(use.system_prompt, f"sources.{name}")
    phi = FilterUse.model_validate({"name": "phi"}) if use.phi is None and registered.kind_by_format else use.phi
    if isinstance(phi, FilterUse):
        try:
            checks.filter_settings(phi)
        except UserError as error:
            chosen = "" if use.phi else " (on by default for your own files)"
            raise UserError(f"sources.{name}.phi{chosen}: {error}. `phi: off` leaves the rows as they are") from None
        done["phi"] = phi
    return done


def system_text(path: str, where: str) -> str:
    """Return the text of a system prompt's file."""
    try:
        own_file.refuse_empty(Path(path))
        return system_prompt(Path(path))
    except UserError as error:
        raise UserError(f"{where}.system_prompt: {error}") from None


def data(
    planning: Planning, name: str, mix: Mix, own_filters: Filters | None, kind: str, where: str, made: Mapping[str, Stage] | None = None
) -> Stage:
    """Filter and mix sources into one training set, of records of one `kind`. `made` are stages that stand in the mix as sources do."""
    filters = own_filters if own_filters is not None else planning.recipe.filters
    inputs = _read(planning, mix, filters, READABLE[kind], where, made or {})
    params = DataParams(mix=mix, filters=filters, seed=planning.recipe.seed, kind=kind)  # type: ignore[arg-type]
    return Stage(f"data.{name}", kinds.DATA, params, inputs)


def _read(
    planning: Planning, mix: Mix, filters: Filters, usable: tuple[str, ...], where: str, made: Mapping[str, Stage]
) -> dict[str, Stage | Asset]:
    """Return what a mix reads: its sources, whose records are of usable kinds, and the held-out sets where a filter asks for them."""
    for use in filters:
        checks.filter_settings(use)
    for item in mix:
        if item.name not in made:
            checks.named(planning.recipe, item.name, where)
    inputs: dict[str, Stage | Asset] = {
        f"source.{item.name}": made[item.name] if item.name in made else source(planning, item.name, where, training=True) for item in mix
    }
    checks.mix(planning.recipe, mix, where, usable, made)
    if any(use.name == "decontaminate" for use in filters):
        inputs |= {f"heldout.{each}": source(planning, each, "evaluate", training=False) for each in planning.held_out.uses}
    return inputs


def prompts(planning: Planning, name: str, asked: Prompts) -> Stage:
    """Make a set of prompts, of records of any kind. None is asked twice, and none is held out, also where no filter says so."""
    where, filters = f"prompts.{name}.data", asked.filters if asked.filters is not None else planning.recipe.filters
    named = {use.name for use in filters}
    first = [FilterUse(name=each) for each in ("exact_dedup",) if each not in named]
    last = [FilterUse(name=each) for each in ("decontaminate",) if each not in named]
    filters = (*first, *filters, *last)
    inputs = _read(planning, asked.data, filters, READABLE["prompt"], where, {})
    params = PromptsParams(mix=asked.data, filters=filters, seed=planning.recipe.seed, kind="prompt", parts=asked.parts)
    return Stage(f"prompts.{name}", kinds.PROMPTS, params, inputs)


def sft_data(planning: Planning) -> Stage:
    """Make the instruction set."""
    sft = planning.recipe.sft
    assert sft
    return data(planning, "sft", sft.data, sft.filters, "conversation", "sft.data")


def corpus(planning: Planning, base: Tiny) -> Stage:
    """Find the conversations that a tiny model's tokenizer is trained on."""
    if base.tokenizer_data is not None:
        return data(planning, "tokenizer", base.tokenizer_data, None, "conversation", "base.tokenizer_data")
    if not planning.recipe.sft:
        raise UserError("base: kind `tiny` trains its tokenizer on the sft data; give the recipe an sft section, or base.tokenizer_data")
    return sft_data(planning)


def held_out_source(planning: Planning, name: str, where: str, *kinds: str) -> Stage:
    """Fetch a set that evaluation reads, and check that it is of a right kind and no training set."""
    checks.named(planning.recipe, name, where)
    stage = source(planning, name, where, training=False)
    checks.record_kind(planning.recipe, name, where, kinds)
    checks.not_trained_on(planning.recipe, name, where)
    return stage


def answer_sets(planning: Planning, asked: Sequence[AnswerSet]) -> tuple[tuple[PromptSet, ...], dict[str, Stage]]:
    """Return sets of held-out prompts as the stages that answer them are asked for them, and the stages of their rows by input."""
    sets, inputs = [], {}
    for each in asked:
        where = f"evaluate.answers.{each.name}"
        checks.answers(planning.recipe, each, where)
        inputs[f"prompts.{each.name}"] = held_out_source(planning, each.source, where, *READABLE["prompt"])
        text = system_text(each.system_prompt, where) if each.system_prompt else None
        sets.append(PromptSet.model_validate(each.model_dump(exclude={"source", "optional"}) | {"system_prompt": text}))
    return tuple(sets), inputs
