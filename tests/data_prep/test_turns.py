"""Every rule on turns has its reason, and no value whatever raises anything but `RowError`."""

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
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
        ([USER, {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}], "assistant", "calls_a_tool"),
        ([USER, {**REPLY, "function_call": {"name": "dose"}}], "assistant", "calls_a_tool"),
        ([{**USER, "images": ["a.png"]}, REPLY], "assistant", "has_images"),
        ([{**USER, "videos": ["a.mp4"]}, REPLY], "assistant", "has_video"),
        ([USER, {**REPLY, "audio": {"id": "1"}}], "assistant", "has_audio"),
        ([{"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "image_url", "image_url": {"url": "x"}}]}, REPLY],
         "assistant", "content_part_image_url"),
        ([{"role": "user", "content": [{"type": "image"}]}, REPLY], "assistant", "content_part_image"),
        ([{"role": "user", "content": [{"type": "text", "text": None}]}, REPLY], "assistant", "content_part_text"),
        ([{"role": "user", "content": [{}]}, REPLY], "assistant", "content_part_unknown"),
        ([{"role": "user", "content": [7]}, REPLY], "assistant", "content_not_text"),
        ([{"role": "user", "content": ["Why?"]}, REPLY], "assistant", "content_not_text"),
        ([{"role": "user", "content": []}, REPLY], "assistant", "empty_content"),
        ([USER, {**REPLY, "reasoning_content": 7}], "assistant", "reasoning_not_text"),
        ([USER, {**REPLY, "weight": 0.5}], "assistant", "weight_is_a_fraction"),
        ([USER, {**REPLY, "loss_weight": "0.25"}, USER, REPLY], "assistant", "weight_is_a_fraction"),
        ([USER, {**REPLY, "weight": 2}], "assistant", "weight_not_0_or_1"),
        ([USER, {**REPLY, "weight": -1}], "assistant", "weight_not_0_or_1"),
        ([USER, {**REPLY, "weight": float("nan")}], "assistant", "weight_not_0_or_1"),
        ([USER, {**REPLY, "train": "maybe"}], "assistant", "weight_not_0_or_1"),
        ([USER, {**REPLY, "train_detail": [{"begin_offset": 0, "end_offset": 3, "train": False}]}], "assistant", "weight_of_parts"),
        ([USER, {**REPLY, "weight": 0}, USER, {**REPLY, "weight": 0}], "assistant", "answer_of_weight_0"),
        ([SYSTEM, SYSTEM, USER, REPLY], "assistant", "two_system_messages"),
        ([USER, SYSTEM, REPLY], "assistant", "turns_out_of_order"),
        ([USER, USER, REPLY], "assistant", "turns_out_of_order"),
        ([REPLY], "assistant", "turns_out_of_order"),
        ([USER], "assistant", "last_turn_not_assistant"),
        ([USER, REPLY], "user", "last_turn_not_user"),
        ([{"role": "user", "content": None}, REPLY], "assistant", "empty_content"),
        ([{"role": "user", "content": " \n"}, REPLY], "assistant", "empty_content"),
        ([{"role": "user", "content": "a\x00b"}, REPLY], "assistant", "control_characters"),
        ([{"role": "user", "content": "a\ud800b"}, REPLY], "assistant", "not_utf8"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_messages_is_named(value: Any, last: Any, reason: str) -> None:
    with pytest.raises(RowError, match=f"^{reason}$"):
        turns.messages(value, last)


UNLEARNT = [{"weight": 0}, {"weight": 0.0}, {"weight": "0"}, {"weight": False}, {"loss_weight": 0}, {"train": False}, {"training": False},
            {"training": "no"}, {"learn": "false"}, {"loss": False}, {"loss_scale": "0.0"}]  # fmt: skip


@pytest.mark.parametrize("mark", UNLEARNT, ids=str)
def test_an_answer_of_weight_0_is_read_and_not_learnt(mark: dict) -> None:
    talk = turns.messages([USER, {**REPLY, **mark}, USER, REPLY], "assistant")
    assert [turn.learnt for turn in talk] == [True, False, True, True]
    talk = turns.messages([USER, REPLY, USER, {**REPLY, **mark}], "assistant")
    assert [turn.learnt for turn in talk] == [True, True, True, False]
    with pytest.raises(RowError, match=r"^answer_of_weight_0$") as caught:
        turns.messages([USER, {**REPLY, **mark}], "assistant")
    assert not caught.value.bad
    for chosen, rejected in ([{**REPLY, **mark}], "No."), ("Yes.", [{**REPLY, **mark}]), ([USER, {**REPLY, **mark}], [USER, REPLY]):
        with pytest.raises(RowError, match=r"^answer_of_weight_0$"):
            turns.preference([USER], chosen, rejected)
    # A prompt is only read, whatever its answers weigh.
    asked = [USER, {**REPLY, **mark}, USER]
    assert turns.preference(asked, "Yes.", "No.") == turns.preference([USER, REPLY, USER], "Yes.", "No.")
    found = turns.preference(None, [*asked, REPLY], [*asked, {**REPLY, "content": "No."}])
    assert found["prompt"] == turns.messages([USER, REPLY, USER], "user")


@pytest.mark.parametrize("mark", [{"weight": 1}, {"weight": None}, {"weight": 1.0}, {"weight": "1"}, {"train": True}, {"training": "true"}])
def test_an_answer_of_weight_1_is_learnt(mark: dict) -> None:
    assert turns.messages([{**USER, "weight": 0}, {**REPLY, **mark}], "assistant") == turns.messages([USER, REPLY], "assistant")


@pytest.mark.parametrize("name", ["weight", "loss_weight", "train", "training"])
def test_a_row_of_weight_0_is_dropped_and_another_number_is_no_weight(name: str) -> None:
    for value in (0, "0", False, 0.0):
        with pytest.raises(RowError, match=r"^answer_of_weight_0$") as caught:
            turns.refuse_unlearnt({name: value})
        assert not caught.value.bad
    with pytest.raises(RowError, match=r"^weight_is_a_fraction$"):
        turns.refuse_unlearnt({name: "0.5"})
    for value in (1, None, 70, "70 kg", True, [0], ""):
        turns.refuse_unlearnt({name: value})


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking"])
def test_what_was_thought_before_an_answer_is_kept_apart(name: str) -> None:
    thoughtful = {"role": "assistant", "content": "Take 5 mg.", name: "50 kg, so 0.1 mg per kg.\n"}
    talk = turns.messages([USER, thoughtful], "assistant")
    assert talk[1] == Message("assistant", "Take 5 mg.", reasoning="50 kg, so 0.1 mg per kg.")
    bare = turns.without_reasoning({"messages": [USER, thoughtful], name: "of the row"})
    assert bare == {"messages": [USER, {"role": "assistant", "content": "Take 5 mg."}], name: "of the row"}
    for sides in ([thoughtful], "No."), ([USER, thoughtful], [USER, {**REPLY, "content": "No."}]):
        found = turns.preference([USER], *sides)
        assert (found["chosen"], found["rejected"]) == ("Take 5 mg.", "No.")
        assert (found["chosen_reasoning"], found["rejected_reasoning"]) == ("50 kg, so 0.1 mg per kg.", "")


def test_parts_of_text_are_one_text_and_parts_of_thinking_are_reasoning() -> None:
    parts = [{"type": "text", "text": "What is this?"}, {"type": "input_text", "text": "A stent?"}, {"text": "Say."}]
    answer = [{"type": "thinking", "thinking": "Hm."}, {"type": "output_text", "text": "A stent."}]
    talk = turns.messages([{"role": "user", "content": parts}, {"role": "assistant", "content": answer}], "assistant")
    assert talk == (
        Message("user", "What is this?\nA stent?\nSay."),
        Message("assistant", "A stent.", reasoning="Hm."),
    )
    row = turns.without_reasoning({"messages": [{"role": "assistant", "content": answer}]})
    assert row["messages"][0]["content"] == answer[1:]
    # Arrow gives each part the fields of all: a null says nothing.
    wide = [{"type": "text", "text": "Why?", "image_url": None}]
    assert turns.messages([{"role": "user", "content": wide, "images": None, "tool_calls": []}, REPLY], "assistant")[0].content == "Why?"


@pytest.mark.parametrize(
    ("said", "kind"),
    [("<image>\nWhat is this?", "image"), ("See <|image_1|>.", "image"), ("<video>Why?", "video"), ("Say: <|audio|>", "audio")],
)
def test_where_a_picture_stood_that_no_text_model_sees_is_a_reason(said: str, kind: str) -> None:
    with pytest.raises(RowError, match=f"^{kind}_in_text$"):
        turns.refuse_media(said)


def test_what_only_looks_like_a_mark_of_a_picture_is_text() -> None:
    for said in ("<images> are shown as <image id=3>", "In HTML: <video><source src='a'></video>", "a < image > b"):
        turns.refuse_media(said)


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


@settings(deadline=None)  # the first text that is not ASCII waits for a table of all letters
@given(ANYTHING, ANYTHING, ANYTHING)
def test_preference_answers_or_raises_a_reason(prompt: Any, chosen: Any, rejected: Any) -> None:
    try:
        found, better, worse, *_ = turns.preference(prompt, chosen, rejected).values()
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
    assert (found["prompt"], found["chosen"], found["rejected"]) == (turns.ask(USER["content"]), REPLY["content"], "No idea.")


def test_a_preference_of_two_prompts_or_none_is_refused() -> None:
    other = [{"role": "user", "content": "What is a graft?"}, REPLY]
    with pytest.raises(RowError, match="prompts_differ"):
        turns.preference(None, [USER, REPLY], other)
    with pytest.raises(RowError, match="prompts_differ"):
        turns.preference("What is a graft?", [USER, REPLY], [USER, {"role": "assistant", "content": "No."}])
    with pytest.raises(RowError, match="missing_column_prompt"):
        turns.preference(None, "yes", "no")


@pytest.mark.parametrize(
    ("prompt", "chosen", "rejected"),
    [
        ("Is it safe?", "Is it safe? Yes.", "Is it safe? No."),
        ("Is it safe?", "Human: Is it safe?\n\nAssistant: Yes.", "Human: Is it safe?\n\nAssistant: No."),
        ("Is it safe?", "\n\nHuman: Is it safe?\n\nAssistant: Yes.", "\n\nHuman: Is it safe?\n\nAssistant: No."),
        ("Is it safe?", "Question: Is it safe?\nAnswer: Yes.", "Q: Is it safe?\nA: No."),
        ("Human: Is it safe?\n\nAssistant:", "Human: Is it safe?\n\nAssistant: Yes.", "Human: Is it safe?\n\nAssistant: No."),
        (None, [{"role": "user", "content": "Is it safe?"}, {"role": "assistant", "content": "Is it safe?\nYes."}],
         [{"role": "user", "content": "Is it safe?"}, {"role": "assistant", "content": "Is it safe?\nNo."}]),
    ],
)  # fmt: skip
def test_a_prompt_that_both_sides_repeat_is_cut_from_them(prompt: Any, chosen: Any, rejected: Any) -> None:
    found = turns.preference(prompt, chosen, rejected)
    assert (found["chosen"], found["rejected"]) == ("Yes.", "No.")


@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [("is it safe? Yes.", "Is it  safe? No."), ("Is it safe?", "Is it safe? No."), ("Is it safe? Yes.", "IS IT SAFE? No.")],
)
def test_a_prompt_that_is_repeated_in_other_letters_is_a_reason(chosen: str, rejected: str) -> None:
    with pytest.raises(RowError, match=r"^prompt_repeated_in_answers$") as caught:
        turns.preference("Is it safe?", chosen, rejected)
    assert caught.value.bad


def test_answers_that_begin_as_the_prompt_does_of_themselves_are_kept_or_a_reason() -> None:
    assert turns.preference("Is it safe?", "Is it safe? Yes.", "No.")["chosen"] == "Is it safe? Yes."
    assert turns.preference("Name the bone", "Name the bones you know.", "Name the bones.")["chosen"] == "Name the bones you know."
    with pytest.raises(RowError, match=r"^prompt_repeated_in_answers$") as caught:
        turns.preference("Hello!", "Hello! How are you?", "Hello! What?")
    assert not caught.value.bad


@pytest.mark.parametrize(
    ("better", "worse", "reason"),
    [
        (2, 8, "scores_contradict_sides"),
        ("2", "10", "scores_contradict_sides"),
        (Decimal("1.5"), 8, "scores_contradict_sides"),
        (float("nan"), 8, "score_not_a_number"),
        (8, float("inf"), "score_not_a_number"),
        ("high", "low", "score_not_a_number"),
        (True, False, "score_not_a_number"),
        ([8], [2], "score_not_a_number"),
        (10**400, 2, "score_not_a_number"),
        (5, 5.0, "tied_scores"),
    ],
)
def test_scores_that_do_not_say_that_chosen_is_better_are_a_reason(better: Any, worse: Any, reason: str) -> None:
    for names in (("score_chosen", "score_rejected"), ("chosen_score", "rejected_score"), ("chosen-rating", "rejected-rating")):
        with pytest.raises(RowError, match=f"^{reason}$") as caught:
            turns.check_scores(dict(zip(names, (better, worse), strict=True)))
        assert caught.value.bad is (reason != "tied_scores")


def test_scores_that_fit_or_are_not_there_are_no_reason() -> None:
    for row in ({}, {"score_chosen": 8, "score_rejected": 2}, {"score_chosen": "10", "score_rejected": "9"}, {"score_chosen": 1},
                {"score_chosen": "", "score_rejected": ""}, {"score_chosen": None, "score_rejected": 2}):  # fmt: skip
        turns.check_scores(row)


def test_equal_answers_are_no_bad_row() -> None:
    with pytest.raises(RowError, match="identical_answers") as caught:
        turns.preference("Why?", "Because.", "Because. ")
    assert not caught.value.bad
