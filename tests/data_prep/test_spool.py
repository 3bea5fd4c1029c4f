"""Rows come back from a spool in any order that is asked for, across its batches.

Covers: data_prep/whole.
"""

import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rounds.data_prep.records import (
    BATCH_ROWS,
    Conversation,
    Message,
    Record,
    batches_in,
    read_batch,
    read_records,
    schemas,
    to_table,
)
from rounds.data_prep.spool import Spool

SCHEMA = pa.schema([("number", pa.int64()), ("texts", pa.list_(pa.string()))])


def test_rows_are_written_in_the_order_asked_for(tmp_path: Path) -> None:
    spool, start = Spool(tmp_path / "kept.arrow", SCHEMA), 0
    for size in (5, 0, BATCH_ROWS, 3, 2 * BATCH_ROWS + 1):
        numbers = range(start, start + size)
        spool.add(pa.Table.from_pylist([{"number": each, "texts": ["t", str(each)]} for each in numbers], SCHEMA))
        start += size
    spool.close()
    order = random.Random(0).sample(range(start), start - 7)
    spool.write(order, tmp_path / "rows.parquet")
    table = pq.read_table(tmp_path / "rows.parquet")
    assert table["number"].to_pylist() == order
    assert [texts[1] for texts in table["texts"].to_pylist()] == [str(each) for each in order]


def turns_of(record: Record) -> tuple[Message, ...]:
    assert isinstance(record, Conversation)
    return record.messages


def test_no_batch_holds_more_text_than_a_column_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rounds.data_prep.spool.BATCH_BYTES", 100)
    spool = Spool(tmp_path / "kept.arrow", schemas()["conversation"])
    texts = ["é" * 30, "a" * 200, *("b" * 7 for _ in range(20)), "", "c" * 40, "d" * 59]
    talks = [Conversation(f"{at}", "s", (Message("user", text), Message("assistant", "x"))) for at, text in enumerate(texts)]
    spool.add(to_table(talks[:9], "conversation"))
    spool.add(to_table(talks[9:], "conversation").slice(0))
    spool.close()
    order = list(reversed(range(len(texts))))
    spool.write(order, tmp_path / "rows.parquet")
    assert list(read_records(tmp_path / "rows.parquet")) == [talks[each] for each in order]
    groups = [read_batch(tmp_path / "rows.parquet", at)[1] for at in range(batches_in(tmp_path / "rows.parquet"))]
    assert 4 < len(groups) < len(texts) / 2
    sizes = [sum(len(turn.content.encode()) for each in group for turn in turns_of(each)) for group in groups]
    assert all(size <= 100 or len(group) == 1 for size, group in zip(sizes, groups, strict=True))
