"""Any policies, measured as a recipe measures its own, as one graph: what `rounds eval` runs.

In: models as a person names them, and a recipe or suites that say what is measured. Out: a `ComparisonPlan`: for each model the stages
that lead to its scores, with the keys that a training run's evaluation has, so that nothing is measured twice, and at the end one
stage that compares them. Nothing is trained or exported.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rounds.data_prep.errors import UserError, nearest
from rounds.train.config import recipe as recipes
from rounds.train.config import shipped
from rounds.train.config.recipe import Base, Hub, Local, Recipe
from rounds.train.engine import runs, store
from rounds.train.engine.graph import Stage, parents_first
from rounds.train.engine.kinds import COMPARISON
from rounds.train.engine.params import ComparisonParams
from rounds.train.plan import api_models, pipeline
from rounds.train.plan.api_models import Spending
from rounds.train.plan.held_out import HeldOut
from rounds.train.plan.pipeline import Plan

_HUB_MODEL = re.compile(r"(?P<id>[\w.-]+/[\w.-]+)(@(?P<revision>\w+))?")
_FORMS = (
    "a model folder, ORG/NAME@COMMIT on the hub, a recipe, RECIPE:STAGE (such as quickstart:sft), a stage of the store, or "
    "api:ENDPOINT/MODEL"
)


@dataclass(frozen=True)
class ComparisonPlan:
    """The policies by the name that a person gave them, each with the stage that holds its scores; and the whole graph."""

    recipe: Recipe
    """What is measured."""
    scores: dict[str, Stage]
    stages: tuple[Stage, ...]

    @property
    def report(self) -> Stage:
        """The stage that compares them."""
        return self.stages[-1]

    def as_plan(self) -> Plan:
        """Return the graph as a plan like a recipe's, for whoever runs or shows one."""
        recipe = self.recipe.model_copy(update={"name": f"eval-{self.recipe.name}", "wandb": None})
        return Plan(recipe, self.stages, HeldOut({}, (), ()), next(iter(self.scores.values())))


def build_plan(
    models: Sequence[str],
    recipe: Recipe,
    recipe_folder: Path,
    root: Path,
    published: bool,
    overrides: tuple[str, ...],
    spending: Spending = api_models.LITTLE,
) -> ComparisonPlan:
    """List what measuring some models needs. Raises `UserError` for a name that is no model, or two that are one."""
    if recipe.evaluate is None:
        raise UserError(f"recipe {recipe.name}: has no `evaluate` section, so it does not say what to measure; name others with --suite")
    for name in models:
        if models.count(name) > 1:
            raise UserError(f"{name}: is named twice; each model once")
    own = [name for name in models if not name.startswith(api_models.PREFIX)]
    policies = {name: _policy(name, recipe, root, recipe_folder, overrides) for name in own}
    measured = pipeline.measure(recipe, root, recipe_folder, policies)
    measured |= {
        name: api_models.scores(recipe, root, recipe_folder, name, spending) for name in models if name.startswith(api_models.PREFIX)
    }
    scores = {name: measured[name] for name in models}
    wanted = parents_first(scores.values())
    params = ComparisonParams(
        name=recipe.name,
        models={name: stage.folder_name for name, stage in scores.items()},
        tasks=tuple(task.model_dump(mode="json", include={"name", "task", "source"}) for task in recipe.evaluate.tasks),
        averages={name: average.mean_of for name, average in recipe.evaluate.averages.items()},
        absent=recipe.evaluate.absent,
        published=recipe.evaluate.published if published else None,
    )
    report = Stage("comparison", COMPARISON, params, {stage.folder_name: stage for stage in dict.fromkeys(scores.values())})
    return ComparisonPlan(recipe, scores, (*_named_apart(wanted, scores), report))


def _policy(name: str, recipe: Recipe, root: Path, recipe_folder: Path, overrides: tuple[str, ...]) -> Stage:
    """Find or plan the stage that makes a policy."""
    path = Path(name).expanduser()
    if (path / "config.json").is_file() and not (path / "stage.json").is_file():
        return pipeline.start(
            recipe.model_copy(update={"base": _base(recipe, Local(kind="local", path=str(path.resolve())))}), root, recipe_folder
        )
    if (found := recipe_of(name)) is not None:
        return _of_recipe(found, name.partition(":")[2], root, overrides)
    if (match := _HUB_MODEL.fullmatch(name)) and not path.exists():
        if not re.fullmatch(r"[0-9a-f]{40}", match["revision"] or ""):
            raise UserError(
                f"{name}: a model of the hub needs the commit that is meant, as {match['id']}@COMMIT (40 hex digits); expected {_FORMS}"
            )
        return pipeline.start(
            recipe.model_copy(update={"base": _base(recipe, Hub(kind="hub", id=match["id"], revision=match["revision"]))}),
            root,
            recipe_folder,
        )
    try:
        folder = runs.find(root, name)
    except UserError as error:
        raise UserError(f"{name}: no model of that name: {error}. Expected {_FORMS}") from None
    return _is_policy(store.planned(folder), name)


def recipe_of(name: str) -> Path | None:
    """Return the recipe that a model's name names, RECIPE or RECIPE:STAGE; None where it is no recipe's."""
    file = name.partition(":")[0]
    try:
        return shipped.find(Path(file), "recipe") if file and not Path(file).is_dir() else None
    except UserError:
        return None


def _base(recipe: Recipe, base: Base) -> Base:
    """Take a model that is the recipe's own start as the recipe takes it, with its chat template; any other with its own template."""
    own = recipe.base
    same = ("path",) if isinstance(base, Local) else ("id", "revision")
    return own if type(own) is type(base) and all(getattr(own, field) == getattr(base, field) for field in same) else base


def _of_recipe(file: Path, stage: str, root: Path, overrides: tuple[str, ...]) -> Stage:
    plan = pipeline.build_plan(recipes.load(file, overrides), root, file.resolve().parent)
    if not stage:
        policy = plan.stage("export").inputs["policy"]
        assert isinstance(policy, Stage)
        return policy
    known = {each.name.removeprefix("dpo."): each for each in plan.stages if _makes_policy(each)}
    known |= {each.name: each for each in known.values()}
    if stage not in known:
        raise UserError(f"{shipped.name_of(file)}:{stage}: the recipe has no policy of that name: {nearest(stage, known)}")
    return known[stage]


def _makes_policy(stage: Stage) -> bool:
    return stage.kind.starts or (stage.kind.trains and not stage.kind.is_judge) or stage.kind.decides


def _is_policy(stage: Stage, name: str) -> Stage:
    if not _makes_policy(stage):
        raise UserError(
            f"{name}: {stage.name} is no policy: expected a stage that makes one (base, sft, dpo.ROUND, gate.ROUND), or {_FORMS}"
        )
    return stage


def _named_apart(stages: Sequence[Stage], scores: dict[str, Stage]) -> list[Stage]:
    """Give stages of one name the name of the model that needs them besides."""
    made: dict[str, Stage] = {}
    names: set[str] = set()
    users = {each.key: model for model, last in reversed(scores.items()) for each in parents_first([last])}
    for stage in stages:
        name = stage.name if stage.name not in names else f"{stage.name}@{users[stage.key]}"
        names.add(name)
        inputs = {key: made[source.key] if isinstance(source, Stage) else source for key, source in stage.inputs.items()}
        made[stage.key] = replace(stage, name=name, inputs=inputs)
    return list(made.values())
