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

from rounds.data_prep.schema import Section
from rounds.train.config.cluster import Row
from rounds.train.engine import store
from rounds.train.evaluation.paired import (
    NEUTRAL,
    Z95,
    Finished,
    Judged,
    Step,
    find_steps,
    higher_is_better,
    is_main,
    judge,
    policy_of,
)
from rounds.train.reports import figures, pages
from rounds.train.tokens.lengths import edge

_SHOWN_PROMPTS, _MORE_PROMPTS, _MAX_CHARACTERS = 4, 20, 1500
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


class Params(Section):
    recipe: dict[str, Any]


def run(params: dict, inputs: dict[str, Path], out: Path, machine: Row) -> dict[str, Any]:
    """Read the run's folders, write the page and the table of scores."""
    recipe = Params.model_validate(params).recipe
    stages = {
        name: Finished(name, folder, store.read_json(folder / "stage.json") or {}, store.done(folder) or {})
        for name, folder in inputs.items()
    }
    steps = find_steps(recipe, stages)
    judged = judge(steps)
    page = _render(recipe, stages, steps, judged)
    (out / "report.html").write_text(page, encoding="utf-8")
    rows = write_scores(steps, out / "scores.csv")
    rounds = {each.title: each.conclusion for each in judged if each.is_round}
    return {"stages": len(stages), "scores": rows, "rounds": rounds, "bytes": len(page.encode())}


def write_scores(steps: Sequence[Step], path: Path) -> int:
    """Write every score, groups included, one per line; returns how many."""
    rows = [(step.name, metric, score["value"], "" if score["stderr"] is None else score["stderr"], score["n"])
            for step in steps for metric, score in step.scores.items()]  # fmt: skip
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("stage", "metric", "value", "stderr", "n"), *rows])
    return len(rows)


def _render(
    recipe: Mapping[str, Any], stages: Mapping[str, Finished], steps: Sequence[Step], judged: Sequence[Judged]
) -> str:
    metrics = list(dict.fromkeys(metric for step in steps for metric in step.scores))
    main = [metric for metric in metrics if is_main(metric)]
    sources = _sources(stages, recipe)
    tasks = (recipe.get("evaluate") or {}).get("tasks") or ()
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
        neutral=[metric for metric in metrics if metric in NEUTRAL],
        meaning={metric: pages.meaning(metric, tasks) for metric in metrics},
        higher={
            metric: any(higher_is_better(step, metric) for step in steps if metric in step.scores) for metric in metrics
        },
        sizes={
            metric: sorted({step.scores[metric]["n"] for step in steps if metric in step.scores}) for metric in metrics
        },
        groups=_groups(metrics),
        verdicts={
            each.step.name: {m: c.verdict for m, c in each.comparisons.items()}
            for each in judged
            if each.title == each.step.name  # not all rounds together
        },
        score_figures={metric: _score_figure(metric, steps) for metric in main},
        curve_figures=_curve_figures(steps),
        gates=_gates(steps, stages),
        samples=_samples(steps),
        sources=sources,
        sets=_sets(steps, stages),
        data_card=stages.get("manifest"),
        final=_final(steps, stages),
        graph=_lineage(steps, stages, sources),
        names={stage.folder.name: stage.name for stage in stages.values()},
        recipe_yaml=yaml.safe_dump(dict(recipe), sort_keys=False, allow_unicode=True, width=100),
    )


def _base(recipe: Mapping[str, Any], stages: Mapping[str, Finished]) -> dict[str, Any]:
    base = recipe["base"]
    name = {"hub": base.get("id"), "local": "a local model folder"}.get(
        base["kind"], "a small, randomly initialised Llama"
    )
    counts = stages["base"].counts if "base" in stages else {}
    return {"name": name, "revision": base.get("revision"), "parameters": counts.get("parameters")}


def _when(stages: Sequence[Finished]) -> dict[str, Any]:
    """Say when the stages ran, in UTC, and how long they took together."""
    ended = [
        (stage.record["finished"], stage.record.get("seconds", 0)) for stage in stages if "finished" in stage.record
    ]
    times = [min(end - seconds for end, seconds in ended), max(end for end, _ in ended)] if ended else []
    return {
        "span": [datetime.fromtimestamp(time, UTC) for time in times],
        "seconds": sum(seconds for _, seconds in ended),
    }


