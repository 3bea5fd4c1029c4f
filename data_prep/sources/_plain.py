"""Numbers where a text or a whole number is wanted: what tables and libraries make of labels, answers and ids.

In: a cell's value. Out: the same in the type that is wanted; all else unchanged, for the checks of `rounds.data_prep.turns`.
"""

import math
from decimal import Decimal
from typing import Any


def said(value: Any) -> Any:
    """Return a number as its text. True, False and what is not finite are no numbers."""
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        return value
    if not isinstance(value, int) and not math.isfinite(value):
        return value
    return f"{value:f}" if isinstance(value, Decimal) else str(value)


def whole(value: Any) -> int | None:
    """Return a whole number, also one that pandas made a float of since a cell of its column is empty; None where it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        return None
    if isinstance(value, int):
        return value
    return int(value) if math.isfinite(value) and value == int(value) else None


def label(value: Any) -> Any:
    """Return a class as its text: 1.0 is class 1."""
    return said(numbered(value))


def numbered(value: Any) -> Any:
    """Return a whole number as one, whatever type it came in: ids in the index column of a table are 0.0, 1.0, and not a number is none."""
    if isinstance(value, float) and math.isnan(value):
        return None
    number = whole(value)
    return value if number is None else number
