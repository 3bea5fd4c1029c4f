"""The contract that every filter keeps: one answer for each record, in any batches, and settings that are checked."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from rounds.data_prep import filters
from rounds.data_prep.errors import UserError
from rounds.data_prep.records import Conversation, Message, Pair, Question, Record
from rounds.data_prep.schema import FilterUse

TEXT = st.text(st.sampled_from("ab C\n.é"), min_size=1, max_size=30)
PROMPT = st.builds(lambda text: (Message("user", text),), TEXT)
RECORDS: st.SearchStrategy[list[Record]] = st.lists(
    st.builds(lambda prompt, answer: Conversation("c", "s", (*prompt, Message("assistant", answer))), PROMPT, TEXT)
    | st.builds(lambda prompt, one, two: Pair("p", "s", prompt, one, two), PROMPT, TEXT, TEXT)
    | st.builds(lambda prompt, one, two: Question("q", "s", prompt, (one, two), 0), PROMPT, TEXT, TEXT),
    max_size=12,
)
USES = [
    FilterUse(name="exact_dedup"),
    FilterUse.model_validate({"name": "exact_dedup", "on": "prompt"}),
    FilterUse.model_validate({"name": "length", "max_answer_characters": 9, "min_prompt_characters": 3}),
    FilterUse(name="quality"),
    FilterUse.model_validate({"name": "decontaminate", "ngram": 5}),
]


@pytest.mark.parametrize("use", USES, ids=lambda use: use.name)
@settings(deadline=None)  # the first text that is not ASCII waits for a table of all letters
@given(records=RECORDS, heldout=RECORDS, cut=st.integers(0, 12))
def test_one_answer_each_and_the_same_in_any_batches(use: FilterUse, records: list[Record], heldout: list[Record], cut: int) -> None:
    whole = filters.build(use, heldout)(records)
    again = filters.build(use, heldout)
    assert whole == [*again(records[:cut]), *again(records[cut:])]
    assert all(verdict.replace("_", "a").isalnum() for verdict in whole if isinstance(verdict, str))


def test_a_wrong_name_or_setting_is_refused() -> None:
    with pytest.raises(UserError, match="did you mean 'exact_dedup'"):
        filters.settings(FilterUse(name="exact_dedupe"))
    with pytest.raises(ValidationError, match="oon"):
        filters.settings(FilterUse.model_validate({"name": "exact_dedup", "oon": "prompt"}))
