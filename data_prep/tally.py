"""What becomes of a source's rows: the records, and of the rest how many, why, and what a person can do about it.

The stage `source` and `rounds data preview` both count here, so that a preview gives the reasons that a run gives.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rounds.data_prep import columns, controls, encodings, sources, suggestion
from rounds.data_prep.controls import CLEANED
from rounds.data_prep.files import FILE, ID, ROW, TURNS
from rounds.data_prep.records import Record
from rounds.data_prep.schema import SourceUse
from rounds.data_prep.unread import Unread

_SHOWN, _SHOWN_COLUMNS = 80, 20  # A file under the wrong suffix can have a column whose name is a page long.

_ADVICE = {
    "has_reasoning": " (`reasoning: learn` learns what was thought, as the chat template writes it; `leave_out` the answer alone)",
    "message_not_an_object": " (bare texts say not who speaks; a set of prompts alone, as MT-Bench's, has no answer to learn)",
    "question_not_text": " (turns in a list are `format: messages`, also under `prompt` and `completion`)",
    "scores_contradict_sides": " (the rejected answer has the higher score: are `chosen` and `rejected` the right way round?)",
    "weight_is_a_fraction": " (an answer is learnt or not: make its weight 0 or 1)",
    "weight_of_parts": " (an answer is learnt as a whole or not: take such marks out)",
    "prompt_repeated_in_answers": " (both sides begin with the prompt in other letters or spaces than it has: cut it from them)",
}
"""What to do about reasons that more than a single row is likely to have."""


@dataclass
class Tally:
    """How many rows were read, how many did not fit, and why."""

    rows: int = 0
    bad: int = 0
    cleaned: int = 0
    """Rows of which control characters were taken out."""
    dropped: Counter[str] = field(default_factory=Counter)
    bad_reasons: Counter[str] = field(default_factory=Counter)
    first_bad: str = ""
    first_file: str = ""
    """The file of the first bad row, as its reader calls it."""
    columns: tuple[str, ...] = ()
    """Columns of the first bad row that could be read."""
    unread: Unread = field(default_factory=Unread)
    """What the records' rows say and nobody reads."""

    def too_many_bad(self, use: SourceUse) -> bool:
        """Tell whether more rows do not fit than the source puts up with."""
        return bool(self.rows) and self.bad / self.rows > use.max_bad_share

    def complaint(self, origin: sources.Source, use: SourceUse) -> str:
        """Say in one line how many rows do not fit, why, what was expected and found, and which mapping may help."""
        reason, times = self.bad_reasons.most_common(1)[0]
        expected = ", ".join(origin.columns_of(use)) or "none"
        told = (
            f"{self.bad} of {self.rows} rows do not fit, more than max_bad_share {use.max_bad_share:g}; "
            f"most often {reason} ({times}){_ADVICE.get(reason, '')}. Columns expected: {expected}; {self.first_bad}"
        )
        is_missing = reason.startswith("missing_column_")
        hint = columns.separated(self.columns) or suggestion.mapping(origin, use, self.columns) if is_missing else ""
        if reason == "not_utf8":
            hint = _encoding(use, self.first_file)
        if reason == "control_characters":
            hint = controls.ADVICE
        return f"{told}. {hint}" if hint else told


def records(
    origin: sources.Source, rows: Iterable[Any], use: SourceUse, tally: Tally, drop: Callable[[dict[str, Any]], object]
) -> Iterator[Record]:
    """Yield the records of rows and count the rest; ids are remembered, so that each comes once.

    `drop` is given a line of `dropped.jsonl` for each row that gives no record: its place, id and reason, never its text.
    """
    seen: set[str] = set()
    for index, row in enumerate(rows):
        tally.rows += 1
        if use.control_characters == "clean" and isinstance(row, Mapping):
            row = controls.cleaned(row)
            tally.cleaned += CLEANED in row
        try:
            record = origin.convert(row, index, use, tally.unread)
            if record.id in seen:
                raise sources.RowError("duplicate_id")
        except sources.RowError as error:
            drop(_line(error, row, index, tally))
        else:
            seen.add(record.id)
            tally.unread.look(row)
            yield record


def _line(error: sources.RowError, row: Any, index: int, tally: Tally) -> dict[str, Any]:
    reason = str(error)
    fields: Mapping[str, Any] = row if isinstance(row, Mapping) else {}
    tally.dropped[reason] += 1
    line = {"row": error.row or fields.get(ROW, index + 1), "reason": reason}
    if file := error.file or fields.get(FILE):
        line["file"] = file
    if error.bad:
        tally.bad += 1
        tally.bad_reasons[reason] += 1
        found = f"found in row {line['row']}, the first ({reason}): {_shown(fields)}"
        unread = f"row {line['row']}, the first, cannot be read"
        tally.first_file = tally.first_file or line.get("file", "")
        tally.first_bad = tally.first_bad or (found if fields else unread)
        tally.columns = tally.columns or _names(fields)
    if isinstance(name := fields.get(ID, fields.get("id")), str | int):
        line["id"] = str(name)[:_SHOWN]
    return line


def _encoding(use: SourceUse, file: str) -> str:
    """Say which encoding fits the bytes that are not UTF-8."""
    path = Path(use.path or "")
    path = path / file if path.is_dir() else path
    return f"For {file}: {encodings.advice(encodings.sample(path))}" if path.is_file() and not use.encoding else "save it as UTF-8"


def _names(row: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(str(name) for name in row if name not in (ROW, FILE, ID, TURNS, CLEANED))


def _shown(row: Mapping[str, Any]) -> str:
    """Name a row's columns in one line that any terminal can show, whatever somebody called them."""
    names = [ascii(name[:_SHOWN])[1:-1] for name in _names(row)]
    return ", ".join(names[:_SHOWN_COLUMNS]) + (", ..." if len(names) > _SHOWN_COLUMNS else "")
