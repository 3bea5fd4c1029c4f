"""Stage `ablation_report`: what each variant of an ablation changed, on one page and as one table.

In: every stage of every variant, by folder name; `params` say which are whose, and which holds a variant's scores. Out:
`ablation.html`, self-contained, and `ablation.csv`: a line for each variant and metric with its difference to the baseline.
How differences are judged is told in `rounds.train.reports.contrasts`; the same stages give the same page, to the byte.
"""

import csv
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

from markupsafe import Markup

from rounds.train.config.cluster import Machine
from rounds.train.config.evaluation import MIN_ITEMS
from rounds.train.config.metrics import is_breakdown, is_main
from rounds.train.engine import store
from rounds.train.engine.params import AblationReportParams
from rounds.train.engine.records import Counts, Score
from rounds.train.evaluation.paired import read_items, read_questions
from rounds.train.reports import figures, pages
from rounds.train.reports.contrasts import ALPHA, Contrast, contrast, intervals, judged

_COLUMNS = ("variant", "metric", "seeds", "items", "clusters", "baseline_value", "value", "difference", "low", "high", "p",
            "p_holm", "verdict", "seed_stderr", "seconds_own", "seconds_alone")  # fmt: skip


@dataclass(frozen=True)
class Cost:
    """Stage-seconds of a variant: of stages that no other variant needs, and of all that it would run by itself."""

    stages: int
    own: float
    alone: float


@dataclass(frozen=True, eq=False)
class Results:
    """The finished stages of an ablation."""

    asked: AblationReportParams
    inputs: Mapping[str, Path]

    @cached_property
    def seconds(self) -> dict[str, float]:
        """How long each stage worked."""
        return {name: record.seconds if (record := store.done(folder)) else 0.0 for name, folder in self.inputs.items()}

    @cached_property
    def scores(self) -> dict[str, dict[int, dict[str, Score]]]:
        """Variant -> seed -> its `scores.json`."""
        return {
            name: {cell.seed: store.scores(self.inputs[cell.scores]) for cell in variant.cells}
            for name, variant in self.asked.variants.items()
        }

    @cached_property
    def metrics(self) -> list[str]:
        """Every metric of any variant, in the order of the evaluations."""
        return list(dict.fromkeys(m for seeds in self.scores.values() for scores in seeds.values() for m in scores))

    @cached_property
    def same(self) -> set[str]:
        """The variants whose policy is the baseline's own: another name for the same stages."""
        cells = {name: {cell.scores for cell in variant.cells} for name, variant in self.asked.variants.items()}
        return {name for name, scores in cells.items() if scores == cells[self.asked.baseline]} - {self.asked.baseline}

    @cached_property
    def higher(self) -> dict[str, bool]:
        """Whether a higher value of a metric is better."""
        return {m: bool(scores[m].higher_is_better) for seeds in self.scores.values() for scores in seeds.values() for m in scores}

    def contrasts(self) -> list[Contrast]:
        """Compare all variants with the baseline: main metrics with verdicts, then the others without."""
        items = {
            name: {cell.seed: read_items(self.inputs[cell.scores]) for cell in variant.cells}
            for name, variant in self.asked.variants.items()
        }
        questions = read_questions(self.inputs[self.asked.variants[self.asked.baseline].cells[0].scores])
        found = []
        for metric in self.metrics:
            values = {
                name: {seed: table[metric] for seed, table in seeds.items()}
                for name, seeds in items.items()
                if all(metric in table for table in seeds.values())
            }
            found += contrast(metric, self.asked.baseline, values, _asked(questions.get(metric, {})))
        family = [each for each in found if is_main(each.metric)]
        return [*judged(family, self.higher, self.same), *(each for each in found if not is_main(each.metric))]

    def costs(self) -> dict[str, Cost]:
        """Say what each variant cost."""
        needed = {name: {stage for cell in variant.cells for stage in cell.stages} for name, variant in self.asked.variants.items()}
        users = {stage: sum(stage in stages for stages in needed.values()) for stages in needed.values() for stage in stages}
        return {
            name: Cost(
                len(stages),
                sum(self.seconds[stage] for stage in stages if users[stage] == 1),
                sum(self.seconds[stage] for stage in stages),
            )
            for name, stages in needed.items()
        }


