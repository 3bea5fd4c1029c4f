"""The end of `rounds eval`: the models' scores side by side, what a publication prints, and where the page is."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from rounds.train.display import scores
from rounds.train.engine import store
from rounds.train.engine.kinds import COMPARISON
from rounds.train.engine.params import ComparisonParams
from rounds.train.plan.comparison import ComparisonPlan

_MARKS = {"better": " [green]▲[/]", "worse": " [red]▼[/]", "within noise": " ≈", "not after correction": " ≈", "same policy": " ="}


def summary(console: Console, made: ComparisonPlan, root: Path, ran: int, seconds: float) -> None:
    """Print the table, what the publication says, what was not measured, and the page."""
    folder = store.folder(root, made.report)
    evaluations = {name: store.scores(store.folder(root, stage)) for name, stage in made.scores.items()}
    verdicts = store.counts(folder).get("differences", {})
    marks = {(name, metric): _MARKS.get(told[1], "") for name, of_model in verdicts.items() for metric, told in of_model.items()}
    console.print(scores.scores_table(made.recipe.name, evaluations, marks))
    if verdicts:
        console.print(f"▲ better, ▼ worse than {next(iter(made.scores))}, paired and corrected; ≈ cannot be told apart", highlight=False)
    params = made.report.params
    assert isinstance(params, ComparisonParams)
    if params.published:
        console.print(_published(params, evaluations))
        console.print(f"published: {params.published.source}; {params.published.protocol}", highlight=False, soft_wrap=True)
    for name, why in params.absent.items():
        console.print(f"not measured: {name}: {why}", style="yellow", highlight=False, markup=False, soft_wrap=True)
    console.print("nothing was left to do" if not ran else f"{ran} stages run in {seconds:.1f} s", highlight=False)
    print(f"page:   {folder / COMPARISON.page}")
    print(f"table:  {folder / 'comparison.csv'}")


def _published(params: ComparisonParams, evaluations: dict) -> Table:
    assert params.published
    table = Table(title="percent, beside what is published", title_justify="left", box=None, header_style="bold")
    table.add_column("model", overflow="fold")
    for column in params.published.columns:
        table.add_column(column, justify="right", overflow="fold")
    for name, row in params.published.rows.items():
        table.add_row(name, *("n/a" if value is None else f"{value:.1f}" for value in row), style="dim")
    for name, of_model in evaluations.items():
        table.add_row(name, *(f"{100 * of_model[c].value:.1f}" if c in of_model else "n/a" for c in params.published.columns))
    return table
