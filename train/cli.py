"""The command line, `rounds`: each subcommand is the function of its name in the file of its name in `train/commands`.

A command's file is imported when it is called: `rounds --help` imports none of them, and planning never imports torch.
"""

from rounds.train.launch import interrupts  # noqa: F401, first of all: from here on Ctrl-C is one line

# isort: split

import importlib
import logging
import os
import sys
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

COMMANDS = {
    "init": "Write a commented recipe of your own, ready to plan and to run; with --data its source and columns are filled in.",
    "plan": "List every stage of a run, parents first, and say which are done, to do, and why; of an ablation, its variants. "
    "With a cluster file also what training needs of it: memory of a device by part, hours, and what to change.",
    "run": "Run what is not done yet, with live progress; ends with the scores of each round and the gates' decisions.",
    "eval": "Score models side by side under one evaluation, with paired tests; nothing is trained or exported.",
    "ablate": "Run every variant of an ablation, what they share once, and end with a page that compares them.",
    "status": "Show each stage of a run: its state, job, node, how far it is, and its score; and why one ended badly.",
    "logs": "Print the log of one stage.",
    "cancel": "Cancel exactly this run's jobs. What is done stays done; `rounds run` goes on from the last checkpoints.",
    "preflight": "Check the nodes of each cluster row: store, disk, clocks, versions, GPUs, all-reduce, the recipe's files.",
    "show": "Show one stage: its params, inputs, counts, scores, files and log.",
    "verify": "Read every file that a run has made again, and compare its digest with the one that was written when it was made.",
    "clean": "List what the store holds by run and what no run wants any more; remove the stages that are named.",
    "report": "Say where the run's report is: one HTML page with scores, curves, gates, data and lineage.",
    "push": "Upload a finished run's exported model, with its model card and data card, to the Hugging Face hub.",
    "sources": "List the registered sets of rows: splits with their published sizes, kind, licence, hub repository and commit.",
    "fetch": "Download every dataset, model and evaluation set of a recipe (or ablation) into one folder, with a list of digests.",
    "data": "Make the training sets of a recipe, and look at their rows.",
}
"""Each command with the first paragraph of its help; a test holds the two together."""


class Deferred(TyperCommand):
    """A command that is imported when it is called, or completed by a shell; until then its line of help is enough."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """Begin the command that this one stands for."""
        return load(str(self.name)).make_context(info_name, args, parent, **extra)


class Commands(TyperGroup):
    """All of `COMMANDS`."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = {name: Deferred(name, help=line, rich_markup_mode="markdown") for name, line in COMMANDS.items()}


def load(name: str) -> Any:
    """Import a command. Its file holds a function of its name or, for a command with commands below it, a Typer `app`."""
    module = importlib.import_module(f"rounds.train.commands.{name}")
    if hasattr(module, "app"):
        return get_command(module.app)
    alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown")
    alone.command(name)(getattr(module, name))
    return get_command(alone)


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version  # 0.04 s, which no other command has use for

        print(f"rounds {version('rounds')}")
        raise typer.Exit()


@app.callback()
def rounds(
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit", callback=_version, is_eager=True)] = False,
) -> None:
    """Train clinical language models in rounds: SFT, then DPO rounds with an evaluation and a gate between them.

    Start with: rounds plan quickstart, then rounds run quickstart. For a recipe of your own: rounds init
    """


def main() -> None:
    """Entry of the console script."""
    _shut_out_the_current_folder()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that is not UTF-8 shows ? for what it cannot
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(levelname)s: %(message)s")
    app()


def _shut_out_the_current_folder() -> None:
    """Let no process that is started from here import what lies in the current folder: a `train.py` or a `typing.py` of the user's.

    An empty part of PYTHONPATH means that folder too; and since a stage works in a folder of its own, the other parts and the
    places of caches are made to mean there what they mean here.
    """
    os.environ["PYTHONSAFEPATH"] = "1"
    if "PYTHONPATH" in os.environ:
        parts = filter(None, os.environ["PYTHONPATH"].split(os.pathsep))
        os.environ["PYTHONPATH"] = os.pathsep.join(str(Path(part).absolute()) for part in parts)
    for name in (
        "HF_HOME",
        "HF_HUB_CACHE",
        "HF_DATASETS_CACHE",
        "XDG_CACHE_HOME",
        "TORCH_EXTENSIONS_DIR",
        "TRITON_CACHE_DIR",
    ):
        if os.environ.get(name):
            os.environ[name] = str(Path(os.environ[name]).expanduser().absolute())


if __name__ == "__main__":
    main()
