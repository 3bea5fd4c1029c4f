"""Live progress of a run: bars on a terminal, plain lines elsewhere; and a finished stage in one line."""

import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from rounds.data_prep import progress
from rounds.train.config.metrics import is_breakdown
from rounds.train.engine import claims, store
from rounds.train.engine.graph import Stage
from rounds.train.engine.records import Counts, Done
from rounds.train.plan.pipeline import Plan

_SECONDS_BETWEEN_LINES = 15.0


class Live:
    """Progress of a run: a bar for the stages, one for the stage at work. Plain lines where there is no terminal."""

    def __init__(self, console: Console, plan: Plan, root: Path) -> None:
        self.console, self.plan = console, plan
        self.total = len(plan.stages)
        self.done = sum(store.done(store.folder(root, stage)) is not None for stage in plan.stages)
        self.began, self.last_line = 0.0, 0.0
        self.progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[numbers]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self.stages: TaskID = self.progress.add_task("stages", total=self.total, completed=self.done, numbers="")
        self.current: TaskID | None = None

    def __enter__(self) -> "Live":
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def __call__(self, event: Any) -> None:
        """Show an event of the launcher."""
        stage, folder = event.stage, event.folder
        if event.kind == "starts":
            self.began = time.monotonic()
            self.current = self.progress.add_task(stage.name, total=None, numbers="")
            self._line(f"[{self.done + 1}/{self.total}] {stage.name} starts")
        elif event.kind == "waits":
            self.console.print(f"{stage.name}: waiting for {claims.holder(folder)}", highlight=False)
        elif event.kind == "moves":
            self._moves(stage, folder)
        elif event.kind == "done":
            self._ends(stage, folder)

    def _moves(self, stage: Stage, folder: Path) -> None:
        now = progress.read(folder)
        if now is None or self.current is None:
            return
        shown = numbers(now)
        self.progress.update(self.current, completed=now["step"], total=now["total"], numbers=shown)
        if not self.console.is_terminal and time.monotonic() - self.last_line > _SECONDS_BETWEEN_LINES:
            self._line(f"    {stage.name}: {now['step']} of {now['total'] or '?'} {now['unit']} {shown}")

    def _ends(self, stage: Stage, folder: Path) -> None:
        record = store.done(folder)
        self.done += 1
        if self.current is not None:
            self.progress.remove_task(self.current)
            self.current = None
        self.progress.update(self.stages, completed=self.done)
        detail = "" if record is None else f"skipped: {record.because}" if record.skipped else headline(stage, record)
        self.console.print(f"{stage.name:<24} {record.seconds if record else 0:7.1f} s  {detail}", highlight=False, markup=False)
        for note in record.counts.get("notes", ()) if record else ():
            self.console.print(f"    note: {note}", style="yellow", highlight=False, markup=False)

    def _line(self, text: str) -> None:
        if not self.console.is_terminal:
            self.last_line = time.monotonic()
            self.console.print(text, highlight=False, markup=False)


def numbers(state: dict) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in progress.numbers(state).items())


def headline(stage: Stage, record: Done) -> str:
    """Say in a line what a finished stage did, and what it left."""
    return ", ".join(filter(None, (_figures(stage, record), *_left_out(record.counts))))


def _left_out(counts: Counts) -> list[str]:
    not_used, not_learnt, limits = (counts.get(name) for name in ("not_used", "answers_not_learnt", "chat_template"))
    # Few templates write what is thought beside an answer, and only rows that say some are told of it.
    written = {what: how for what, how in limits.items() if what != "reasoning beside answers"} if isinstance(limits, dict) else {}
    return [
        *(f"chat template: {what} are {how}" for what, how in written.items()),
        *([f"not used: {', '.join(not_used)}"] if isinstance(not_used, list) else []),
        *([f"{sum(not_learnt.values()):,} answers not learnt"] if isinstance(not_learnt, dict) else []),
    ]


def _figures(stage: Stage, record: Done) -> str:
    counts = record.counts
    if stage.kind.decides:
        return counts["decision"]
    if stage.kind.measures:
        shown = [name for name in counts["scores"] if not is_breakdown(name)][:4]
        return ", ".join(f"{name} {counts['scores'][name][0]:.3f}" for name in shown)
    if stage.kind.compares_answers:
        rate = counts["winrate"]
        missing = f", {counts['missing']:,} of {counts['comparisons']:,} comparisons missing" if counts["missing"] else ""
        return f"wins {rate['value']:.3f} over {counts['against']}, {rate['low']:.3f} to {rate['high']:.3f}{missing}"
    if stage.kind.writes:
        return "; ".join(
            f"{name}: {each['answers']:,} answers, {each['tokens']:,} tokens, {each['ended_share']:.0%} ended"
            for name, each in counts["sets"].items()
        )
    if stage.kind.ranks:
        told = f"{counts['prompts_asked']:,} prompts, {counts['answers']:,} answers, {counts['missing']:,} without a score"
        return f"{told}, {counts['calls']:,} calls, {counts['tokens']:,} tokens" if "calls" in counts else told
    if stage.kind.pairs_up:
        lost = ", ".join(f"{count:,} {reason}" for reason, count in counts["dropped"].items())
        return f"{counts['pairs']:,} pairs of {counts['prompts']:,} prompts" + (f"; without: {lost}" if lost else "")
    if stage.kind.trains:
        return f"{counts['steps']} steps, mean loss {counts['train_loss']:.4f}"
    if stage.kind.vets:
        right, longer, pairs = counts["accuracy"]["all"]
        blind = f"; blind to {', '.join(counts['blind'])}" if counts["blind"] else ""
        return f"right in {right:.3f} of {pairs:,} pairs, the longer answer in {longer:.3f}{blind}"
    names = ("records", "conversations", "rows", "pairs", "tokens", "parameters")
    dropped = counts.get("dropped", {})
    lost = sum(sum(v.values()) if isinstance(v, dict) else v for v in dropped.values()) if isinstance(dropped, dict) else 0
    parts = [f"{counts[name]:,} {name}" for name in names if isinstance(counts.get(name), int)][:3]
    files = counts.get("files")
    left = len(files.get("not_read", ())) if isinstance(files, dict) else 0
    return ", ".join([*parts, *([f"{lost:,} dropped"] if lost else []), *([f"{left:,} files not read"] if left else [])])
