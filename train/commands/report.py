"""`rounds report`: where the page of a finished run is."""

import webbrowser
from typing import Annotated

import typer

from rounds.data_prep.errors import UserError
from rounds.train.commands import options
from rounds.train.commands.options import ClusterFile, Overrides, RecipeFile, StoreRoot, plan_of, store_of, told
from rounds.train.engine import store


@told
def report(
    file: RecipeFile,
    overrides: Overrides = None,
    cluster_file: ClusterFile = None,
    root: StoreRoot = None,
    browse: Annotated[bool, typer.Option("--open", help="Open it in a browser")] = False,
) -> None:
    """Say where the run's report is: one HTML page with scores, curves, gates, data and lineage.

    rounds report recipes/quickstart.yaml --open
    """
    root = store_of(root, cluster_file)
    stage = plan_of(file, overrides, root).stage("report")
    folder = store.folder(root, stage)
    page = folder / stage.kind.page
    options.refuse_damaged(file, overrides, cluster_file, root, [stage])
    if not page.is_file():
        failure = store.failure(folder)
        why = failure.message if failure else "the run is not finished"
        go_on = options.go_on(file, overrides, cluster_file, root)
        raise UserError(f"no report in {root}: {why}; `{go_on}` goes on")
    print(page)
    if browse:
        webbrowser.open(page.resolve().as_uri())
