"""What a policy scored: one row per item, and their mean with a standard error over questions."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rounds.data_prep.errors import UserError
from rounds.train.evaluation import paired


class Items:
    """The values of every metric, item by item; scores are their means. Beside them, metrics known only as a whole."""

    def __init__(self) -> None:
        self.values: dict[str, dict[str, float]] = {}
        self.questions: dict[str, dict[str, str]] = {}
        self.aggregates: dict[str, dict[str, Any]] = {}
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

    def scores(self) -> dict[str, dict[str, Any]]:
        """Return mean, standard error of the mean, and count of every metric."""
        means = {name: mean_and_stderr(list(items.values()), list(self.questions[name].values())) for name, items in self.values.items()}
        return {name: {**score, "higher_is_better": self._direction(name)} for name, score in {**means, **self.aggregates}.items()}

    def _direction(self, metric: str) -> bool | None:
        """Tell which direction is better; None for what is measured to understand a policy, not to rank it."""
        return None if metric in paired.NEUTRAL else metric not in self.lower_is_better

    def write(self, path: Path) -> None:
        """Write one row per metric and item."""
        rows = [
            (metric, item, value, self.questions[metric][item]) for metric, items in self.values.items() for item, value in items.items()
        ]
        columns = list(zip(*rows, strict=True)) or [(), (), (), ()]
        names = ("metric", "item", "value", "question")
        pq.write_table(pa.table({name: list(column) for name, column in zip(names, columns, strict=True)}), path)


def mean_and_stderr(values: list[float], asked: list[str]) -> dict[str, Any]:
    """Return the mean of some values, the standard error of that mean (None for one question), and their numbers.

    `asked` names the question of each value.
    """
    mean, stderr, number = paired.clustered(values, asked)
    return {"value": mean, "stderr": stderr if number > 1 else None, "n": len(values), "questions": number}
