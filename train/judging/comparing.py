"""Any judge, asked which of two policies' answers to the same prompts is better.

In: prompts, each with the new policy's answer and the old one's. Out: a verdict of each, the new answer first, and the scores where the
judge scores single answers: the higher one wins, equal ones tie. Answers of the same words tie, and nobody is asked about them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from rounds.data_prep.records import Record, prompt_of
from rounds.train.config.judging import Judge, Llm, Pairwise
from rounds.train.generation.samples import Sample
from rounds.train.judging import asking
from rounds.train.judging.asking import Where
from rounds.train.judging.scores import Score
from rounds.train.judging.verdicts import Verdict

Asked = Sequence[tuple[Record, Sample, Sample]]
"""A record, whose prompt was answered, with the new policy's answer and the old one's."""
Progress = Callable[[int, int], None]
"""Told how much is done, and of how much."""

SAME = "same_words"
"""What is remarked of a verdict on two answers of the same words."""


@dataclass(frozen=True)
class Compared:
    """What a judge said."""

    verdicts: list[Verdict]
    """One for each comparison, in the order given."""
    in_both_orders: bool
    """It was shown two answers at once, in both orders."""
    new: list[Score] = field(default_factory=list)
    """Of a judge of single answers, what it says of the new policy's, in the order given."""
    old: list[Score] = field(default_factory=list)
    spent: dict[str, Any] = field(default_factory=dict)
    """Of an endpoint: what was asked, and which model replied."""


def compare(judge: Judge, asked: Asked, where: Where, progress: Progress) -> Compared:
    """Compare answers. Raises `UserError` where more is missing than the judge's `max_missing_share`, and for a judge that cannot be
    asked."""
    if not isinstance(judge, Pairwise | Llm):
        return _by_scores(judge, asked, where, progress)
    differ = [(prompt_of(record), new, old) for record, new, old in asked if new.answer != old.answer]
    found, spent = asking.compare(judge, differ, where, lambda done: progress(done, 2 * len(differ))) if differ else ([], {})
    given = iter(found)
    verdicts = [next(given) if new.answer != old.answer else _verdict(new, old, 0.0, SAME) for _, new, old in asked]
    return Compared(verdicts, in_both_orders=True, spent=spent)


def _by_scores(judge: Judge, asked: Asked, where: Where, progress: Progress) -> Compared:
    """Score each different answer once, so that the same words have the same score."""
    single = {_answer(sample): (record, sample) for record, *both in asked for sample in both}
    found = asking.ask(judge, list(single.values()), where, lambda done: progress(done, len(single)))
    by_answer = dict(zip(single, found.scores, strict=True))
    new, old = ([by_answer[_answer(both[place])] for _, *both in asked] for place in range(2))
    sides = zip(asked, new, old, strict=True)
    return Compared([_difference(first, second, one, other) for (_, first, second), one, other in sides], False, new, old)


def _answer(sample: Sample) -> tuple[str, int, str]:
    return sample.prompt_id, sample.number, sample.answer


def _difference(new: Sample, old: Sample, one: Score, other: Score) -> Verdict:
    if one.score is None or other.score is None:
        return _verdict(new, old, None, one.reason if one.score is None else other.reason)
    return _verdict(new, old, one.score - other.score, one.reason or other.reason)


def _verdict(new: Sample, old: Sample, value: float | None, reason: str) -> Verdict:
    """Return a verdict that does not depend on the order."""
    return Verdict(new.prompt_id, new.number, old.number, value, value, reason, new.tokens, old.tokens)
