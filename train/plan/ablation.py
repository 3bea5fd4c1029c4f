"""An ablation as one graph: every variant is a recipe of its own, and what several share is one stage.

In: an ablation file. Out: `AblationPlan`. A variant is planned by `pipeline.build_plan` like any recipe; only what leads to
the scores of its last policy is kept, so no export and no report, and no evaluation that neither a gate nor another variant
asks for. The union by stage key is the graph; at its end one stage compares the variants.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from rounds.data_prep.errors import UserError
from rounds.train.config import recipe, yaml_file
from rounds.train.config.ablation import Ablation, Variant, edited
from rounds.train.config.recipe import Recipe
from rounds.train.engine.graph import Stage, parents_first
from rounds.train.engine.kinds import ABLATION_REPORT
from rounds.train.engine.params import AblationReportParams, CellParams, VariantParams
from rounds.train.plan import pipeline
from rounds.train.plan.pipeline import Plan


@dataclass(frozen=True)
class Cell:
    """One variant under one seed: its plan, and of that only the stages that lead to its scores."""

    variant: str
    seed: int
    plan: Plan
    stages: tuple[Stage, ...]


@dataclass(frozen=True)
class AblationPlan:
    """All cells, the stages that they need (each once, parents first, under a name of its own), and the report."""

    ablation: Ablation
    recipe: Recipe
    """The base recipe, before any edit."""
    cells: tuple[Cell, ...]
    stages: tuple[Stage, ...]
    """The union and, last, the report."""

    @property
    def name(self) -> str:
        """Name of the ablation on this base, for the list of stages in the store."""
        return f"{self.ablation.name}-on-{self.recipe.name}"

    @property
    def shared(self) -> tuple[Stage, ...]:
        """The union without the report."""
        return self.stages[:-1]

    def as_plan(self) -> Plan:
        """Return the graph as a plan like a recipe's, for whoever runs or shows one."""
        baseline = next(cell for cell in self.cells if cell.variant == self.ablation.baseline)
        return replace(baseline.plan, recipe=self.recipe.model_copy(update={"name": self.name}), stages=self.stages)

    def stages_of(self, variant: str) -> list[Stage]:
        """List what a variant needs under all its seeds, each once."""
        stages = [stage for cell in self.cells if cell.variant == variant for stage in cell.stages]
        return list({stage.key: stage for stage in stages}.values())

    def users(self) -> dict[str, list[str]]:
        """Return stage key -> the variants that need it, each once."""
        found: dict[str, list[str]] = {}
        for variant in self.ablation.all():
            for stage in self.stages_of(variant):
                found.setdefault(stage.key, []).append(variant)
        return found

    def without(self, failed: Mapping[str, str]) -> "AblationPlan":
        """Return the same ablation with a report on the variants that can still be finished.

        `failed` is stage key -> why it did not finish. Raises `UserError` when the baseline is not among them.
        """
        return replace(self, stages=(*self.shared, without(self.stages[-1], failed)))


def without(report: Stage, failed: Mapping[str, str]) -> Stage:
    """Return an ablation's report on the variants that need no stage of `failed`, which is stage key -> why it did not finish.

    Raises `UserError` when the baseline is not among them, or nothing else is.
    """
    params = report.params
    assert isinstance(params, AblationReportParams)
    folders = {stage.folder_name: failed[stage.key] for stage in report.parents if stage.key in failed}
    lost = {
        name: folders[stage]
        for name, variant in params.variants.items()
        for cell in variant.cells
        for stage in cell.stages
        if stage in folders
    }
    if params.baseline in lost:
        raise UserError(f"no report: the baseline {params.baseline!r} did not finish: {lost[params.baseline]}")
    kept = {name: variant for name, variant in params.variants.items() if name not in lost}
    if lost and len(kept) == 1:
        reasons = "; ".join(f"{name}: {why}" for name, why in lost.items())
        raise UserError(f"no report: only the baseline {params.baseline!r} finished, and there is nothing to compare with it: {reasons}")
    needed = {stage for variant in kept.values() for cell in variant.cells for stage in cell.stages}
    inputs = {name: stage for name, stage in report.inputs.items() if name in needed}
    return replace(report, params=params.model_copy(update={"variants": kept, "missing": lost}), inputs=inputs)


def is_ablation(file: Path) -> bool:
    """Tell an ablation file from a recipe by its fields."""
    return not {"variants", "grid", "baseline"}.isdisjoint(yaml_file.fields(file))


def load(file: Path) -> Ablation:
    """Read an ablation file. Raises `UserError` with file, line, field and the nearest valid name."""
    return yaml_file.load(file, Ablation)


