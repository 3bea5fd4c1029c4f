"""Rows of one plain file: JSONL, JSON (a list of rows, or an object id -> row), CSV, TSV, or parquet.

In: a path. Out: one dictionary per row, with its number in the file (from 1) under `ROW` and the file's name under
`FILE`, or a `RowError` in place of a row that cannot be read, so that one broken line costs one row.
"""

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from rounds.data_prep.errors import UserError
from rounds.data_prep.turns import Row, RowError

ROW, FILE, ID = "#row", "#file", "#id"
"""What readers add to a row: its number, its file, and the id of a row that has none. Its own columns are the others."""
SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
# The csv module's own limit of 131,072 characters is shorter than some articles. Far above `sources.MAX_CHARACTERS`, so that
# it is only met where a quote is open for a whole file, or where a file has no lines.
_LIMIT = 1 << 26
# Read as a whole, at some three times its size in memory. The largest of a set here, CORD-19's list, has 1.4 GB.
_JSON_LIMIT = 1 << 31
_BATCH_ROWS, _BATCH_BYTES = 1024, 1 << 26


def read(path: Path, *, header: Sequence[str] = (), name: str = "") -> Iterator[Row | RowError]:
    """Yield the rows of a file, chosen by its suffix; a row of an object id -> row gets its key as `id`.

    `header` names the columns of CSV whose first line is a row already, `name` is what the file is called in rows, its own
    name where none is given. Raises `UserError` for a file that does not exist, has another suffix, holds no row, or cannot
    be read as a whole (`.json`, `.parquet`). A line of JSONL or a row of CSV that cannot be read is a `RowError`: `not_utf8`,
    `not_json`, `not_an_object`, `repeated_key`, `line_too_long`, `not_csv`, `wrong_number_of_cells`. What a quote without an
    end swallows counts as a row for each line.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path}: rows are read from files that end in {', '.join(SUFFIXES)}")
    number = 0
    for number, row in _rows(path, header):
        yield _numbered(row, number, name or path.name)
    if not number:
        raise UserError(f"{path}: the file holds no rows")


def find(root: Path, patterns: Sequence[str]) -> list[Path]:
    """Return the files of a folder that fit one of the patterns, in the order of their paths, or raise `UserError`."""
    found = sorted({path for pattern in patterns for path in root.glob(pattern) if path.is_file()})
    if not found:
        raise UserError(f"{root}: no file fits {', '.join(patterns[:3])}; expected the layout of the repository")
    return found


def python_rows(batch: pa.RecordBatch, where: str) -> list[Row]:
    """Return the rows of an Arrow batch as dictionaries.

    Raises `UserError` where a column has no name of its own or holds what Python has no value for: bytes that are no
    text, a date after the year 9999, a time zone that nobody knows.
    """
    names = batch.schema.names
    if len(set(names)) < len(names):
        raise UserError(f"{where}: each column must have a name of its own; found {', '.join(names)}")
    try:
        return batch.to_pylist()
    except (ValueError, OverflowError, KeyError, pa.ArrowException):
        for column, field in zip(batch.columns, batch.schema, strict=True):
            if error := _unreadable(column):
                what = "bytes that are not UTF-8" if isinstance(error, UnicodeDecodeError) else "values that cannot be read"
                raise UserError(
                    f"{where}: column {field.name!r} ({field.type}) holds {what} ({str(error).splitlines()[0]}); save it "
                    "as text, or leave it out"
                ) from None
        raise


def _unreadable(column: pa.Array) -> Exception | None:
    try:
        column.to_pylist()
    except (ValueError, OverflowError, KeyError, pa.ArrowException) as error:
        return error
    return None


def _rows(path: Path, header: Sequence[str]) -> Iterator[tuple[int, Any]]:
    if path.suffix == ".parquet":
        return _parquet(path)
    if path.suffix in (".csv", ".tsv"):
        return _csv(path, header)
    return _json(path) if path.suffix == ".json" else _lines(path)


def _numbered(row: Any, number: int, file: str) -> Row | RowError:
    if isinstance(row, dict):
        return {**row, ROW: number, FILE: file}
    return RowError(row if isinstance(row, str) else "not_an_object", row=number, file=file)


def _lines(path: Path) -> Iterator[tuple[int, Any]]:
    _refuse_utf16(path)
    with path.open("rb") as file:
        yield from _numbered_lines(_bounded(file))


def _refuse_utf16(path: Path) -> None:
    with path.open("rb") as file:
        start = file.read(4)
    # Without a mark at its start, plain text in UTF-16 still has a null byte in each of its letters.
    is_unmarked = len(start) == 4 and [not byte for byte in start] in ([False, True] * 2, [True, False] * 2)
    if is_unmarked or start.startswith((b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff")):
        raise UserError(f"{path}: the file is UTF-16 or UTF-32; save it as UTF-8")


def _bounded(file: IO[bytes]) -> Iterator[bytes | None]:
    """Yield each line of a file; None for one that is longer than `_LIMIT`, of which no more is held in memory."""
    while line := file.readline(_LIMIT):
        whole = len(line) < _LIMIT or line.endswith(b"\n")
        yield line if whole else None
        while not whole and (rest := file.readline(_LIMIT)):
            whole = rest.endswith(b"\n")


def _numbered_lines(lines: Iterable[bytes | None]) -> Iterator[tuple[int, Any]]:
    """Yield the number and the value of each line that is not blank; a reason (str) where it cannot be read."""
    for number, line in enumerate(lines, start=1):
        if line is None:
            yield number, "line_too_long"
            continue
        if not line.strip():
            continue
        try:
            value = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"), object_pairs_hook=_once)
        except UnicodeDecodeError:
            yield number, "not_utf8"
        except _RepeatedKeyError:
            yield number, "repeated_key"
        except (ValueError, RecursionError):
            yield number, "not_json"
        else:
            yield number, "not_an_object" if isinstance(value, str) else value


class _RepeatedKeyError(ValueError):
    """An object of JSON has one key twice: which of the two values is meant, nobody can tell."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise _RepeatedKeyError
    return found


