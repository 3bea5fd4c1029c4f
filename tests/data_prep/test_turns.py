"""Every rule on turns has its reason, and no value whatever raises anything but `RowError`."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rounds.data_prep import turns
from rounds.data_prep.records import Message
from rounds.data_prep.turns import RowError

SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": "What is a stent?"}
REPLY = {"role": "assistant", "content": "A tube that holds a vessel open."}

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=8) | st.binary(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["role", "content", "x"]), inner, max_size=3)
        | st.builds(
            lambda role, content: {"role": role, "content": content},
            st.sampled_from(["system", "user", "assistant", "tool"]) | inner,
            st.text(st.characters(), max_size=8) | inner,
        )
    ),
    max_leaves=12,
)


@pytest.mark.parametrize(
    ("value", "last", "reason"),
    [
        ("hello", "assistant", "messages_not_a_list"),
        (None, "assistant", "messages_not_a_list"),
        ([], "assistant", "no_messages"),
        ([SYSTEM], "assistant", "no_messages"),
        ([None], "assistant", "message_not_an_object"),
        ([{"role": "tool", "content": "x"}], "assistant", "unknown_role"),
        ([{"content": "x"}], "assistant", "unknown_role"),
        ([{"role": ["user"], "content": "x"}], "assistant", "unknown_role"),
        ([USER, {**REPLY, "tool_calls": [{"id": "1"}]}], "assistant", "calls_a_tool"),
        ([USER, {**REPLY, "weight": 0}, USER, {**REPLY, "weight": 1}], "assistant", "answer_of_weight_0"),
        ([SYSTEM, SYSTEM, USER, REPLY], "assistant", "two_system_messages"),
        ([USER, SYSTEM, REPLY], "assistant", "turns_out_of_order"),
        ([USER, USER, REPLY], "assistant", "turns_out_of_order"),
        ([REPLY], "assistant", "turns_out_of_order"),
        ([USER], "assistant", "last_turn_not_assistant"),
        ([USER, REPLY], "user", "last_turn_not_user"),
        ([{"role": "user", "content": None}, REPLY], "assistant", "empty_content"),
        ([{"role": "user", "content": " \n"}, REPLY], "assistant", "empty_content"),
        ([{"role": "user", "content": [{"type": "text", "text": "x"}]}, REPLY], "assistant", "content_not_text"),
        ([{"role": "user", "content": "a\x00b"}, REPLY], "assistant", "control_characters"),
        ([{"role": "user", "content": "a\ud800b"}, REPLY], "assistant", "not_utf8"),
    ],
)
def test_what_is_wrong_with_messages_is_named(value: Any, last: Any, reason: str) -> None:
    with pytest.raises(RowError, match=f"^{reason}$"):
        turns.messages(value, last)


def test_good_messages_stay_as_they_are_but_for_line_ends() -> None:
    found = turns.messages([SYSTEM, {"role": "user", "content": "a\r\nb\tc"}, REPLY], "assistant")
    assert found == (Message("system", "Be brief."), Message("user", "a\nb\tc"), Message("assistant", REPLY["content"]))


def test_an_empty_system_turn_is_left_out() -> None:
    assert len(turns.messages([{"role": "system", "content": ""}, USER, REPLY], "assistant")) == 2


@given(ANYTHING, st.sampled_from(["user", "assistant"]))
def test_messages_answer_or_raise_a_reason(value: Any, last: Any) -> None:
    try:
        found = turns.messages(value, last)
    except RowError as error:
        assert str(error).replace("_", "a").isalnum()
    else:
        assert found[-1].role == last
        assert all(turn.content.strip() and turn.content.encode() for turn in found)


@given(ANYTHING, ANYTHING, ANYTHING)
def test_preference_answers_or_raises_a_reason(prompt: Any, chosen: Any, rejected: Any) -> None:
    try:
        found, better, worse = turns.preference(prompt, chosen, rejected)
    except RowError:
        return
    assert found[-1].role == "user"
    assert better != worse


@pytest.mark.parametrize(
    ("prompt", "chosen", "rejected"),
    [
        (USER["content"], REPLY["content"], "No idea."),
        ([USER], [REPLY], "No idea."),
        (None, [USER, REPLY], [USER, {"role": "assistant", "content": "No idea."}]),
        (USER["content"], [USER, REPLY], "No idea."),
    ],
)
def test_each_way_to_write_a_preference_gives_the_same_pair(prompt: Any, chosen: Any, rejected: Any) -> None:
    found = turns.preference(prompt, chosen, rejected)
    assert found == (turns.ask(USER["content"]), REPLY["content"], "No idea.")


def test_a_preference_of_two_prompts_or_none_is_refused() -> None:
    other = [{"role": "user", "content": "What is a graft?"}, REPLY]
    with pytest.raises(RowError, match="prompts_differ"):
        turns.preference(None, [USER, REPLY], other)
    with pytest.raises(RowError, match="prompts_differ"):
        turns.preference("What is a graft?", [USER, REPLY], [USER, {"role": "assistant", "content": "No."}])
    with pytest.raises(RowError, match="missing_column_prompt"):
        turns.preference(None, "yes", "no")


def test_equal_answers_are_no_bad_row() -> None:
    with pytest.raises(RowError, match="identical_answers") as caught:
        turns.preference("Why?", "Because.", "Because. ")
    assert not caught.value.bad
