"""`rounds run`: run what is not done yet, here or on a SLURM cluster."""

import time
from pathlib import Path
from typing import Annotated

import typer

from rounds.data_prep.errors import UserError
from rounds.train.commands import jobs, options
from rounds.train.commands.options import ClusterFile, Overrides, RecipeFile, StoreRoot, plan_of, store_of, told
from rounds.train.config.cluster import Cluster
from rounds.train.config.cluster import load as load_cluster
from rounds.train.display import forecast as forecast_display
from rounds.train.display import plan, progress
from rounds.train.display import scores as display
from rounds.train.engine import batches, runs, store, tracking
from rounds.train.plan import ablation
from rounds.train.plan.pipeline import Plan


@told
def run(
    file: RecipeFile,
    overrides: Overrides = None,
    cluster_file: ClusterFile = None,
    root: StoreRoot = None,
    fetched: Annotated[Path | None, typer.Option("--offline", metavar="FOLDER", help="Use only what `rounds fetch` put there")] = None,
    check: Annotated[bool, typer.Option("--check", help="Offline: read every fetched file again")] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="List what would run; for SLURM also write each script and ask sbatch about it"),
    ] = False,
) -> None:
    """Run what is not done yet, with live progress; ends with the scores of each round and the gates' decisions.

    Interrupt it at any moment, even with kill -9: the same command goes on. Finished stages are never run again, and a
    training stage goes on from its last checkpoint. Two runs on one store share the work. With a cluster file of kind slurm
    it submits one job per stage and returns at once; nothing stays running here.

        rounds run recipes/quickstart.yaml

        rounds run recipes/quickstart.yaml --set sft.num_train_epochs=4 --store /scratch/store

        rounds run recipes/med42-v2-8b.yaml --offline /scratch/fetched

        rounds run recipes/quickstart.yaml --cluster recipes/clusters/slurm.yaml --dry-run
    """
    root = store_of(root, cluster_file)
    if ablation.is_ablation(file):
        raise UserError(f"{file} is an ablation: `rounds ablate {file}` runs it")
    cluster = load_cluster(cluster_file)
    if fetched:
        cluster = cluster.model_copy(update={"offline": True, "fetched": fetched})
    options.go_offline(file, overrides, cluster, root, check)
    made = plan_of(file, overrides, root)
    options.refuse_damaged("run", file, overrides, cluster_file, root, made.stages)
    todo = store.unfinished(root, made.stages)
    batches.check(todo, cluster)  # what is done may have run on a cluster of another size
    if cluster.kind == "slurm":
        assert cluster_file
        if not dry_run:
            runs.remember_run(root, made.recipe.name, str(file), list(made.stages))
        if dry_run:
            _forecast(made, cluster, root)
        more = ("--offline", str(fetched.resolve())) if fetched else ()
        jobs.submit(made.stages, root, cluster, jobs.wanted(file, made, root, cluster, cluster_file, more), dry_run)
        if not dry_run:
            look = options.command_line("status", file, overrides, cluster_file, root)
            options.console.print(f"look: {look}", highlight=False, markup=False, soft_wrap=True)
    elif dry_run:
        options.console.print(plan.plan_table(made, root))
    else:
        _here(file, made, root, cluster, len(todo))


def _forecast(made: Plan, cluster: Cluster, root: Path) -> None:
    try:
        forecast_display.plan(options.console, made, cluster, root)
    except UserError as error:  # nothing of the model is here yet, which a run would fetch
        options.console.print(f"no forecast of memory and hours: {error}", style="yellow", markup=False, soft_wrap=True)


def _here(file: Path, made: Plan, root: Path, cluster: Cluster, todo: int) -> None:
    began = time.monotonic()
    if todo:
        runs.remember_run(root, made.recipe.name, str(file), list(made.stages))
        from rounds.train.launch import local

        settings = tracking.settings(made.recipe.wandb, made.recipe.name)
        options.console.print(tracking.told(settings, root), highlight=False, soft_wrap=True)
        with progress.Live(options.console, made, root) as live:
            local.run(made.stages, root, cluster, settings, live)
    display.summary(options.console, made, root, ran=todo, seconds=time.monotonic() - began)
