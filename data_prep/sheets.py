"""Rows of a spreadsheet: the first sheet of an .xlsx file, its first row that is not blank naming the columns.

In: a path. Out: one dictionary per row, with cells as openpyxl gives them; a formula comes as the value that was saved with it. Needs the
extra `xlsx`.
"""

import importlib.util
import io
import zipfile
from collections.abc import Iterator
from datetime import date, datetime, time
from pathlib import Path
from typing import Any

from rounds.data_prep.compressed import opened
from rounds.data_prep.errors import UserError

_ERRORS = ("#N/A", "#DIV/0!", "#NAME?", "#NULL!", "#NUM!", "#REF!", "#VALUE!")


def rows(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield the number and the value of each row under the first that is not blank. Raises `UserError` where the file cannot be read."""
    if importlib.util.find_spec("openpyxl") is None:
        raise UserError(f"{path}: .xlsx is read with openpyxl: pip install -e '.[xlsx]', or save the sheet as CSV")
    from openpyxl import load_workbook
    from openpyxl.utils.exceptions import InvalidFileException

    with opened(path) as file:
        content = io.BytesIO(file.read())
    try:
        book = load_workbook(content, read_only=True, data_only=True)
    except (zipfile.BadZipFile, InvalidFileException, KeyError, ValueError, OSError) as error:
        raise UserError(f"{path}: cannot be read as .xlsx: {str(error).splitlines()[0] if str(error) else type(error).__name__}") from None
    filled = [sheet.title for sheet in book.worksheets if any(_is_filled(row) for row in sheet.iter_rows(max_row=50, values_only=True))]
    if len(filled) > 1:
        raise UserError(f"{path}: several sheets have rows ({', '.join(filled[:10])}); save the one that is meant as a file of its own")
    lines = (cells for cells in (book[filled[0]].iter_rows(values_only=True) if filled else ()) if _is_filled(cells))
    names = _header(path, next(lines, ()))
    for number, cells in enumerate(lines, start=1):
        yield number, "wrong_number_of_cells" if _is_filled(cells[len(names) :]) else dict(zip(names, map(_plain, cells), strict=False))


def _is_filled(cells: tuple[Any, ...]) -> bool:
    return any(cell is not None and cell != "" for cell in cells)


def _header(path: Path, cells: tuple[Any, ...]) -> list[str]:
    last = max((place for place, cell in enumerate(cells, start=1) if cell is not None and cell != ""), default=0)
    names = [str(cell).strip() if cell is not None else f"column {place}" for place, cell in enumerate(cells[:last], start=1)]
    if len(set(names)) < len(names):
        raise UserError(f"{path}: the first row must name each column once; found {', '.join(names)}")
    return names


def _plain(cell: Any) -> Any:
    """Return a date, and TRUE and FALSE, as the text that a sheet shows; a formula's error as none."""
    if isinstance(cell, bool):
        return str(cell).upper()
    if isinstance(cell, str):
        return None if cell in _ERRORS else cell
    if isinstance(cell, datetime) and cell.time() == time():
        return cell.date().isoformat()
    return cell.isoformat(sep=" ") if isinstance(cell, datetime) else cell.isoformat() if isinstance(cell, date | time) else cell
