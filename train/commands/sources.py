"""`rounds sources`: the registered sets of rows."""

from rounds.train.commands import options
from rounds.train.commands.options import told
from rounds.train.display import sources as display


@told
def sources() -> None:
    """List the registered sets of rows: splits with their published sizes, kind, licence, hub repository and commit.

    A star marks a split that only evaluation may read; a question mark a repository, commit, file or column that could
    not be checked when the source was written: `rounds fetch` tries them all and says what it found.

        rounds sources
    """
    options.console.print(display.sources_table())
