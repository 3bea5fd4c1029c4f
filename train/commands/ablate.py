"""`rounds ablate`: run all variants of an ablation as one graph, and compare them."""

import os
import time
from pathlib import Path

import typer

from train import ablation, cluster, display, display_ablation, needs, offline, store, tracking
from train.commands import options
from train.commands.options import AblationFile, ClusterFile, Overrides, StoreRoot, told


@told
def ablate(
    file: AblationFile,
    overrides: Overrides = None,
    cluster_file: ClusterFile = None,
    root: StoreRoot = None,
) -> None:
    """Run every variant of an ablation, what they share once, and end with a page that compares them.

    A stage that fails stops only the variants that need it; the page is made of the others, and the same command goes on.
    `rounds plan`, `status` and `report` read an ablation file like a recipe.

        rounds ablate recipes/ablations/quickstart.yaml
    """
    root = root or store.default_root()
    made = ablation.build_plan(file, root, tuple(overrides or ()))
    machine = cluster.load(cluster_file)
    if machine.offline:
        todo = [stage for stage in made.shared if not store.done(store.folder(root, stage))]
        hint = f"rounds fetch {made.ablation.base} --to {machine.fetched or 'FOLDER'}"
        offline.check(needs.of(todo), machine.fetched, root, hint, watch=options.console.print)
        os.environ.update(offline.environment(machine.fetched))
    began = time.monotonic()
    lost = _run(made, file, root, machine)
    if lost:
        made = made.without(lost)
        lost = {**lost, **_run(made, file, root, machine, only_report=True)}
    display_ablation.summary(options.console, made, root, seconds=time.monotonic() - began)
    if lost:
        for reason in dict.fromkeys(lost.values()):
            options.errors.print(reason, style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1)


def _run(
    made: ablation.AblationPlan, file: Path, root: Path, machine: cluster.Cluster, only_report: bool = False
) -> dict[str, str]:
    """Run what is not done yet; returns stage key -> why it did not finish."""
    stages = made.stages[-1:] if only_report else made.stages
    if all(store.done(store.folder(root, stage)) for stage in stages):
        return {}
    from train.launch import local

    plan = made.as_plan()
    store.remember_run(root, made.name, str(file), list(made.stages))
    with display.Live(options.console, plan, root) as live:
        return local.run_all(stages, root, machine, tracking.settings(plan.recipe.wandb, made.name), live)
