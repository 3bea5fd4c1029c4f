"""Stage `gate`: does a round's policy go on, or the one that it started from?

In: `current` and `candidate` (policies), `current_scores` and `candidate_scores` (evaluations, or the gate before), `judged.NAME` for
comparisons of the new policy's answers with another's that a rule is about. Out:
the accepted policy, its `scores.json` and `items.parquet`, and `decision.json` with every rule, its numbers and verdict.

A difference is judged by the standard error of the paired difference over the items that both policies were asked, which
is smaller than that of two separate means wherever the two mostly agree; items that ask one question count together. Below
30 questions no rule decides: the recipe says what then (`too_few`).
"""

import math
import shutil
from pathlib import Path

import pyarrow.parquet as pq

from rounds.data_prep.errors import UserError, nearest
from rounds.train.config.cluster import Machine
from rounds.train.config.evaluation import MIN_ITEMS, Rule, TooFew
from rounds.train.engine import policy, store, tracking
from rounds.train.engine.params import GateParams
from rounds.train.engine.records import DECISION, ITEMS, SCORES, Counts, Decision, Score, Verdict
from rounds.train.evaluation.items import mean_and_stderr
from rounds.train.evaluation.paired import paired_difference, read_questions

EVEN = 0.5
"""The win rate of two policies that answer alike."""


def run(params: GateParams, inputs: dict[str, Path], out: Path, machine: Machine) -> Counts:
    """Check every rule and pass a policy on."""
    candidate = store.done(inputs["candidate"])
    skipped = candidate is not None and candidate.skipped
    verdicts = [] if skipped else [_verdict(rule, inputs, params.too_few) for rule in params.rules]
    accepted = not skipped and all(verdict.holds for verdict in verdicts)
    decision = "skipped" if skipped else "accepted" if accepted else "rejected"
    winner = "candidate" if accepted else "current"
    policy.write_same(out, inputs[winner])
    for name in (SCORES, ITEMS):
        shutil.copyfile(inputs[f"{winner}_scores"] / name, out / name)
    # A skipped round passes the stop on, or the round after it would run again.
    stops = skipped or (decision == "rejected" and params.on_reject == "stop")
    told = Decision(decision=decision, stops_rounds=stops, rules=tuple(verdicts))
    store.write_json(out / DECISION, told.model_dump(mode="json"))
    tracking.scores({"accepted": accepted})
    return {"decision": decision, "stops_rounds": stops, "reasons": [verdict.says for verdict in verdicts]}


def _verdict(rule: Rule, inputs: dict[str, Path], too_few: TooFew) -> Verdict:
    compared = inputs.get(f"judged.{rule.metric.partition('/')[0]}")
    if compared is None:
        return judge(rule, inputs["current_scores"], inputs["candidate_scores"], too_few)
    return judge_win_rate(rule, store.scores(compared)[rule.metric], str(store.counts(compared)["against"]), too_few)


def judge_win_rate(rule: Rule, score: Score, against: str, too_few: TooFew = "stop") -> Verdict:
    """Apply a rule to a win rate over the answers of policy `against`: two alike have a half. Raises `UserError` as `judge` does."""
    wanted, holds = _decide(rule, score, EVEN, 0.0, 0.0)
    verdict = Verdict(
        metric=rule.metric,
        new=score.value,
        old=EVEN,
        n=score.n,
        questions=score.questions or 0,
        difference=score.value - EVEN,
        stderr=score.stderr or 0.0,
        rule=wanted,
        holds=holds,
        says=f"{rule.metric} {score.value:.4f} over the answers of {against} ({_level(score)})",
    )
    return _said(verdict, too_few)


def judge(rule: Rule, current: Path, candidate: Path, too_few: TooFew = "stop") -> Verdict:
    """Apply one rule to two evaluation folders.

    Raises `UserError` when the metric was not measured, or over fewer than `MIN_ITEMS` questions where `too_few` says `stop`.
    """
    asked = [_items(folder, rule.metric) for folder in (current, candidate)]
    questions = read_questions(candidate)[rule.metric]
    old, new = ({item: values[item] for item in values if item in asked[0].keys() & asked[1].keys()} for values in asked)
    difference, stderr, number = paired_difference(old, new, questions)
    before = math.fsum(old.values()) / len(old)
    score = store.scores(candidate)[rule.metric]  # an average's error is not to be had from its items alone
    if score.n != len(new):
        score = mean_and_stderr(list(new.values()), [questions[item] for item in new])
    wanted, holds = _decide(rule, score, before, difference, stderr)
    is_level = rule.condition.startswith("at_")
    spread = _level(score) if is_level else _spread(old, new, difference, stderr, number)
    verdict = Verdict(
        metric=rule.metric,
        new=score.value,
        old=before,
        n=len(new),
        questions=number,
        difference=difference,
        stderr=(score.stderr or 0.0) if is_level else stderr,
        rule=wanted,
        holds=holds,
        says=f"{rule.metric} {before:.4f} -> {score.value:.4f} ({spread})",
    )
    return _said(verdict, too_few)


