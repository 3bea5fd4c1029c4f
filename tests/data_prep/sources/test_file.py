"""Your own rows in each format: what they become, what is wrong with them, and on which side of the split they fall.

Covers: data_prep/controls.
"""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rounds.data_prep import sources
from rounds.data_prep.errors import UserError
from rounds.data_prep.records import Conversation, Message, Pair, Prompt, Question
from rounds.data_prep.schema import SourceUse
from rounds.data_prep.sources import RowError, file
from rounds.data_prep.tally import Tally, records

ROWS: dict[str, dict[str, Any]] = {
    "messages": {"messages": [{"role": "user", "content": "Hot?"}, {"role": "assistant", "content": "Measure it."}]},
    "sharegpt": {"conversations": [{"from": "human", "value": "Hot?"}, {"from": "gpt", "value": "Measure it."}]},
    "alpaca": {"instruction": "Hot?", "output": "Measure it."},
    "question_answer": {"question": "Hot?", "answer": "Measure it."},
    "summary": {"text": "Measure it twice a day, they say.", "summary": "Measure it."},
    "dialogue": {"dialogue": "Doctor: Hot?\nPatient: Since Monday.", "note": "Fever since Monday."},
    "classification": {"question": "Is this urgent?", "text": "Hot since Monday.", "label": "routine"},
    "multiple_choice": {"question": "Which is hotter?", "choices": ["ice", "steam"], "answer": 1},
    "preference": {"prompt": "Hot?", "chosen": "Measure it.", "rejected": "Who knows."},
    "graded": {
        "question": "Hot?",
        "answers": [
            {"text": "Who knows.", "score": 1},
            {"text": "Measure it.", "score": 4},
            {"text": "Touch it.", "score": 2},
        ],
    },
    "prompt": {"prompt": "How many mg are two of 5 mg?"},
}


def write(path: Path, *rows: Any) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def use(path: Path, format: Any, **fields: Any) -> SourceUse:
    return SourceUse(source="file", path=str(path), format=format, **fields)


@pytest.fixture
def one(tmp_path: Path, convert):
    """Convert one row in a format; the records, or the reason."""

    def run(format: str, row: Any, **fields: Any) -> Any:
        records, reasons = convert(use(write(tmp_path / "one.jsonl", row), format, **fields))
        return records or next(iter(reasons))

    return run


def test_each_format_becomes_its_record(one) -> None:
    asked = (Message("user", "Hot?"),)
    for format in ("messages", "sharegpt", "alpaca", "question_answer"):
        (found,) = one(format, ROWS[format] | {"id": 7, "group": "heat"})
        assert found == Conversation("7", "file", (*asked, Message("assistant", "Measure it.")), "heat")
    (found,) = one("multiple_choice", ROWS["multiple_choice"] | {"id": "7"})
    prompt = (Message("user", "Which is hotter?\n\nChoose one:\n- ice\n- steam"),)
    assert found == Question("7", "file", prompt, ("ice", "steam"), 1)
    (found,) = one("preference", ROWS["preference"] | {"id": "7"})
    assert found == Pair("7", "file", asked, "Measure it.", "Who knows.")


def test_a_prompt_is_asked_as_it_stands_with_what_is_known_of_its_answer(one) -> None:
    asked = (Message("user", "How many mg are two of 5 mg?"),)
    assert one("prompt", ROWS["prompt"] | {"id": "7"}) == [Prompt("7", "file", asked)]
    assert one("prompt", ROWS["prompt"] | {"id": "7", "answer": 10, "group": "sums"}) == [Prompt("7", "file", asked, "10", group="sums")]
    row = ROWS["prompt"] | {"id": "7", "choices": {"A": "5", "B": "10"}, "answer": "B", "system": "Be brief."}
    system = Message("system", "Be brief.")
    assert one("prompt", row) == [Prompt("7", "file", (system, *asked), "10", ("5", "10"))]
    talk = [{"role": "user", "content": "Hot?"}, {"role": "assistant", "content": "Since when?"}, {"role": "user", "content": "Monday."}]
    (found,) = one("prompt", {"prompt": talk})
    assert [turn.content for turn in found.prompt] == ["Hot?", "Since when?", "Monday."]
    for wrong, reason in (({"prompt": talk[:2]}, "last_turn_not_user"), ({"prompt": " "}, "empty_prompt"), ({}, "missing_column_prompt")):
        assert one("prompt", wrong) == reason
    assert one("prompt", row | {"answer": "C"}) == "answer_not_among_choices"


