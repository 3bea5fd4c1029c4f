"""Rows whose turns stand in several columns, or in parts: TRL's prompt and completion, Gemini's contents."""

import pytest

from rounds.data_prep import columns
from rounds.data_prep.records import Message
from tests.data_prep.sources.test_file import one, write

__all__ = ["one"]
ASKED, SAID = {"role": "user", "content": "Hot?"}, {"role": "assistant", "content": "Measure it."}
TALK = (Message("user", "Hot?"), Message("assistant", "Measure it."))
GEMINI = [{"role": "user", "parts": [{"text": "Hot?"}]}, {"role": "model", "parts": [{"text": "Measure it."}]}]


@pytest.mark.parametrize("row", [
    {"prompt": [ASKED], "completion": [SAID]},
    {"prompt": "Hot?", "completion": [SAID]},
    {"prompt": '[{"role": "user", "content": "Hot?"}]', "completion": '[{"role": "assistant", "content": "Measure it."}]'},
    {"contents": GEMINI},
    {"contents": [GEMINI[0] | {"parts": ["Hot?"]}, GEMINI[1]]},
])  # fmt: skip
def test_turns_in_several_columns_or_in_parts_are_one_conversation(one, row) -> None:
    (found,) = one("messages", row)
    assert found.messages == TALK


def test_of_prompt_and_completion_the_completion_alone_is_learnt(one) -> None:
    (found,) = one("messages", {"prompt": [ASKED, SAID, ASKED], "completion": [SAID]})
    assert [turn.learnt for turn in found.messages if turn.role == "assistant"] == [False, True]


def test_what_gemini_says_beside_its_turns_is_not_lost(one) -> None:
    system = {"parts": [{"text": "Be brief."}]}
    for name in ("systemInstruction", "system_instruction"):
        (found,) = one("messages", {"contents": GEMINI, name: system})
        assert found.messages == (Message("system", "Be brief."), *TALK)
    thought = {"role": "model", "parts": [{"text": "Hm.", "thought": True}, {"text": "Measure it."}]}
    assert one("messages", {"contents": [GEMINI[0], thought]}) == "has_reasoning"
    (found,) = one("messages", {"contents": [GEMINI[0], thought]}, reasoning="learn")
    assert found.messages[1] == Message("assistant", "Measure it.", reasoning="Hm.")
    picture = {"role": "user", "parts": [{"inlineData": {"mimeType": "image/png"}}, {"text": "Hot?"}]}
    assert one("messages", {"contents": [picture, GEMINI[1]]}) == "content_part_inlineData"


@pytest.mark.parametrize(("row", "mapped", "unread"), [
    ({"prompt": [ASKED], "completion": [SAID]}, {}, ()),
    ({"contents": GEMINI, "systemInstruction": {"parts": [{"text": "Be brief."}]}}, {"messages": "contents"}, ()),
])  # fmt: skip
def test_rounds_init_finds_their_format(tmp_path, row, mapped, unread) -> None:
    found = columns.layout(write(tmp_path / "rows.jsonl", *([row] * 3)))
    assert (found.format, found.columns, found.unread) == ("messages", mapped, unread)


def test_prompt_and_completion_of_plain_texts_are_a_question_and_an_answer(tmp_path) -> None:
    found = columns.layout(write(tmp_path / "rows.jsonl", *([{"prompt": "Hot?", "completion": "Measure it."}] * 3)))
    assert (found.format, found.columns) == ("question_answer", {"question": "prompt", "answer": "completion"})
