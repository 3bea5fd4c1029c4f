"""`rounds status`: what became of each stage of a run."""

from train import display, store
from train.commands import options
from train.commands.options import Overrides, RecipeFile, StoreRoot, plan_of, told


@told
def status(file: RecipeFile, overrides: Overrides = None, root: StoreRoot = None) -> None:
    """Show each stage of a run: done, running (by whom, how far), failed (why) or to do.

    rounds status recipes/quickstart.yaml
    """
    root = root or store.default_root()
    options.console.print(display.status_table(plan_of(file, overrides, root), root))