@pytest.mark.parametrize("format", ["summary", "dialogue", "classification"])
def test_a_request_is_put_into_several_phrasings_that_hold_the_whole_row(tmp_path: Path, convert, format: str) -> None:
    rows = [ROWS[format] | {"id": str(number), "system": "Be brief."} for number in range(40)]
    records, reasons = convert(use(write(tmp_path / "rows.jsonl", *rows), format))
    *asked, answer = ROWS[format].values()
    assert not reasons and len({record.messages[1].content for record in records}) == 3
    for record in records:
        assert [turn.role for turn in record.messages] == ["system", "user", "assistant"]
        assert all(part in record.messages[1].content for part in asked)
        assert record.messages[-1].content == answer


def test_a_dialogue_may_ask_for_one_section(one) -> None:
    (found,) = one("dialogue", ROWS["dialogue"] | {"section": "Complaint"})
    assert "Complaint" in found.messages[0].content and "Hot?" in found.messages[0].content


@pytest.mark.parametrize("format", list(ROWS))
def test_an_empty_cell_of_an_optional_column_is_as_none(one, format: str) -> None:
    empty = dict.fromkeys(("group", "system", "section"), " ")
    assert one(format, ROWS[format] | empty | {"id": "7"}) == one(format, ROWS[format] | {"id": "7"})


@pytest.mark.parametrize("ours", ["id", "group", "system"])
def test_an_optional_column_that_no_row_has_is_a_mistake_in_the_recipe(one, ours: str) -> None:
    for theirs in ("case", "cas"):
        row = ROWS["question_answer"] | {"case": "7"}
        if theirs == "case":
            assert one("question_answer", row, columns={ours: theirs})
        else:
            with pytest.raises(UserError, match=f"{ours!r} is 'cas' in the file, and no row has that column"):
                one("question_answer", row, columns={ours: theirs})


@pytest.mark.parametrize("format", ["messages", "preference"])
def test_a_system_column_leads_turns_that_bring_no_system_turn_of_their_own(one, format: str) -> None:
    system, user, assistant = ({"role": role, "content": role} for role in ("system", "user", "assistant"))
    for turns, expected in (([user, assistant], "Be brief."), ([system, user, assistant], "system")):
        worse = [*turns[:-1], {**assistant, "content": "worse"}]
        row = {"messages": turns} if format == "messages" else {"chosen": turns, "rejected": worse}
        (found,) = one(format, row | {"system": "Be brief."})
        led = found.messages if format == "messages" else found.prompt
        assert [turn.content for turn in led[:2]] == [expected, "user"]


def test_a_system_text_comes_first(one) -> None:
    (found,) = one("question_answer", ROWS["question_answer"] | {"system": "Be brief."})
    assert [turn.role for turn in found.messages] == ["system", "user", "assistant"]


@pytest.mark.parametrize(
    ("choices", "answer", "base"),
    [
        (["ice", "steam"], "Steam", 0),
        (["ice", "steam"], "B", None),
        (["ice", "steam"], "(b)", None),
        (["ice", "steam"], "B. steam", None),
        (["ice", "steam"], "1", 0),
        (["ice", "steam"], 1.0, 0),
        (["ice", "steam"], 2, 1),
        (["ice", "steam"], "2", 1),
        ([3, 4], "4", None),
        ({"A": "ice", "B": "steam", "C": None}, "b", None),
        ({"1": "ice", "2": "steam"}, 2, None),
        ({"label": ["A", "B"], "text": ["ice", "steam"]}, "B", None),
        ([{"label": "A", "text": "ice"}, {"label": "B", "text": "steam"}], "B", None),
        ('["ice", "steam"]', "steam", None),
        ("['ice', 'steam']", "steam", None),
        (["A. ice", "B. steam"], "steam", None),
        (["B. steam", "A. ice"], "A", None),  # their own letters, not those of their order
        (["E. coli", "B. cereus"], "B", None),  # no letters of a list
        (["ice", "steam"], "Option B", None),
        (["ice", "steam"], "1.0", 0),
        (["ice", "steam"], ["steam"], None),
        ([{"aid": 1, "atext": "ice"}, {"aid": 2, "atext": "steam"}], 2, None),  # HEAD-QA's own keys
        ({"opa": "ice", "opb": "steam"}, "b", None),
        ({"(A)": "ice", "(B)": "steam"}, "B", None),
        ({"A": "ice", "B": None, "C": "steam"}, 2, 0),
    ],
)
def test_the_right_choice_may_be_told_in_many_ways(one, choices: Any, answer: Any, base: int | None) -> None:
    row = {"question": "Which is hotter?", "choices": choices, "answer": answer}
    (found,) = one("multiple_choice", row, **({} if base is None else {"answer_base": base}))
    assert found.answer == 1 and len(found.choices) == 2


