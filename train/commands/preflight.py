"""`rounds preflight`: is what a run needs there, on the nodes that it will run on?"""

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from rounds.data_prep.errors import UserError
from rounds.train.commands import options
from rounds.train.commands.options import ClusterFile, Overrides, StoreRoot, plan_of, store_of, told
from rounds.train.config.cluster import Cluster
from rounds.train.config.cluster import load as load_cluster
from rounds.train.engine import batches, store
from rounds.train.engine.graph import Stage
from rounds.train.generation import privacy
from rounds.train.launch import preflight as checks
from rounds.train.launch import slurm, state
from rounds.train.launch.state import ENDED_BADLY

_POLL_SECONDS = 2.0


@told
def preflight(
    file: Annotated[
        Path | None,
        typer.Argument(help="Recipe whose files and room are checked too", show_default=False, callback=options.named("recipe")),
    ] = None,
    overrides: Overrides = None,
    cluster_file: ClusterFile = None,
    root: StoreRoot = None,
) -> None:
    """Check the nodes of each cluster row: store, disk, clocks, versions, GPUs, all-reduce, the recipe's files.

    On SLURM each row is a job on that row's nodes, and this command waits for them. With `preflight: true` in the cluster file
    every `rounds run` begins with the same jobs, and nothing starts unless they pass.

        rounds preflight recipes/quickstart.yaml --cluster recipes/clusters/local.yaml
    """
    root = store_of(root, cluster_file).resolve()
    root.mkdir(parents=True, exist_ok=True)
    cluster = load_cluster(cluster_file)
    planned = plan_of(file, overrides, root).stages if file else ()
    batches.check(planned, cluster)
    privacy.check_stages(planned, cluster)
    made = checks.stages(planned, root, cluster)
    (_on_slurm if cluster.kind == "slurm" else _here)(made, root, cluster, cluster_file)
    options.console.print(_table(made, root))
    bad = [entry for entry in state.states(made, root) if entry.state != "done"]
    if bad:
        raise UserError("\n".join(f"{entry.stage.name}: {entry.state}: {entry.because}" for entry in bad))


def _here(made: list[Stage], root: Path, cluster: Cluster, cluster_file: Path | None) -> None:
    from rounds.train.launch import local

    for stage in made:
        checks.reset(store.folder(root, stage))
        try:
            local.run([stage], root, cluster, None, lambda event: None)
        except local.StageFailed:  # told from its folder, after all rows have been tried
            continue


def _on_slurm(made: list[Stage], root: Path, cluster: Cluster, cluster_file: Path | None) -> None:
    wanted = slurm.Run("preflight", made[-1], "", str(cluster_file))
    for stage in made:
        if stage.key not in slurm.live_jobs([stage], root):
            checks.reset(store.folder(root, stage))
    entries = slurm.submit(made, root, cluster, wanted)
    options.console.print(f"waiting for jobs {' '.join(entry.job or '' for entry in entries)}", highlight=False)
    while any(entry.state not in (*ENDED_BADLY, "done") for entry in state.states(made, root)):
        time.sleep(_POLL_SECONDS)


def _table(made: list[Stage], root: Path) -> Table:
    table = Table(box=None, header_style="bold")
    for heading in ("row", "check", "", "found"):
        table.add_column(heading, overflow="fold")
    for stage in made:
        for check in checks.results(store.folder(root, stage)):
            fine = not check.wrong
            said = "; ".join([check.found, *check.wrong])
            table.add_row(stage.row, check.check, Text("ok" if fine else "WRONG", "green" if fine else "red"), Text(said))
    return table
