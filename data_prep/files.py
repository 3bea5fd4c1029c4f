"""Rows of one file: JSONL, JSON (`rounds.data_prep.json_rows` lists its forms), CSV, TSV, parquet or xlsx, compressed or not.

In: a path. Out: one dictionary per row, with its number in the file (from 1) under `ROW` and the file's name under
`FILE`, or a `RowError` in place of a row that cannot be read, so that one broken line costs one row.
"""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from rounds.data_prep import encodings, json_rows, sheets
from rounds.data_prep.compressed import COMPRESSIONS, is_compressed, opened, suffix
from rounds.data_prep.errors import UserError
from rounds.data_prep.inventory import note_read
from rounds.data_prep.turns import Row, RowError

ROW, FILE, ID, TURNS = "#row", "#file", "#id", "#turns"
"""What readers add to a row: its number, its file, the id of a row that has none, and the turns made of several columns. Its own columns
are the others."""
SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".xlsx")
# The csv module's own limit of 131,072 characters is shorter than some articles. Far above `sources.MAX_CHARACTERS`, so that
# it is only met where a quote is open for a whole file, or where a file has no lines.
_LIMIT = 1 << 26
# Read as a whole, at some three times its size in memory. The largest of a set here, CORD-19's list, has 1.4 GB.
_JSON_LIMIT = 1 << 31
_OTHERS = {
    ".xls": "save it as .xlsx or CSV",
    ".ods": "save it as .xlsx or CSV",
    ".txt": "save it as JSONL or CSV",
    ".arrow": "give the folder that `save_to_disk` wrote, or save it as parquet",
    ".zip": "unpack it, and give the folder",
    ".tar": "unpack it, and give the folder",
    ".tgz": "unpack it, and give the folder",
    ".feather": "save it as parquet",
    ".orc": "save it as parquet",
    ".pkl": "save it as parquet or JSONL: reading a pickle runs what is in it",
    ".pickle": "save it as parquet or JSONL: reading a pickle runs what is in it",
    ".xml": "save it as JSONL",
    ".db": "save its table as CSV",
    ".sqlite": "save its table as CSV",
}
"""Suffixes under which people keep rows, and what to do about them."""
_MARKS = {
    b"\x1f\x8b": "gzip (.gz)",
    **{b"BZh%d1AY" % level: "bzip2 (.bz2)" for level in range(1, 10)},
    b"\xfd7zXZ": "xz (.xz)",
    b"\x28\xb5\x2f\xfd": "Zstandard (.zst)",
    b"PAR1": "parquet (.parquet)",
    b"PK\x03\x04": "a spreadsheet (.xlsx) or a .zip",
    b"ARROW1": "Arrow",
    b"%PDF-": "a PDF",
}
"""How files begin that are no text."""


def is_data(path: Path) -> bool:
    """Tell by its suffix whether a file may hold rows, whether it is read here or not."""
    return suffix(path) in (*SUFFIXES, *_OTHERS)


def unreadable(path: Path) -> str | None:
    """Say why a file is not read, by its suffix; None where it is."""
    kind = suffix(path)
    if kind in SUFFIXES:
        return None
    hint = f"; {_OTHERS[kind]}" if kind in _OTHERS else ""
    return f"rows are read from files that end in {', '.join(SUFFIXES)}, or in these and {', '.join(COMPRESSIONS)}{hint}"


