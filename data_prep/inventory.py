"""Which files rows were read from, and which data files were not, and why: what `done.json` of a source names.

In: notes of the readers, wherever they stand. Out: an `Inventory` for whoever asked for one with `noting`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field


@dataclass
class Inventory:
    """What was read while rows were asked for."""

    read: dict[str, int] = field(default_factory=dict)
    """File -> its rows, those that could not be read among them."""
    not_read: dict[str, str] = field(default_factory=dict)
    """Data file -> why it was not read."""


_CURRENT: ContextVar[Inventory | None] = ContextVar("inventory", default=None)


@contextmanager
def noting() -> Iterator[Inventory]:
    """Collect the notes of what is read inside the block."""
    inventory = Inventory()
    token = _CURRENT.set(inventory)
    try:
        yield inventory
    finally:
        _CURRENT.reset(token)


def note_read(file: str, rows: int) -> None:
    """Say that a file was read to its end."""
    if inventory := _CURRENT.get():
        inventory.read[file] = rows
        inventory.not_read.pop(file, None)


def note_not_read(file: str, why: str) -> None:
    """Say that a data file was left alone."""
    if (inventory := _CURRENT.get()) and file not in inventory.read:
        inventory.not_read[file] = why
