"""`rounds run`: run what is not done yet."""

import time

from train import cluster, display, store, tracking
from train.commands import options
from train.commands.options import ClusterFile, Overrides, RecipeFile, StoreRoot, plan_of, told


@told
def run(
    file: RecipeFile,
    overrides: Overrides = None,
    cluster_file: ClusterFile = None,
    root: StoreRoot = None,
) -> None:
    """Run what is not done yet, with live progress; ends with the scores of each round and the gates' decisions.

    Interrupt it at any moment, even with kill -9: the same command goes on. Finished stages are never run again, and a
    training stage goes on from its last checkpoint. Two runs on one store share the work.

        rounds run recipes/quickstart.yaml

        rounds run recipes/quickstart.yaml --set sft.num_train_epochs=4 --store /scratch/store
    """
    root = root or store.default_root()
    made = plan_of(file, overrides, root)
    machine = cluster.load(cluster_file)
    began = time.monotonic()
    todo = [stage for stage in made.stages if not store.done(store.folder(root, stage))]
    if todo:
        store.remember_run(root, made.recipe.name, str(file), list(made.stages))
        from train.launch import local

        settings = tracking.settings(made.recipe.wandb, made.recipe.name)
        with display.Live(options.console, made, root) as live:
            local.run(made.stages, root, machine, settings, live)
    display.summary(options.console, made, root, ran=len(todo), seconds=time.monotonic() - began)