@pytest.mark.parametrize("names", [("A", "B"), ("opa", "opb"), ("option_1", "option_2"), ("Option A", "Option B"), ("ending0", "ending1")])
@pytest.mark.parametrize(("answer", "base"), [("B", None), ("steam", None), (1, 0), (2, 1)])
def test_choices_may_stand_in_a_column_each(one, names: tuple[str, str], answer: Any, base: int | None) -> None:
    row = {"question": "Which is hotter?", names[0]: "ice", names[1]: "steam", "answer": answer}
    (found,) = one("multiple_choice", row, **({} if base is None else {"answer_base": base}))
    assert (found.choices, found.answer) == (("ice", "steam"), 1)


@pytest.mark.parametrize(("answers", "said"), [([1, 2, 3, 4], "1 are the number of choices"), ([1, 2] * 10, "first 20 none is 0")])
def test_answers_that_seem_to_count_from_1_are_questioned(tmp_path: Path, convert, answers: list[int], said: str) -> None:
    rows = [{"question": f"Which, {n}?", "choices": list("wxyz"), "answer": answer} for n, answer in enumerate(answers)]
    path = write(tmp_path / "rows.jsonl", *rows)
    with pytest.raises(UserError, match=f"{said}.*`answer_base: 1`"):
        next(iter(file.rows(use(path, "multiple_choice"))))
    found, reasons = convert(use(path, "multiple_choice", answer_base=1))
    assert [each.answer + 1 for each in found] == answers and not reasons
    assert convert(use(path, "multiple_choice", answer_base=0))[1].total() == answers.count(4)
    write(path, *rows, rows[0] | {"answer": 0})
    if len(answers) < 20:
        assert len(convert(use(path, "multiple_choice"))[0]) == len(answers)


def test_choices_may_be_a_map_of_arrow(tmp_path: Path, convert) -> None:
    choices = pa.array([[("A", "ice"), ("B", "steam")]], pa.map_(pa.string(), pa.string()))
    pq.write_table(pa.table({"question": ["Which is hotter?"], "choices": choices, "answer": ["B"]}), tmp_path / "rows.parquet")
    (found,), reasons = convert(use(tmp_path / "rows.parquet", "multiple_choice"))
    assert (found.choices, found.answer, not reasons) == (("ice", "steam"), 1, True)


def test_turns_come_in_many_forms(one) -> None:
    turns = ROWS["messages"]["messages"]
    columns = {name: [turn[name] for turn in turns] for name in ("role", "content")}
    hh = "\n\nHuman: Hot?\n\nAssistant: Measure it."
    for value in (json.dumps(turns), str(turns), columns, columns | {"tool_calls": None}, ROWS["sharegpt"]["conversations"], hh):
        assert one("messages", {"messages": value, "id": "7"}) == one("messages", {"messages": turns, "id": "7"})
    (found,) = one("sharegpt", {"conversations": [{"from": "system", "value": "Be brief."}, *ROWS["sharegpt"]["conversations"]]})
    assert [turn.role for turn in found.messages] == ["system", "user", "assistant"]


def test_alpaca_asks_with_its_input_after_its_history(one) -> None:
    row = {"instruction": "Explain.", "input": "ECG", "output": 4, "history": [["Hi?", "Hello."]], "system": "Be brief."}
    (found,) = one("alpaca", row)
    assert [turn.content for turn in found.messages] == ["Be brief.", "Hi?", "Hello.", "Explain.\n\nECG", "4"]
    for change, asked in (
        ({"input": 7}, "Explain.\n\n7"),
        ({"instruction": ""}, "ECG"),
        ({"instruction": None}, "ECG"),
        ({"input": " "}, "Explain."),
    ):
        assert one("alpaca", row | change)[0].messages[-2].content == asked