def build_plan(file: Path, root: Path, overrides: tuple[str, ...] = (), *, read_files: bool = True) -> AblationPlan:
    """Plan all variants of an ablation file; `overrides` change its base recipe, `read_files` is that of a recipe's plan.

    Raises `UserError` for a mistake in the file or in the base, or with the variant and its field for an edit that leads
    nowhere or to no valid recipe.
    """
    ablation = load(file)
    base = Path(ablation.base)
    loaded = recipe.load(base, overrides)
    start = _edited(file, "every", loaded.model_dump(mode="json"), ablation.every)
    cells = []
    for name, variant in ablation.all().items():
        where = f"variants.{name}" if name in ablation.variants else f"grid {name}"
        data = _edited(file, where, start, variant)
        for seed in ablation.seeds or (data["seed"],):
            cells.append(_cell(name, {**data, "seed": seed}, root, base.parent, f"{file}: {where}", read_files))
    union = _union(sorted(cells, key=lambda cell: cell.variant != ablation.baseline))
    return AblationPlan(ablation, loaded, tuple(cells), (*union, _report(ablation, loaded, cells, union)))


def _edited(file: Path, where: str, data: dict[str, Any], variant: Variant) -> dict[str, Any]:
    """Make a variant's edits; a mistake is told with file and variant."""
    try:
        return edited(data, variant, file.resolve().parent)
    except UserError as error:
        raise UserError(f"{file}: {where}.{error}") from None


def _cell(name: str, data: dict[str, Any], root: Path, recipe_folder: Path, where: str, read_files: bool) -> Cell:
    try:
        checked = Recipe.model_validate(data)
    except ValidationError as error:
        raise UserError(yaml_file.explain(error, Recipe, where)) from None
    if checked.evaluate is None:
        raise UserError(f"{where}: nothing is measured: give the base recipe an `evaluate` section")
    try:
        plan = pipeline.build_plan(checked, root, recipe_folder, read_files=read_files)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    return Cell(name, data["seed"], plan, tuple(parents_first([plan.scores])))


def _union(cells: Iterable[Cell]) -> list[Stage]:
    """List the stages of all cells once, parents first. A stage keeps its name where no earlier one has it."""
    made: dict[str, Stage] = {}
    names: set[str] = set()
    for cell in cells:
        for stage in cell.stages:
            if stage.key in made:
                continue
            tries = (stage.name, f"{stage.name}@{cell.variant}", f"{stage.name}@{cell.variant}.seed{cell.seed}")
            name = next(name for name in tries if name not in names)
            names.add(name)
            inputs = {key: made[source.key] if isinstance(source, Stage) else source for key, source in stage.inputs.items()}
            made[stage.key] = replace(stage, name=name, inputs=inputs)
    return list(made.values())


def _report(ablation: Ablation, base: Recipe, cells: Sequence[Cell], union: Sequence[Stage]) -> Stage:
    """Make the stage that compares the cells with the baseline's."""
    baseline = next(cell.plan.recipe for cell in cells if cell.variant == ablation.baseline)
    variants = {
        name: VariantParams(
            about=variant.about,
            changes=tuple(changes(baseline, next(cell.plan.recipe for cell in cells if cell.variant == name))),
            cells=tuple(
                CellParams(
                    seed=cell.seed,
                    scores=cell.plan.scores.folder_name,
                    stages=tuple(stage.folder_name for stage in cell.stages),
                )
                for cell in cells
                if cell.variant == name
            ),
        )
        for name, variant in ablation.all().items()
    }
    params = AblationReportParams(
        name=ablation.name,
        description=ablation.description,
        base=base.name,
        baseline=ablation.baseline,
        variants=variants,
        missing={},
    )
    stages = {stage.folder_name: stage for stage in union}
    return Stage("report", ABLATION_REPORT, params, stages)


def changes(old: Recipe, new: Recipe) -> list[str]:
    """Say what differs between two recipes, one line a field: `rounds.first.beta: 0.1 → 0.01`."""
    hidden = {"name", "description", "wandb", "export", "seed"}
    return _changes("", old.model_dump(mode="json", exclude=hidden), new.model_dump(mode="json", exclude=hidden))


def _changes(path: str, old: Any, new: Any) -> list[str]:
    if old == new:
        return []
    if path == "rounds":
        before, after = ({each["name"]: each for each in rounds} for rounds in (old, new))
        found = [f"rounds: {_said(list(before))} → {_said(list(after))}"] if list(before) != list(after) else []
        found += [f"rounds.{name}.data: {_said(each['data'])}" for name, each in after.items() if name not in before]
        return found + [line for name in before if name in after for line in _changes(f"rounds.{name}", before[name], after[name])]
    if isinstance(old, dict) and isinstance(new, dict):
        return [line for key in dict.fromkeys([*old, *new]) for line in _changes(f"{path}.{key}".lstrip("."), old.get(key), new.get(key))]
    if isinstance(old, dict) and new is None:
        return [f"{path}: left out"]
    return [f"{path}: {_said(old)} → {_said(new)}"]


def _said(value: Any) -> str:
    """Put a value of a recipe in a few words; of named elements only the names."""
    if value is None or value == []:
        return "none"
    if isinstance(value, list):
        return ", ".join(str(each["name"]) if isinstance(each, dict) and "name" in each else _said(each) for each in value)
    if isinstance(value, dict):
        return ", ".join(f"{key} {_said(each)}" for key, each in value.items())
    return f"{value:g}" if isinstance(value, float) else str(value)
