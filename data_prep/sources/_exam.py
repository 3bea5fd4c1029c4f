"""Choices and the right one of a question, in the forms that people keep them.

In: values of a row. Out: the choices' texts and the place of the right one. Choices are a list of texts, an object label -> text, a list of
objects with a label and a text, an object of the lists `label` and `text`, one of these as JSON in a cell, or a column each (`A`, `B`,
...; `opa`, ...; `option 1`, ...). The answer is an index, a label or letter (`"B"`, `"(b)"`, `"B. aorta"`), or the text. Where two of these
say different places, the row is a reason: none is guessed.
"""

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from rounds.data_prep.errors import UserError
from rounds.data_prep.sources._forms import from_text
from rounds.data_prep.sources._plain import said, whole
from rounds.data_prep.turns import Row, RowError, normalised, required, text

# Of 20 questions with four choices, one in 300 sets has none whose answer is the first; the recipe can say that its set is such a one.
_QUESTIONED, _BUFFERED = 20, 500
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_LETTER = re.compile(
    r"(?:(?:option|choice|answer)\b:?\s*)?\(?(?P<label>[A-Za-z]|\d{1,2})(?:[).:]+\s*(?P<rest>.*))?", re.DOTALL | re.IGNORECASE
)
_OWN_LETTER = re.compile(r"\s*(?:\((?P<bracketed>[A-Za-z])\)|(?P<plain>[A-Za-z])[).:])\s+(?P<rest>\S.*)", re.DOTALL)
_INDEX = re.compile(r"\s*(-?\d{1,3})(?:\.0)?\s*")
_COLUMN = re.compile(r"(?P<stem>|op|opt|option|choice|ending|answer|candidate)[ _.-]?(?P<mark>[a-z]|\d{1,2})", re.IGNORECASE)
_LABELS, _TEXTS = ("label", "key", "letter", "id", "aid"), ("text", "value", "content", "option", "atext")


def choices(row: Row) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the labels, empty where there are none, and the texts. Raises `RowError`, such as `choices_not_a_list`."""
    labels, values = _labelled(from_text(required(row, "choices")))
    texts = tuple(text(said(each), "choice") for each in values)
    if len(texts) < 2:
        raise RowError("fewer_than_two_choices")
    if len({normalised(each) for each in texts}) < len(texts):
        raise RowError("repeated_choices")
    return labels, texts


def gathered(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row whose choices stand in a column each with an object label -> text in their place."""
    found: dict[str, dict[str, str]] = {}
    for name in row if "choices" not in row else ():
        if (match := _COLUMN.fullmatch(name.strip())) and (match["stem"] or match["mark"].isalpha()):
            found.setdefault(match["stem"].lower(), {})[match["mark"].lower()] = name
    for marks in found.values():
        for run in (_LETTERS, "0123456789", [str(number) for number in range(1, 30)]):
            names = [marks[mark] for mark in itertools.takewhile(marks.__contains__, run)]
            if len(names) > 1:
                cells = [None if isinstance(row[name], str) and not row[name].strip() else row[name] for name in names]
                others = {name: value for name, value in row.items() if name not in names}
                return {**others, "choices": dict(zip(_LETTERS, cells, strict=False))}
    return dict(row)


def right(row: Row, labels: tuple[str, ...], texts: tuple[str, ...], base: int) -> int:
    """Return the place of the right choice, from 0; an index counts from `base`. Raises `RowError`, such as `answer_out_of_range`."""
    answer = required(row, "answer")
    answer = answer[0] if isinstance(answer, list | tuple) and len(answer) == 1 else answer
    index = whole(answer)
    if index is not None:
        if str(index) in labels:
            return labels.index(str(index))
        return _indexed(index - base, labels, texts)
    if not isinstance(answer, str):
        raise RowError("answer_not_index_or_text")
    if own := _own_letters(texts):
        labels, texts = tuple(own), tuple(own.values())
    places = {place for place, each in enumerate(texts) if normalised(each) == normalised(answer)}
    places |= _labels_place(answer, labels, texts)
    if answer.strip().lower() not in labels and (match := _INDEX.fullmatch(answer)):
        # "2" among the choices 1, 2, 3, 4 may be the text, and the index of 3.
        try:
            places |= {_indexed(int(match[1]) - base, labels, texts)}
        except RowError:
            if not places:
                raise
    if len(places) > 1:
        raise RowError("answer_is_a_label_and_another_text")
    if not places:
        raise RowError("answer_not_among_choices")
    return places.pop()