def read(
    path: Path,
    *,
    header: Sequence[str] = (),
    name: str = "",
    encoding: str | None = None,
    name_labels: bool = False,
    may_be_empty: bool = False,
) -> Iterator[Row | RowError]:
    """Yield the rows of a file, chosen by its suffix; a row of an object id -> row gets its key as `id`.

    `header` names the columns of CSV whose first line is a row already, `name` is what the file is called in rows, its own
    name where none is given, `encoding` that of a text file which is not UTF-8. With `name_labels`, a `ClassLabel` of `datasets` comes as
    its name. Raises `UserError` for a file that does not exist, has another suffix, holds no row, or cannot
    be read as a whole (`.json`, `.parquet`). A line of JSONL or a row of CSV that cannot be read is a `RowError`: `not_utf8`,
    `not_json`, `not_an_object`, `repeated_key`, `line_too_long`, `not_csv`, `wrong_number_of_cells`. What a quote without an
    end swallows counts as a row for each line.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    if why := unreadable(path):
        raise UserError(f"{path}: {why}")
    count = number = 0
    for number, row in _rows(path, header, encoding, name_labels):
        count += 1
        yield _numbered(row, number, name or path.name)
    if not number and not may_be_empty:
        raise UserError(f"{path}: the file holds no rows")
    note_read(name or path.name, count)


def find(root: Path, patterns: Sequence[str]) -> list[Path]:
    """Return the files of a folder that fit one of the patterns, in the order of their paths, or raise `UserError`.

    A file may be compressed where the pattern says nothing of it; where it is there both ways, the plain one is read.
    """
    fitting = (path for pattern in patterns for each in ("", *COMPRESSIONS) for path in root.glob(pattern + each))
    found = plain_first({path for path in fitting if path.is_file()})
    if not found:
        raise UserError(f"{root}: no file fits {', '.join(patterns[:3])}; expected the layout of the repository")
    return found


def plain_first(paths: Iterable[Path]) -> list[Path]:
    """Return paths in order, without compressed files that are there unpacked too."""
    found = set(paths)
    return sorted(path for path in found if not (is_compressed(path) and path.with_suffix("") in found))


def _rows(path: Path, header: Sequence[str], encoding: str | None, name_labels: bool) -> Iterator[tuple[int, Any]]:
    kind = suffix(path)
    if kind == ".parquet":
        from rounds.data_prep import arrow_rows  # with pyarrow, for which planning has no use

        return arrow_rows.parquet(path, name_labels)
    if kind == ".xlsx":
        return sheets.rows(path)
    if kind in (".csv", ".tsv"):
        return _csv(path, header, encoding)
    return _json(path, encoding) if kind == ".json" else _lines(path, encoding)


def _numbered(row: Any, number: int, file: str) -> Row | RowError:
    if isinstance(row, dict):
        return {**row, ROW: number, FILE: file}
    return RowError(row if isinstance(row, str) else "not_an_object", row=number, file=file)


def _lines(path: Path, encoding: str | None) -> Iterator[tuple[int, Any]]:
    _refuse_other(path, encoding)
    if _is_one_value(path, encoding):
        yield from _json(path, encoding)
        return
    with opened(path, encoding) as file:
        yield from _numbered_lines(_bounded(file))


def _is_one_value(path: Path, encoding: str | None) -> bool:
    """Tell whether a file is one value of JSON under the suffix of JSONL: a list, or an object around one, or over several lines."""
    with opened(path, encoding) as file:
        first = next((line for line in iter(lambda: file.readline(_LIMIT), b"") if line.strip()), b"").strip().removeprefix(b"\xef\xbb\xbf")
        if not first.startswith((b"[", b"{")) or len(first) >= _LIMIT - 1:
            return False
        rest = next((line for line in iter(lambda: file.readline(_LIMIT), b"") if line.strip()), b"").strip()
    try:
        value = json.loads(first, strict=False)
    except (ValueError, RecursionError):
        # A line that is cut off costs itself alone; what a library writes over several lines begins like this, and goes on like that.
        return first in (b"[", b"{") or (first.startswith(b"[{") and first.endswith(b"},") and rest.endswith((b"},", b"}]", b"}")))
    return not rest and (isinstance(value, list) or json_rows.holds_rows(value))


def _refuse_other(path: Path, encoding: str | None) -> None:
    """Raise `UserError` where a file's first bytes say that it is no text, or none in UTF-8."""
    if encoding is not None:
        return
    with opened(path) as file:
        start = file.read(8)
    if kind := next((kind for mark, kind in _MARKS.items() if start.startswith(mark)), None):
        raise UserError(f"{path}: the file is {kind}, under the suffix of another kind; name it as what it is")
    if encodings.is_wide(start):
        raise UserError(f"{path}: the file is UTF-16 or UTF-32; {encodings.advice(start)}")


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
            value = _DECODER.decode(line.decode("utf-8-sig" if number == 1 else "utf-8"))
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


