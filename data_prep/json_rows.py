"""Rows of JSON that is read as a whole, in the forms that people and libraries write.

In: a value of JSON. Out: its rows. A list of rows; an object id -> row; one row; an object that holds the list beside other things, such
as `{"version": 1, "data": [...]}`; columns instead of rows, as pandas writes them: `{"question": {"0": ...}, "answer": {"0": ...}}`, lists
in place of the inner objects, or `{"columns": [...], "data": [[...]]}`; and the hub's own `{"rows": [{"row_idx": 0, "row": {...}}]}`.
"""

from pathlib import Path
from typing import Any

from rounds.data_prep.errors import UserError
from rounds.data_prep.inventory import note_not_read

_NAMES = ("data", "rows", "examples", "train", "instances", "items", "records")
"""Under which name an object holds rows, the likeliest first."""
_TURN = {"role", "from"}
"""Keys of what is a turn, and no row."""


def rows(value: Any, path: Path) -> list[Any]:
    """Return the rows in a value. Raises `UserError` where it has none of the forms."""
    if isinstance(value, dict):
        value = _of_object(value, path)
    if not isinstance(value, list):
        raise UserError(f"{path}: expected a list of rows or an object id -> row, found {type(value).__name__}")
    return value


def _of_object(value: dict[str, Any], path: Path) -> list[Any]:
    if isinstance(value.get("columns"), list) and _is_table(value.get("data"), len(value["columns"])):
        return [dict(zip(map(str, value["columns"]), row, strict=True)) for row in value["data"]]
    if _is_columns(value):
        lists = {name: list(column.values()) if isinstance(column, dict) else column for name, column in value.items()}
        return [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]
    lists = {name: inner for name, inner in value.items() if isinstance(inner, list) and inner and _are_rows(inner)}
    if found := next((name for name in _NAMES if name in lists), None):
        for name in lists:
            if name != found and not _TURN & lists[name][0].keys():
                note_not_read(f"{path.name}: {name}", f"rows are read from {found!r}, beside it; give it as a file of its own")
        return [_unpacked(row) for row in lists[found]]
    objects = [inner for inner in value.values() if isinstance(inner, dict)]
    rows_of = [inner for inner in lists.values() if not _TURN & inner[0].keys()]
    if not objects and len(rows_of) == len(value) == 1:
        return rows_of[0]
    if not objects:
        return [value]
    return [{"id": key, **row} if isinstance(row, dict) else row for key, row in value.items()]


def _is_table(value: Any, width: int) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(row, list) and len(row) == width for row in value)


def _is_columns(value: dict[str, Any]) -> bool:
    """Tell whether an object holds columns: all of them lists of one length without objects, or all with the keys of one index."""
    inner = list(value.values())
    if len(inner) < 2:
        return False
    if all(isinstance(each, list) for each in inner):
        plain = all(not isinstance(cell, dict) for each in inner for cell in each)
        return plain and len({len(each) for each in inner}) == 1 and bool(inner[0])
    first = list(inner[0]) if isinstance(inner[0], dict) else []
    return bool(first) and all(key.isdecimal() for key in first) and all(isinstance(each, dict) and list(each) == first for each in inner)


def _unpacked(row: dict[str, Any]) -> Any:
    return row["row"] if isinstance(row.get("row"), dict) and "row_idx" in row else row


def holds_rows(value: Any) -> bool:
    """Tell whether an object is no row but holds some, in a form that no row of turns, sides or answers has."""
    if not isinstance(value, dict):
        return False
    inner = list(value.values())
    if any(isinstance(value.get(name), list) and value[name] and _are_rows(value[name]) for name in _NAMES):
        return True
    if isinstance(value.get("columns"), list) and _is_table(value.get("data"), len(value["columns"])):
        return True
    alike = len(inner) > 1 and _are_rows(inner) and all(each.keys() == inner[0].keys() for each in inner) and bool(inner[0])
    return _is_columns(value) or (alike and not _TURN & inner[0].keys())


def _are_rows(values: list[Any]) -> bool:
    return all(isinstance(row, dict) for row in values)
