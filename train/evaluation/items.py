"""What a policy scored: one row per item, and their mean with a standard error over questions."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from rounds.data_prep.errors import UserError
from rounds.train.config.metrics import is_neutral
from rounds.train.engine.records import Score
from rounds.train.evaluation import paired


class Items:
    """The values of every metric, item by item; scores are their means. Beside them, metrics known only as a whole."""

    def __init__(self) -> None:
        self.values: dict[str, dict[str, float]] = {}
        self.questions: dict[str, dict[str, str]] = {}
        self.aggregates: dict[str, Score] = {}
        self.parts: dict[str, tuple[str, ...]] = {}
        """Of each average the metrics that it is the mean of."""
        self.lower_is_better: set[str] = set()

    def add(self, metric: str, item: str, value: float, question: str | None = None) -> None:
        """Note one item's value under a metric, and its question, where it is not one by itself.

        Raises `UserError` for a second value of one item: one of the two would be lost.
        """
        column = self.values.setdefault(metric, {})
        if item in column:
            raise UserError(f"{metric}: two held-out rows are called {item!r}; expected ids that differ")
        column[item] = float(value)
        self.questions.setdefault(metric, {})[item] = item if question is None else question

    def scores(self) -> dict[str, Score]:
        """Return mean, standard error of the mean, and count of every metric."""
        both = {**{name: self._mean(name) for name in self.values}, **self.aggregates}
        return {name: score.model_copy(update={"higher_is_better": self._direction(name)}) for name, score in both.items()}

    def _mean(self, metric: str) -> Score:
        values, asked = self._columns(metric)
        if metric not in self.parts:
            return mean_and_stderr(values, asked)
        mean, stderr, number = paired.clustered(values, asked)
        stderr = math.sqrt(stderr**2 + self._unseen(metric))
        return Score(value=mean, stderr=stderr if number > 1 else None, n=len(values), questions=number)

    def _unseen(self, metric: str) -> float:
        """Return the variance that an average's items do not show: of its parts that are wholly 0 or wholly 1, which have no spread."""
        parts = self.parts.get(metric)
        if parts is not None:
            return math.fsum(map(self._unseen, parts)) / len(parts) ** 2
        values, asked = self._columns(metric)
        return _one_sided(len(set(asked))) ** 2 if set(values) in ({0.0}, {1.0}) else 0.0

    def _columns(self, metric: str) -> tuple[list[float], list[str]]:
        return list(self.values[metric].values()), list(self.questions[metric].values())

    def _direction(self, metric: str) -> bool | None:
        """Tell which direction is better; None for what is measured to understand a policy, not to rank it."""
        return None if is_neutral(metric) else metric not in self.lower_is_better

    def write(self, path: Path) -> None:
        """Write one row per metric and item."""
        rows = [
            (metric, item, value, self.questions[metric][item]) for metric, items in self.values.items() for item, value in items.items()
        ]
        columns = list(zip(*rows, strict=True)) or [(), (), (), ()]
        names = ("metric", "item", "value", "question")
        pq.write_table(pa.table({name: list(column) for name, column in zip(names, columns, strict=True)}), path)


def mean_and_stderr(values: list[float], asked: list[str]) -> Score:
    """Return the mean of some values, the standard error of that mean (None for one question), and their numbers.

    `asked` names the question of each value. Where all values are 0, or all are 1, their spread is 0, which says nothing of how far
    they hold: the error is then that of Wilson's interval (J. Am. Stat. Assoc. 22, 1927), half its width in units of `Z95`.
    """
    mean, stderr, number = paired.clustered(values, asked)
    if stderr == 0 and mean in (0.0, 1.0):
        stderr = _one_sided(number)
    return Score(value=mean, stderr=stderr if number > 1 else None, n=len(values), questions=number)


def _one_sided(number: int) -> float:
    """Return the error of a share of 0 or 1 over a number of questions."""
    return paired.Z95 / (2 * (number + paired.Z95**2))


def add_averages(items: Items, averages: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Add means of metrics, and of other such means, as metrics of their own; returns which could not be, and what was not measured."""
    missing: dict[str, str] = {}

    def add(name: str) -> None:
        if name in items.values or name in missing:
            return
        for part in averages[name]:
            if part in averages:
                add(part)
        lacking = _add_average(items, name, averages[name])
        if lacking is not None:
            missing[name] = missing.get(lacking, lacking)

    for name in averages:
        add(name)
    return missing


def _add_average(items: Items, name: str, parts: Sequence[str]) -> str | None:
    """Add the mean of some metrics, each counting as much, as a metric of its own; returns which of them was not measured, if any.

    A part's items count by the part's share over their number. What is kept for an item is the average plus its distance from its
    part's mean, weighed so: the mean of these is the average, and their spread gives its standard error, also of a difference between
    two policies (the linearised, or influence, form of a stratified mean). Parts that share questions stay correlated.
    Raises `UserError` where more is better in some parts and worse in others.
    """
    missing = next((part for part in parts if part not in items.values), None)
    if missing is not None:
        return missing
    lower = {part in items.lower_is_better for part in parts}
    if len(lower) > 1:
        raise UserError(f"evaluate.averages.{name}: in some of {', '.join(parts)} more is better, in others less; average them apart")
    columns = {part: items.values[part] for part in parts}
    means = {part: math.fsum(column.values()) / len(column) for part, column in columns.items()}
    average = math.fsum(means.values()) / len(parts)
    items.parts[name] = tuple(parts)
    number = sum(map(len, columns.values()))
    for part, column in columns.items():
        weight = number / (len(parts) * len(column))
        for item, value in column.items():
            items.add(name, f"{part}: {item}", average + weight * (value - means[part]), items.questions[part][item])
    if lower == {True}:
        items.lower_is_better.add(name)
    return None