ASKED, BETTER, WORSE = ({"role": role, "content": said} for role, said in (("user", "Hot?"), ("assistant", "No."), ("assistant", "Yes.")))
PAIRS: dict[str, dict[str, Any]] = {
    "openai": {"input": {"messages": [ASKED]}, "preferred_output": [BETTER], "non_preferred_output": [WORSE]},
    "llama_factory": {
        "conversations": [{"from": "human", "value": "Hot?"}],
        "chosen": {"from": "gpt", "value": "No."},
        "rejected": {"from": "gpt", "value": "Yes."},
    },
    "alpaca": {"instruction": "Hot?", "input": "", "chosen": "No.", "rejected": "Yes."},
    "alpaca_list": {"instruction": "Hot?", "input": "", "output": ["No.", "Yes."]},
    "hh_rlhf": {"chosen": "\n\nHuman: Hot?\n\nAssistant: No.", "rejected": "\n\nHuman: Hot?\n\nAssistant: Yes."},
    "hh_prompt": {"prompt": "\n\nHuman: Hot?\n\nAssistant:", "chosen": " No.", "rejected": " Yes."},
    "cells": {"prompt": json.dumps([ASKED]), "chosen": json.dumps([BETTER]), "rejected": json.dumps([WORSE])},
}


@pytest.mark.parametrize("form", PAIRS)
def test_pairs_come_in_the_forms_of_other_programmes(one, form: str) -> None:
    (found,) = one("preference", PAIRS[form])
    assert [(turn.role, turn.content) for turn in found.prompt] == [("user", "Hot?")]
    assert (found.chosen.strip(), found.rejected.strip()) == ("No.", "Yes.")


def test_the_history_of_a_pair_is_part_of_its_prompt(one) -> None:
    row = {"instruction": "Explain.", "input": "ECG", "history": [["Hi?", "Hello."]], "chosen": "Waves.", "rejected": "No."}
    (found,) = one("preference", row)
    assert [turn.content for turn in found.prompt] == ["Hi?", "Hello.", "Explain.\n\nECG"]
    assert one("preference", row | {"history": "Hi?"}) == "history_not_pairs"
    assert one("preference", row | {"input": {}}) == "input_not_text"


def test_numbers_are_the_text_that_they_are(one) -> None:
    turns = [{"role": "user", "content": "How many?"}, {"role": "assistant", "content": 7}]
    assert one("messages", {"messages": turns})[0].messages[-1].content == "7"
    (pair,) = one("preference", {"prompt": "How many?", "chosen": 7, "rejected": 8.5})
    assert (pair.chosen, pair.rejected) == ("7", "8.5")
    assert one("summary", ROWS["summary"] | {"summary": 7})[0].messages[-1].content == "7"
    assert one("graded", {"question": "How many?", "answers": {"text": [7, 8], "score": [2, 1]}})[0].chosen == "7"
    assert (
        one("question_answer", {"question": "How many?", "answer": 7, "id": 3.0})[0]
        == one("question_answer", {"question": "How many?", "answer": "7", "id": "3"})[0]
    )
    assert one("classification", ROWS["classification"] | {"label": 1.0})[0].messages[-1].content == "1"
    unnamed = one("question_answer", ROWS["question_answer"])
    assert one("question_answer", ROWS["question_answer"] | dict.fromkeys(("id", "group"), float("nan"))) == unnamed


def test_one_answer_that_cannot_be_used_costs_itself_alone(tmp_path: Path, convert) -> None:
    bad = [{"text": "Blow on it.", "score": None}, {"text": " ", "score": 3}, {"text": "Hm."}]
    row = {"question": "Hot?", "answers": [*ROWS["graded"]["answers"], *bad]}
    found, reasons = convert(use(write(tmp_path / "rows.jsonl", row), "graded"))
    assert len(found) == 3 and reasons == {"empty_score": 1, "empty_text": 1, "missing_column_score": 1}


def test_control_characters_are_cleaned_where_that_is_chosen_and_counted(tmp_path: Path, convert) -> None:
    turns = [{"role": "user", "content": "Page 1\x0cPage\x02 2?"}, {"role": "assistant", "content": "Yes.\x00\u202e"}]
    path = write(tmp_path / "rows.jsonl", {"messages": turns}, ROWS["messages"])
    assert convert(use(path, "messages"))[1] == {"control_characters": 1}
    chosen = use(path, "messages", control_characters="clean")
    counts = Tally()
    dirty, clean = records(file.SOURCE, file.rows(chosen), chosen, counts, lambda line: None)
    assert [turn.content for turn in dirty.messages] == ["Page 1\nPage 2?", "Yes."]  # type: ignore[union-attr]
    assert [clean] == convert(use(path, "messages"))[0] and (counts.rows, counts.cleaned) == (2, 1)
    lone = use(write(tmp_path / "lone.jsonl", {"question": "\ud800", "answer": "Yes."}), "question_answer", control_characters="clean")
    assert convert(lone)[1] == {"not_utf8": 1}