def _indexed(index: int, labels: tuple[str, ...], texts: tuple[str, ...]) -> int:
    """Return the place of the choice with an index; of a choice that a row does not have, the letter after it keeps its own."""
    has_letters = bool(labels) and all(len(label) == 1 and label in _LETTERS for label in labels)
    place = labels.index(_LETTERS[index]) if has_letters and 0 <= index < len(_LETTERS) and _LETTERS[index] in labels else index
    if not 0 <= place < len(texts) or (has_letters and labels[place] != _LETTERS[index]):
        raise RowError("answer_out_of_range")
    return place


def _own_letters(texts: tuple[str, ...]) -> dict[str, str]:
    """Return letter -> text of choices that begin with the letters of a list, in any order: `"A. aorta"`; `"E. coli"` begins with none."""
    matches = [match for each in texts if (match := _OWN_LETTER.fullmatch(each))]
    found = {(match["bracketed"] or match["plain"]).lower(): match["rest"] for match in matches}
    return found if sorted(found) == list(_LETTERS[: len(texts)]) else {}


def questioned(rows: Iterable[Row | RowError], where: str, names: Mapping[str, str]) -> Iterator[Row | RowError]:
    """Yield the rows, if their indices can count from 0; else raise `UserError` before the first.

    A set in which no answer is 0 and one is the number of choices counts from 1, and so, most likely, does one of which no answer is 0
    in 20 rows. `names` are the columns of the recipe.
    """
    kept: list[Row | RowError] = []
    found: list[tuple[int, int]] = []
    stream = iter(rows)
    for row in stream:
        kept.append(row)
        if not isinstance(row, RowError) and (seen := _index(row, names)) is not None:
            found.append(seen)
        if len(found) == _QUESTIONED or len(kept) == _BUFFERED:
            break
    last = sum(index == count for index, count in found)
    if found and all(index > 0 for index, _ in found) and (last or len(found) >= _QUESTIONED):
        raise UserError(
            f"{where}: answers are indices that count from 0, and of the first {len(found)} none is 0"
            f"{f', but {last} are the number of choices' if last else ''}. `answer_base: 1` says that they count from 1, "
            "`answer_base: 0` that they count from 0 all the same"
        )
    yield from itertools.chain(kept, stream)


def _index(row: Row, names: Mapping[str, str]) -> tuple[int, int] | None:
    """Return a row's answer, where it is an index, and the number of its choices."""
    answer = row.get(names.get("answer", "answer"))
    try:
        theirs = names.get("choices", "choices")
        labels, texts = choices({"choices": row[theirs]} if theirs in row else gathered(row))
    except RowError:
        return None
    match = _INDEX.fullmatch(answer) if isinstance(answer, str) else None
    index = int(match[1]) if match else whole(answer)
    is_other = index is None or str(index) in labels or (isinstance(answer, str) and answer.strip() in texts)
    return None if index is None or is_other else (index, len(texts))


def _labelled(value: Any) -> tuple[tuple[str, ...], list[Any]]:
    if isinstance(value, list) and value and all(isinstance(each, tuple) and len(each) == 2 for each in value):
        value = dict(value)  # a map of Arrow
    if isinstance(value, Mapping):
        lists = [next((value[name] for name in names if isinstance(value.get(name), list)), None) for names in (_LABELS, _TEXTS)]
        if lists[0] is not None and lists[1] is not None and len(lists[0]) == len(lists[1]):
            return tuple(_label(label) for label in lists[0]), lists[1]
        # A column of objects has every key in each row; a choice that is null is one that the row does not have.
        held = {_label(label): each for label, each in value.items() if each is not None}
        return tuple(held), list(held.values())
    if not isinstance(value, list):
        raise RowError("choices_not_a_list")
    if value and all(isinstance(each, Mapping) for each in value):
        names = [next((name for name in known if name in value[0]), "") for known in (_LABELS, _TEXTS)]
        labels = tuple(_label(each.get(names[0], "")) for each in value) if names[0] else ()
        return labels, [each.get(names[1]) for each in value]
    return (), value


def _label(value: Any) -> str:
    """Return a label as it is compared: `(A)` and `a.` are a."""
    return str(value).strip().strip("().:").lower()


def _labels_place(answer: str, labels: tuple[str, ...], texts: tuple[str, ...]) -> set[int]:
    """Return the place whose label an answer says, alone or before the choice's text; labels are letters where none are given."""
    if answer.strip().lower() in labels:
        return {labels.index(answer.strip().lower())}
    match = _LETTER.fullmatch(answer.strip())
    known = labels if any(len(label) < 3 for label in labels) else tuple(_LETTERS[: len(texts)])
    if match is None or match["label"].lower() not in known:
        return set()
    place = known.index(match["label"].lower())
    rest = (match["rest"] or "").strip()
    return {place} if not rest or normalised(rest) == normalised(texts[place]) else set()
