"""Rows of the Alpaca form that the Medical Meadow sets share: `instruction`, `input`, `output`.

In: a row. Out: its clean texts and a name. The sets have no ids, so a row is named by a hash of its content; a row that
comes twice is therefore dropped as `duplicate_id`.
"""

from rounds.data_prep.records import stable_hash
from rounds.data_prep.turns import Row, required, text

COLUMNS = ("instruction", "input", "output")


def parts(row: Row) -> tuple[str, str, str]:
    """Return name, input and output of a row; raises `RowError` where one of the texts is missing or empty."""
    given, wanted = text(required(row, "input"), "input"), text(required(row, "output"), "output")
    return f"{stable_hash(row.get('instruction'), given, wanted):016x}", given, wanted
