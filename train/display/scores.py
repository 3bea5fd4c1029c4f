"""The end of `rounds run`: the scores of each round, the gates' decisions, where model and report are."""

from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Table

from rounds.train.engine import policy, store
from rounds.train.engine.records import Score
from rounds.train.plan.pipeline import Plan


def summary(console: Console, plan: Plan, root: Path, ran: int, seconds: float) -> None:
    """Print the scores per round, the gates' decisions, and where the report and the model are."""
    evaluations = {
        stage.name.removeprefix("evaluate."): store.scores(store.folder(root, stage)) for stage in plan.stages if stage.kind.measures
    }
    if evaluations:
        console.print(scores_table(plan.recipe.name, evaluations))
    for stage in plan.stages:
        if stage.kind.decides:
            decision = store.decision(store.folder(root, stage))
            console.print(f"{stage.name}: {decision.decision if decision else 'not decided'}", highlight=False)
            for rule in decision.rules if decision else ():
                console.print(f"    {rule.says}", highlight=False, markup=False, soft_wrap=True)
    for stage in plan.stages:
        counts = store.counts(store.folder(root, stage))
        if counts.get("stops_rounds") and counts["decision"] == "rejected":
            console.print(f"stopped at {stage.name}: the rounds after it were skipped", style="yellow", highlight=False)
    done = "nothing was left to do" if not ran else f"{ran} stages run in {seconds:.1f} s"
    console.print(f"{done}; {len(plan.stages)} in all", highlight=False)
    exported = store.folder(root, plan.stage("export"))
    made_by = store.spec(policy.chain(store.inputs(exported)["policy"])[-1]).name
    print(f"model:  {exported / 'model'} (the policy after {made_by})")
    print(f"report: {store.folder(root, plan.stage('report')) / 'report.html'}")


def scores_table(name: str, evaluations: dict[str, dict[str, Score]], marks: Mapping[tuple[str, str], str] | None = None) -> Table:
    """Lay scores out, a metric a row and a policy a column; `marks` stand behind a policy's score of a metric."""
    table = Table(title=f"{name}: scores on held-out rows, ±standard error", title_justify="left", box=None, header_style="bold")
    table.add_column("metric", no_wrap=True)
    for column in evaluations:
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("n", justify="right", no_wrap=True)
    metrics = dict.fromkeys(metric for scores in evaluations.values() for metric in scores)
    for metric in metrics:
        if metric.count("/") <= 1:  # not the breakdown by group; the report has it
            sizes = sorted({scores[metric].n for scores in evaluations.values() if metric in scores})
            asked = f"{sizes[0]:,}" if len(sizes) == 1 else f"{sizes[0]:,} to {sizes[-1]:,}"
            cells = (_score(scores.get(metric)) + (marks or {}).get((each, metric), "") for each, scores in evaluations.items())
            table.add_row(metric, *cells, asked)
    return table


def _score(score: Score | None) -> str:
    if score is None:
        return "n/a"
    digits = 1 if abs(score.value) >= 10 else 3
    return f"{score.value:.{digits}f}" + ("" if score.stderr is None else f" ±{score.stderr:.{digits}f}")