def _groups(metrics: Sequence[str]) -> dict[str, list[tuple[str, str]]]:
    """Return metric -> its breakdown, as (group, the breakdown's own metric)."""
    found: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for metric in metrics:
        if metric.count("/") > 1:
            subject, name, group = metric.split("/", 2)
            found[f"{subject}/{name}"].append((group, metric))
    return {metric: sorted(groups) for metric, groups in found.items()}


def _score_figure(metric: str, steps: Sequence[Step]) -> Markup:
    measured = [step for step in steps if metric in step.scores]
    points = [
        figures.Point(
            step.name,
            step.scores[metric]["value"],
            Z95 * (step.scores[metric]["stderr"] or 0),
            measured.index(step.start) if step.start in measured else None,
            step.status == "rejected",
        )
        for step in measured
    ]
    return Markup(figures.scores(metric, points))


def _curve_figures(steps: Sequence[Step]) -> list[tuple[str, Markup]]:
    found: list[tuple[str, Markup]] = []
    for key in _SFT_CURVES:
        name = f"SFT {_CURVES.get(key, key.replace('_', ' '))}"
        sft = [figures.Curve(step.name, _logged(step, key)) for step in steps if step.name == "sft"]
        if sft and sft[0].values:
            found.append((name, Markup(figures.curves(name, sft, named=False))))
    rounds = [step for step in steps if step.stage.function == "dpo"]
    for key, name in _CURVES.items():
        curves = [figures.Curve(step.name, values) for step in rounds if (values := _logged(step, key))]
        if curves:
            found.append(
                (f"DPO {name}", Markup(figures.curves(f"DPO {name}", curves, second=key.endswith("/rejected"))))
            )
    return found


def _logged(step: Step, key: str) -> list[float]:
    return [row[key] for row in step.metrics if isinstance(row.get(key), int | float) and math.isfinite(row[key])]


def _gates(steps: Sequence[Step], stages: Mapping[str, Finished]) -> list[dict[str, Any]]:
    """Say for every round what its gate decided and why; a round without a gate is listed as such."""
    found = []
    for step in steps:
        gate = stages.get(f"gate.{step.name}")
        if gate or step.stage.function == "dpo":
            decision = (store.read_json(gate.folder / "decision.json") if gate else None) or {}
            found.append(
                {"step": step, "gate": gate, "rules": decision.get("rules", []), "stops": decision.get("stops_rounds")}
            )
    return found


def _samples(steps: Sequence[Step]) -> dict[str, Any]:
    """Choose prompts that all were asked, by their place alone: those where a round changed the answer, and others."""
    asked = [step for step in steps if step.answers]
    prompts = [prompt for prompt in asked[0].answers if all(prompt in step.answers for step in asked)] if asked else []
    rounds = [step for step in asked if step.stage.function == "dpo" and step.start in asked]
    changed = {
        step.name: [p for p in prompts if step.start and step.answers[p]["answer"] != step.start.answers[p]["answer"]]
        for step in rounds
    }
    moved = {prompt for those in changed.values() for prompt in those}
    first = _spread([prompt for prompt in prompts if prompt in moved], _SHOWN_PROMPTS)
    first += _spread([prompt for prompt in prompts if prompt not in moved], _SHOWN_PROMPTS + 2 - len(first))
    rest = _spread([prompt for prompt in prompts if prompt not in first], _MORE_PROMPTS)
    return {
        "prompts": len(prompts),
        "moved": len(moved),
        "changed": {step.name: (len(changed[step.name]), step.start.name if step.start else "") for step in rounds},
        "first": [_card(prompt, asked) for prompt in first],
        "rest": [_card(prompt, asked) for prompt in rest],
    }


