"""What the tests of data preparation share: no network, no use of the person's own caches, and small files to read."""

import os
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

_CACHE = tempfile.TemporaryDirectory(prefix="rounds-datasets-")
# Read by `datasets` when it is first imported, so they are set before any test is.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_CACHE"] = _CACHE.name

from rounds.data_prep import sources  # noqa: E402
from rounds.data_prep.records import Record  # noqa: E402
from rounds.data_prep.schema import SourceUse  # noqa: E402


@pytest.fixture
def write_parquet() -> Callable[[Path, Sequence[dict[str, Any]]], Path]:
    """Write rows as parquet, making the folders of the path; returns the path."""

    def write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(list(rows)), path)
        return path

    return write


@pytest.fixture
def convert() -> Callable[[SourceUse], tuple[list[Record], Counter[str]]]:
    """Convert all rows of a use; returns the records, and how often each reason dropped a row."""

    def run(use: SourceUse) -> tuple[list[Record], Counter[str]]:
        source, records, reasons = sources.load(use.source), [], Counter()
        source.check(use)
        for index, row in enumerate(source.rows(use)):
            try:
                records.append(source.convert(row, index, use))
            except sources.RowError as error:
                reasons[str(error)] += 1
        return records, reasons

    return run
