"""What a judge says of two answers, asked in both orders: one row a comparison, as parquet, and the scores that follow.

In: preferences as a judge gave them, swapped back. Out: a file of the columns of `SCHEMA`; a winner, a tie, or nothing; scores; counts that
tell how far the judge goes by place and by length.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rounds.data_prep.whole import whole
from rounds.train.generation.samples import Sample
from rounds.train.judging import scores
from rounds.train.judging.scores import Score

VERDICTS = "verdicts.parquet"
SCHEMA = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("first", pa.int32()),
        ("second", pa.int32()),
        ("forward", pa.float64()),
        ("backward", pa.float64()),
        ("reason", pa.string()),
        ("first_tokens", pa.int32()),
        ("second_tokens", pa.int32()),
    ]
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """A comparison of two answers to one prompt, asked twice."""

    prompt_id: str
    first: int
    """Number of one answer."""
    second: int
    """Number of the other; of another policy it may be the same."""
    forward: float | None
    """How much the judge prefers `first` when it is shown first, in its own unit: above 0 it does, below 0 it prefers `second`."""
    backward: float | None
    """How much it prefers `first` when `second` is shown first; above 0 means the same."""
    reason: str = ""
    """Why a side is missing, as a stable word; of a whole verdict what must be known of it, such as `cut`."""
    first_tokens: int = 0
    second_tokens: int = 0

    @property
    def outcome(self) -> float | None:
        """1 where `first` wins in both orders, 0 where `second` does, a half where they disagree or one is a tie; None where a side is
        missing."""
        if self.forward is None or self.backward is None:
            return None
        return 1.0 if min(self.forward, self.backward) > 0 else 0.0 if max(self.forward, self.backward) < 0 else 0.5


def comparisons(samples: Iterable[Sample]) -> list[tuple[Sample, Sample]]:
    """Return every two different answers to each prompt, the one with the lower number first, in the order of prompts and numbers."""
    by_prompt: dict[str, list[Sample]] = defaultdict(list)
    for each in sorted(samples, key=lambda each: (each.prompt_id, each.number)):
        by_prompt[each.prompt_id].append(each)
    return [(one, other) for answers in by_prompt.values() for one, other in combinations(answers, 2) if one.answer != other.answer]


def scores_of(verdicts: Sequence[Verdict], samples: Iterable[Sample]) -> list[Score]:
    """Return for each answer the share of its comparisons that it won, a tie as a half; missing where it has no whole verdict."""
    won: dict[tuple[str, int], list[float]] = defaultdict(list)
    reasons: dict[tuple[str, int], list[str]] = defaultdict(list)
    for each in verdicts:
        for number, value in ((each.first, each.outcome), (each.second, None if each.outcome is None else 1 - each.outcome)):
            if value is None:
                reasons[each.prompt_id, number].append(each.reason)
            else:
                won[each.prompt_id, number].append(value)
    found = []
    for sample in samples:
        key = (sample.prompt_id, sample.number)
        why = Counter(reasons[key]).most_common(1)
        if won[key]:
            found.append(Score(*key, sum(won[key]) / len(won[key]), "some_comparisons_missing" if why else ""))
        else:
            found.append(Score(*key, None, why[0][0] if why else "nothing_to_compare_with"))
    return found


def counts(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Tell how a judge decides: how often the order turns its verdict round, and how often the first place and the longer answer win."""
    whole_ones = [each for each in verdicts if each.forward is not None and each.backward is not None]
    shown_first = [side * sign for each in verdicts for side, sign in ((each.forward, 1), (each.backward, -1)) if side]
    decided = [each for each in whole_ones if each.outcome != 0.5]
    unequal = [each for each in decided if each.first_tokens != each.second_tokens]
    missing = Counter(each.reason for each in verdicts if each.outcome is None)
    remarks = Counter(each.reason for each in whole_ones if each.reason)
    return {
        "comparisons": len(verdicts),
        "missing": missing.total(),
        "missing_by_reason": dict(sorted(missing.items())),
        "remarks": dict(sorted(remarks.items())),
        "flip_share": _share(sum((each.forward or 0) * (each.backward or 0) < 0 for each in whole_ones), len(whole_ones)),
        "tie_share": _share(len(whole_ones) - len(decided), len(whole_ones)),
        "first_place_share": _share(sum(each > 0 for each in shown_first), len(shown_first)),
        "longer_share": _share(sum((each.outcome == 1) == (each.first_tokens > each.second_tokens) for each in unequal), len(unequal)),
    }


def check_missing(rows: Sequence[Verdict], max_share: float, judge: str) -> None:
    """Raise `UserError` where more verdicts are missing than may be."""
    scores.refuse_missing(Counter(row.reason for row in rows if row.outcome is None), len(rows), "verdicts", max_share, judge)


def write(path: Path, rows: Iterable[Verdict]) -> None:
    """Write verdicts, sorted by prompt and numbers; the file appears only when it is complete."""
    ordered = sorted(rows, key=lambda each: (each.prompt_id, each.first, each.second))
    with whole(path) as partial:
        pq.write_table(pa.Table.from_pylist([asdict(row) for row in ordered], SCHEMA), partial, compression="zstd")


def read(path: Path) -> Iterator[Verdict]:
    """Yield what `write` wrote, in order."""
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches():
            yield from (Verdict(**row) for row in batch.to_pylist())


def _share(part: int, of: int) -> float | None:
    return round(part / of, 4) if of else None