def test_graded_answers_become_ordered_pairs_widest_first(one) -> None:
    found = one("graded", ROWS["graded"] | {"id": "q"})
    assert [(pair.chosen, pair.rejected) for pair in found] == [
        ("Measure it.", "Who knows."),
        ("Measure it.", "Touch it."),
        ("Touch it.", "Who knows."),
    ]
    assert [pair.id for pair in found] == ["q:1-0", "q:1-2", "q:2-0"]
    assert {pair.group for pair in found} == {"q"}


def test_graded_pairs_are_capped_and_equal_answers_are_none(one) -> None:
    answers = [{"text": f"Answer {number}.", "score": number} for number in range(9)]
    assert len(one("graded", {"question": "Hot?", "answers": answers})) == file.MAX_PAIRS
    same = [{"text": "Yes.", "score": 1}, {"text": "Yes.", "score": 2}]
    assert one("graded", {"question": "Hot?", "answers": same}) == "no_differing_scores"


def test_columns_are_mapped_also_inside_answers(one) -> None:
    row = {"q": "Hot?", "replies": [{"body": "Yes.", "grade": 2}, {"body": "No.", "grade": 1}], "question": "unused"}
    columns = {"question": "q", "answers": "replies", "text": "body", "score": "grade"}
    (found,) = one("graded", row, columns=columns)
    assert (found.prompt[0].content, found.chosen) == ("Hot?", "Yes.")
    assert one("graded", row, columns=columns | {"question": "none"}) == "missing_column_question"


