"""Choices and the right one of a question, in the forms that people keep them.

In: values of a row. Out: the choices' texts and the place of the right one. Choices are a list of texts, an object label -> text, a list of
objects with a label and a text, an object of the lists `label` and `text`, or one of these as JSON in a cell. The answer is an index, a
label or letter (`"B"`, `"(b)"`, `"B. aorta"`), or the text. Where two of these say different places, the row is a reason: none is guessed.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import Any

from rounds.data_prep.errors import UserError
from rounds.data_prep.sources._forms import from_text
from rounds.data_prep.sources._plain import said, whole
from rounds.data_prep.turns import Row, RowError, normalised, required, text

# Of 20 questions with four choices, one in 300 sets has none whose answer is the first; the recipe can say that its set is such a one.
_QUESTIONED, _BUFFERED = 20, 500
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_LETTER = re.compile(r"\(?(?P<label>[A-Za-z]|\d{1,2})(?:[).:]+\s*(?P<rest>.*))?", re.DOTALL)
_LABELS, _TEXTS = ("label", "key", "letter", "id"), ("text", "value", "content", "option")


def choices(row: Row) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the labels, empty where there are none, and the texts. Raises `RowError`, such as `choices_not_a_list`."""
    labels, values = _labelled(from_text(required(row, "choices")))
    texts = tuple(text(said(each), "choice") for each in values)
    if len(texts) < 2:
        raise RowError("fewer_than_two_choices")
    if len({normalised(each) for each in texts}) < len(texts):
        raise RowError("repeated_choices")
    return labels, texts


def right(row: Row, labels: tuple[str, ...], texts: tuple[str, ...], base: int) -> int:
    """Return the place of the right choice, from 0; an index counts from `base`. Raises `RowError`, such as `answer_out_of_range`."""
    answer = required(row, "answer")
    index = whole(answer)
    if index is not None:
        if str(index) in labels:
            return labels.index(str(index))
        if not 0 <= index - base < len(texts):
            raise RowError("answer_out_of_range")
        return index - base
    if not isinstance(answer, str):
        raise RowError("answer_not_index_or_text")
    places = {place for place, each in enumerate(texts) if normalised(each) == normalised(answer)}
    places |= _labels_place(answer, labels, texts)
    if not places and answer.strip().isdecimal() and len(answer.strip()) < 4:
        places = {int(answer) - base}
        if not 0 <= int(answer) - base < len(texts):
            raise RowError("answer_out_of_range")
    if len(places) > 1:
        raise RowError("answer_is_a_label_and_another_text")
    if not places:
        raise RowError("answer_not_among_choices")
    return places.pop()


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
    yield from chain(kept, stream)


def _index(row: Row, names: Mapping[str, str]) -> tuple[int, int] | None:
    """Return a row's answer, where it is an index, and the number of its choices."""
    answer = row.get(names.get("answer", "answer"))
    try:
        labels, texts = choices({"choices": row.get(names.get("choices", "choices"))})
    except RowError:
        return None
    index = int(answer) if isinstance(answer, str) and answer.strip().isdecimal() and len(answer) < 4 else whole(answer)
    is_other = index is None or str(index) in labels or (isinstance(answer, str) and answer.strip() in texts)
    return None if index is None or is_other else (index, len(texts))


def _labelled(value: Any) -> tuple[tuple[str, ...], list[Any]]:
    if isinstance(value, Mapping):
        lists = [next((value[name] for name in names if isinstance(value.get(name), list)), None) for names in (_LABELS, _TEXTS)]
        if lists[0] is not None and lists[1] is not None and len(lists[0]) == len(lists[1]):
            return tuple(str(label).strip().lower() for label in lists[0]), lists[1]
        # A column of objects has every key in each row; a choice that is null is one that the row does not have.
        held = {str(label).strip().lower(): each for label, each in value.items() if each is not None}
        return tuple(held), list(held.values())
    if not isinstance(value, list):
        raise RowError("choices_not_a_list")
    if value and all(isinstance(each, Mapping) for each in value):
        names = [next((name for name in known if name in value[0]), "") for known in (_LABELS, _TEXTS)]
        labels = tuple(str(each.get(names[0], "")).strip().lower() for each in value) if names[0] else ()
        return labels, [each.get(names[1]) for each in value]
    return (), value


def _labels_place(answer: str, labels: tuple[str, ...], texts: tuple[str, ...]) -> set[int]:
    """Return the place whose label an answer says, alone or before the choice's text; labels are letters where none are given."""
    if answer.strip().lower() in labels:
        return {labels.index(answer.strip().lower())}
    match = _LETTER.fullmatch(answer.strip())
    known = labels or tuple(_LETTERS[: len(texts)])
    if match is None or match["label"].lower() not in known:
        return set()
    place = known.index(match["label"].lower())
    rest = (match["rest"] or "").strip()
    return {place} if not rest or normalised(rest) == normalised(texts[place]) else set()
