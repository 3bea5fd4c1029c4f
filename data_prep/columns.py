"""Which format a file of rows is in, and which of its columns is which, for a recipe that is written by `rounds init`.

In: a file that source `file` reads. Out: a `Layout`, with which its first rows were made into records, or one message that says what the
file has and what was looked for. Only what can be trained on is recognised: conversations and pairs.
"""

import itertools
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rounds.data_prep import controls, encodings, files, hub
from rounds.data_prep.errors import UserError
from rounds.data_prep.schema import SourceUse
from rounds.data_prep.sources import Row, RowError, _exam, _forms, file

# Our column -> names that files have for it, the likeliest first. Those of Alpaca, ShareGPT, TRL, UltraFeedback, OpenAI, and plain words.
_QUESTION = ("question", "prompt", "instruction", "query", "input", "user", "q")
NAMES: dict[str, dict[str, Sequence[str]]] = {
    "preference": {
        "chosen": ("chosen", "preferred", "better", "accepted", "preferred_output"),
        "rejected": ("rejected", "dispreferred", "worse", "non_preferred_output"),
        "prompt": ("prompt", "question", "conversations", "messages", "instruction", "query", "input"),
    },
    "messages": {"messages": ("messages", "conversation", "conversations", "turns", "contents")},
    "alpaca": {
        "instruction": ("instruction",),
        "input": ("input", "context"),
        "output": ("output", "response", "answer"),
        "history": ("history",),
    },
    "question_answer": {
        "question": _QUESTION,
        "answer": ("answer", "response", "output", "completion", "reply", "assistant", "a"),
    },
}
_OPTIONAL = {"system": ("system", "system_prompt", "system_message"), "id": ("id",), "group": ("group",)}
_ALPACA = ("instruction", "input", "history")
_NOT_NEEDED = ("prompt", "history")
"""A pair whose sides are whole conversations has its prompt in them."""
_ROWS_READ = 200
# Rows that are held out measure little when they are fewer; a larger part than a third is missed in training.
_HELD_OUT_ROWS, _FRACTIONS = 10, (0.05, 0.1, 0.2, 0.33)


@dataclass(frozen=True)
class Layout:
    """What source `file` is to be told of a file."""

    format: str
    columns: dict[str, str]
    """Our column -> the file's, where they differ."""
    unread: tuple[str, ...]
    """Columns of the file that nothing is made of."""
    heldout_fraction: float
    """The smallest fraction that holds some rows out; 0 where there are too few rows for that."""


def layout(path: Path) -> Layout:
    """Recognise the format of a file. Raises `UserError` where it fits none, or where its rows do not fit what it seems to be."""
    first = list(itertools.islice(_rows(path), _ROWS_READ))
    rows = [row for row in first if not isinstance(row, RowError)]
    if not rows:
        raise UserError(_unreadable(path, [row for row in first if isinstance(row, RowError)]))
    theirs = list(dict.fromkeys(name for row in rows for name in row if name not in (files.ROW, files.FILE)))
    format, found = _recognise(path, theirs)
    also = _ALPACA if format == "preference" and "prompt" not in found else ()
    # Turns under TRL's names for a question and its answer, and what Gemini's form has beside its turns.
    asked, said = found.get("question"), found.get("answer")
    if (asked, said) == ("prompt", "completion") and all(_forms.are_turns(rows[0].get(name)) for name in (asked, said)):
        format, found, also = "messages", {ours: name for ours, name in found.items() if ours in _OPTIONAL}, (asked, said)
    if format == "messages" and found.get("messages") == "contents":
        also = _forms.SYSTEM_OF_GEMINI
    differing = {ours: name for ours, name in found.items() if ours != name}
    unread = tuple(name for name in theirs if name not in found.values() and name not in also)
    _try(path, format, differing)
    return Layout(format, differing, unread, _heldout_fraction(path, format, differing))


def _unreadable(path: Path, errors: list[RowError]) -> str:
    reason, times = Counter(map(str, errors)).most_common(1)[0]
    bad = path / (errors[0].file or "") if path.is_dir() else path
    hint = f". For {bad.name}: {encodings.advice(encodings.sample(bad))}" if reason == "not_utf8" else ""
    return f"{path}: none of its first {len(errors)} rows can be read: {reason} ({times}){hint}"


