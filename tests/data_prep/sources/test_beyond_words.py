"""What a row says beyond its words: what is not to be learnt, what was thought, pictures and scores; in every format and source."""

from typing import Any

import pytest

from rounds.data_prep import sources
from rounds.data_prep.records import Conversation, Message, Pair
from rounds.data_prep.schema import SourceUse
from rounds.data_prep.sources import RowError
from tests.data_prep.sources.test_file import ROWS, one, use, write

__all__ = ["one"]
TALK = [{"from": "human", "value": "Hot?"}, {"from": "gpt", "value": "Measure it.", "weight": 0},
        {"from": "human", "value": "And now?"}, {"from": "gpt", "value": "Rest."}]  # fmt: skip
THOUGHT = {"role": "assistant", "reasoning_content": "50 kg, so 0.1 mg per kg.", "content": "Take 5 mg."}
ASKED = {"role": "user", "content": "How much?"}


@pytest.mark.parametrize("format", ROWS)
def test_a_row_of_weight_0_gives_no_record_in_any_format(one, format: str) -> None:
    assert one(format, ROWS[format] | {"weight": 0}) == "answer_of_weight_0"
    assert one(format, ROWS[format] | {"train": "false"}) == "answer_of_weight_0"
    assert one(format, ROWS[format] | {"loss_weight": 0.5}) == "weight_is_a_fraction"
    assert not isinstance(one(format, ROWS[format] | {"weight": 70}), str)


def test_a_graded_answer_of_weight_0_stands_in_no_pair(one) -> None:
    answers = [*ROWS["graded"]["answers"], {"text": "Not this.", "score": 9, "weight": 0}]
    found = one("graded", ROWS["graded"] | {"answers": answers})
    assert found == "answer_of_weight_0" or not any("Not this." in (pair.chosen, pair.rejected) for pair in found)


@pytest.mark.parametrize(("source", "split"), [("slim_orca", "train"), ("opengpt", "train")])
def test_a_sharegpt_turn_of_weight_0_is_read_and_not_learnt(source: str, split: str) -> None:
    found = sources.load(source).convert({"conversations": TALK}, 0, SourceUse(source=source, split=split))
    assert isinstance(found, Conversation)
    assert [turn.learnt for turn in found.messages if turn.role == "assistant"] == [False, True]
    with pytest.raises(RowError, match=r"^answer_of_weight_0$"):
        sources.load(source).convert({"conversations": TALK[:2]}, 0, SourceUse(source=source, split=split))


def test_all_but_the_last_of_weight_0_keeps_the_last(one) -> None:
    turns = [ASKED, {"role": "assistant", "content": "Say more.", "weight": 0}] * 2 + [ASKED, {"role": "assistant", "content": "Less."}]
    (found,) = one("messages", {"messages": turns})
    assert [turn.learnt for turn in found.messages if turn.role == "assistant"] == [False, False, True]


def test_reasoning_is_refused_left_out_or_kept_as_the_recipe_says(one) -> None:
    row = {"messages": [ASKED, THOUGHT]}
    assert one("messages", row) == "has_reasoning"
    (found,) = one("messages", row, reasoning="leave_out")
    assert found.messages[1] == Message("assistant", "Take 5 mg.")
    (found,) = one("messages", row, reasoning="learn")
    assert found.messages[1] == Message("assistant", "Take 5 mg.", reasoning="50 kg, so 0.1 mg per kg.")


def test_reasoning_of_a_pair_is_refused_left_out_or_kept_as_the_recipe_says(one) -> None:
    plain = {"role": "assistant", "content": "Nothing."}
    row = {"prompt": [ASKED], "chosen": [THOUGHT], "rejected": [plain]}
    assert one("preference", row) == "has_reasoning"
    (found,) = one("preference", row, reasoning="learn")
    assert (found.chosen_reasoning, found.rejected_reasoning) == ("50 kg, so 0.1 mg per kg.", "")
    # Sides that differ in nothing but what was thought are a pair where that is learnt, and none where it is not.
    alike = row | {"rejected": [{"role": "assistant", "thinking": "No idea.", "content": "Take 5 mg."}]}
    (found,) = one("preference", alike, reasoning="learn")
    assert (found.chosen, found.rejected, found.rejected_reasoning) == ("Take 5 mg.", "Take 5 mg.", "No idea.")
    assert one("preference", alike, reasoning="leave_out") == "identical_answers"
    (found,) = one("preference", row, reasoning="leave_out")
    assert (found.chosen, found.rejected, found.chosen_reasoning) == ("Take 5 mg.", "Nothing.", "")
    row = {"prompt": [ASKED, THOUGHT, ASKED], "chosen": "Yes.", "rejected": "No."}
    assert one("preference", row) == "has_reasoning"
    (found,) = one("preference", row, reasoning="learn")
    assert isinstance(found, Pair)
    assert found.prompt[1].reasoning == "50 kg, so 0.1 mg per kg."


@pytest.mark.parametrize(
    ("format", "row", "reason"),
    [
        ("messages", {"messages": [{"role": "user", "content": "<image>Hot?"}, {"role": "assistant", "content": "No."}]}, "image_in_text"),
        ("question_answer", {"question": "<image>\nHot?", "answer": "No."}, "image_in_text"),
        ("preference", {"prompt": "Hot?", "chosen": "<video>", "rejected": "No."}, "video_in_text"),
        ("preference", {"prompt": [ASKED], "chosen": [THOUGHT | {"tool_calls": [{"id": 1}]}], "rejected": "No."}, "calls_a_tool"),
        ("preference", {"prompt": [ASKED], "chosen": [{"role": "assistant", "content": "A.", "weight": 0}], "rejected": "B."},
         "answer_of_weight_0"),
        ("preference", ROWS["preference"] | {"score_chosen": 2, "score_rejected": 8}, "scores_contradict_sides"),
        ("preference", ROWS["preference"] | {"chosen-rating": 1.0, "rejected-rating": 4.0}, "scores_contradict_sides"),
    ],
)  # fmt: skip
def test_what_cannot_be_learnt_is_named(one, format: str, row: dict[str, Any], reason: str) -> None:
    assert one(format, row) == reason


def test_a_question_in_parts_is_on_one_side_of_the_split(tmp_path, convert) -> None:
    rows = [
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": f"Sign {n}?"}]},
                {"role": "assistant", "content": f"Kind {n}."},
            ]
        }
        for n in range(40)
    ]
    path = write(tmp_path / "rows.jsonl", *rows)
    train, heldout = (convert(use(path, "messages", split=split, heldout_fraction=0.5))[0] for split in ("train", "heldout"))
    questions = [{record.messages[0].content for record in records} for records in (train, heldout)]
    assert len(questions[0]) + len(questions[1]) == 40
    assert not questions[0] & questions[1]
