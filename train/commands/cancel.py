"""`rounds cancel`: take a run's jobs back from SLURM."""

from typing import Annotated

import typer

from rounds.train.commands import options
from rounds.train.commands.options import ClusterFile, Overrides, RecipeFile, StoreRoot, plan_of, store_of, told
from rounds.train.engine import store
from rounds.train.launch import slurm, submission


@told
def cancel(
    file: RecipeFile,
    overrides: Overrides = None,
    cluster_file: ClusterFile = None,
    root: StoreRoot = None,
    shared: Annotated[bool, typer.Option("--shared", help="Also the jobs that another run waits for")] = False,
) -> None:
    """Cancel exactly this run's jobs. What is done stays done; `rounds run` goes on from the last checkpoints.

    A job that another run of the same store waits for too is left to it, unless --shared is given.

        rounds cancel recipes/quickstart.yaml
    """
    root = store_of(root, cluster_file)
    made = plan_of(file, overrides, root)
    ids, left = slurm.cancel(made.stages, root, f"{made.recipe.name}:{made.stages[-1].key}", shared)
    options.console.print(f"cancelled {len(ids)} jobs{': ' if ids else ''}{' '.join(ids)}", highlight=False)
    if not ids and not any(submission.read(store.folder(root, stage)) for stage in made.stages):
        options.console.print(
            f"no job of it was ever submitted from the store {root}: --cluster or --store names another",
            style="yellow",
            highlight=False,
            soft_wrap=True,
        )
    for number, others in left:
        options.console.print(f"left job {number}: {', '.join(others)} wants it too (--shared cancels it)", highlight=False)
    older = [job for job in slurm.other_plans(made.recipe.name, made.stages, root) if job not in ids]
    if older:
        options.console.print(
            f"jobs of {made.recipe.name} with other settings are still queued: {' '.join(older)} (`scancel` them, or give this "
            "command the --set options that they were submitted with)",
            style="yellow",
            highlight=False,
        )