@pytest.mark.parametrize(
    ("format", "change", "reason"),
    [
        ("question_answer", {"answer": ...}, "missing_column_answer"),
        ("question_answer", {"answer": None}, "empty_answer"),
        ("question_answer", {"answer": "\t"}, "empty_answer"),
        ("question_answer", {"answer": ["5"]}, "answer_not_text"),
        ("question_answer", {"answer": float("nan")}, "answer_not_text"),
        ("alpaca", {"instruction": ...}, "missing_column_instruction"),
        ("alpaca", {"history": [["Hot?"]]}, "history_not_pairs"),
        ("alpaca", {"history": "Hot?"}, "history_not_pairs"),
        ("alpaca", {"input": ["ECG"]}, "input_not_text"),
        ("alpaca", {"instruction": " ", "input": ""}, "empty_instruction"),
        ("alpaca", {"instruction": None}, "empty_instruction"),
        ("alpaca", {"instruction": 3}, "instruction_not_text"),
        ("alpaca", {"output": None}, "empty_output"),
        ("sharegpt", {"conversations": [{"from": "function_call", "value": "f()"}]}, "calls_a_tool"),
        ("sharegpt", {"conversations": [{"from": "observation", "value": "7"}]}, "calls_a_tool"),
        ("question_answer", {"question": "a\x07"}, "control_characters"),
        ("question_answer", {"question": "\ud83d"}, "not_utf8"),
        ("question_answer", {"system": 3}, "system_not_text"),
        ("question_answer", {"id": ""}, "empty_id"),
        ("question_answer", {"id": [1]}, "id_not_text"),
        ("question_answer", {"group": {}}, "group_not_text"),
        ("messages", {"messages": None}, "empty_messages"),
        ("messages", {"messages": [None]}, "message_not_an_object"),
        ("multiple_choice", {"choices": None}, "empty_choices"),
        ("multiple_choice", {"choices": "ice"}, "choices_not_a_list"),
        ("multiple_choice", {"choices": ["ice"]}, "fewer_than_two_choices"),
        ("multiple_choice", {"choices": ["ice", None]}, "empty_choice"),
        ("multiple_choice", {"choices": ["ice", "Ice "]}, "repeated_choices"),
        ("multiple_choice", {"answer": 2, "answer_base": 0}, "answer_out_of_range"),
        ("multiple_choice", {"answer": -1}, "answer_out_of_range"),
        ("multiple_choice", {"answer": True}, "answer_not_index_or_text"),
        ("multiple_choice", {"answer": "C"}, "answer_not_among_choices"),
        ("multiple_choice", {"choices": ["b", "a"], "answer": "A"}, "answer_is_a_label_and_another_text"),
        ("multiple_choice", {"choices": ["1", "2", "3"], "answer": "1"}, "answer_is_a_label_and_another_text"),
        ("multiple_choice", {"choices": {"A": "ice", "B": None, "C": "steam"}, "answer": 1}, "answer_out_of_range"),
        ("multiple_choice", {"answer": ["ice", "steam"]}, "answer_not_index_or_text"),
        ("preference", {"rejected": ...}, "missing_column_rejected"),
        ("preference", {"prompt": ...}, "missing_column_prompt"),
        ("preference", {"rejected": "Measure it."}, "identical_answers"),
        ("graded", {"answers": {}}, "answers_not_a_list"),
        ("graded", {"answers": []}, "no_differing_scores"),
        ("graded", {"answers": [None]}, "answer_not_an_object"),
        ("graded", {"answers": [{"text": "x"}]}, "missing_column_score"),
        ("graded", {"answers": [{"text": "x", "score": "4"}]}, "score_not_a_number"),
        ("graded", {"answers": [{"text": "x", "score": float("nan")}]}, "score_not_a_number"),
        ("graded", {"answers": [{"text": "x", "score": 10**400}]}, "score_not_a_number"),
    ],
)
def test_what_is_wrong_with_a_row_is_named(one, format: str, change: dict[str, Any], reason: str) -> None:
    row = {name: value for name, value in (ROWS[format] | change).items() if value is not ...}
    assert one(format, row, **({"answer_base": 0} if format == "multiple_choice" else {})) == reason


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"format": None}, f"needs `format:`, one of {', '.join(ROWS)}"),
        ({"path": None}, "needs `path:`"),
        ({"columns": {"anwser": "reply"}}, "'anwser', unknown to question_answer: did you mean 'answer'"),
        ({"columns": {"score": "grade"}}, "unknown to question_answer"),
        ({"split": "heldout"}, "unless `heldout_fraction` is above 0"),
        ({"split": "test"}, "no split 'test'"),
    ],
)
def test_a_use_that_cannot_be_meant_is_refused(tmp_path: Path, fields: dict[str, Any], said: str) -> None:
    path = write(tmp_path / "rows.jsonl", ROWS["question_answer"])
    wrong = SourceUse.model_validate({"source": "file", "path": str(path), "format": "question_answer"} | fields)
    with pytest.raises(UserError, match=said):
        file.SOURCE.check(wrong)


def test_names_by_content_stay_when_rows_are_added(tmp_path: Path, convert) -> None:
    row, other = ROWS["question_answer"], {"question": "Cold?", "answer": "Measure it."}
    before, _ = convert(use(write(tmp_path / "a.jsonl", row, row), "question_answer"))
    after, _ = convert(use(write(tmp_path / "b.jsonl", other, row | {"note": "x"}, row), "question_answer"))
    assert [record.id for record in before] == [record.id for record in after][1:]
    assert len({record.id for record in after}) == 3


def test_parquet_and_a_saved_dataset_give_the_same_records(tmp_path: Path, write_parquet, convert) -> None:
    from datasets import Dataset

    Dataset.from_list([ROWS["messages"]]).save_to_disk(tmp_path / "saved")
    path = write_parquet(tmp_path / "rows.parquet", [ROWS["messages"]])
    lines = write(tmp_path / "rows.jsonl", ROWS["messages"])
    found = [convert(use(each, "messages")) for each in (path, tmp_path / "saved", lines)]
    assert found[0] == found[1] == found[2]
    assert len(found[0][0]) == 1


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, deadline=None)
@given(questions=st.lists(st.text(min_size=1, max_size=6), min_size=1, max_size=20), fraction=st.floats(0.01, 0.9))
def test_a_question_is_on_one_side_of_the_split(tmp_path: Path, convert, questions: list[str], fraction: float) -> None:
    rows = [{"question": text, "answer": f"Answer {number}."} for number, text in enumerate(questions)]
    rows += [{"question": f" {row['question'].upper()}\n", "answer": "Again."} for row in rows]
    path = write(tmp_path / "rows.jsonl", *rows)
    both = use(path, "question_answer")
    sides = [both.model_copy(update={"heldout_fraction": fraction, "split": split}) for split in ("train", "heldout")]
    whole, train, heldout = (convert(each)[0] for each in (both, *sides))
    asked = [{" ".join(each.messages[0].content.casefold().split()) for each in side} for side in (train, heldout)]
    assert not asked[0] & asked[1]
    assert len(train) + len(heldout) == len(whole)