def run(params: AblationReportParams, inputs: dict[str, Path], out: Path, machine: Machine) -> Counts:
    """Compare the variants; write the page and the table."""
    results = Results(params, inputs)
    contrasts, costs = results.contrasts(), results.costs()
    main = [each for each in contrasts if is_main(each.metric)]
    page = _page(results, contrasts, costs)
    (out / "ablation.html").write_text(page, encoding="utf-8")
    lines = _write(contrasts, results, costs, out / "ablation.csv")
    differences: dict[str, dict[str, Any]] = {}
    for each in main:
        differences.setdefault(each.variant, {})[each.metric] = [round(each.difference, 6), each.verdict]
    return {
        "variants": len(results.asked.variants),
        "lines": lines,
        "differences": differences,
        "verdicts": {verdict: sum(each.verdict == verdict for each in main) for verdict in sorted({e.verdict for e in main})},
        "seconds": round(sum(results.seconds.values()), 1),
        "seconds_alone": round(sum(cost.alone for cost in costs.values()), 1),
        "missing": results.asked.missing,
    }


def _asked(questions: Mapping[str, str]) -> Callable[[str], str]:
    """Return the look-up of an item's question; an item that the baseline was not asked is one by itself."""
    return lambda item: questions.get(item, item)


def _write(contrasts: Sequence[Contrast], results: Results, costs: Mapping[str, Cost], path: Path) -> int:
    """Write a line for each variant and metric; returns how many."""
    rows = []
    for each in contrasts:
        cost = costs[each.variant]
        known = {**asdict(each), "seeds": len(results.asked.variants[each.variant].cells),
                 "seconds_own": round(cost.own, 3), "seconds_alone": round(cost.alone, 3)}  # fmt: skip
        rows.append(["" if known[name] is None else known[name] for name in _COLUMNS])
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([_COLUMNS, *rows])
    return len(rows)


def _page(results: Results, contrasts: Sequence[Contrast], costs: Mapping[str, Cost]) -> str:
    asked = results.asked
    by_metric = {metric: {c.variant: c for c in contrasts if c.metric == metric} for metric in results.metrics}
    compared = [metric for metric in results.metrics if by_metric[metric]]
    main = [metric for metric in compared if is_main(metric)]
    judgements = [each for each in contrasts if is_main(each.metric)]
    baseline_tasks = _tasks(results)
    return pages.render(
        "ablation.html.jinja",
        asked=asked,
        seeds=sorted({cell.seed for variant in asked.variants.values() for cell in variant.cells}),
        main=main,
        other=[metric for metric in compared if not is_breakdown(metric) and not is_main(metric)],
        uncompared=[metric for metric in results.metrics if is_main(metric) and metric not in compared],
        by_metric=by_metric,
        rows={name: [by_metric[m][name] for m in main if name in by_metric[m]] for name in asked.variants},
        digits={metric: _digits(by_metric[metric].values()) for metric in compared},
        meaning={metric: pages.meaning(metric, baseline_tasks) for metric in results.metrics},
        higher=results.higher,
        same=results.same,
        tested=[each for each in judgements if each.p_holm is not None],
        judgements=judgements,
        clustered=[metric for metric in main if any(c.clusters < c.items for c in by_metric[metric].values())],
        figures={metric: _forest(metric, list(by_metric[metric].values()), results.higher[metric]) for metric in main},
        costs=costs,
        seconds=sum(results.seconds.values()),
        alone=sum(cost.alone for cost in costs.values()),
        stages=len(results.inputs),
        alpha=ALPHA,
        least=MIN_ITEMS,
    )


def _digits(contrasts: Iterable[Contrast]) -> float:
    """Return one standard error that all numbers of a metric are rounded by: the median of those that are not 0."""
    known = [each.stderr for each in contrasts if each.stderr]
    return median(known) if known else 0.0


def _tasks(results: Results) -> list[dict[str, Any]]:
    for folder in results.inputs.values():
        spec = store.spec(folder)
        if spec.kind.measures:
            return spec.params["tasks"]
    return []


def _forest(metric: str, contrasts: Sequence[Contrast], higher_is_better: bool) -> Markup:
    return Markup(figures.forest(metric, intervals(contrasts), higher_is_better))
