"""What a judge says of single answers: one row an answer, as parquet. A score that is missing is missing: no number stands for it.

In: scores, each with its answer. Out: a file of the columns of `SCHEMA`, sorted by prompt and number, and what can be counted of it.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rounds.data_prep.errors import UserError
from rounds.data_prep.whole import whole

RANKS = "ranks.parquet"
SCHEMA = pa.schema([("prompt_id", pa.string()), ("number", pa.int32()), ("score", pa.float64()), ("reason", pa.string())])


@dataclass(frozen=True, slots=True)
class Score:
    """What a judge says of one answer. Higher is better; what the unit is, the judge knows."""

    prompt_id: str
    number: int
    """Of the answers to this prompt, as in the samples."""
    score: float | None
    """None is missing: never 0, a middle, or a tie."""
    reason: str = ""
    """Why it is missing, as a stable word; of a score what must be known of it, such as `cut`."""

    def __post_init__(self) -> None:
        if self.score is None and not self.reason:
            raise ValueError(f"a missing score needs a reason: {self.prompt_id} {self.number}")
        if self.score is not None and not math.isfinite(self.score):
            raise ValueError(f"a score is a finite number, or missing with a reason; {self.prompt_id} {self.number} has {self.score}")


def of(prompt_id: str, number: int, value: float, reason: str = "") -> Score:
    """Return a judge's number as a score; one that is not finite is missing, for the reason `not_finite`."""
    return Score(prompt_id, number, value, reason) if math.isfinite(value) else Score(prompt_id, number, None, "not_finite")


def write(path: Path, rows: Iterable[Score]) -> None:
    """Write scores, sorted by prompt and number; the file appears only when it is complete. Raises `ValueError` for two of one answer."""
    ordered = sorted(rows, key=_answer)
    for row, following in pairwise(ordered):
        if _answer(row) == _answer(following):
            raise ValueError(f"two scores of one answer: prompt {row.prompt_id}, number {row.number}")
    with whole(path) as partial:
        pq.write_table(pa.Table.from_pylist([asdict(row) for row in ordered], SCHEMA), partial, compression="zstd")


def read(path: Path) -> Iterator[Score]:
    """Yield what `write` wrote, in order."""
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches():
            yield from (Score(**row) for row in batch.to_pylist())


def counts(rows: Sequence[Score]) -> dict[str, Any]:
    """Count scores, those that are missing by reason, and the remarks on those that are there."""
    missing = Counter(row.reason for row in rows if row.score is None)
    remarks = Counter(row.reason for row in rows if row.score is not None and row.reason)
    return {
        "answers": len(rows),
        "missing": missing.total(),
        "missing_share": round(missing.total() / len(rows), 4) if rows else None,
        "missing_by_reason": dict(sorted(missing.items())),
        "remarks": dict(sorted(remarks.items())),
    }


def check_missing(rows: Sequence[Score], max_share: float, judge: str) -> None:
    """Raise `UserError` where more scores are missing than may be."""
    refuse_missing(Counter(row.reason for row in rows if row.score is None), len(rows), "scores", max_share, judge)


def refuse_missing(missing: Counter[str], total: int, what: str, max_share: float, judge: str) -> None:
    """Raise `UserError` where more of `total` scores or verdicts are missing, by reason, than may be."""
    if missing.total() > max_share * total:
        told = ", ".join(f"{count:,} {reason}" for reason, count in missing.most_common())
        raise UserError(
            f"judge {judge}: {missing.total():,} of {total:,} {what} are missing ({missing.total() / total:.1%}), more than "
            f"max_missing_share {max_share:g}: {told}. Mend what is named, or raise max_missing_share of this judge"
        )


def _answer(row: Score) -> tuple[str, int]:
    return row.prompt_id, row.number
