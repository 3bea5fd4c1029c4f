"""Which column may be meant, and the mapping that a person can copy.

Covers: data_prep/columns.
"""

import pytest
import yaml

from rounds.data_prep import sources, suggestion
from rounds.data_prep.schema import SourceUse


def hint(format: str, found: list[str], columns: dict[str, str] | None = None) -> str:
    use = SourceUse.model_validate({"source": "file", "path": "rows.jsonl", "format": format, "columns": columns or {}})
    return suggestion.mapping(sources.load("file"), use, found)


@pytest.mark.parametrize(
    ("format", "found", "columns"),
    [
        ("question_answer", ["question", "reply"], {"answer": "reply"}),
        ("question_answer", ["instruction", "output", "input"], {"question": "instruction", "answer": "output"}),
        ("question_answer", ["Frage", "question", "Antwort"], {"answer": "Antwort"}),
        ("question_answer", ["Question", "ANSWER"], {"question": "Question", "answer": "ANSWER"}),
        ("question_answer", ["question ", "the answer: long"], {"question": "question ", "answer": "the answer: long"}),
        ("summary", ["article", "highlights"], {"text": "article", "summary": "highlights"}),
        ("dialogue", ["transcript", "section_text"], {"dialogue": "transcript", "note": "section_text"}),
        ("classification", ["question", "sentence", "category"], {"text": "sentence", "label": "category"}),
        ("multiple_choice", ["question", "options", "answer_idx"], {"choices": "options", "answer": "answer_idx"}),
        ("preference", ["instruction", "winner", "loser"], {"prompt": "instruction", "chosen": "winner", "rejected": "loser"}),
        ("graded", ["prompt", "completions"], {"question": "prompt", "answers": "completions"}),
        ("messages", ["conversation"], {"messages": "conversation"}),
        ("question_answer", ["question", "true"], {}),
    ],
)
def test_the_mapping_names_the_nearest_columns_and_can_be_copied(format: str, found: list[str], columns: dict[str, str]) -> None:
    said = hint(format, found)
    assert (yaml.safe_load(said.partition("`")[2].rstrip("`")) == {"columns": columns}) if columns else not said


def test_the_mapping_keeps_what_the_recipe_says_and_replaces_what_is_wrong() -> None:
    assert "`columns: {question: q, answer: reply}`" in hint("question_answer", ["question", "reply"], {"question": "q", "answer": "repl"})


def test_no_hint_loses_what_is_asked_or_learns_what_is_marked_as_bad() -> None:
    said = hint("question_answer", ["instruction", "input", "output"])
    assert said.startswith("These are the columns of format alpaca, which asks with the input too. Else perhaps question is instruction")
    assert "`format: question_answer`" not in hint("preference", ["prompt", "completion", "label"])  # KTO's
    assert "`columns: {chosen: preferred_output" in hint("messages", ["input", "preferred_output", "non_preferred_output"])


def test_another_format_that_fits_is_named() -> None:
    assert hint("question_answer", ["messages"]) == "It looks like `format: messages`"
    assert "`format: preference` with `columns: {rejected: worse}`" in hint("question_answer", ["prompt", "chosen", "worse"])
    assert hint("question_answer", ["left", "middle"]) == ""


def test_a_registered_set_is_told_which_column_is_near_and_no_mapping() -> None:
    found = ["id", "sent1", "ending0", "ending1", "ending2", "ending3", "Label"]
    said = suggestion.mapping(sources.load("medqa"), SourceUse(source="medqa"), found)
    assert said == "Perhaps label is Label: the set is of another version than the one that source 'medqa' reads"
