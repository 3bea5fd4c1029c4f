"""The end of `rounds run`: the scores of each round, the gates' decisions, where model and report are."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rounds.train.config.metrics import REFUSALS, is_breakdown
from rounds.train.engine import policy, store
from rounds.train.engine.records import Decision, Score
from rounds.train.evaluation import refusal
from rounds.train.plan.pipeline import Plan


@dataclass(frozen=True)
class Outcome:
    """What a finished run came to."""

    scores: dict[str, dict[str, Score]]
    """By evaluation."""
    gates: dict[str, Decision | None]
    exported: Path
    policy: str
    """The stage that made what is exported."""
    why: str
    """Why that policy and no other, in one sentence."""
    report: Path
    not_available: dict[str, str]
    """Averages and tasks without a score, and what they lack."""

    @property
    def rejected(self) -> bool:
        """Whether a gate rejected a round's policy."""
        return any(decision is not None and decision.decision == "rejected" for decision in self.gates.values())

    def as_json(self) -> dict[str, Any]:
        """Return it as plain JSON, for a script."""
        return {
            "scores": {name: {m: each.model_dump(mode="json") for m, each in found.items()} for name, found in self.scores.items()},
            "not_available": self.not_available,
            "gates": {name: each.model_dump(mode="json") if each else None for name, each in self.gates.items()},
            "rejected": self.rejected,
            "exported": {"model": str(self.exported / "model"), "policy": self.policy, "why": self.why},
            "report": str(self.report),
        }


def outcome(plan: Plan, root: Path) -> Outcome:
    """Read what a finished run came to."""
    folders = {stage.name: store.folder(root, stage) for stage in plan.stages}
    measured = [stage for stage in plan.stages if stage.kind.measures]
    scores = {stage.name.removeprefix("evaluate."): store.scores(folders[stage.name]) for stage in measured}
    for stage in plan.stages:
        if stage.kind.compares_answers:
            policy_name = stage.name.split(".")[1]
            scores[policy_name] = {**scores[policy_name], **store.scores(folders[stage.name])}
    gates = {stage.name: store.decision(folders[stage.name]) for stage in plan.stages if stage.kind.decides}
    made_by = store.spec(policy.chain(store.inputs(folders["export"])["policy"])[-1]).name
    lacking = [store.counts(folders[stage.name]).get("not_available") for stage in measured]
    absent = plan.recipe.evaluate.absent if plan.recipe.evaluate else {}
    return Outcome(
        scores=scores,
        gates=gates,
        exported=folders["export"],
        policy=made_by,
        why=_why(plan, gates, made_by),
        report=folders["report"] / "report.html",
        not_available={name: f"{part} was not measured" for each in lacking if isinstance(each, dict) for name, part in each.items()}
        | absent,
    )


def _why(plan: Plan, gates: Mapping[str, Decision | None], made_by: str) -> str:
    """Say in one sentence why it is this policy that is exported."""
    refused = [name for name, decision in gates.items() if decision and decision.decision == "rejected"]
    after = [stage.name for stage in plan.stages if stage.kind.trains]
    later = (
        [name for name in refused if f"dpo.{name.removeprefix('gate.')}" in after[after.index(made_by) + 1 :]]
        if made_by in after
        else refused
    )
    if not gates:
        return "the last that was trained; no gate decides" if plan.recipe.rounds else "the only one that was trained"
    if not later:
        return "the last round's, which its gate accepted"
    decision = gates[later[-1]]
    broken = next((rule.metric for rule in decision.rules if not rule.holds), "") if decision else ""
    return f"the last that a gate accepted: {', '.join(later)} rejected what came after ({later[-1]} by {broken})"


def summary(console: Console, plan: Plan, root: Path, ran: int, seconds: float) -> Outcome:
    """Print the scores per round, the gates' decisions, and where the report and the model are; returns what they say."""
    found = outcome(plan, root)
    if found.scores:
        console.print(scores_table(plan.recipe.name, found.scores))
    say_how_refusals_are_told(console, found.scores)
    for name, why in found.not_available.items():
        console.print(f"n/a: {name}: {why}", style="yellow", highlight=False, markup=False, soft_wrap=True)
    for name, decision in found.gates.items():
        console.print(f"{name}: {decision.decision if decision else 'not decided'}", highlight=False)
        for rule in decision.rules if decision else ():
            console.print(f"    {rule.says}", highlight=False, markup=False, soft_wrap=True)
    for name, decision in found.gates.items():
        if decision and decision.stops_rounds and decision.decision == "rejected":
            console.print(f"stopped at {name}: the rounds after it were skipped", style="yellow", highlight=False)
    done = "nothing was left to do" if not ran else f"{ran} stages run in {seconds:.1f} s"
    console.print(f"{done}; {len(plan.stages)} in all", highlight=False)
    print(f"model:  {found.exported / 'model'} (the policy after {found.policy})")
    console.print(f"        {found.why}", highlight=False, markup=False, soft_wrap=True)
    print(f"report: {found.report}")
    return found


def say_how_refusals_are_told(console: Console, evaluations: Mapping[str, Mapping[str, Score]]) -> None:
    """Print beside figures of refusals how far the rule that finds them agrees with people."""
    if any("/refusal_balanced" in metric or metric.endswith(REFUSALS) for found in evaluations.values() for metric in found):
        console.print(refusal.caveat(), style="yellow", highlight=False, markup=False, soft_wrap=True)


def scores_table(name: str, evaluations: dict[str, dict[str, Score]], marks: Mapping[tuple[str, str], Text] | None = None) -> Table:
    """Lay scores out, a metric a row and a policy a column; `marks` stand behind a policy's score of a metric."""
    table = Table(title=f"{name}: scores on held-out rows, ±standard error", title_justify="left", box=None, header_style="bold")
    table.add_column("metric", no_wrap=True)
    for column in evaluations:
        table.add_column(column, justify="right", no_wrap=True)
    floors = {metric: each.floors for found in evaluations.values() for metric, each in found.items() if each.floors}
    if floors:
        table.add_column("floor", justify="right", no_wrap=True)
    table.add_column("n", justify="right", no_wrap=True)
    metrics = dict.fromkeys(metric for scores in evaluations.values() for metric in scores)
    for metric in metrics:
        if not is_breakdown(metric):  # the report has it
            sizes = sorted({scores[metric].n for scores in evaluations.values() if metric in scores})
            asked = f"{sizes[0]:,}" if len(sizes) == 1 else f"{sizes[0]:,} to {sizes[-1]:,}"
            cells = [
                Text.assemble(_score(scores.get(metric)), (marks or {}).get((each, metric), Text())) for each, scores in evaluations.items()
            ]
            table.add_row(metric, *cells, *([_floor(floors.get(metric))] if floors else []), asked)
    return table


def _score(score: Score | None) -> str:
    if score is None:
        return "n/a"
    digits = 1 if abs(score.value) >= 10 else 3
    return f"{score.value:.{digits}f}" + ("" if score.stderr is None else f" ±{score.stderr:.{digits}f}")


def _floor(floors: Mapping[str, float] | None) -> str:
    """Write the best score that is had without reading a question, and how."""
    if not floors:
        return ""
    name = max(floors, key=floors.__getitem__)
    return f"{floors[name]:.3f} {name}"