def _said(verdict: Verdict, too_few: TooFew) -> Verdict:
    """Return a verdict that so far says its numbers with all that it says and, over too few questions, with what the recipe says of that.

    Raises `UserError` where that is `stop`.
    """
    numbers = f"{verdict.says}: {verdict.rule}"
    if verdict.questions >= MIN_ITEMS:
        return verdict.model_copy(update={"says": f"{numbers}: {'holds' if verdict.holds else 'does not hold'}"})
    few = f"{numbers}: {verdict.questions} questions are too few to decide by (at least {MIN_ITEMS})"
    if too_few == "stop":
        raise UserError(
            f"the gate's rule on {few}. Hold more rows out, or say under `gate` what becomes of it: `too_few: accept`, or `too_few: reject`"
        )
    says = f"{few}, and `too_few: {too_few}` takes it as {'holding' if too_few == 'accept' else 'not holding'}"
    return verdict.model_copy(update={"holds": too_few == "accept", "says": says})


def _decide(rule: Rule, score: Score, before: float, difference: float, stderr: float) -> tuple[str, bool]:
    """Return a rule in words, with what its bound is in the metric's own unit, and whether it holds by the numbers alone."""
    name, bound = rule.condition, getattr(rule, rule.condition)
    if name in ("at_least", "at_most"):
        error = (score.stderr or 0.0) * (rule.beyond or 0.0)
        margin = score.value - bound - error if name == "at_least" else bound - score.value - error
        beyond = f", passed by {rule.beyond:g} standard errors ({error:.4f})" if rule.beyond is not None else ""
        return f"{name.replace('_', ' ')} {bound:g}{beyond}", margin >= 0
    scale = {"stderr": stderr, "absolute": 1.0, "relative": abs(before)}[rule.unit]
    may, _, rises = name.startswith("may"), *name.partition("rise")[:2]
    moved = difference if rises else -difference
    direction = "rise" if rises else "fall"
    if bound == 0:
        # "Must rise" is not met by standing still.
        return f"{'may not' if may else 'must'} {direction}", moved <= 0 if may else moved > 0
    words = f"{bound:g} standard errors" if rule.unit == "stderr" else f"{bound:g}" if rule.unit == "absolute" else f"{bound:.0%}"
    own = "" if rule.unit == "absolute" else f" ({bound * scale:.4f})"
    # Nor by any number of standard errors, even where no item differs and they are 0.
    holds = moved <= bound * scale if may else moved >= bound * scale and moved > 0
    return f"{'may' if may else 'must'} {direction} by {words}{own}", holds


def _level(score: Score) -> str:
    """Say how sure a policy's own value is, and over how many questions."""
    return f"{_over(score.questions or 0)}" if score.stderr is None else f"standard error {score.stderr:.4f}, {_over(score.questions or 0)}"


def _spread(old: dict[str, float], new: dict[str, float], difference: float, stderr: float, number: int) -> str:
    """Say how sure a difference is, and over how many questions."""
    if old == new:
        return f"no item differs, {_over(number)}"
    return f"difference {difference:+.4f}, {f'standard error {stderr:.4f}' if stderr else 'the same in all'}, {_over(number)}"


def _over(questions: int) -> str:
    return f"over {questions} question{'s' * (questions != 1)}"


def _items(folder: Path, metric: str) -> dict[str, float]:
    table = pq.read_table(folder / ITEMS, filters=[("metric", "=", metric)])
    if not table.num_rows:
        measured = store.scores(folder)
        raise UserError(f"the gate's metric {metric!r} was not measured. {nearest(metric, measured)}")
    return dict(zip(table["item"].to_pylist(), table["value"].to_pylist(), strict=True))
