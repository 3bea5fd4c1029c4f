"""Stage `report`: the run on one page, for a person who has two minutes, and every score as CSV.

In: every stage of the run, by name; `params` hold the recipe. Out: `report.html`, self-contained (no script, nothing
loaded from anywhere), and `scores.csv` (stage, metric, value, stderr, n). What the page says is computed here and worded
in templates/report.html.jinja; the same stages give the same page, to the byte.
"""

import csv
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from markupsafe import Markup

from rounds.train.config.cluster import Machine
from rounds.train.config.metrics import is_breakdown, is_main, is_of_refusals
from rounds.train.engine import store
from rounds.train.engine.params import ReportParams
from rounds.train.engine.records import Counts
from rounds.train.evaluation import refusal
from rounds.train.evaluation.paired import Z95
from rounds.train.reports import figures, pages
from rounds.train.reports import judged as compared
from rounds.train.reports.data import set_rows, source_rows
from rounds.train.reports.judges import cards
from rounds.train.reports.own_answers import notes as own_notes
from rounds.train.reports.own_answers import own_answers
from rounds.train.reports.samples import side_by_side
from rounds.train.reports.steps import Finished, Judged, Step, find_steps, finished, higher_is_better, judge, policy_of

_CURVES = {
    "loss": "loss",
    "rewards/chosen": "reward of chosen answers",
    "rewards/rejected": "reward of rejected answers",
    "rewards/margins": "reward margin",
    "rewards/accuracies": "reward accuracy",
    "logps/chosen": "log-probability of chosen answers",
    "logps/rejected": "log-probability of rejected answers",
    "log_ratio": "KL estimate on these answers: mean log(policy / reference), nats",
    "tokens/chosen": "length of chosen answers, tokens",
    "tokens/rejected": "length of rejected answers, tokens",
    "grad_norm": "gradient norm",
    "tokens_per_second": "tokens per second",
    "memory_gib": "memory of rank 0, GiB",
}
"""Keys of what is drawn for the DPO rounds: TRL's, and ours."""
_SFT_CURVES = ("loss", "grad_norm", "answer_tokens", "tokens_per_second", "memory_gib")


def run(params: ReportParams, inputs: dict[str, Path], out: Path, machine: Machine) -> Counts:
    """Read the run's folders, write the page and the table of scores."""
    recipe = params.recipe
    stages = {name: finished(name, folder) for name, folder in inputs.items()}
    steps = find_steps(recipe, stages)
    judged = judge(steps)
    page = _render(recipe, stages, steps, judged)
    (out / "report.html").write_text(page, encoding="utf-8")
    rows = write_scores(steps, stages, out / "scores.csv")
    rounds = {each.title: each.conclusion for each in judged if each.is_round}
    return {"stages": len(stages), "scores": rows, "rounds": rounds, "bytes": len(page.encode())}


def write_scores(steps: Sequence[Step], stages: Mapping[str, Finished], path: Path) -> int:
    """Write every score, groups and win rates included, one per line; returns how many."""
    found = [*((step.name, metric, score) for step in steps for metric, score in step.scores.items()), *compared.scores(stages)]
    rows = [(name, metric, score.value, "" if score.stderr is None else score.stderr, score.n) for name, metric, score in found]
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("stage", "metric", "value", "stderr", "n"), *rows])
    return len(rows)


