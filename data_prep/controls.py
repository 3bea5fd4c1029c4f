"""Control characters in texts, as extraction of PDF leaves them: taken out where a recipe says `control_characters: clean`.

In: a raw row. Out: the same row, its texts cleaned at whatever depth they stand. A form feed or a vertical tab ends a page or a line, so it
becomes a line end; the rest, which `rounds.data_prep.turns.text` refuses, is left out. Lone surrogates stay: letters are lost there.
"""

import re
from collections.abc import Mapping
from typing import Any

from rounds.data_prep.turns import Row

CLEANED = "#cleaned"
"""What a row is marked with where something was taken out."""
ADVICE = "`control_characters: clean` with the source takes them out of its rows"
_LINE_ENDS = re.compile("[\x0b\x0c]")
# What `turns.text` refuses, but surrogates, and the carriage return, which it makes a line end itself.
_NOTHING = re.compile("[\x00-\x08\x0e-\x1f\x7f\u202d\u202e\ufdd0-\ufdef\ufffe\uffff]")


def cleaned(row: Row) -> Row:
    """Return a row without control characters, marked with `CLEANED`; the row itself where it has none."""
    found = {name: _cleaned(value) for name, value in row.items()}
    return row if all(found[name] is value for name, value in row.items()) else {**found, CLEANED: True}


def _cleaned(value: Any) -> Any:
    """Return a value cleaned; the value itself where there is nothing to clean."""
    if isinstance(value, str):
        return _NOTHING.sub("", _LINE_ENDS.sub("\n", value)) if _LINE_ENDS.search(value) or _NOTHING.search(value) else value
    if isinstance(value, Mapping):
        inner = {name: _cleaned(each) for name, each in value.items()}
        return inner if any(inner[name] is not each for name, each in value.items()) else value
    if isinstance(value, list):
        items = [_cleaned(each) for each in value]
        return items if any(new is not old for new, old in zip(items, value, strict=True)) else value
    return value
