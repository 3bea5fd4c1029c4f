"""Which columns of a source's rows say something that nobody reads: told once, so that nothing is left out without a word.

In: rows as they are converted. Out: names, a field of turns as `messages.name`.
"""

from collections.abc import Mapping
from typing import Any

from rounds.data_prep.controls import CLEANED
from rounds.data_prep.files import FILE, ID, ROW, TURNS
from rounds.data_prep.turns import TURN_FIELDS, Row, says

# A conversion asks for a column by name whether a row has something there or not: a thousand rows show what it asks for.
_WATCHED = 1000


class Unread:
    """What was said in a source's rows, and what was read of it."""

    def __init__(self) -> None:
        self.read: set[str] = {FILE, ID, ROW, TURNS, CLEANED}
        self._said: dict[str, None] = {}
        self._seen: set[str] = set()
        self._left = 0

    def watch(self, row: Row) -> Row:
        """Return the row, as one that notes what is asked for where that is not known yet."""
        if not row.keys() <= self._seen:
            self._seen |= row.keys()
            self._left = _WATCHED
        if not self._left:
            return row
        self._left -= 1
        return _Watched(row, self.read)

    def look(self, row: Row) -> None:
        """Take up the columns of a row that became a record."""
        for name in row.keys() - self.read - self._said.keys():
            if says(row[name]):
                self._said[name] = None
        for name, value in row.items():
            turns = value if isinstance(value, list) else ()
            for turn in turns if name in self.read else ():
                if not isinstance(turn, Mapping) or ("role" not in turn and "from" not in turn):
                    break
                if len(turn) > 2:
                    self._said |= {f"{name}.{field}": None for field in turn.keys() - TURN_FIELDS if says(turn[field])}

    def names(self) -> list[str]:
        """Return what was said and not read, in alphabetical order."""
        return sorted(str(name) for name in self._said.keys() - self.read)


class _Watched(dict[str, Any]):
    """A row that notes which of its columns are asked for."""

    def __init__(self, row: Row, read: set[str]) -> None:
        super().__init__(row)
        self._read = read

    def __getitem__(self, name: str) -> Any:
        self._read.add(name)
        return super().__getitem__(name)

    def __contains__(self, name: object) -> bool:
        self._read.add(str(name))
        return super().__contains__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self._read.add(name)
        return super().get(name, default)
