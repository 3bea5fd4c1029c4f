"""What `rounds run` and `rounds ablate` share on a SLURM cluster: submit a list of stages, and say what became of each."""

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table
from rich.text import Text

from rounds.data_prep.errors import UserError
from rounds.train.commands import options
from rounds.train.config.cluster import Cluster
from rounds.train.engine import tracking
from rounds.train.engine.graph import Stage
from rounds.train.launch import preflight, queue, slurm
from rounds.train.offline import folder
from rounds.train.plan.pipeline import Plan


def wanted(file: Path, made: Plan, root: Path, cluster: Cluster, cluster_file: Path, more: tuple[str, ...] = ()) -> slurm.Run:
    """Say what the jobs of a plan are submitted for; `more` are options of the command that going on needs again."""
    return slurm.Run(
        name=made.recipe.name,
        last=made.stages[-1],
        recipe=str(file.resolve()),
        cluster=str(cluster_file.resolve()),
        wandb=tracking.settings(made.recipe.wandb, made.recipe.name),
        variables=folder.environment(cluster.fetched, root) if cluster.offline else {},
        more=more,
    )


def submit(stages: Sequence[Stage], root: Path, cluster: Cluster, purpose: slurm.Run, dry_run: bool, lanes: int | None = None) -> None:
    """Submit stages, or with `dry_run` only write and check their scripts, and print the table of jobs with its GPU-hours."""
    options.console.print(tracking.told(purpose.wandb, root), highlight=False, soft_wrap=True)
    unused = [name for name in cluster.stages if not any(slurm.fits(name, stage) for stage in stages)]
    if unused:
        options.errors.print(f"{purpose.cluster}: no stage here is called {', '.join(unused)}", style="yellow", markup=False)
    checks = preflight.stages(stages, root, cluster, lanes) if cluster.preflight else []
    if dry_run:
        entries = slurm.rehearse(stages, root, cluster, purpose, checks)
    else:
        entries = slurm.submit(stages, root, cluster, purpose, lanes, checks)
    options.console.print(jobs_table(purpose.name, entries))
    outdated = [entry.stage.name for entry in entries if entry.outdated]
    if outdated:
        options.console.print(
            f"queued as the cluster file was then, and it says something else now: {', '.join(outdated)}. To send them anew: "
            "`rounds cancel` with the same recipe, then this again; what runs goes on from its last checkpoint",
            style="yellow",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    hours = sum(entry.gpu_hours for entry in entries if entry.what in ("submitted", "would"))
    options.console.print(f"at most {hours:,.0f} GPU-hours, if every job took its whole time limit once", highlight=False)
    if dry_run:
        silence = queue.silence()
        asked = f"SLURM was not asked about them: {silence}" if silence else "sbatch --test-only was asked about each"
        options.console.print(f"nothing was submitted; the scripts are in {root}/*/slurm/job.sh ({asked})", soft_wrap=True)
    refusals = dict.fromkeys(entry.refused for entry in entries if entry.refused)
    if refusals:
        raise UserError(f"SLURM would refuse {sum(bool(e.refused) for e in entries)} of these jobs: {'; '.join(map(str, refusals))}")


def jobs_table(title: str, entries: list[slurm.Entry]) -> Table:
    """List what became of each stage: its job, what that waits for, and what it asks for."""
    words = {"done": "done", "queued": "queued before", "submitted": "submitted", "would": "to submit"}
    table = Table(title=title, title_justify="left", box=None, header_style="bold")
    for heading in ("stage", "state", "job", "waits for", "partition", "nodes x GPUs", "limit", "GPU-hours"):
        table.add_column(heading, overflow="fold")
    for entry in entries:
        asks = entry.machine.slurm
        state = Text("refused", "red") if entry.refused else Text(words[entry.what])
        needs = (
            []
            if entry.what == "done"
            else [
                asks.partition or "",
                f"{entry.nodes} x {asks.gpus}",
                asks.time,
                f"{entry.gpu_hours:,.0f}" if asks.gpus else "",
            ]
        )
        table.add_row(entry.stage.name, state, entry.job or "", ", ".join(entry.waits_for), *needs)
    return table
