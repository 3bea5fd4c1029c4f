"""`rounds eval`: any models, measured as a recipe or suites say, side by side."""

import json
import time
from pathlib import Path
from typing import Annotated

import typer

from rounds.data_prep.errors import UserError
from rounds.train.commands import jobs, options
from rounds.train.commands.options import ClusterFile, Overrides, StoreRoot, store_of, told
from rounds.train.config import recipe as recipes
from rounds.train.config import shipped, suites
from rounds.train.config.cluster import Cluster
from rounds.train.config.cluster import load as load_cluster
from rounds.train.config.recipe import Recipe
from rounds.train.display import comparison as display
from rounds.train.display import plan as plan_display
from rounds.train.display import progress
from rounds.train.engine import batches, runs, store
from rounds.train.generation import privacy
from rounds.train.plan import comparison
from rounds.train.plan.api_models import Spending
from rounds.train.plan.comparison import ComparisonPlan


@told
def eval(
    models: Annotated[
        list[str],
        typer.Argument(
            help="A model folder, ORG/NAME@COMMIT, a recipe, RECIPE:STAGE, a stage of the store, or api:ENDPOINT/MODEL",
            show_default=False,
        ),
    ],
    recipe_file: Annotated[
        Path | None,
        typer.Option("--recipe", help="Measure what this recipe's `evaluate` asks", callback=options.named("recipe"), show_default=False),
    ] = None,
    suite: Annotated[list[str] | None, typer.Option("--suite", help="Measure this suite; may be repeated", show_default=False)] = None,
    overrides: Overrides = None,
    cluster_file: ClusterFile = None,
    root: StoreRoot = None,
    published: Annotated[bool, typer.Option("--published", help="Print what a publication reports beside")] = False,
    allow_outside: Annotated[
        bool,
        typer.Option("--allow-outside", help="Prompts may be sent to an endpoint elsewhere, if the cluster file allows it too"),
    ] = False,
    max_calls: Annotated[int, typer.Option("--max-calls", min=1, help="Requests to one endpoint's model at most")] = Spending.max_calls,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="Its tokens at most, read and written")] = Spending.max_tokens,
    as_json: Annotated[bool, typer.Option("--json", help="Print the scores as JSON alone")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would run")] = False,
) -> None:
    """Score models side by side under one evaluation, with paired tests; nothing is trained or exported.

    A model is a folder, ORG/NAME@COMMIT on the hub, a recipe (its last policy), RECIPE:STAGE such as quickstart:sft, or a stage of the
    store by name, key or folder. What a training run has measured already is not measured again.

    api:ENDPOINT/MODEL is a model behind an OpenAI-compatible endpoint, which the cluster file names:
    {endpoints: {ENDPOINT: {base_url: ...}}}. It takes part in what is written freely; likelihoods are n/a.

    With --suite, --set changes evaluate and the suite's sources; all other fields are those of the recipes that models come from.

        rounds eval quickstart:base quickstart:sft quickstart

        rounds eval my-model org/name@COMMIT --suite med42-v2 --published
    """
    root = store_of(root, cluster_file)
    cluster = load_cluster(cluster_file)
    given = tuple(overrides or ())
    recipe, folder = _measured(models, recipe_file, suite, given)
    spending = Spending(allow_outside, max_calls, max_tokens)
    made = comparison.build_plan(models, recipe, folder, root, published, _of_models(given, suite, folder), spending)
    todo = store.unfinished(root, made.stages)
    batches.check(todo, cluster)
    privacy.check_stages(todo, cluster)
    if cluster.kind == "slurm":
        assert cluster_file
        purpose = jobs.wanted(recipe_file or Path(models[0]), made.as_plan(), root, cluster, cluster_file, ())
        jobs.submit(made.stages, root, cluster, purpose, dry_run)
        return
    if dry_run:
        options.console.print(plan_display.plan_table(made.as_plan(), root, made.stages))
        return
    seconds = _run(made, root, cluster, len(todo), quiet=as_json)
    counts = store.counts(store.folder(root, made.report))
    if as_json:
        print(json.dumps(counts, indent=1))
        return
    display.summary(options.console, made, root, len(todo), seconds)


def _measured(models: list[str], file: Path | None, suite: list[str] | None, overrides: tuple[str, ...]) -> tuple[Recipe, Path]:
    """Return the recipe that says what is measured, and the folder that its files are beside."""
    if file is None and suite:
        of_models = _of_models(overrides, suite, Path.cwd())
        # The seed is both: of what a recipe trains, and of what any model writes.
        measured = tuple(each for each in overrides if each not in of_models or each.startswith("seed="))
        for lost in set(overrides) - set(measured):
            if not any(comparison.recipe_of(name) for name in models):
                raise UserError(
                    f"--set {lost}: with --suite it is evaluate and the suites' sources that may be set "
                    f"({', '.join(sorted(suites.source_names(suite, Path.cwd())))}); other fields are those of models that a recipe makes, "
                    "and none is named here"
                )
        return recipes.of_suites(tuple(suite), measured), Path.cwd()
    if file is None:
        try:
            file = shipped.find(Path(models[0].partition(":")[0]), "recipe")
        except UserError:
            raise UserError(f"say what is measured: --suite NAME, or --recipe FILE ({models[0]} is no recipe that would say it)") from None
    elif suite:
        overrides = (f"evaluate.suites=[{', '.join(suite)}]", *overrides)
    return recipes.load(file, overrides), file.resolve().parent


def _of_models(overrides: tuple[str, ...], suite: list[str] | None, folder: Path) -> tuple[str, ...]:
    """Return the overrides that hold for recipes whose policies are measured: all, but those of what a suite brings."""
    brought = suites.source_names(suite or (), folder) if suite else set()

    def is_measured(override: str) -> bool:
        section, _, rest = override.partition("=")[0].partition(".")
        return section == "evaluate" or (section == "sources" and rest.partition(".")[0] in brought)

    return tuple(each for each in overrides if not (suite and is_measured(each)))


def _run(made: ComparisonPlan, root: Path, cluster: Cluster, todo: int, quiet: bool) -> float:
    """Run what is not done; returns how many seconds that took."""
    began = time.monotonic()
    if todo:
        from rounds.train.launch import local

        plan = made.as_plan()
        runs.remember_run(root, plan.recipe.name, "eval", list(made.stages))
        console = options.errors if quiet else options.console
        with progress.Live(console, plan, root) as live:
            local.run(made.stages, root, cluster, None, live)
    return time.monotonic() - began
