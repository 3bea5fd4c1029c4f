"""A judge's card: how often it prefers the better answer where that is known, beside a judge that reads nothing.

In: scores of both answers of held-out pairs. Out: `card.json`: the share of pairs that it has right, of all and of each group of what is
wrong with the rejected answer, with 95 % intervals, beside the floor of choosing the longer answer, and what follows in words. A judge
that is right on average may be blind to one kind of mistake: whoever trains on its verdicts trains that mistake in.
"""

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rounds.train.config.evaluation import MIN_ITEMS
from rounds.train.engine import store
from rounds.train.engine.records import Record
from rounds.train.evaluation.paired import Z95, clustered

CARD = "card.json"
Standing = Literal["above its floor", "no better than its floor", "below its floor", "too few pairs to say"]


@dataclass(frozen=True, slots=True)
class Answered:
    """What a judge says of one pair."""

    group: str
    """What is wrong with the rejected answer, as the source says it; nothing where it does not."""
    question: str
    """Pairs of one question are no independent evidence."""
    scores: tuple[float, float] | None
    """Of the chosen and the rejected answer; None where one is missing."""
    tokens: tuple[int, int]
    """Lengths of both answers."""
    reason: str = ""
    """Why a score is missing."""


class Group(Record):
    """How often a judge is right in one group of pairs. A tie counts half."""

    name: str
    """Nothing for all pairs together."""
    n: int
    questions: int
    accuracy: float
    low: float
    """Lower end of Wilson's 95 % interval."""
    high: float
    longer: float
    """Share of pairs whose better answer is the longer one: what a judge that reads nothing would have right."""
    over_longer: float
    """How much more often the judge is right than that, with its standard error."""
    over_longer_stderr: float

    @property
    def floor(self) -> float:
        """What must be beaten: the longer answer, or guessing."""
        return max(self.longer, 0.5)

    @property
    def standing(self) -> Standing:
        """Where the judge stands to its floor, beyond what chance explains."""
        if self.questions < MIN_ITEMS:
            return "too few pairs to say"
        reach = Z95 * self.over_longer_stderr
        if self.low > 0.5 and self.over_longer > reach:
            return "above its floor"
        return "below its floor" if self.high < 0.5 or self.over_longer < -reach else "no better than its floor"


class Card(Record):
    """A judge on held-out pairs."""

    judge: str
    pairs: int
    missing: dict[str, int]
    """Pairs without a score of both answers, by reason."""
    groups: tuple[Group, ...]
    """All pairs first, then each group, by name."""
    length_correlation: float | None = None
    """Pearson's correlation of an answer's score with its length in tokens."""

    @property
    def whole(self) -> Group:
        """All pairs together."""
        return self.groups[0]

    @property
    def blind(self) -> tuple[Group, ...]:
        """The groups in which the judge is no better than its floor."""
        return tuple(each for each in self.groups[1:] if each.standing in ("no better than its floor", "below its floor"))

    @property
    def says(self) -> list[str]:
        """What follows, in sentences."""
        whole, found = self.whole, []
        if whole.standing != "above its floor":
            found.append(
                f"On all pairs {self.judge} is {_standing(whole)}: do not let it rank answers by itself."
                if whole.standing != "too few pairs to say"
                else f"{whole.questions} questions are too few to know {self.judge} by."
            )
        found += [
            f"{self.judge} is {_standing(each)} where the rejected answer is {each.name!r}: what it prefers there is no evidence, and a "
            "policy that is trained on its verdicts may get worse at exactly this."
            for each in self.blind
        ]
        return found


def _standing(group: Group) -> str:
    return (
        f"{group.standing}, right in {group.accuracy:.3f} of {group.n:,} ({group.low:.3f} to {group.high:.3f}; the longer answer "
        f"{group.longer:.3f}, guessing 0.500),"
    ).removesuffix(",")


def made(judge: str, answered: Sequence[Answered]) -> Card | None:
    """Put a judge's answers together; None where it has none."""
    scored = [each for each in answered if each.scores is not None]
    if not scored:
        return None
    names = sorted({each.group for each in scored} - {""})
    groups = [_group("", scored), *(_group(name, [each for each in scored if each.group == name]) for name in names)]
    missing = Counter(each.reason for each in answered if each.scores is None)
    return Card(
        judge=judge,
        pairs=len(answered),
        missing=dict(sorted(missing.items())),
        groups=tuple(groups),
        length_correlation=_correlation(scored),
    )


def write(folder: Path, card: Card) -> None:
    """Write a card to a stage's folder."""
    store.write_json(folder / CARD, card.model_dump(mode="json"))


def read(folder: Path) -> Card:
    """Read what `write` wrote."""
    return Card.model_validate(store.read_json(folder / CARD))


def wilson(values: Sequence[float], asked: Sequence[str]) -> tuple[float, float, float, int]:
    """Return the mean of shares, Wilson's 95 % interval (J. Am. Stat. Assoc. 22, 1927), and the number of questions.

    Of values that share questions the interval is that of so many independent ones as have their standard error (Korn and Graubard 1998).
    """
    mean, stderr, questions = clustered(values, asked)
    number = mean * (1 - mean) / stderr**2 if 0 < mean < 1 and stderr > 0 else float(questions)
    number = min(number, float(len(values)))
    middle = (mean + Z95**2 / (2 * number)) / (1 + Z95**2 / number)
    half = Z95 / (1 + Z95**2 / number) * math.sqrt(mean * (1 - mean) / number + Z95**2 / (4 * number**2))
    return mean, max(0.0, middle - half), min(1.0, middle + half), questions


def _group(name: str, answered: Sequence[Answered]) -> Group:
    asked = [each.question for each in answered]
    right = [_preferred(*each.scores) for each in answered if each.scores is not None]
    longer = [_preferred(*each.tokens) for each in answered]
    mean, low, high, questions = wilson(right, asked)
    over, stderr, _ = clustered([one - other for one, other in zip(right, longer, strict=True)], asked)
    return Group(
        name=name,
        n=len(answered),
        questions=questions,
        accuracy=mean,
        low=low,
        high=high,
        longer=math.fsum(longer) / len(longer),
        over_longer=over,
        over_longer_stderr=stderr,
    )


def _preferred(chosen: float, rejected: float) -> float:
    return 0.5 if chosen == rejected else float(chosen > rejected)


def _correlation(answered: Iterable[Answered]) -> float | None:
    points = [point for each in answered if each.scores is not None for point in zip(each.scores, each.tokens, strict=True)]
    scores, tokens = zip(*points, strict=True)
    if len(set(scores)) < 2 or len(set(tokens)) < 2:
        return None
    return statistics.correlation(scores, tokens)


def counts(card: Card) -> Mapping[str, Any]:
    """Return what `done.json` says of a card."""
    return {
        "pairs": card.pairs,
        "missing": sum(card.missing.values()),
        "accuracy": {each.name or "all": [round(each.accuracy, 4), round(each.longer, 4), each.n] for each in card.groups},
        "standing": card.whole.standing,
        "blind": [each.name for each in card.blind],
    }
