"""`rounds verify`: read every byte of what a run has made, and say what is not what was written."""

import time

import typer

from rounds.train.commands import options
from rounds.train.commands.options import ClusterFile, Overrides, RecipeFile, StoreRoot, plan_of, store_of, told
from rounds.train.engine import damage, store
from rounds.train.engine.digests import Memory


@told
def verify(
    file: RecipeFile,
    overrides: Overrides = None,
    cluster_file: ClusterFile = None,
    root: StoreRoot = None,
) -> None:
    """Read every file that a run has made again, and compare its digest with the one that was written when it was made.

    Names what is damaged, with both digests and the command that mends it, and ends with exit code 1 then.

        rounds verify recipes/quickstart.yaml
    """
    root = store_of(root, cluster_file)
    plan = plan_of(file, overrides, root)
    memory, began = Memory(root), time.monotonic()
    damages, whole, files, size = [], 0, 0, 0
    for stage in plan.stages:
        folder = store.folder(root, stage)
        record = store.done(folder)
        if record is None:
            continue
        wrong = damage.full(folder, memory, stage.name, fresh=True)
        damages += wrong
        whole += not wrong
        files += len(record.digests)
        size += sum((folder / name).stat().st_size for name in record.digests)
    left = len(plan.stages) - len(store.unfinished(root, plan.stages))
    seconds = time.monotonic() - began
    options.console.print(
        f"{whole} of {left} finished stages are whole ({len(plan.stages)} in all): {files:,} files, {size / 2**20:,.1f} MiB read in "
        f"{seconds:.1f} s",
        highlight=False,
    )
    if damages:
        options.tell(damage.told(damages, options.go_on(file, overrides, cluster_file, root)))
        raise typer.Exit(1)
