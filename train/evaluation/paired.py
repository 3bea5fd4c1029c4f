"""Two policies on the same items: the difference of a metric, how sure it is, and a verdict in words.

In: finished stage folders, or the values of one metric under two policies, by item. Out: differences, how sure they are,
and verdicts in words. Both policies of a comparison were asked the same items, so the standard error is that of the paired
difference, which is smaller than that of two separate means wherever the two mostly agree. Items that ask one question in
other words, or are pairs of one prompt, are no independent evidence: errors are those of clusters (Liang and Zeger 1986),
which for questions of one item each are the usual ones.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow.parquet as pq

from rounds.data_prep.errors import UserError
from rounds.train.config.evaluation import MIN_ITEMS
from rounds.train.config.metrics import is_neutral
from rounds.train.engine.records import ITEMS

Verdict = Literal["better", "worse", "within noise", "rose", "fell", "too few items"]
Conclusion = Literal["helped", "mixed", "made it worse", "no measurable difference", "too few items to say", "not measured"]

Z95 = 1.959964
"""Half-width of a 95 % interval in standard errors (normal approximation)."""


@dataclass(frozen=True)
class Comparison:
    """One metric under two policies, over the items that both were asked."""

    metric: str
    old: float
    new: float
    difference: float
    stderr: float
    n: int
    questions: int
    verdict: Verdict

    @property
    def low(self) -> float:
        """Lower end of the 95 % interval of the difference."""
        return self.difference - Z95 * self.stderr

    @property
    def high(self) -> float:
        """Upper end of the 95 % interval of the difference."""
        return self.difference + Z95 * self.stderr


def clustered(values: Sequence[float], asked: Sequence[str]) -> tuple[float, float, int]:
    """Return the mean of some values, its standard error, and the number of questions that `asked` names, value by value.

    The error is 0 for a single question, which says nothing of others.
    """
    mean = math.fsum(values) / len(values)
    sums: dict[str, float] = {}
    for value, question in zip(values, asked, strict=True):
        sums[question] = sums.get(question, 0.0) + value - mean
    number = len(sums)
    if number == 1:
        return mean, 0.0, 1
    variance = math.fsum(each**2 for each in sums.values()) * number / (number - 1)
    return mean, math.sqrt(variance) / len(values), number


def paired_difference(
    old: Mapping[str, float], new: Mapping[str, float], questions: Mapping[str, str] | None = None
) -> tuple[float, float, int]:
    """Return the mean difference new - old over the common items, the standard error of that mean, and over how many questions
    it is. `questions` names the question of each item; an item that is not in it is one by itself."""
    common = [item for item in new if item in old]
    if not common:
        raise UserError("the two policies were not asked a single common item, so they cannot be compared")
    return clustered([new[item] - old[item] for item in common], [(questions or {}).get(item, item) for item in common])


def compare(
    metric: str,
    old: Mapping[str, float],
    new: Mapping[str, float],
    higher_is_better: bool,
    questions: Mapping[str, str] | None = None,
) -> Comparison:
    """Compare two policies on one metric. `rose` and `fell` are the verdicts where neither direction is better."""
    common = [item for item in new if item in old]
    difference, stderr, number = paired_difference(old, new, questions)
    means = [math.fsum(values[item] for item in common) / len(common) for values in (old, new)]
    return Comparison(
        metric, means[0], means[1], difference, stderr, len(common), number, _verdict(metric, difference, stderr, number, higher_is_better)
    )


def _verdict(metric: str, difference: float, stderr: float, questions: int, higher_is_better: bool) -> Verdict:
    if questions < MIN_ITEMS:
        return "too few items"
    if abs(difference) <= Z95 * stderr or difference == 0:
        return "within noise"
    if is_neutral(metric):
        return "rose" if difference > 0 else "fell"
    return "better" if (difference > 0) == higher_is_better else "worse"


def conclude(comparisons: Sequence[Comparison]) -> Conclusion:
    """Sum up the verdicts on several metrics."""
    found = {comparison.verdict for comparison in comparisons}
    if "better" in found:
        return "mixed" if "worse" in found else "helped"
    if "worse" in found:
        return "made it worse"
    if "within noise" in found:
        return "no measurable difference"
    return "too few items to say" if found else "not measured"


def read_items(folder: Path) -> dict[str, dict[str, float]]:
    """Read an evaluation's `items.parquet` as metric -> item -> value."""
    return _read(folder, "value")


def read_questions(folder: Path) -> dict[str, dict[str, str]]:
    """Read an evaluation's `items.parquet` as metric -> item -> the question that it asks."""
    return _read(folder, "question")


def _read(folder: Path, column: str) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    columns = pq.read_table(folder / ITEMS, columns=["metric", "item", column]).to_pydict()
    for metric, item, value in zip(columns["metric"], columns["item"], columns[column], strict=True):
        found.setdefault(metric, {})[item] = value
    return found
