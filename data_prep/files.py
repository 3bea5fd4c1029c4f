"""Rows of one plain file: JSONL, JSON (a list of rows, or an object id -> row), CSV, TSV, or parquet.

In: a path. Out: one dictionary per row, with its number in the file (from 1) under `ROW`, or a `RowError` in place of a
row that cannot be read, so that one broken line costs one row.
"""

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.errors import UserError
from data_prep.turns import Row, RowError

ROW = "#row"
SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
_CELL_LIMIT = 2**31 - 1  # The csv module's own limit of 131,072 characters is shorter than some articles.


def read(path: Path, *, header: Sequence[str] = ()) -> Iterator[Row | RowError]:
    """Yield the rows of a file, chosen by its suffix; a row of an object id -> row gets its key as `id`.

    `header` names the columns of CSV whose first line is a row already. Raises `UserError` for a file that does not
    exist, has another suffix, holds no row, or cannot be read as a whole (`.json`, `.parquet`). A line of JSONL or a
    row of CSV that cannot be read is a `RowError`: `not_utf8`, `not_json`, `not_an_object`, `not_csv`,
    `wrong_number_of_cells`.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path}: rows are read from files that end in {', '.join(SUFFIXES)}")
    number = 0
    for number, row in _rows(path, header):
        yield _numbered(row, number)
    if not number:
        raise UserError(f"{path}: the file holds no rows")


def find(root: Path, patterns: Sequence[str]) -> list[Path]:
    """Return the files of a folder that fit one of the patterns, in the order of their paths, or raise `UserError`."""
    found = sorted({path for pattern in patterns for path in root.glob(pattern) if path.is_file()})
    if not found:
        raise UserError(f"{root}: no file fits {', '.join(patterns[:3])}; expected the layout of the repository")
    return found


def _rows(path: Path, header: Sequence[str]) -> Iterator[tuple[int, Any]]:
    if path.suffix == ".parquet":
        return _parquet(path)
    if path.suffix in (".csv", ".tsv"):
        return _csv(path, header)
    return _json(path) if path.suffix == ".json" else _lines(path)


def _numbered(row: Any, number: int) -> Row | RowError:
    if isinstance(row, str):
        return RowError(row, row=number)
    return {**row, ROW: number} if isinstance(row, dict) else RowError("not_an_object", row=number)


def _lines(path: Path) -> Iterator[tuple[int, Any]]:
    _refuse_utf16(path)
    with path.open("rb") as file:
        yield from _numbered_lines(file)


def _refuse_utf16(path: Path) -> None:
    with path.open("rb") as file:
        if file.read(2) in (b"\xff\xfe", b"\xfe\xff"):
            raise UserError(f"{path}: the file is UTF-16; save it as UTF-8")


def _numbered_lines(lines: Iterable[bytes]) -> Iterator[tuple[int, Any]]:
    """Yield the number and the value of each line that is not blank; a reason (str) where it cannot be read."""
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
        except UnicodeDecodeError:
            yield number, "not_utf8"
        except (ValueError, RecursionError):
            yield number, "not_json"
        else:
            yield number, "not_an_object" if isinstance(value, str) else value


def _csv(path: Path, header: Sequence[str]) -> Iterator[tuple[int, Any]]:
    """Yield the number and the value of each row that is not blank; a reason (str) where it cannot be read."""
    _refuse_utf16(path)
    csv.field_size_limit(_CELL_LIMIT)
    # A byte that is not UTF-8 becomes a lone surrogate, which costs its own row and not the file.
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(file, delimiter="\t" if path.suffix == ".tsv" else ",", strict=True)
        # An index that pandas wrote has no name.
        first = next(reader, ()) if not header else ()
        names = tuple(header) or tuple(name.strip() or f"column {place}" for place, name in enumerate(first, start=1))
        if len(set(names)) < len(names):
            raise UserError(f"{path}: the first line must name each column once; found {', '.join(names)}")
        number = 0
        while True:
            try:
                cells = next(reader, None)
            except csv.Error:
                cells = "not_csv"
            if cells is None:
                return
            if cells:
                number += 1
                yield number, _from_cells(names, cells)


def _from_cells(names: Sequence[str], cells: list[str] | str) -> Any:
    if isinstance(cells, str):
        return cells
    if len(cells) != len(names):
        return "wrong_number_of_cells"
    if any("\ud800" <= letter <= "\udfff" for cell in cells if not cell.isascii() for letter in cell):
        return "not_utf8"
    return dict(zip(names, cells, strict=True))


def _json(path: Path) -> Iterator[tuple[int, Any]]:
    raw = path.read_bytes()
    try:
        value = json.loads(raw.decode("utf-8-sig")) if raw.strip() else []
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start}; save it as UTF-8") from None
    except RecursionError:
        raise UserError(f"{path}: nested too deeply to be rows") from None
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


def _parquet(path: Path) -> Iterator[tuple[int, Any]]:
    try:
        file = pq.ParquetFile(path)
        number = 0
        for batch in file.iter_batches(1024):
            for row in batch.to_pylist():
                number += 1
                yield number, row
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: cannot be read as parquet: {str(error).splitlines()[0]}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: a text column holds bytes that are not UTF-8") from None
