"""What `rounds run` and `rounds ablate` share on a SLURM cluster: submit a list of stages, and say what became of each."""

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table
from rich.text import Text

from train.cluster import Cluster
from train.commands import options
from train.graph import Stage
from train.launch import queue, slurm


def submit(
    stages: Sequence[Stage], root: Path, machine: Cluster, wanted: slurm.Run, dry_run: bool, lanes: int | None = None
) -> None:
    """Submit stages, or with `dry_run` only write and check their scripts, and print the table of jobs with its GPU-hours."""
    unused = [name for name in machine.stages if not any(slurm.fits(name, stage) for stage in stages)]
    if unused:
        options.errors.print(
            f"{wanted.cluster}: no stage here is called {', '.join(unused)}", style="yellow", markup=False
        )
    if dry_run:
        entries = slurm.rehearse(stages, root, machine, wanted)
    else:
        entries = slurm.submit(stages, root, machine, wanted, lanes)
    options.console.print(jobs_table(wanted.name, entries))
    hours = sum(entry.gpu_hours for entry in entries if entry.what in ("submitted", "would"))
    options.console.print(
        f"at most {hours:,.0f} GPU-hours, if every job took its whole time limit once", highlight=False
    )
    if dry_run:
        asked = "sbatch --test-only was asked about each" if queue.available() else "no sbatch here to ask about them"
        options.console.print(
            f"nothing was submitted; the scripts are in {root}/*/slurm/job.sh ({asked})", soft_wrap=True
        )


def jobs_table(title: str, entries: list[slurm.Entry]) -> Table:
    """List what became of each stage: its job, what that waits for, and what it asks for."""
    words = {"done": "done", "queued": "queued before", "submitted": "submitted", "would": "to submit"}
    table = Table(title=title, title_justify="left", box=None, header_style="bold")
    for heading in ("stage", "state", "job", "waits for", "partition", "nodes x GPUs", "limit", "GPU-hours"):
        table.add_column(heading, overflow="fold")
    for entry in entries:
        asks = entry.row.slurm
        state = Text(f"refused: {entry.refused}", "red") if entry.refused else Text(words[entry.what])
        needs = [] if entry.what == "done" else [
            asks.partition or "", f"{entry.nodes} x {asks.gpus}", asks.time, f"{entry.gpu_hours:,.0f}" if asks.gpus else "",
        ]  # fmt: skip
        table.add_row(entry.stage.name, state, entry.job or "", ", ".join(entry.waits_for), *needs)
    return table
