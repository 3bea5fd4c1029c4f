"""Limits in characters count both ends in, for prompts and for every answer."""

import pytest
from pydantic import ValidationError

from rounds.data_prep import filters
from rounds.data_prep.records import Message, Pair
from rounds.data_prep.schema import FilterUse

PAIR = Pair("p", "s", (Message("system", "ab"), Message("user", "cde")), "four", "sixsix")


def use(**limits: int) -> FilterUse:
    return FilterUse.model_validate({"name": "length", **limits})


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        ({"min_prompt_characters": 5, "max_prompt_characters": 5}, None),
        ({"min_prompt_characters": 6}, "prompt_too_short"),
        ({"max_prompt_characters": 4}, "prompt_too_long"),
        ({"min_answer_characters": 4, "max_answer_characters": 6}, None),
        ({"min_answer_characters": 5}, "answer_too_short"),
        ({"max_answer_characters": 5}, "answer_too_long"),
    ],
)
def test_limits(limits: dict[str, int], reason: str | None) -> None:
    assert filters.build(use(**limits), [])([PAIR]) == [reason]


def test_settings_that_cannot_be_meant_are_refused() -> None:
    with pytest.raises(ValidationError, match="at least one of min_prompt_characters"):
        filters.settings(use())
    with pytest.raises(ValidationError, match=r"min_answer_characters \(9\) is above"):
        filters.settings(use(min_answer_characters=9, max_answer_characters=8))
    with pytest.raises(ValidationError):
        filters.settings(use(max_answer_characters=0))