def _spread(values: Sequence[str], most: int) -> list[str]:
    """Take at most so many values, evenly spaced."""
    return [values[place * len(values) // most] for place in range(most)] if len(values) > most else list(values)


def _card(prompt: str, asked: Sequence[Step]) -> dict[str, Any]:
    """Put the answers to one prompt side by side; stages that answer alike share one."""
    found: dict[tuple[str, bool], list[Step]] = {}
    for step in asked:
        line = step.answers[prompt]
        found.setdefault((line["answer"], line["ended"]), []).append(step)
    answers = [{"steps": those, "text": _cut(text), "ended": ended} for (text, ended), those in found.items()]
    return {"prompt": _cut(prompt), "answers": answers}


def _cut(text: str) -> str:
    left = len(text) - _MAX_CHARACTERS
    return text if left <= 0 else f"{text[:_MAX_CHARACTERS]} […{left:,} more characters]"


def _sources(stages: Mapping[str, Finished], recipe: Mapping[str, Any]) -> list[dict[str, Any]]:
    """List where rows came from, and which stages read them for what."""
    found = []
    for stage in stages.values():
        if stage.function != "source":
            continue
        readers = [(other, name) for other in stages.values() for name, entry in other.spec.get("inputs", {}).items()
                   if entry.get("stage") == stage.folder.name and other.function in ("data", "evaluate")]  # fmt: skip
        trained = [other.name.removeprefix("data.") for other, name in readers if name.startswith("source.")]
        path = stage.spec.get("inputs", {}).get("path", {})
        name = stage.name.removeprefix("source.")
        stated = recipe.get("sources", {}).get(name, {}).get("licence")
        found.append({
            "name": name,
            "licence": stated or stage.counts.get("licence"),
            "use": stage.spec.get("params", {}).get("use", {}),
            "counts": stage.counts,
            "trained": trained,
            "evaluated": any(other.function == "evaluate" for other, _ in readers),
            "digest": path.get("digest", "")[:12],
        })  # fmt: skip
    return sorted(found, key=lambda each: (not each["trained"], each["evaluated"]))


def _sets(steps: Sequence[Step], stages: Mapping[str, Finished]) -> list[dict[str, Any]]:
    """Follow every training set from its sources through filters, mix and tokeniser; rounds may share one."""
    by_folder = {stage.folder.name: stage for stage in stages.values()}
    found: dict[str, dict[str, Any]] = {}
    for step in steps:
        tokens = by_folder.get(step.stage.input("rows") or step.stage.input("pairs") or "")
        data = by_folder.get((tokens.input("data") if tokens else None) or "")
        if tokens is None or data is None:
            continue
        if tokens.folder.name in found:
            found[tokens.folder.name]["steps"].append(step.name)
            continue
        rows = [_set_row(name, data.counts) for name in data.counts.get("in", {})]
        lengths = sorted(tokens.counts.get("length_histogram", {}).items(), key=lambda item: edge(item[0]))
        label = f"Conversations of {step.name} by length"
        found[tokens.folder.name] = {
            "steps": [step.name],
            "rows": rows,
            "most": max((max(row["in"], row["out"] + row["dropped"]) for row in rows), default=0),
            "counts": tokens.counts,
            "max_length": tokens.spec.get("params", {}).get("max_length"),
            "lengths": Markup(figures.histogram(label, [(name.replace("<=", "≤"), n) for name, n in lengths]))
            if lengths
            else None,
        }
    return list(found.values())


def _set_row(name: str, counts: Mapping[str, Any]) -> dict[str, Any]:
    filters = counts.get("dropped_by_source", {}).get(name, {})
    drops = [(f, reason, n) for f, reasons in filters.items() for reason, n in reasons.items()]
    dropped, came, out = sum(n for _, _, n in drops), counts["in"][name], counts["out"].get(name, 0)
    left_out = came - dropped - out + counts.get("repeats", {}).get(name, 0)
    return {"name": name, "in": came, "drops": drops, "dropped": dropped, "left_out": left_out, "out": out}


def _final(steps: Sequence[Step], stages: Mapping[str, Finished]) -> str | None:
    """Name the policy that was exported."""
    if "export" not in stages:
        return None
    folder = policy_of(stages["export"].input("policy"), {stage.folder.name: stage for stage in stages.values()})
    return next((step.name for step in steps if step.stage.folder.name == folder), None)


def _lineage(steps: Sequence[Step], stages: Mapping[str, Finished], sources: Sequence[Mapping[str, Any]]) -> Markup:
    rows = [step.name for step in steps]
    lanes = {f"source.{row['name']}": row["trained"][0] if row["trained"] else "base" for row in sources}
    lanes |= {"pack": "sft", "export": rows[-1] if rows else ""}
    states = {f"gate.{step.name}": step.status for step in steps}
    boxes = [
        figures.Box(
            name,
            lanes.get(name) or name.partition(".")[2] or name,
            stage.function,
            "skipped" if stage.skipped else states.get(name, "done"),
            stage.folder.name,
            {key: entry["stage"] for key, entry in stage.spec.get("inputs", {}).items() if "stage" in entry},
        )
        for name, stage in stages.items()
    ]
    return Markup(figures.lineage(rows, boxes))
