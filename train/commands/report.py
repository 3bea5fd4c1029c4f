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
    made = plan_of(file, overrides, root)
    page = store.folder(root, made.stage("report")) / "report.html"
    if not page.is_file():
        raise UserError(f"no report yet: the run is not finished; `rounds run {file}` goes on")
    print(page)
    if browse:
        webbrowser.open(page.resolve().as_uri())
