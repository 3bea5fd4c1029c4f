"""`rounds sources`: the registered sets of rows."""

from train import display
from train.commands import options
from train.commands.options import told


@told
def list_sources() -> None:
    """List the registered sets of rows: splits, kind, licence, hub repository.

    A star marks a split that only evaluation may read; a question mark a repository, commit or column list that could
    not be checked when the source was written.

        rounds sources
    """
    options.console.print(display.sources_table())
