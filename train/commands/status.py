"""`rounds status`: what became of each stage of a run."""

import re
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from rounds.train.commands import options
from rounds.train.commands.options import ClusterFile, Overrides, RecipeFile, StoreRoot, plan_of, store_of, told
from rounds.train.display import progress
from rounds.train.engine import store
from rounds.train.engine.graph import Stage
from rounds.train.launch import state, submission
from rounds.train.launch.state import ENDED_BADLY, State

_SECONDS_BETWEEN_LOOKS = 10.0
_METRICS = re.compile(r"\{'\w+': .*\}$")
"""What the trainer prints of each step: wide, and never why it ended."""
_WIDE = 110
"""Columns of a terminal from which on a stage's step and time left have columns of their own."""
_COLORS = {
    "done": "green",
    "skipped": "green",
    "running": "cyan",
    "starting": "cyan",
    "to do": "yellow",
    "waiting": "yellow",
}


@told
def status(
    file: RecipeFile,
    overrides: Overrides = None,
    cluster_file: ClusterFile = None,
    root: StoreRoot = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Stay until the run has ended, and look again every ten seconds")] = False,
) -> None:
    """Show each stage of a run: its state, job, node, how far it is, and its score; and why one ended badly.

    The same table for a run on this machine and one on SLURM, with or without accounting.

        rounds status recipes/quickstart.yaml

        rounds status recipes/quickstart.yaml --watch
    """
    root = store_of(root, cluster_file)
    plan = plan_of(file, overrides, root)
    title, stages = plan.recipe.name, plan.stages
    if watch:
        now = _watched(title, stages, root)
    else:
        now = state.states(stages, root)
        options.console.print(_page(title, now))
    if not any(entry.folder.exists() for entry in now):
        options.console.print(f"nothing of this run is in the store {root}: --cluster or --store names another", highlight=False)
    if _first_causes(now):  # in one line, however long, to be copied
        damaged = [entry.folder for entry in now if entry.state == "damaged"]
        go_on = (f"{store.remedy(damaged)} && " if damaged else "") + _go_on(file, overrides, cluster_file, root, stages)
        options.console.print(f"to go on: {go_on}", style="bold", highlight=False, soft_wrap=True)


def _watched(title: str, stages: tuple[Stage, ...], root: Path) -> list[State]:
    """Show the table until the run has ended, and return how it stands then."""
    with Live(console=options.console, auto_refresh=False, transient=False) as live:
        while True:
            now = state.states(stages, root)
            live.update(_page(title, now), refresh=True)
            if _over(now):
                return now
            time.sleep(_SECONDS_BETWEEN_LOOKS)


def _over(now: list[State]) -> bool:
    """Tell whether nothing more will happen by itself: all is done, or nothing is at work and something ended badly."""
    finished = {"done", "skipped", *ENDED_BADLY}
    left = [entry for entry in now if entry.state not in finished]
    return all(entry.state == "to do" for entry in left) and (not left or any(e.state in ENDED_BADLY for e in now))


def _first_causes(now: list[State]) -> list[State]:
    return [entry for entry in now if entry.state in ENDED_BADLY and not entry.because.startswith("behind ")]


def _page(title: str, now: list[State]) -> RenderableType:
    """Make the table, and below it why the first stages that ended badly did."""
    below = [line for entry in _first_causes(now) for line in _why(entry)]
    silent = next((entry.because for entry in now if entry.state == "not known"), None)
    if silent:
        below.append(Text(f"not known: {silent}", "yellow"))
    return Group(_table(title, now), *below)


def _table(title: str, now: list[State]) -> Table:
    with_jobs = any(entry.job for entry in now)
    wide = options.console.width >= _WIDE
    columns = [
        "stage",
        *(["job"] if with_jobs else []),
        "state",
        *(["restarts"] if any(entry.job and entry.job.restarts for entry in now) else []),
        *(["node"] if with_jobs else []),
        *(["step", "left"] if wide else []),
        "result",
    ]
    table = Table(title=title, title_justify="left", box=None, header_style="bold")
    for heading in columns:
        table.add_column(heading, overflow="fold", no_wrap=heading in ("stage", "job"))
    for entry in now:
        job, at = entry.job, entry.progress
        color = "red" if entry.state in ENDED_BADLY else _COLORS.get(entry.state, "yellow")
        cells = {
            "stage": entry.stage.name,
            "job": job.id if job else "",
            "state": Text(entry.state, color),
            "restarts": str(job.restarts or "") if job else "",
            "node": job.nodes if job and entry.state != "waiting" else "",
            "step": f"{at['step']} of {at['total'] or '?'} {at['unit']}" if at else "",
            "left": _clock(entry.seconds_left),
            "result": Text(_result(entry)),
        }
        if at and not wide:
            cells["result"] = Text("  ".join(part for part in (cells["step"], f"{cells['left']} left", _result(entry)) if part))
        table.add_row(*(cells[heading] for heading in columns))
    return table


def _result(entry: State) -> str:
    record = store.done(entry.folder)
    if record:
        return entry.because if record.skipped else f"{progress.headline(entry.stage, record)} ({record.seconds:.0f} s)"
    if entry.state == "not known":
        return ""  # said once, below the table
    if entry.progress:
        return "  ".join(part for part in (progress.numbers(entry.progress), entry.because) if part)
    soon = f"expected to start {entry.job.starts}" if entry.job and entry.state == "waiting" and entry.job.starts else ""
    return "; ".join(part for part in (entry.because, soon) if part)


def _clock(seconds: float | None) -> str:
    return "" if seconds is None else f"{int(seconds) // 3600}:{int(seconds) // 60 % 60:02}:{int(seconds) % 60:02}"


def _why(entry: State) -> list[RenderableType]:
    if entry.state == "damaged":  # its log tells of the work, not of what came later
        return [Text(f"\n{entry.stage.name}: {entry.state}: {entry.because}", "red")]
    log = state.right_log(entry.folder)
    lines = [line for line in state.last_lines(log, 40) if line.strip()]
    lines = ([line for line in lines if not _METRICS.match(line)] or lines)[-6:]
    said = [Text(f"  {log}", "dim"), *(Text(f"  {line}") for line in lines)] if lines else []
    return [Text(f"\n{entry.stage.name}: {entry.state}: {entry.because}", "red"), *said]


def _go_on(file: Path, overrides: list[str] | None, cluster_file: Path | None, root: Path, stages: tuple[Stage, ...]) -> str:
    """Return the command that continues the run, with the cluster file and options that it was last submitted with."""
    known = [entry for stage in stages if (entry := submission.read(store.folder(root, stage)))]
    last = max(known, key=lambda entry: entry.submitted, default=None)
    given, more = (last.cluster, last.more) if last else (None, ())
    return options.go_on(file, overrides, cluster_file or given, root, *more)