def _render(recipe: Mapping[str, Any], stages: Mapping[str, Finished], steps: Sequence[Step], judged: Sequence[Judged]) -> str:
    metrics = list(dict.fromkeys(metric for step in steps for metric in step.scores))
    main = [metric for metric in metrics if is_main(metric)]
    sources = source_rows(stages, recipe)
    measured = recipe.get("evaluate") or {}
    tasks, averages = measured.get("tasks") or (), {name: each["mean_of"] for name, each in (measured.get("averages") or {}).items()}
    preferred = compared.comparisons(recipe, stages)
    return pages.render(
        "report.html.jinja",
        recipe=recipe,
        base=_base(recipe, stages),
        stages=list(stages.values()),
        when=_when(list(stages.values())),
        steps=steps,
        measured=[step for step in steps if step.scores],
        judged=judged,
        rounds=[each for each in judged if each.is_round],
        chance=1 - 0.95 ** len(main),
        main=main,
        other=[metric for metric in metrics if not is_breakdown(metric) and not is_main(metric)],
        meaning={metric: pages.meaning(metric, tasks, averages) for metric in metrics},
        higher={metric: any(higher_is_better(step, metric) for step in steps if metric in step.scores) for metric in metrics},
        sizes={metric: sorted({step.scores[metric].n for step in steps if metric in step.scores}) for metric in metrics},
        groups=_groups(metrics),
        caveat=refusal.caveat() if any(map(is_of_refusals, metrics)) else "",
        floors={metric: each for step in steps for metric, score in step.scores.items() if (each := score.floors)},
        lacking=_lacking(measured, stages),
        published=_published(measured.get("published"), steps),
        verdicts={
            each.step.name: {m: c.verdict for m, c in each.comparisons.items()}
            for each in judged
            if each.title == each.step.name  # not all rounds together
        },
        score_figures={metric: _score_figure(metric, steps) for metric in main},
        preferred=preferred,
        preferred_figures={each["name"]: _win_figure(each, steps) for each in preferred},
        disagreements=compared.disagreements(preferred),
        curve_figures=_curve_figures(steps),
        gates=_gates(steps, stages),
        cards=cards(stages.values()),
        samples=side_by_side(steps),
        own=(own := own_answers(stages)),
        own_notes=own_notes(own),
        sources=sources,
        sets=set_rows(steps, stages),
        data_card=stages.get("manifest"),
        final=_final(steps, stages),
        graph=_lineage(steps, stages, sources),
        names={stage.folder.name: stage.name for stage in stages.values()},
        recipe_yaml=yaml.safe_dump(dict(recipe), sort_keys=False, allow_unicode=True, width=100),
    )


def _base(recipe: Mapping[str, Any], stages: Mapping[str, Finished]) -> dict[str, Any]:
    base = recipe["base"]
    name = {"hub": base.get("id"), "local": "a local model folder"}.get(base["kind"], "a small, randomly initialised Llama")
    counts = stages["base"].counts if "base" in stages else {}
    return {"name": name, "revision": base.get("revision"), "parameters": counts.get("parameters")}


def _when(stages: Sequence[Finished]) -> dict[str, Any]:
    """Say when the stages ran, in UTC, and how long they took together."""
    ended = [(end, stage.record.seconds) for stage in stages if (end := stage.record.finished) is not None]
    times = [min(end - seconds for end, seconds in ended), max(end for end, _ in ended)] if ended else []
    return {
        "span": [datetime.fromtimestamp(time, UTC) for time in times],
        "seconds": sum(seconds for _, seconds in ended),
    }


def _groups(metrics: Sequence[str]) -> dict[str, list[tuple[str, str]]]:
    """Return metric -> its breakdown, as (group, the breakdown's own metric)."""
    found: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for metric in metrics:
        if is_breakdown(metric):
            subject, name, group = metric.split("/", 2)
            found[f"{subject}/{name}"].append((group, metric))
    return {metric: sorted(groups) for metric, groups in found.items()}


def _lacking(measured: Mapping[str, Any], stages: Mapping[str, Finished]) -> dict[str, str]:
    """Return what has no score, and why: tasks that were left out, and averages with the part that was not measured."""
    found = dict(measured.get("absent") or {})
    for stage in stages.values():
        parts = stage.counts.get("not_available") if stage.spec.kind.measures else None
        found |= {name: f"{part} was not measured" for name, part in parts.items()} if isinstance(parts, dict) else {}
    return found