def _csv(path: Path, header: Sequence[str]) -> Iterator[tuple[int, Any]]:
    """Yield the number and the value of each row that is not blank; a reason (str) where it cannot be read."""
    _refuse_utf16(path)
    csv.field_size_limit(_LIMIT)
    # A byte that is not UTF-8 becomes a lone surrogate, which costs its own row and not the file.
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(file, delimiter="\t" if path.suffix == ".tsv" else ",", strict=True)
        names = tuple(header) or _header(path, reader)
        number, line = 0, reader.line_num
        while True:
            try:
                cells = next(reader, None)
            except csv.Error:
                # A quote that is not closed makes one row of all lines up to the next quote: none may go uncounted.
                yield from ((number + place, "not_csv") for place in range(1, reader.line_num - line + 1))
                number, line = number + reader.line_num - line, reader.line_num
                continue
            line = reader.line_num
            if cells is None:
                return
            if cells:
                number += 1
                yield number, _from_cells(names, cells)


def _header(path: Path, reader: Iterator[list[str]]) -> tuple[str, ...]:
    """Return the names of the columns: the first line that is not blank."""
    try:
        first = next((cells for cells in reader if cells), [])
    except csv.Error as error:
        raise UserError(f"{path}: the first line, which names the columns, cannot be read: {error}") from None
    if _is_not_utf8(first):
        raise UserError(f"{path}: the first line, which names the columns, is not UTF-8; save the file as UTF-8")
    # An index that pandas wrote has no name.
    names = tuple(name.strip() or f"column {place}" for place, name in enumerate(first, start=1))
    if len(set(names)) < len(names):
        raise UserError(f"{path}: the first line must name each column once; found {', '.join(names)}")
    return names


def _from_cells(names: Sequence[str], cells: list[str]) -> Any:
    if len(cells) != len(names):
        return "wrong_number_of_cells"
    return "not_utf8" if _is_not_utf8(cells) else dict(zip(names, cells, strict=True))


def _is_not_utf8(cells: Sequence[str]) -> bool:
    return any("\ud800" <= letter <= "\udfff" for cell in cells if not cell.isascii() for letter in cell)


def _json(path: Path) -> Iterator[tuple[int, Any]]:
    _refuse_utf16(path)
    if path.stat().st_size > _JSON_LIMIT:
        raise UserError(
            f"{path}: .json is read as a whole, up to {_JSON_LIMIT >> 20} MiB, and the file has "
            f"{path.stat().st_size >> 20} MiB; save it as .jsonl, one row a line"
        )
    raw = path.read_bytes()
    try:
        value = json.loads(raw.decode("utf-8-sig"), object_pairs_hook=_once) if raw.strip() else []
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start}; save it as UTF-8") from None
    except RecursionError:
        raise UserError(f"{path}: nested too deeply to be rows") from None
    except _RepeatedKeyError:
        if _is_lines(raw):
            yield from _numbered_lines(raw.split(b"\n"))
            return
        raise UserError(f"{path}: an object has one key twice (two rows of one id, or a row with a column twice)") from None
    except json.JSONDecodeError as error:
        if "Extra data" in error.msg:  # JSONL under the suffix .json, as the hub allows
            yield from _numbered_lines(raw.split(b"\n"))
            return
        raise UserError(f"{path}: not JSON at line {error.lineno}, column {error.colno}: {error.msg}") from None
    except ValueError as error:
        raise UserError(f"{path}: not JSON: {error}") from None
    if isinstance(value, dict):
        value = [{"id": key, **row} if isinstance(row, dict) else row for key, row in value.items()]
    if not isinstance(value, list):
        raise UserError(f"{path}: expected a list of rows or an object id -> row, found {type(value).__name__}")
    for number, row in enumerate(value, start=1):
        yield number, "not_an_object" if isinstance(row, str) else row


def _is_lines(raw: bytes) -> bool:
    """Tell whether what follows the first value of some JSON makes it JSONL."""
    text = raw.decode("utf-8-sig").strip()
    return json.JSONDecoder().raw_decode(text)[1] < len(text)


def _parquet(path: Path) -> Iterator[tuple[int, Any]]:
    try:
        file = pq.ParquetFile(path)
        number = 0
        # As many rows as are some 64 MB together: 1,024 rows with a cell of 10 MB would be 10 GB.
        size = sum(file.metadata.row_group(group).total_byte_size for group in range(file.metadata.num_row_groups))
        fitting = _BATCH_BYTES * file.metadata.num_rows // max(1, size)
        for batch in file.iter_batches(max(1, min(_BATCH_ROWS, fitting))):
            for row in python_rows(batch, str(path)):
                number += 1
                yield number, row
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: cannot be read as parquet: {str(error).splitlines()[0]}") from None
