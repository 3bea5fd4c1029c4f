"""The command line, `rounds`: each subcommand is a file of `train/commands`.

Only what a command needs is imported, so that planning answers in well under a second and never imports torch.
"""

import logging
import sys
from io import TextIOWrapper

import typer

from rounds.train.commands import ablate, cancel, data, fetch, logs, plan, preflight, report, run, show, sources, status

app = typer.Typer(
    help="Train clinical language models in rounds: SFT, then DPO rounds with an evaluation and a gate between them.\n\n"
    "Start with: rounds plan recipes/quickstart.yaml, then rounds run recipes/quickstart.yaml",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
app.command("plan")(plan.plan)
app.command("run")(run.run)
app.command("ablate")(ablate.ablate)
app.command("status")(status.status)
app.command("logs")(logs.logs)
app.command("cancel")(cancel.cancel)
app.command("preflight")(preflight.preflight)
app.command("show")(show.show)
app.command("report")(report.report)
app.command("sources")(sources.list_sources)
app.command("fetch")(fetch.fetch)
app.add_typer(data.app, name="data")


def main() -> None:
    """Entry of the console script."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that is not UTF-8 shows ? for what it cannot
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(levelname)s: %(message)s")
    app()


if __name__ == "__main__":
    main()
