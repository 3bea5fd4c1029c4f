"""`rounds show`: one stage in detail."""

from typing import Annotated

import typer

from rounds.train.commands import options
from rounds.train.commands.options import StoreRoot, told
from rounds.train.display import stage as stage_display
from rounds.train.engine import runs, store


@told
def show(
    stage: Annotated[str, typer.Argument(help="Stage name, key, or folder; or the start of a key", show_default=False)],
    root: StoreRoot = None,
    log: Annotated[bool, typer.Option("--log", help="Print the whole log instead of its last lines")] = False,
) -> None:
    """Show one stage: its params, inputs, counts, scores, files and log.

    rounds show dpo.second

    rounds show 3fa9c1 --log
    """
    stage_display.stage(options.console, runs.find(root or store.default_root(), stage), whole_log=log)
