"""What a row says and nobody reads is told once for its source; what is read, or says nothing, is not."""

from pathlib import Path
from typing import Any

import pytest

from rounds.data_prep import sources, tally
from rounds.data_prep.schema import SourceUse
from tests import staged
from tests.data_prep.sources.test_file import ROWS, use, write


def not_used(asked: SourceUse) -> list[str]:
    source, counts = sources.load(asked.source), tally.Tally()
    list(tally.records(source, source.rows(asked), asked, counts, lambda line: None))
    return source.not_used(asked, counts.unread)


@pytest.mark.parametrize("format", ROWS)
def test_all_that_a_format_reads_is_used(tmp_path: Path, format: str) -> None:
    row = ROWS[format] | {"id": "a", "group": "b", "system": "Be brief.", "weight": 1}
    assert not_used(use(write(tmp_path / "rows.jsonl", row), format)) == []
    assert not_used(use(write(tmp_path / "rows.jsonl", row | {"tools": [{"name": "dose"}]}), format)) == ["tools"]


def test_columns_that_say_something_in_any_row_are_named(tmp_path: Path) -> None:
    row: dict[str, Any] = {"instruction": "Is this urgent?", "input": "", "output": "Yes.", "tools": None, "images": []}
    rows = [row, row | {"instruction": "And now?", "input": "Chest pain.", "images": ["a.png"]}]
    path = write(tmp_path / "rows.jsonl", *rows)
    for fields in ({}, {"reasoning": "leave_out"}):
        asked = use(path, "question_answer", columns={"question": "instruction", "answer": "output"}, **fields)
        assert not_used(asked) == ["images", "input"]


def test_fields_of_turns_that_nobody_reads_are_named(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "Hot?", "name": "Ada", "images": []}, {"role": "assistant", "content": "No.", "weight": 1}]
    assert not_used(use(write(tmp_path / "rows.jsonl", {"messages": turns}), "messages")) == ["messages.name"]


def test_the_stage_says_it_in_its_counts(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", {"question": "Hot?", "answer": "No.", "input": "39 C"})
    rows = {"source": "file", "format": "question_answer"}
    params = {"use": rows, "source_version": 4, "repository": None, "revision": None}
    (tmp_path / "out").mkdir()
    assert staged.run("source", params, {"path": path}, tmp_path / "out")["not_used"] == ["input"]