def _published(table: Mapping[str, Any] | None, steps: Sequence[Step]) -> dict[str, Any] | None:
    """Return a publication's rows, and the policies' own scores in its columns, in percent."""
    if not table:
        return None
    columns = table["columns"]
    own = {step.name: [100 * each.value if (each := step.scores.get(c)) else None for c in columns] for step in steps if step.scores}
    return {**table, "own": own}


def _score_figure(metric: str, steps: Sequence[Step]) -> Markup:
    measured = [step for step in steps if metric in step.scores]
    points = [
        figures.Point(
            step.name,
            step.scores[metric].value,
            Z95 * (step.scores[metric].stderr or 0),
            measured.index(step.start) if step.start in measured else None,
            step.status == "rejected",
        )
        for step in measured
    ]
    return Markup(figures.scores(metric, points))


def _win_figure(each: Mapping[str, Any], steps: Sequence[Step]) -> Markup:
    status = {step.name: step.status for step in steps}
    points = [
        figures.Point(row["policy"], rate["value"], Z95 * (rate["stderr"] or 0), None, status.get(row["policy"]) == "rejected")
        for row in each["rows"]
        for rate in (row["winrate"],)
    ]
    return Markup(figures.scores(f"{each['name']}/winrate", points))


def _curve_figures(steps: Sequence[Step]) -> list[tuple[str, Markup]]:
    found: list[tuple[str, Markup]] = []
    for key in _SFT_CURVES:
        name = f"SFT {_CURVES.get(key, key.replace('_', ' '))}"
        sft = [figures.Curve(step.name, _logged(step, key)) for step in steps if step.name == "sft"]
        if sft and sft[0].values:
            found.append((name, Markup(figures.curves(name, sft, named=False))))
    rounds = [step for step in steps if step.stage.kind.is_round]
    for key, name in _CURVES.items():
        curves = [figures.Curve(step.name, values) for step in rounds if (values := _logged(step, key))]
        if curves:
            found.append((f"DPO {name}", Markup(figures.curves(f"DPO {name}", curves, second=key.endswith("/rejected")))))
    return found


def _logged(step: Step, key: str) -> list[float]:
    return [row[key] for row in step.metrics if isinstance(row.get(key), int | float) and math.isfinite(row[key])]


def _gates(steps: Sequence[Step], stages: Mapping[str, Finished]) -> list[dict[str, Any]]:
    """Say for every round what its gate decided and why; a round without a gate is listed as such."""
    found = []
    for step in steps:
        gate = stages.get(f"gate.{step.name}")
        if gate or step.stage.kind.is_round:
            decision = store.decision(gate.folder) if gate else None
            rules, stops = (decision.rules, decision.stops_rounds) if decision else ((), False)
            found.append({"step": step, "gate": gate, "rules": rules, "stops": stops})
    return found


def _final(steps: Sequence[Step], stages: Mapping[str, Finished]) -> str | None:
    """Name the policy that was exported."""
    if "export" not in stages:
        return None
    folder = policy_of(stages["export"].input("policy"), {stage.folder.name: stage for stage in stages.values()})
    return next((step.name for step in steps if step.stage.folder.name == folder), None)


def _lineage(steps: Sequence[Step], stages: Mapping[str, Finished], sources: Sequence[Mapping[str, Any]]) -> Markup:
    judges = {name: f"judge {name.rpartition('.')[2]}" for name in stages if "reward" in name.split(".")[:2]}
    rows = [*(step.name for step in steps), *dict.fromkeys(judges.values())]
    lanes = {f"source.{row['name']}": row["trained"][0] if row["trained"] else "base" for row in sources}
    lanes |= {"pack": "sft", "export": steps[-1].name if steps else ""}
    lanes |= judges
    states = {f"gate.{step.name}": step.status for step in steps}
    boxes = [
        figures.Box(
            name,
            lanes.get(name) or name.partition(".")[2] or name,
            stage.kind,
            "skipped" if stage.skipped else states.get(name, "done"),
            stage.folder.name,
            stage.spec.stages(),
        )
        for name, stage in stages.items()
    ]
    return Markup(figures.lineage(rows, boxes))
