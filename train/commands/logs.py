"""`rounds logs`: what a stage printed, and what it prints now."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from rounds.data_prep.errors import UserError, nearest
from rounds.train.commands import options
from rounds.train.commands.options import ClusterFile, Overrides, RecipeFile, StoreRoot, plan_of, store_of, told
from rounds.train.engine.records import log_of
from rounds.train.launch import slurm, state
from rounds.train.launch.state import State

_POLL_SECONDS = 0.5
_SECONDS_BETWEEN_LOOKS = 10.0


@told
def logs(
    file: RecipeFile,
    stage: Annotated[str, typer.Argument(help="Name of a stage, such as dpo.second", show_default=False)],
    overrides: Overrides = None,
    cluster_file: ClusterFile = None,
    root: StoreRoot = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Stay, and print what is added until the stage ends")] = False,
    rank: Annotated[int, typer.Option(help="Rank of a training stage with several processes")] = 0,
    batch: Annotated[bool, typer.Option("--batch", help="What the batch script, srun and torchrun printed instead")] = False,
) -> None:
    """Print the log of one stage.

    rounds logs recipes/quickstart.yaml dpo.second

    rounds logs recipes/quickstart.yaml dpo.second -f
    """
    root = store_of(root, cluster_file)
    plan = plan_of(file, overrides, root)
    wanted = {made.name: made for made in (*slurm.checks_of(plan.stages, root), *plan.stages)}
    if stage not in wanted:
        raise UserError(f"{file}: no stage {stage!r}. {nearest(stage, list(wanted))}")

    def now() -> State:
        return next(entry for entry in state.states(plan.stages, root) if entry.stage.key == wanted[stage].key)

    entry = now()
    path = _file(entry, rank, batch)
    if not follow:
        tells = state.right_log(entry.folder)
        more = f"what tells most of how it ended is in {tells}" if _ended(entry) and tells != path else ""
        if not path.exists():
            raise UserError(f"{stage}: no log yet ({path}): {_stands(entry)}{f'; {more}' if more else ''}")
        print(path.read_text(errors="replace"), end="", flush=True)
        if more:
            options.errors.print(f"-- {stage}: {_stands(entry)}; {more}", style="yellow", highlight=False, soft_wrap=True)
        return
    for text in _added(path, now):
        print(text, end="", flush=True)
    entry = now()
    print(f"-- {stage}: {_stands(entry)}")


def _ended(entry: State) -> bool:
    return entry.state in state.ENDED_BADLY


def _stands(entry: State) -> str:
    return f"{entry.state}: {entry.because}" if entry.because else entry.state


def _file(entry: State, rank: int, batch: bool) -> Path:
    if batch:
        printed = sorted((entry.folder / "slurm").glob("*.txt"), key=lambda path: path.stat().st_mtime)
        return printed[-1] if printed else entry.folder / "slurm" / f"{entry.job.id if entry.job else 'JOB'}.txt"
    return log_of(entry.folder, rank)


def _added(path: Path, now) -> Iterator[str]:
    """Yield what is in the file and what is added to it, until the stage has come to an end of whatever kind."""
    at, looked, over, waits = 0, -_SECONDS_BETWEEN_LOOKS, False, False
    while True:
        if path.exists():
            with path.open(encoding="utf-8", errors="replace") as file:
                file.seek(at)
                text = file.read()
                at = file.tell()
            if text:
                yield text
        if over:
            return
        if time.monotonic() - looked > (_SECONDS_BETWEEN_LOOKS if at else 2.0):
            entry = now()
            if entry.state == "to do" and not waits and not at:
                yield f"-- {entry.stage.name} has not begun; waiting for it\n"
                waits = True
            behind = entry.because.startswith("behind ")
            over = entry.state in (*state.ENDED_BADLY, "done", "skipped") or (entry.state == "to do" and behind)
            looked = time.monotonic()
        time.sleep(_POLL_SECONDS)
