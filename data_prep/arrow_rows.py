"""Rows of Arrow tables as Python values: parquet, and what `datasets` keeps on disk.

In: a parquet file, or batches and what `datasets` wrote of their columns. Out: dictionaries. `datasets` keeps values of mixed types as
JSON text (`arrow.json`) and labels as numbers: the first are read back always, the second become their names where that is asked for.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rounds.data_prep.compressed import is_compressed, opened
from rounds.data_prep.errors import UserError
from rounds.data_prep.turns import Row

_BATCH_ROWS, _BATCH_BYTES = 1024, 1 << 26


def parquet(path: Path, name_labels: bool = False) -> Iterator[tuple[int, Any]]:
    """Yield the number and the value of each row of a parquet file. Raises `UserError` where it cannot be read."""
    try:
        whole = opened(path).read() if is_compressed(path) else None
        file = pq.ParquetFile(path if whole is None else pa.BufferReader(whole))
        number = 0
        # As many rows as are some 64 MB together: 1,024 rows with a cell of 10 MB would be 10 GB.
        size = sum(file.metadata.row_group(group).total_byte_size for group in range(file.metadata.num_row_groups))
        fitting = _BATCH_BYTES * file.metadata.num_rows // max(1, size)
        labels = label_names(file.schema_arrow) if name_labels else {}
        for batch in file.iter_batches(max(1, min(_BATCH_ROWS, fitting))):
            for row in python_rows(batch, str(path), labels):
                number += 1
                yield number, row
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: cannot be read as parquet: {str(error).splitlines()[0]}") from None


def count_stream(path: Path) -> int:
    """Count the rows of a file that `datasets` wrote: a stream of Arrow batches."""
    with pa.memory_map(str(path)) as source:
        return sum(batch.num_rows for batch in pa.ipc.open_stream(source))


def label_names(schema: pa.Schema) -> dict[str, list[str]]:
    """Return the names of the values of each column that `datasets` wrote as a `ClassLabel`."""
    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        named = {name: each["names"] for name, each in features.items() if isinstance(each, Mapping) and each.get("_type") == "ClassLabel"}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}
    return {name: names for name, names in named.items() if isinstance(names, list) and all(isinstance(each, str) for each in names)}


def python_rows(batch: pa.RecordBatch, where: str, labels: Mapping[str, list[str]] | None = None) -> list[Row]:
    """Return the rows of an Arrow batch as dictionaries.

    `labels` are the names of a column's whole numbers. Raises `UserError` where a column has no name of its own or holds what Python has
    no value for: bytes that are no text, a date after the year 9999, a time zone that nobody knows.
    """
    names = batch.schema.names
    if len(set(names)) < len(names):
        raise UserError(f"{where}: each column must have a name of its own; found {', '.join(names)}")
    try:
        rows = batch.to_pylist()
    except (ValueError, OverflowError, KeyError, pa.ArrowException):
        for column, field in zip(batch.columns, batch.schema, strict=True):
            if error := _unreadable(column):
                what = "bytes that are not UTF-8" if isinstance(error, UnicodeDecodeError) else "values that cannot be read"
                raise UserError(
                    f"{where}: column {field.name!r} ({field.type}) holds {what} ({str(error).splitlines()[0]}); save it "
                    "as text, or leave it out"
                ) from None
        raise
    decoders = {field.name: decoder for field in batch.schema if (decoder := _decoder(field.type))}
    decoders |= {name: _naming(known) for name, known in (labels or {}).items() if name in names}
    for name, decoder in decoders.items():
        for row in rows:
            row[name] = decoder(row[name])
    return rows


def _unreadable(column: pa.Array) -> Exception | None:
    try:
        column.to_pylist()
    except (ValueError, OverflowError, KeyError, pa.ArrowException) as error:
        return error
    return None


def _naming(names: list[str]) -> Callable[[Any], Any]:
    """Return what names a label; -1 is that of a row without one."""

    def named(value: Any) -> Any:
        if not isinstance(value, int):
            return value
        return names[value] if 0 <= value < len(names) else None if value == -1 else value

    return named


def _decoder(kind: pa.DataType) -> Callable[[Any], Any] | None:
    """Return what reads the JSON in values of a type back, at whatever depth; None where there is none in it."""
    if isinstance(kind, pa.JsonType):
        return _from_json
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        each = _decoder(kind.value_type)
        return each and (lambda values: values if values is None else [each(value) for value in values])
    if pa.types.is_struct(kind):
        inner = {field.name: decoder for field in kind.fields if (decoder := _decoder(field.type))}
        return _in_struct(inner) if inner else None
    return None


def _in_struct(decoders: Mapping[str, Callable[[Any], Any]]) -> Callable[[Any], Any]:
    return lambda value: value and {name: decoders[name](each) if name in decoders else each for name, each in value.items()}


def _from_json(value: str | None) -> Any:
    try:
        return value if value is None else json.loads(value)
    except (ValueError, RecursionError):
        return value