def separated(names: Sequence[str]) -> str:
    """Say that the only column of a table holds others, where its name does."""
    signs = {";": "semicolons", "\t": "tabs", "|": "bars", ",": "commas"}
    sign = next((sign for sign in signs if len(names) == 1 and sign in names[0]), None)
    return f"Its columns are separated by {signs[sign]}: save it with commas as .csv, or with tabs as .tsv" if sign else ""


def _rows(path: Path) -> Any:
    return hub.local(path, split="train")


def recognised(theirs: Sequence[str]) -> tuple[str, dict[str, str]] | None:
    """Return the format whose columns are among these names, and our column -> theirs; None where there is none."""
    plain = {re.sub(r"\W+", "_", name.strip().lower()): name for name in reversed(theirs)}
    for format, names in NAMES.items():
        found = {
            ours: plain[name]
            for ours, known in {**names, **_OPTIONAL}.items()
            if (name := next((each for each in known if each in plain), None))
        }
        if format == "preference" and plain.get("instruction") == "instruction" and found.get("prompt") in map(plain.get, _ALPACA):
            del found["prompt"]  # source `file` asks with all of them
        if all(ours in found for ours in names if ours not in _NOT_NEEDED):
            return format, found
    return None


def _recognise(path: Path, theirs: Sequence[str]) -> tuple[str, dict[str, str]]:
    layout = recognised(theirs)
    if layout and layout[0] == "question_answer" and (choices := _choices(theirs)):
        raise UserError(
            f"{path}: its columns {', '.join(choices)} are choices, without which its answers mean nothing. rounds init writes recipes for "
            "conversations and pairs: run it without --data, and say in the recipe `format: multiple_choice`"
        )
    if layout:
        return layout
    if hint := separated(theirs):
        raise UserError(f"{path}: its columns are {theirs[0]}. {hint}")
    formats = "; ".join(f"{name} ({', '.join(columns)})" for name, columns in file.COLUMNS.items())
    raise UserError(
        f"{path}: its columns are {', '.join(theirs) or 'none'}, and no question and answer, messages, or chosen and rejected answer "
        f"are among them. Rename them, or run rounds init without --data and say in the recipe which is which, as `columns: {{question: "
        f"NAME, answer: NAME}}`. The formats, with our names for their columns: {formats}"
    )


def _choices(theirs: Sequence[str]) -> list[str]:
    """Return the columns that hold the choices of a question: one with all, or one each."""
    gathered = _exam.gathered(dict(zip(theirs, theirs, strict=True))).get("choices")
    each = list(gathered.values()) if isinstance(gathered, dict) else []
    return [name for name in theirs if name.strip().lower() in ("choices", "options")] or each


def _use(path: Path, format: str, columns: dict[str, str], **more: Any) -> SourceUse:
    return SourceUse.model_validate({"source": "file", "path": str(path), "format": format, "columns": columns, **more})


def _try(path: Path, format: str, columns: dict[str, str]) -> None:
    """Make records of the first rows. Raises `UserError` where more fail than a run would put up with."""
    use, wrong, count = _use(path, format, columns), Counter[str](), 0
    for count, row in enumerate(itertools.islice(file.SOURCE.rows(use), _ROWS_READ), 1):
        try:
            file.SOURCE.convert(row, count, use)
        except RowError as error:
            wrong[str(error)] += error.bad
    if sum(wrong.values()) > use.max_bad_share * count:
        reasons = ", ".join(f"{reason} ({rows})" for reason, rows in wrong.most_common(3))
        where = ", ".join(f"{ours}: {name}" for ours, name in columns.items())
        way = f"{controls.ADVICE}. " if "control_characters" in wrong else ""
        raise UserError(
            f"{path}: it looks like {format}{f' with {where}' if where else ''}, but of its first {count} rows "
            f"{sum(wrong.values())} do not fit that: {reasons}. {way}What a row must hold is in data_prep/README.md, Your own rows"
        )


def _heldout_fraction(path: Path, format: str, columns: dict[str, str]) -> float:
    best = (0, 0.0)
    for fraction in _FRACTIONS:
        sides = [_count(_use(path, format, columns, heldout_fraction=fraction, split=side)) for side in ("heldout", "train")]
        if sides[0] == _HELD_OUT_ROWS:
            return fraction
        if all(sides):
            best = max(best, (sides[0], -fraction))
    return abs(best[1])


def _count(use: SourceUse) -> int:
    """Count rows of a split, and stop where there are enough."""
    rows: Sequence[Row | RowError] = list(itertools.islice(file.SOURCE.rows(use), _HELD_OUT_ROWS))
    return len(rows)
