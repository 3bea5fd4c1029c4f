"""What was written: one row an answer, as parquet.

In: answers as an engine gave them. Out: a file of the columns of `SCHEMA`, in the order of its prompts, and what can be counted of it.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rounds.data_prep.whole import whole

SCHEMA = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("number", pa.int32()),
        ("answer", pa.string()),
        ("token_ids", pa.list_(pa.int32())),
        ("tokens", pa.int32()),
        ("ended", pa.bool_()),
        ("logprob", pa.float32()),
        ("seed", pa.uint64()),
    ]
)


@dataclass(frozen=True, slots=True)
class Sample:
    """One answer of a policy to a prompt."""

    prompt_id: str
    number: int
    """Of the answers to this prompt, from 0."""
    answer: str
    """Its text, with control tokens as they are written; the token that ended it is not in it."""
    token_ids: list[int]
    """Of that text, as they were drawn."""
    tokens: int
    """How many."""
    ended: bool
    """By itself: not cut at `max_new_tokens`."""
    logprob: float
    """In nats, of all that was drawn, the end among it, under the distribution before temperature and top_p."""
    seed: int
    """What it was drawn by."""


def file_of(folder: Path, name: str) -> Path:
    """Return the file that stage `answers` writes for a set."""
    return folder / f"{name}.parquet"


def table(rows: Sequence[Sample]) -> pa.Table:
    """Return samples as a table."""
    return pa.Table.from_pylist([asdict(row) for row in rows], SCHEMA)


def write(path: Path, given: pa.Table) -> None:
    """Write a table of samples; the file appears only when it is complete."""
    with whole(path) as partial:
        pq.write_table(given, partial, compression="zstd")


def read(path: Path) -> Iterator[Sample]:
    """Yield what `write` wrote, in order."""
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches():
            yield from (Sample(**row) for row in batch.to_pylist())


def counts(rows: Sequence[Sample]) -> dict[str, Any]:
    """Count what tells of how a policy writes: length, endings, and how often it says the same.

    `distinct_1` and `distinct_2` are the shares of different tokens, and of different pairs of neighbours, among all (Li et al. 2016,
    arXiv 1510.03055). `identical_share` is the share of answers that another answer to the same prompt says word for word.
    """
    texts = Counter((row.prompt_id, row.answer) for row in rows)
    several = len({row.prompt_id for row in rows}) < len(rows)
    return {
        "prompts": len({row.prompt_id for row in rows}),
        "answers": len(rows),
        "tokens": sum(row.tokens for row in rows),
        "ended_share": _share(sum(row.ended for row in rows), len(rows)),
        "distinct_1": _distinct([each for row in rows for each in row.token_ids]),
        "distinct_2": _distinct([each for row in rows for each in pairwise(row.token_ids)]),
        **({"identical_share": _share(sum(texts[row.prompt_id, row.answer] > 1 for row in rows), len(rows))} if several else {}),
    }


def _share(part: int, of: int) -> float | None:
    return round(part / of, 4) if of else None


def _distinct(values: Sequence[Any]) -> float | None:
    return _share(len(set(values)), len(values))