def test_a_whole_file_may_be_held_out(tmp_path: Path, convert) -> None:
    path = write(tmp_path / "rows.jsonl", *({"question": f"Hot {n}?", "answer": "No."} for n in range(30)))
    whole = use(path, "question_answer", split="heldout", heldout_fraction=1.0)
    assert len(convert(whole)[0]) == 30 and whole.split in file.SOURCE.evaluation_only
    with pytest.raises(UserError, match="holds the whole file out: give it `split: heldout`"):
        file.SOURCE.check(whole.model_copy(update={"split": "train"}))


def test_one_question_falls_on_the_same_side_in_every_format(tmp_path: Path) -> None:
    for number in range(20):
        question, sides = f"Is {number} high?", set()
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": "Yes."}]
        asked = {"role": "user", "content": "And more?"}
        rows = {
            "messages": {"messages": [*turns, *turns], "question": "Another?", "prompt": "Another?"},
            "question_answer": {"question": question, "answer": "Yes."},
            "preference": {
                "prompt": "And more?",
                "chosen": [*turns, asked, turns[1]],
                "rejected": [*turns, asked, turns[1]],
            },
            "graded": {"question": question, "answers": [{"text": "a", "score": 1}, {"text": "b", "score": 2}]},
        }
        for format, row in rows.items():
            each = use(write(tmp_path / "rows.jsonl", row), format, heldout_fraction=0.5)
            sides.add(bool(list(file.rows(each))))
        assert len(sides) == 1


@settings(max_examples=200, deadline=None)
@given(
    format=st.sampled_from(sorted(ROWS)),
    column=st.sampled_from(
        [
            "messages",
            "question",
            "answer",
            "choices",
            "prompt",
            "chosen",
            "answers",
            "id",
            "system",
            "text",
            "summary",
            "dialogue",
            "note",
            "section",
            "label",
        ]
    ),
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "text"]), inner),
        max_leaves=6,
    ),
)
def test_any_value_in_any_column_is_a_record_or_a_reason(
    tmp_path_factory: pytest.TempPathFactory, format: str, column: str, value: Any
) -> None:
    path = write(tmp_path_factory.mktemp("rows") / "rows.jsonl", ROWS[format] | {column: value})
    each = use(path, format, heldout_fraction=0.5, split="train")
    for index, row in enumerate(file.rows(each)):
        try:
            if not isinstance(row, RowError):
                file.to_record(row, index, each)
        except RowError as error:
            assert str(error).replace("_", "a").isalnum()


def test_medquad_and_its_graded_answers(shared_data: Path, convert) -> None:
    records, reasons = convert(use(shared_data / "medquad" / "medquad_answered.jsonl", "question_answer"))
    assert (len(records), dict(reasons)) == (9840, {})
    columns = {"id": "question_id", "text": "answer", "score": "judgment"}
    graded = use(shared_data / "medquad_judged" / "medquad_judged_train.jsonl", "graded", columns=columns)
    records, reasons = convert(graded)
    assert (len(records), dict(reasons)) == (127, {"no_differing_scores": 43})
    assert len({record.group for record in records}) == 24


def test_a_csv_without_a_header_is_read_by_the_names_that_the_recipe_gives(tmp_path: Path, convert) -> None:
    path = tmp_path / "anatomy.csv"
    path.write_text('Which is hotter?,ice,steam,rain,snow,B\n"Which is, of these, colder?",ice,steam,rain,fog,A\n')
    names = ("question", "A", "B", "C", "D", "answer")
    found, reasons = convert(use(path, "multiple_choice", header=names))
    assert not reasons
    assert [(each.choices[each.answer], len(each.choices)) for each in found] == [("steam", 4), ("ice", 4)]
    _, reasons = convert(use(path, "multiple_choice", header=names[:-1]))
    assert reasons == {"wrong_number_of_cells": 2}
    with pytest.raises(UserError, match="names a column twice"):
        file.check(use(path, "multiple_choice", header=("question", "question")))
    with pytest.raises(UserError, match="`header` is for source `file` only"):
        sources.load("medqa").check(SourceUse(source="medqa", header=names))
