"""The end of `rounds eval`: the models' scores side by side, what a publication prints, and where the page is."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rounds.train.config.metrics import is_breakdown
from rounds.train.display import scores
from rounds.train.engine import store
from rounds.train.engine.kinds import COMPARISON
from rounds.train.engine.params import ComparisonParams
from rounds.train.engine.records import Counts
from rounds.train.plan.comparison import ComparisonPlan

_MARKS = {
    "better": Text(" ▲", "green"),
    "worse": Text(" ▼", "red"),
    "within noise": Text(" ≈"),
    "not after correction": Text(" ≈"),
    "same policy": Text(" ="),
}
_CELL, _NUMBER = 14, 12
"""Widths of a score with its error and mark, and of the column of numbers of rows with its margins ("1,000 to 1,273" is rare)."""


def summary(console: Console, made: ComparisonPlan, root: Path, ran: int, seconds: float) -> None:
    """Print the table, what the publication says, what was not measured, and the page."""
    folder = store.folder(root, made.report)
    evaluations = {name: store.scores(store.folder(root, stage)) for name, stage in made.scores.items()}
    verdicts = store.counts(folder).get("differences", {})
    marks = {(name, metric): _MARKS.get(told[1], Text()) for name, of_model in verdicts.items() for metric, told in of_model.items()}
    heads = _heads(evaluations, console.width)
    for name, head in heads.items():
        if head != name:
            console.print(f"{head}: {name}", highlight=False, markup=False, soft_wrap=True)
    names, beside = list(evaluations), _beside(evaluations, console.width)
    for start in range(0, len(names), beside):
        shown = {heads[name]: evaluations[name] for name in names[start : start + beside]}
        console.print(scores.scores_table(made.recipe.name, shown, {(heads[name], m): mark for (name, m), mark in marks.items()}))
    if verdicts:
        console.print(
            f"▲ better, ▼ worse than {heads[next(iter(made.scores))]}, paired and corrected; ≈ cannot be told apart; bare: too few",
            highlight=False,
        )
    params = made.report.params
    assert isinstance(params, ComparisonParams)
    if params.published:
        console.print(_published(params, {heads[name]: of_model for name, of_model in evaluations.items()}))
        console.print(f"published: {params.published.source}; {params.published.protocol}", highlight=False, soft_wrap=True)
    scores.say_how_refusals_are_told(console, evaluations)
    for name, why in params.absent.items():
        console.print(f"not measured: {name}: {why}", style="yellow", highlight=False, markup=False, soft_wrap=True)
    for line in _missing(evaluations, {name: store.counts(store.folder(root, stage)) for name, stage in made.scores.items()}, params):
        console.print(line, style="yellow", highlight=False, markup=False, soft_wrap=True)
    console.print("nothing was left to do" if not ran else f"{ran} stages run in {seconds:.1f} s", highlight=False)
    print(f"page:   {folder / COMPARISON.page}")
    print(f"table:  {folder / 'comparison.csv'}")


def _room(evaluations: Mapping[str, Mapping[str, Any]], width: int) -> int:
    """Return how many characters the models' columns have beside those of metric and number of rows."""
    return (
        width
        - _NUMBER
        - max((len(metric) for of_model in evaluations.values() for metric in of_model if not is_breakdown(metric)), default=0)
    )


def _beside(evaluations: Mapping[str, Mapping[str, Any]], width: int) -> int:
    """Return how many models have room beside each other; all, where their names have."""
    if sum(max(len(name), _CELL) + 2 for name in evaluations) <= _room(evaluations, width):
        return len(evaluations)
    return max(1, _room(evaluations, width) // (_CELL + 2))


def _heads(evaluations: Mapping[str, Mapping[str, Any]], width: int) -> dict[str, str]:
    """Return what stands above each model's column: its name, or a number where the names leave no room for the scores."""
    if sum(max(len(name), _CELL) + 2 for name in evaluations) <= _room(evaluations, width):
        return {name: name for name in evaluations}
    return {name: f"model {number}" for number, name in enumerate(evaluations, 1)}


def _missing(evaluations: Mapping[str, Any], counts: Mapping[str, Counts], params: ComparisonParams) -> list[str]:
    """Say which averages are not available, and of which tasks rows were left out, in a line each where all models are alike."""
    lines: dict[str, list[str]] = {}
    for name in evaluations:
        for average, part in counts[name].get("not_available", {}).items():
            if part.partition("/")[0] not in params.absent:
                lines.setdefault(f"not available: {average}: {part} was not measured", []).append(name)
        for task, reasons in counts[name].get("dropped", {}).items():
            for reason, rows in reasons.items():
                lines.setdefault(f"left out: {rows:,} of {task}: {reason.replace('_', ' ')}", []).append(name)
    return [line if len(names) == len(evaluations) else f"{line} ({', '.join(names)})" for line, names in lines.items()]


def _published(params: ComparisonParams, evaluations: dict) -> Table:
    assert params.published
    table = Table(title="percent, beside what is published", title_justify="left", box=None, header_style="bold", collapse_padding=True)
    table.add_column("model", no_wrap=True)
    for column in params.published.columns:
        table.add_column(column.replace("/", "\n").replace("_", "\n"), justify="right", no_wrap=True)
    for name, row in params.published.rows.items():
        table.add_row(name, *("n/a" if value is None else f"{value:.1f}" for value in row), style="dim")
    for name, of_model in evaluations.items():
        table.add_row(name, *(f"{100 * of_model[c].value:.1f}" if c in of_model else "n/a" for c in params.published.columns))
    return table
