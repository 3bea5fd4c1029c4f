"""Stage `judge`: which of two policies answers the same held-out prompts better, as a judge sees it.

In: `answers` (what stage `answers` wrote for the new policy), `prompts` (what was asked), `judge` (weights or a policy, where it has any),
and whose answers are set against them: `against`; or `against_policy`, which a gate let through, and `against.NAME` for each policy that
it may be. Judges read the prompt as its record has it, without the set's system prompt. Out:
- `verdicts.parquet`: one row a comparison, the new policy's answer first, both orders kept (`train/judging/verdicts.py`)
- `scores.json`, `items.parquet`: `NAME/winrate` and, at equal length, `NAME/winrate_lc`, with their errors over questions
- of a judge of single answers `scores_answers.parquet` and `scores_against.parquet`; of an endpoint `replies.jsonl`.

Counts: who was set against whom, both rates with their intervals, what is missing and why, how far the judge goes by place and length.
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from rounds.data_prep import progress, records
from rounds.data_prep.errors import UserError
from rounds.data_prep.records import RECORDS, Record
from rounds.train.config.cluster import Machine
from rounds.train.engine import policy, store, tracking
from rounds.train.engine.params import JudgeParams
from rounds.train.engine.records import ITEMS, SCORES, Counts
from rounds.train.evaluation import questions
from rounds.train.evaluation.items import Items
from rounds.train.generation import samples
from rounds.train.judging import comparing, scores, verdicts, win_rates
from rounds.train.judging.asking import Where
from rounds.train.judging.scores import Score
from rounds.train.judging.win_rates import Rate

AGAINST = "against."
"""Begins the names of the inputs among which `against_policy` chooses."""


def run(params: JudgeParams, inputs: dict[str, Path], out: Path, machine: Machine) -> Counts:
    """Compare the two policies' answers; an endpoint is asked only what it has not replied to before."""
    old = _against(inputs)
    rows = {row.id: row for row in records.read_records(inputs["prompts"] / RECORDS)}
    asked, of_one = _asked(rows, inputs["answers"], old, params.answers)
    where = Where(params.name or params.judge.kind, inputs.get("judge"), out, machine)
    found = comparing.compare(params.judge, asked, where, lambda done, total: progress.write(out, done, total, "verdicts"))
    prompts = win_rates.by_prompt(found.verdicts)
    if not prompts:
        why = ", ".join(f"{count:,} {reason}" for reason, count in Counter(each.reason for each in found.verdicts).most_common())
        raise UserError(f"judge {where.name}: none of {len(found.verdicts):,} comparisons has a verdict ({why}), so there is no win rate")
    verdicts.write(out / verdicts.VERDICTS, found.verdicts)
    for name, given in (("answers", found.new), ("against", found.old)):
        if given:
            scores.write(out / f"scores_{name}.parquet", given)
    question = {each.prompt_id: questions.of(rows[each.prompt_id]) for each in prompts}
    rates = {"winrate": win_rates.win_rate(prompts, question), "winrate_lc": win_rates.length_controlled(prompts, question)}
    items = Items()
    for each in prompts:
        items.add(f"{params.metric}/winrate", each.prompt_id, each.value, question[each.prompt_id])
    items.write(out / ITEMS)
    told = {f"{params.metric}/{metric}": rate.score() for metric, rate in rates.items()}
    store.write_json(out / SCORES, {name: score.model_dump(exclude_unset=True) for name, score in told.items()})
    tracking.scores({name: score.value for name, score in told.items()})
    return {
        "policy": _name(inputs["answers"]),
        "against": _name(old),
        **{metric: _rounded(rate) for metric, rate in rates.items()},
        **win_rates.counts(found.verdicts, found.in_both_orders),
        "answered_by_one": of_one,
        **({"mean_score": _mean(found.new), "mean_score_against": _mean(found.old)} if found.new else {}),
        **found.spent,
    }


def _against(inputs: Mapping[str, Path]) -> Path:
    """Return the folder with the answers that are set against the new policy's: those of the policy that a gate let through."""
    if "against" in inputs:
        return inputs["against"]
    passed = policy.chain(inputs["against_policy"])[-1]
    known = [folder for name, folder in inputs.items() if name.startswith(AGAINST)]
    return next(folder for folder in known if policy.chain(store.inputs(folder)["policy"])[-1] == passed)


def _asked(rows: Mapping[str, Record], new: Path, old: Path, name: str) -> tuple[comparing.Asked, int]:
    """Return what both policies answered, in the order of prompts and numbers, and how many answers only one of them has."""
    one, other = ({(each.prompt_id, each.number): each for each in samples.read(samples.file_of(folder, name))} for folder in (new, old))
    common = sorted(one.keys() & other.keys())
    if not common:
        raise UserError(f"the two policies answered not one common prompt of {name!r}, so they cannot be compared")
    return [(rows[key[0]], one[key], other[key]) for key in common], len(one.keys() ^ other.keys())


def _name(answers: Path) -> str:
    return store.spec(answers).name.partition(".")[2]


def _rounded(rate: Rate) -> dict[str, Any]:
    names = ("value", "stderr", "low", "high")
    shares = {name: None if (value := getattr(rate, name)) is None else round(value, 4) for name in names}
    return {**shares, "prompts": rate.prompts, "questions": rate.questions}


def _mean(given: list[Score]) -> float | None:
    values = [each.score for each in given if each.score is not None]
    return round(fmean(values), 4) if values else None
