"""Stage `comparison`: several policies on the same held-out rows, side by side.

In: the evaluation of each, by folder name; `params` say whose is which, and what a publication prints. Out: `comparison.html`,
self-contained, and `comparison.csv`: a line for each model and metric with its difference to the first. Differences are judged as an
ablation's are (`rounds.train.reports.contrasts`): paired by item, corrected over the page. The same stages give the same page, to the
byte.
"""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from rounds.train.config.cluster import Machine
from rounds.train.config.evaluation import MIN_ITEMS
from rounds.train.config.metrics import is_breakdown, is_main, is_of_refusals
from rounds.train.engine import store
from rounds.train.engine.params import ComparisonParams
from rounds.train.engine.records import Counts, Score
from rounds.train.evaluation import refusal
from rounds.train.evaluation.paired import read_items, read_questions
from rounds.train.reports import figures, pages
from rounds.train.reports.contrasts import ALPHA, Contrast, contrast, intervals, judged

PAGE, TABLE = "comparison.html", "comparison.csv"
_COLUMNS = ("model", "metric", "value", "stderr", "n", "difference", "low", "high", "p", "p_holm", "verdict")


def run(params: ComparisonParams, inputs: dict[str, Path], out: Path, machine: Machine) -> Counts:
    """Compare the models with the first; write the page and the table."""
    scores = {name: store.scores(inputs[folder]) for name, folder in params.models.items()}
    higher = {metric: bool(score.higher_is_better) for of_model in scores.values() for metric, score in of_model.items()}
    contrasts = _contrasts(params, inputs, scores, higher)
    (out / PAGE).write_text(_page(params, inputs, scores, contrasts, higher), encoding="utf-8")
    _write(scores, contrasts, out / TABLE)
    return {
        "scores": {name: {m: [round(each.value, 4), each.n] for m, each in of_model.items()} for name, of_model in scores.items()},
        "differences": {
            name: {c.metric: [round(c.difference, 6), c.verdict] for c in contrasts if c.variant == name and is_main(c.metric)}
            for name in list(params.models)[1:]
        },
        "floors": {m: each.floors for of_model in scores.values() for m, each in of_model.items() if each.floors},
        "left_out": _of_models(params, inputs, "dropped"),
        "not_available": _of_models(params, inputs, "not_available"),
        "absent": params.absent,
    }


def _of_models(params: ComparisonParams, inputs: dict[str, Path], name: str) -> dict[str, Any]:
    """Return what each model's evaluation counted under a name."""
    return {model: store.counts(inputs[folder]).get(name, {}) for model, folder in params.models.items()}


def _is_row(metric: str) -> bool:
    """Tell whether a metric has a row of its own: all but breakdowns by group."""
    return not is_breakdown(metric) or "/floor_" in metric


def _contrasts(
    params: ComparisonParams, inputs: dict[str, Path], scores: dict[str, dict[str, Score]], higher: dict[str, bool]
) -> list[Contrast]:
    """Compare every model with the first, over the items that both were asked: main metrics with verdicts."""
    first, *others = params.models
    items = {name: read_items(inputs[folder]) for name, folder in params.models.items()}
    questions = read_questions(inputs[params.models[first]])
    found: list[Contrast] = []
    for metric in dict.fromkeys(metric for of_model in scores.values() for metric in of_model):
        asked = questions.get(metric, {})
        for name in others:
            both = {each: {0: items[each][metric]} for each in (first, name) if metric in items[each]}
            if _is_row(metric) and len(both) == 2:
                found += contrast(metric, first, both, lambda item, asked=asked: asked.get(item, item))
    same = {name for name in others if params.models[name] == params.models[first]}
    family = judged([each for each in found if is_main(each.metric)], higher, same)
    return [*family, *(each for each in found if not is_main(each.metric))]


def _write(scores: dict[str, dict[str, Score]], contrasts: Sequence[Contrast], path: Path) -> None:
    known = {(each.variant, each.metric): each for each in contrasts}
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(_COLUMNS)
        for name, of_model in scores.items():
            for metric, score in of_model.items():
                each = known.get((name, metric))
                told = [] if each is None else [each.difference, each.low, each.high, each.p, each.p_holm, each.verdict]
                row = [name, metric, score.value, score.stderr, score.n, *told]
                writer.writerow(["" if value is None else value for value in row])


def _page(
    params: ComparisonParams,
    inputs: dict[str, Path],
    scores: dict[str, dict[str, Score]],
    contrasts: Sequence[Contrast],
    higher: dict[str, bool],
) -> str:
    first = next(iter(params.models))
    metrics = [metric for metric in dict.fromkeys(m for of_model in scores.values() for m in of_model) if _is_row(metric)]
    by_metric = {metric: {each.variant: each for each in contrasts if each.metric == metric} for metric in metrics}
    main = [metric for metric in metrics if is_main(metric)]
    counts = {name: store.counts(inputs[folder]) for name, folder in params.models.items()}
    return pages.render(
        "comparison.html.jinja",
        asked=params,
        first=first,
        scores=scores,
        main=main,
        other=[metric for metric in metrics if not is_main(metric)],
        caveat=refusal.caveat() if any(map(is_of_refusals, metrics)) else "",
        floors={metric: each for of_model in scores.values() for metric, score in of_model.items() if (each := score.floors)},
        by_metric=by_metric,
        meaning={metric: pages.meaning(metric, params.tasks, params.averages) for metric in metrics},
        higher=higher,
        sizes={metric: sorted({of_model[metric].n for of_model in scores.values() if metric in of_model}) for metric in metrics},
        figures={metric: _forest(metric, list(by_metric[metric].values()), higher[metric]) for metric in main if by_metric[metric]},
        tested=[each for each in contrasts if each.p_holm is not None],
        dropped=_dropped(counts),
        lacking=[(name, average, part) for name, of_model in counts.items() for average, part in of_model.get("not_available", {}).items()],
        published=_published(params, scores),
        alpha=ALPHA,
        least=MIN_ITEMS,
    )


def _dropped(counts: dict[str, Counts]) -> list[tuple[str, str, str, int]]:
    """List what could not be measured: model, task, reason, rows."""
    found = []
    for name, of_model in counts.items():
        dropped = of_model.get("dropped")
        for task, reasons in dropped.items() if isinstance(dropped, dict) else ():
            found += [(name, task, reason, rows) for reason, rows in (reasons.items() if isinstance(reasons, dict) else ())]
    return found


def _published(params: ComparisonParams, scores: dict[str, dict[str, Score]]) -> list[dict[str, Any]]:
    """Return the publication's rows and ours in its columns, in percent."""
    if params.published is None:
        return []
    columns = params.published.columns
    rows = [{"name": name, "own": False, "values": row} for name, row in params.published.rows.items()]
    own = [
        {"name": name, "own": True, "values": [100 * each.value if (each := of_model.get(c)) else None for c in columns]}
        for name, of_model in scores.items()
    ]
    return [*rows, *own]


def _forest(metric: str, contrasts: Sequence[Contrast], higher_is_better: bool) -> Markup:
    return Markup(figures.forest(metric, intervals(contrasts), higher_is_better))
