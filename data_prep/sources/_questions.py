"""A closed question from the raw parts of a row, checked in one place for all multiple-choice sets.

In: the question's text, its choices and the index of the right one, as a row gives them. Out: a `Question` asked in the
words that evaluation scores, or `RowError`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from rounds.data_prep import render
from rounds.data_prep.records import Question
from rounds.data_prep.turns import RowError, ask, normalised, text


def closed(source: str, name: str, asked: str, choices: Sequence[Any], answer: Any, *, group: str = "") -> Question:
    """Return the question; raises `RowError`: `fewer_than_two_choices`, `empty_choice`, `repeated_choices`,
    `answer_not_index`, `answer_out_of_range`.
    """
    texts = tuple(text(choice, "choice").strip() for choice in choices)
    if len(texts) < 2:
        raise RowError("fewer_than_two_choices")
    if len({normalised(choice) for choice in texts}) < len(texts):
        raise RowError("repeated_choices")
    if not isinstance(answer, int) or isinstance(answer, bool):
        raise RowError("answer_not_index")
    if not 0 <= answer < len(texts):
        raise RowError("answer_out_of_range")
    return Question(name, source, ask(render.with_choices(asked, texts)), texts, answer, group)


def lettered(options: Any, letter: Any) -> tuple[list[Any], int]:
    """Return choices and answer of options given as letter -> text and the letter of the right one."""
    if not isinstance(options, Mapping):
        raise RowError("options_not_an_object")
    # A set read as Arrow has every letter that any row has, so an option that a row lacks is a null there.
    known = {str(key).strip().upper(): value for key, value in options.items() if value is not None}
    letters = sorted(known)
    if not isinstance(letter, str) or letter.strip().upper() not in known:
        raise RowError("answer_not_among_letters")
    return [known[each] for each in letters], letters.index(letter.strip().upper())
