"""`rounds plan`: every stage of a run, and what is done or to do."""

from pathlib import Path
from typing import Annotated

import typer

from rounds.data_prep.schema import DataParams
from rounds.train.commands import options
from rounds.train.commands.options import ClusterFile, Overrides, RecipeFile, StoreRoot, plan_of, store_of, told
from rounds.train.config import cluster, yaml_file
from rounds.train.display import ablation as ablation_display
from rounds.train.display import forecast as forecast_display
from rounds.train.display import plan as plan_display
from rounds.train.engine import batches
from rounds.train.engine.params import DpoParams, RewardParams, SftParams
from rounds.train.forecast import forecast, row_counts
from rounds.train.generation import privacy
from rounds.train.plan import ablation, held_out
from rounds.train.plan.pipeline import Plan


@told
def plan(
    file: RecipeFile,
    overrides: Overrides = None,
    cluster_file: ClusterFile = None,
    root: StoreRoot = None,
    keys: Annotated[bool, typer.Option("--keys", help="Print only stage names and keys, one per line")] = False,
) -> None:
    """List every stage of a run, parents first, and say which are done, to do, and why; of an ablation, its variants.
    With a cluster file also what training needs of it: memory of a device by part, hours, and what to change.

    Runs nothing and imports no torch.

        rounds plan recipes/quickstart.yaml

        rounds plan recipes/quickstart.yaml --set rounds.second.beta=0.05

        rounds plan recipes/quickstart.yaml --keys

        rounds plan recipes/ablations/quickstart.yaml

        rounds plan recipes/med42-v2-70b.yaml --cluster recipes/clusters/slurm-8xh100.yaml
    """
    root = store_of(root, cluster_file)
    if ablation.is_ablation(file) and not keys:
        variants = ablation.build_plan(file, root, tuple(overrides or ()))
        ablation_display.plan(options.console, variants, root, _gpu_hours(variants.as_plan(), cluster_file, root))
        return
    made = plan_of(file, overrides, root)
    machines = cluster.load(cluster_file)
    batches.check(made.stages, machines)
    if cluster_file is not None:
        privacy.check_stages(made.stages, machines)
    if keys:
        for stage in made.stages:
            print(stage.name, stage.key)
        return
    for under in yaml_file.extended(file):
        options.console.print(f"extends {under}", highlight=False)
    options.console.print(plan_display.plan_table(made, root))
    for name, why in (made.recipe.evaluate.absent if made.recipe.evaluate else {}).items():
        options.console.print(f"not measured: {name}: {why}; averages with it are not available", style="yellow", soft_wrap=True)
    for name, rows in row_counts.mixes(made, root).items():
        if len(rows) > 1:
            options.console.print(f"{name}: {_shares(rows)}", highlight=False, markup=False)
    for line in _notes(made):
        options.console.print(line, style="yellow" if line.startswith("warning") else "", highlight=False, markup=False)
    sizes = row_counts.sizes(made, root)
    for stage in made.stages:
        if isinstance(stage.params, SftParams | DpoParams | RewardParams) and (size := sizes.get(stage.name)):
            for line in batches.notes(size.rows, stage.params.training):
                options.console.print(f"warning: {stage.name}: {line}", style="yellow", highlight=False, markup=False)
    if cluster_file is not None:
        forecast_display.plan(options.console, made, machines, root)


def _gpu_hours(made: Plan, cluster_file: Path | None, root: Path) -> dict[str, float | None] | None:
    """Return the GPU-hours of every training and evaluation stage; None where the cluster file does not say which GPUs it has."""
    if cluster_file is None:
        return None
    found, _, _ = forecast.forecasts(made, cluster.load(cluster_file), root)
    return {each.stage: each.gpu_hours for each in found} if any(each.gpu_hours is not None for each in found) else None


def _shares(rows: dict[str, int]) -> str:
    """Say how large a part of a mix each source is, the largest first."""
    total = sum(rows.values())
    largest = sorted(rows.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {count / total:.1%}" for name, count in largest)


def _notes(made: Plan) -> list[str]:
    """Say what the training sets are compared with."""
    data = {stage.name: stage.params for stage in made.stages if isinstance(stage.params, DataParams)}
    compared = [name for name, params in data.items() if any(use.name == "decontaminate" for use in params.filters)]
    return held_out.told(made.held_out, compared, [name for name in data if name not in compared])
