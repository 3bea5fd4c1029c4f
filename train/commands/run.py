"""`rounds run`: run what is not done yet, here or on a SLURM cluster."""

import functools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from rounds.data_prep.errors import UserError
from rounds.train.commands import jobs, options
from rounds.train.commands.options import ClusterFile, Overrides, RecipeFile, StoreRoot, plan_of, store_of, told
from rounds.train.config.cluster import Cluster
from rounds.train.config.cluster import load as load_cluster
from rounds.train.display import forecast as forecast_display
from rounds.train.display import plan as plan_display
from rounds.train.display import progress
from rounds.train.display import scores as display
from rounds.train.engine import batches, runs, store, tracking
from rounds.train.generation import privacy
from rounds.train.plan import ablation
from rounds.train.plan.pipeline import Plan

REJECTED = 3
"""Exit code that a script may ask for where a gate rejected a policy; 1 is a mistake, 2 one on the command line."""


@told
def run(
    file: RecipeFile,
    overrides: Overrides = None,
    cluster_file: ClusterFile = None,
    root: StoreRoot = None,
    fetched: Annotated[Path | None, typer.Option("--offline", metavar="FOLDER", help="Use only what `rounds fetch` put there")] = None,
    check: Annotated[bool, typer.Option("--check", help="Offline: read every fetched file again")] = False,
    until: Annotated[
        list[str] | None,
        typer.Option("--until", metavar="STAGE", help="Make this stage and what it needs, such as `data.sft`, and stop; may be repeated"),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="List what would run; for SLURM also write each script and ask sbatch about it"),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print what came out as JSON alone; what happens meanwhile goes to stderr")
    ] = False,
    exit_code: Annotated[bool, typer.Option("--exit-code", help=f"Exit with {REJECTED} where a gate rejected a round's policy")] = False,
) -> None:
    """Run what is not done yet, with live progress; ends with the scores of each round and the gates' decisions.

    Interrupt it at any moment, even with kill -9: the same command goes on. Finished stages are never run again, and a
    training stage goes on from its last checkpoint. Two runs on one store share the work. With a cluster file of kind slurm
    it submits one job per stage and returns at once; nothing stays running here.

        rounds run recipes/quickstart.yaml

        rounds run recipes/quickstart.yaml --set sft.num_train_epochs=4 --store /scratch/store

        rounds run recipes/quickstart.yaml --until sft

        rounds run recipes/quickstart.yaml --json --exit-code > outcome.json

        rounds run recipes/med42-v2-8b.yaml --offline /scratch/fetched

        rounds run recipes/quickstart.yaml --cluster recipes/clusters/slurm.yaml --dry-run
    """
    part = (lambda plan: plan.until(until)) if until else options.whole
    more = tuple(word for name in until or () for word in ("--until", name))
    found = carry_out(file, overrides, cluster_file, root, part, more, fetched, check, dry_run, quiet=as_json)
    if as_json and found:
        print(json.dumps(found.as_json(), indent=1))
    if exit_code and found and found.rejected:
        raise typer.Exit(REJECTED)


def carry_out(
    file: Path,
    overrides: list[str] | None,
    cluster_file: Path | None,
    root: Path | None,
    part: Callable[[Plan], Plan],
    more: tuple[str, ...] = (),
    fetched: Path | None = None,
    check: bool = False,
    dry_run: bool = False,
    quiet: bool = False,
) -> display.Outcome | None:
    """Run what is not done yet of a part of a recipe's plan; `more` are the options that ask for that part. Returns what came out where
    the whole was run here. `quiet` leaves what it comes to unprinted, and shows its progress on stderr."""
    root = store_of(root, cluster_file)
    if ablation.is_ablation(file):
        raise UserError(f"{file} is an ablation: `rounds ablate {file}` runs it")
    cluster = load_cluster(cluster_file)
    if fetched:
        cluster = cluster.model_copy(update={"offline": True, "fetched": fetched})
    options.go_offline(file, overrides, cluster, root, check, part)
    plan = plan_of(file, overrides, root)
    wanted = part(plan)
    options.refuse_damaged(file, overrides, cluster_file, root, wanted.stages)
    todo = store.unfinished(root, wanted.stages)
    batches.check(todo, cluster)  # what is done may have run on a cluster of another size
    privacy.check_stages(todo, cluster)
    if cluster.kind == "slurm":
        assert cluster_file
        if not dry_run:
            runs.remember_run(root, plan.recipe.name, str(file), list(plan.stages))
        if dry_run:
            _forecast(plan, cluster, root)
        more += ("--offline", str(fetched.resolve())) if fetched else ()
        jobs.submit(wanted.stages, root, cluster, jobs.wanted(file, plan, root, cluster, cluster_file, more), dry_run)
        if not dry_run:
            look = options.command_line("status", file, overrides, cluster_file, root)
            options.console.print(f"look: {look}", highlight=False, markup=False, soft_wrap=True)
    elif dry_run:
        options.console.print(plan_display.plan_table(plan, root, wanted.stages))
    else:
        seconds = _here(file, plan, wanted, root, cluster, len(todo), options.errors if quiet else options.console)
        if wanted == plan:
            return display.outcome(plan, root) if quiet else display.summary(options.console, plan, root, ran=len(todo), seconds=seconds)
        _stopped(file, overrides, cluster_file, root, plan, wanted, len(todo), seconds)
    return None


def _forecast(plan: Plan, cluster: Cluster, root: Path) -> None:
    try:
        forecast_display.plan(options.console, plan, cluster, root)
    except UserError as error:  # nothing of the model is here yet, which a run would fetch
        options.console.print(f"no forecast of memory and hours: {error}", style="yellow", markup=False, soft_wrap=True)


def _here(file: Path, plan: Plan, wanted: Plan, root: Path, cluster: Cluster, todo: int, console: Console) -> float:
    """Run a part of a plan on this machine and return how many seconds that took."""
    began = time.monotonic()
    if todo:
        runs.remember_run(root, plan.recipe.name, str(file), list(plan.stages))
        from rounds.train.launch import local

        settings = tracking.settings(plan.recipe.wandb, plan.recipe.name)
        console.print(tracking.told(settings, root), highlight=False, soft_wrap=True)
        with progress.Live(console, wanted, root) as live:
            local.run(wanted.stages, root, cluster, settings, live)
    return time.monotonic() - began


def _stopped(
    file: Path, overrides: list[str] | None, cluster_file: Path | None, root: Path, plan: Plan, wanted: Plan, ran: int, seconds: float
) -> None:
    """Say what is made, where, and how to go on."""
    done = "nothing was left to do" if not ran else f"{ran} stages run in {seconds:.1f} s"
    last = [stage for stage in wanted.stages if not any(stage in each.parents for each in wanted.stages)]
    left = len(store.unfinished(root, plan.stages))
    say = functools.partial(options.console.print, highlight=False, markup=False, soft_wrap=True)
    say(f"{done}; stopped as asked, with {left} of {len(plan.stages)} stages to do")
    for stage in last:
        say(f"{stage.name}: {store.folder(root, stage)}")
    say(f"look:  {options.command_line('data stats', file, overrides, None, root)}")
    say(f"go on: {options.command_line('run', file, overrides, cluster_file, root)}")