# Not strict: a control character in a text costs its row as `control_characters`, or is cleaned, as in any other file.
_DECODER = json.JSONDecoder(object_pairs_hook=_once, strict=False)


def _csv(path: Path, header: Sequence[str], encoding: str | None) -> Iterator[tuple[int, Any]]:
    """Yield the number and the value of each row that is not blank; a reason (str) where it cannot be read."""
    _refuse_other(path, encoding)
    csv.field_size_limit(_LIMIT)
    # A byte that is not UTF-8 becomes a lone surrogate, which costs its own row and not the file.
    with io.TextIOWrapper(opened(path, encoding), encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(file, delimiter="\t" if suffix(path) == ".tsv" else ",", strict=True)
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
        raw = ",".join(first).encode("utf-8", "surrogateescape")
        raise UserError(f"{path}: the first line, which names the columns, is not UTF-8; {encodings.advice(raw)}")
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


def _json(path: Path, encoding: str | None) -> Iterator[tuple[int, Any]]:
    _refuse_other(path, encoding)
    raw = _whole(path, encoding)
    try:
        value = _DECODER.decode(raw.decode("utf-8-sig")) if raw.strip() else []
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start}; {encodings.advice(raw)}") from None
    except RecursionError:
        raise UserError(f"{path}: nested too deeply to be rows") from None
    except _RepeatedKeyError:
        if _is_lines(raw):
            yield from _numbered_lines(raw.split(b"\n"))
            return
        raise UserError(f"{path}: an object has one key twice (two rows of one id, or a row with a column twice)") from None
    except json.JSONDecodeError as error:
        if "Extra data" in error.msg:  # JSONL under the suffix .json, as the hub allows
            yield from _one_after_another(raw)
            return
        raise UserError(f"{path}: not JSON at line {error.lineno}, column {error.colno}: {error.msg}") from None
    except ValueError as error:
        raise UserError(f"{path}: not JSON: {error}") from None
    for number, row in enumerate(json_rows.rows(value, path), start=1):
        yield number, "not_an_object" if isinstance(row, str) else row


def _whole(path: Path, encoding: str | None) -> bytes:
    size = path.stat().st_size
    if size <= _JSON_LIMIT:
        with opened(path, encoding) as file:
            raw = file.read(_JSON_LIMIT + 1) if is_compressed(path) or encoding else file.read()
        if (size := len(raw)) <= _JSON_LIMIT:
            return raw
    raise UserError(
        f"{path}: .json is read as a whole, up to {_JSON_LIMIT >> 20} MiB, and the file has {size >> 20} MiB; save it as .jsonl, "
        "one row a line"
    )


def _one_after_another(raw: bytes) -> Iterator[tuple[int, Any]]:
    """Yield the values of a text that holds several: one a line, or each over several lines, as `jq` prints them."""
    text, place, number = raw.decode("utf-8-sig").strip(), 0, 0
    if text.split("\n", 1)[0].strip() != "{":
        yield from _numbered_lines(raw.split(b"\n"))
        return
    while place < len(text):
        number += 1
        try:
            value, place = _DECODER.raw_decode(text, place)
        except (ValueError, RecursionError) as error:
            yield number, "repeated_key" if isinstance(error, _RepeatedKeyError) else "not_json"
            return  # where the next value begins, nobody can tell
        yield number, "not_an_object" if isinstance(value, str) else value
        place = next((at for at in range(place, len(text)) if not text[at].isspace()), len(text))


def _is_lines(raw: bytes) -> bool:
    """Tell whether what follows the first value of some JSON makes it JSONL."""
    text = raw.decode("utf-8-sig").strip()
    return json.JSONDecoder(strict=False).raw_decode(text)[1] < len(text)
