"""`rounds ablate`: run all variants of an ablation as one graph, here or on a SLURM cluster, and compare them."""

import time
from pathlib import Path
from typing import Annotated

import typer

from rounds.data_prep.errors import UserError
from rounds.train.commands import jobs, options
from rounds.train.commands.options import AblationFile, ClusterFile, Overrides, StoreRoot, store_of, told
from rounds.train.config.cluster import Cluster
from rounds.train.config.cluster import load as load_cluster
from rounds.train.display import ablation as ablation_display
from rounds.train.display import progress
from rounds.train.engine import batches, runs, store, tracking
from rounds.train.engine.graph import Stage
from rounds.train.generation import privacy
from rounds.train.launch import compare
from rounds.train.plan import ablation
from rounds.train.plan.ablation import AblationPlan


@told
def ablate(
    file: AblationFile,
    overrides: Overrides = None,
    cluster_file: ClusterFile = None,
    root: StoreRoot = None,
    lanes: Annotated[
        int | None, typer.Option("--jobs", min=1, help="SLURM: run at most this many jobs at once", show_default=False)
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Show what would run; for SLURM also write each script and ask sbatch about it"),
    ] = False,
    now: Annotated[bool, typer.Option("--now", help="Run no variant: compare those that are finished")] = False,
) -> None:
    """Run every variant of an ablation, what they share once, and end with a page that compares them.

    A stage that fails stops only the variants that need it; the page is made of the others, and the same command goes on.
    `rounds plan`, `status`, `logs`, `cancel` and `report` read an ablation file like a recipe.

        rounds ablate recipes/ablations/quickstart.yaml

        rounds ablate recipes/ablations/stages.yaml --cluster recipes/clusters/slurm.yaml --jobs 4

        rounds ablate recipes/ablations/stages.yaml --now
    """
    root = store_of(root, cluster_file)
    if not ablation.is_ablation(file):
        raise UserError(f"{file} is a recipe and no ablation: `rounds run {file}` runs it")
    cluster = load_cluster(cluster_file)
    if not now:
        options.go_offline(file, overrides, cluster, root)
    made = ablation.build_plan(file, root, tuple(overrides or ()))
    options.refuse_damaged(file, overrides, cluster_file, root, made.stages)
    if now:
        lost = {stage.key: f"{stage.name} is not finished" for stage in _todo(made, root)}
        _end(made, file, root, Cluster(), lost, time.monotonic())
        return
    batches.check(_todo(made, root), cluster)
    privacy.check_stages(_todo(made, root), cluster)
    if cluster.kind == "slurm":
        assert cluster_file
        plan = made.as_plan()
        if not dry_run:
            runs.remember_run(root, made.name, str(file), list(made.stages))
        purpose = jobs.wanted(file, plan, root, cluster, cluster_file, ("--jobs", str(lanes)) if lanes else ())
        jobs.submit(made.stages, root, cluster, purpose, dry_run, lanes)
        look = options.command_line("status", file, overrides, cluster_file, root)
        options.console.print(f"look: {look}", highlight=False, markup=False, soft_wrap=True)
    elif dry_run:
        ablation_display.plan(options.console, made, root)
    else:
        began = time.monotonic()
        _end(made, file, root, cluster, _run(made, file, root, cluster, made.stages), began)


def _todo(made: AblationPlan, root: Path) -> list[Stage]:
    return store.unfinished(root, made.shared)


def _end(made: AblationPlan, file: Path, root: Path, cluster: Cluster, lost: dict[str, str], began: float) -> None:
    """Compare the variants that can be, and show what came out. Exits with 1 where one is missing."""
    whole = made.stages[-1]
    if lost:
        made = made.without(lost)
    failed = _run(made, file, root, cluster, made.stages[-1:])
    if failed:
        raise UserError("\n".join(failed.values()))
    if lost:
        compare.note(store.prepare(root, whole), made.stages[-1])
    ablation_display.summary(options.console, made, root, seconds=time.monotonic() - began)
    if lost:
        raise typer.Exit(1)


def _run(made: AblationPlan, file: Path, root: Path, cluster: Cluster, stages: tuple[Stage, ...]) -> dict[str, str]:
    """Run here what is not done yet; returns stage key -> why it did not finish."""
    if all(store.done(store.folder(root, stage)) for stage in stages):
        return {}
    from rounds.train.launch import local

    plan = made.as_plan()
    runs.remember_run(root, made.name, str(file), list(made.stages))
    settings = tracking.settings(plan.recipe.wandb, made.name)
    options.console.print(tracking.told(settings, root), highlight=False, soft_wrap=True)
    with progress.Live(options.console, plan, root) as live:
        return local.run_all(stages, root, cluster, settings, live)
