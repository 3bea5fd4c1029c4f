"""`rounds report`: where the page of a finished run is."""

import webbrowser
from typing import Annotated

import typer

from data_prep.errors import UserError
from train import store
from train.commands.options import Overrides, RecipeFile, StoreRoot, plan_of, told


@told
def report(
    file: RecipeFile,
    overrides: Overrides = None,
    root: StoreRoot = None,
    browse: Annotated[bool, typer.Option("--open", help="Open it in a browser")] = False,
) -> None:
    """Say where the run's report is: one HTML page with scores, curves, gates, data and lineage.

    rounds report recipes/quickstart.yaml --open
    """
    root = root or store.default_root()
    stage = plan_of(file, overrides, root).stage("report")
    page = store.folder(root, stage) / ("report.html" if stage.function == "report" else "ablation.html")
    if not page.is_file():
        command = "run" if stage.function == "report" else "ablate"
        raise UserError(f"no report yet: the run is not finished; `rounds {command} {file}` goes on")
    print(page)
    if browse:
        webbrowser.open(page.resolve().as_uri())
