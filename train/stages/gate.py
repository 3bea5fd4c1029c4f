"""Stage `gate`: does a round's policy go on, or the one that it started from?

In: `current` and `candidate` (policies), `current_scores` and `candidate_scores` (evaluations, or the gate before). Out:
the accepted policy, its `scores.json` and `items.parquet`, and `decision.json` with every rule, its numbers and verdict.

A difference is judged by the standard error of the paired difference over the items that both policies were asked, which
is smaller than that of two separate means wherever the two mostly agree; items that ask one question count together.
"""

import math
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from rounds.data_prep.errors import UserError, nearest
from rounds.train.config.cluster import Machine
from rounds.train.config.evaluation import Rule
from rounds.train.engine import policy, store, tracking
from rounds.train.engine.params import GateParams
from rounds.train.engine.records import DECISION, ITEMS, SCORES
from rounds.train.evaluation.paired import paired_difference, read_questions


def run(params: GateParams, inputs: dict[str, Path], out: Path, machine: Machine) -> dict[str, Any]:
    """Check every rule and pass a policy on."""
    candidate = store.done(inputs["candidate"])
    skipped = candidate is not None and candidate.skipped
    verdicts = [] if skipped else [judge(rule, inputs["current_scores"], inputs["candidate_scores"]) for rule in params.rules]
    accepted = not skipped and all(verdict["holds"] for verdict in verdicts)
    decision = "skipped" if skipped else "accepted" if accepted else "rejected"
    winner = "candidate" if accepted else "current"
    policy.write_same(out, inputs[winner])
    for name in (SCORES, ITEMS):
        shutil.copyfile(inputs[f"{winner}_scores"] / name, out / name)
    # A skipped round passes the stop on, or the round after it would run again.
    stops = skipped or (decision == "rejected" and params.on_reject == "stop")
    store.write_json(out / DECISION, {"decision": decision, "stops_rounds": stops, "rules": verdicts})
    tracking.scores({"accepted": accepted})
    return {"decision": decision, "stops_rounds": stops, "reasons": [verdict["says"] for verdict in verdicts]}


def judge(rule: Rule, current: Path, candidate: Path) -> dict[str, Any]:
    """Apply one rule to two evaluation folders. Raises `UserError` when the metric was not measured."""
    asked = [_items(folder, rule.metric) for folder in (current, candidate)]
    questions = read_questions(candidate)[rule.metric]
    old, new = ({item: values[item] for item in values if item in asked[0].keys() & asked[1].keys()} for values in asked)
    difference, stderr, number = paired_difference(old, new, questions)
    value = math.fsum(new.values()) / len(new)
    numbers = {"metric": rule.metric, "new": value, "old": math.fsum(old.values()) / len(old), "n": len(new)}
    numbers |= {"questions": number, "difference": difference, "stderr": stderr}
    name = next(name for name in Rule.conditions() if getattr(rule, name) is not None)
    bound = getattr(rule, name)
    scale = stderr if rule.unit == "stderr" else 1.0
    margin = {
        "may_fall_by": difference + bound * scale,
        "may_rise_by": bound * scale - difference,
        "must_rise_by": difference - bound * scale,
        "must_fall_by": -difference - bound * scale,
        "at_least": value - bound,
        "at_most": bound - value,
    }[name]
    # "Must rise" by any number of standard errors is not met by standing still, even where no item differs and they are 0.
    moved = {"must_rise_by": difference > 0, "must_fall_by": difference < 0}.get(name, True)
    holds = moved and margin >= 0
    unit = "" if name.startswith("at_") else " standard errors" if rule.unit == "stderr" else ""
    wanted = f"{name.replace('_', ' ')} {bound:g}{unit}"
    says = (
        f"{rule.metric} {numbers['old']:.4f} -> {value:.4f} (difference {difference:+.4f}, standard error {stderr:.4f}): "
        f"{wanted}: {'holds' if holds else 'does not hold'}"
    )
    return {**numbers, "rule": wanted, "holds": holds, "says": says}


def _items(folder: Path, metric: str) -> dict[str, float]:
    table = pq.read_table(folder / ITEMS, filters=[("metric", "=", metric)])
    if not table.num_rows:
        measured = store.read_json(folder / SCORES) or {}
        raise UserError(f"the gate's metric {metric!r} was not measured. {nearest(metric, measured)}")
    return dict(zip(table["item"].to_pylist(), table["value"].to_pylist(), strict=True))
