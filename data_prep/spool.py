"""Rows kept aside on disk and then written in another order, with no more than a few batches in memory.

In: Arrow tables of one schema, then an order of row numbers. Out: a parquet file of those rows in that order.
"""

import itertools
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rounds.data_prep.records import BATCH_ROWS
from rounds.data_prep.whole import whole

# A string column holds 2 GiB at most, and 4,096 of the longest rows that are kept would be 16. Rows of the usual length,
# 9 MB a batch, never come to it.
BATCH_BYTES = 1 << 28


class Spool:
    """A file that rows are added to; `close()` ends that, then `write(order, path)` reads them by number."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.path, self.schema = path, schema
        self._writer = pa.ipc.new_file(str(path), schema)
        self._sizes: list[np.ndarray] = []

    def add(self, table: pa.Table) -> None:
        """Add rows; their numbers go on from those of the rows before."""
        self._writer.write_table(table)
        self._sizes.append(_bytes_of_rows(table))

    def close(self) -> None:
        """Complete the file."""
        self._writer.close()

    def write(self, order: Sequence[int], path: Path, renamed: Mapping[int, str] | None = None) -> None:
        """Write the rows of these numbers, in this order, as parquet. The file appears only when complete.

        `renamed` gives the id of a row by its place in the order, where that is to be another than it was added with.
        """
        sizes = np.concatenate([np.zeros(0, np.uint32), *self._sizes])[np.asarray(order, np.int64)]
        with (
            whole(path) as partial,
            pa.memory_map(str(self.path)) as source,
            pq.ParquetWriter(partial, self.schema, compression="zstd") as out,
        ):
            reader = pa.ipc.open_file(source)
            batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
            starts = list(itertools.accumulate((batch.num_rows for batch in batches[:-1]), initial=0))
            for start, end in _parts(sizes):
                table = _gather(batches, starts, order[start:end])
                out.write_table(_with_ids(table, start, renamed) if renamed else table)


def _bytes_of_rows(table: pa.Table) -> np.ndarray:
    """Return how many bytes of text each row holds."""
    columns = [np.concatenate([np.zeros(0, np.int64), *map(_bytes_of, column.chunks)]) for column in table.columns]
    return np.sum(columns, axis=0).astype(np.uint32)


def _bytes_of(array: pa.Array) -> np.ndarray:
    if pa.types.is_string(array.type):
        return np.asarray(pc.call_function("binary_length", [array]).fill_null(0), np.int64)
    if pa.types.is_struct(array.type):
        return np.sum([_bytes_of(field) for field in array.flatten()], axis=0)
    if pa.types.is_list(array.type):
        lengths = np.asarray(pc.call_function("list_value_length", [array]).fill_null(0), np.int64)
        before = np.concatenate([[0], np.cumsum(_bytes_of(array.flatten()))])
        return np.diff(before[np.concatenate([[0], np.cumsum(lengths)])])
    return np.zeros(len(array), np.int64)


def _parts(sizes: np.ndarray) -> Iterator[tuple[int, int]]:
    """Cut an order of rows of these sizes into parts of at most `BATCH_ROWS` rows and, but for one row, `BATCH_BYTES`."""
    ends = np.cumsum(sizes, dtype=np.int64)
    start = 0
    while start < len(sizes):
        before = ends[start - 1] if start else 0
        fitting = int(np.searchsorted(ends, before + BATCH_BYTES, side="right"))
        end = min(max(fitting, start + 1), start + BATCH_ROWS, len(sizes))
        yield start, end
        start = end


def _with_ids(table: pa.Table, start: int, renamed: Mapping[int, str]) -> pa.Table:
    old = table.column("id").to_pylist()
    new = [renamed.get(start + place, name) for place, name in enumerate(old)]
    return table.set_column(table.schema.get_field_index("id"), "id", pa.array(new, pa.string()))


def _gather(batches: Sequence[pa.RecordBatch], starts: Sequence[int], numbers: Sequence[int]) -> pa.Table:
    """Return the numbered rows in order. (`Table.take` over all batches overflows at 2 GiB of text: pyarrow 26.)"""
    by_number = sorted(range(len(numbers)), key=numbers.__getitem__)
    pieces = []
    for at, group in itertools.groupby(by_number, key=lambda place: bisect_right(starts, numbers[place]) - 1):
        pieces.append(batches[at].take(pa.array([numbers[place] - starts[at] for place in group])))
    back = [0] * len(numbers)
    for found, place in enumerate(by_number):
        back[place] = found
    return pa.Table.from_batches(pieces).combine_chunks().take(pa.array(back))
