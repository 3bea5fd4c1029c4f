"""What a source stage does to its rows: the system prompt, and the mask that is on for a person's own files.

Covers: data_prep/pool.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from rounds.data_prep.errors import UserError
from rounds.data_prep.records import Conversation, Question, prompt_of, read_records
from tests import staged

pytest.importorskip("presidio_analyzer")

NOTE = "Patient: Jane Roe. MRN 4471882, seen 03/14/2021. Call 415-555-0134."
ROWS = [
    {"id": "note", "question": f"{NOTE} What next?", "answer": "See the surgeon. Mail j.roe@example.org."},
    {"id": "plain", "question": "What is an ECG?", "answer": "A recording of the heart's electricity."},
    {"id": "own", "question": "Is it safe?", "answer": "Mostly.", "system": "Be brief."},
]


def run(tmp_path: Path, rows: list[dict[str, Any]] = ROWS, form: str = "question_answer", **changes: Any) -> Any:
    path, out = tmp_path / "rows.jsonl", tmp_path / "out"
    path.write_text("\n".join(map(json.dumps, rows)))
    out.mkdir()
    params = {"use": {"source": "file", "format": form}, "source_version": 1, "repository": None, "revision": None}
    counts = staged.run("source", {**params, **changes}, {"path": path}, out, None)
    return counts, {record.id: record for record in read_records(out / "records.parquet")}, out


def test_what_tells_a_person_is_masked_and_no_file_of_the_stage_holds_it(tmp_path: Path) -> None:
    counts, found, out = run(tmp_path, phi={"name": "phi"})
    asked = prompt_of(found["note"])[-1].content
    assert "[NAME]" in asked and "[RECORD_NUMBER]" in asked and "[DATE]" in asked and "[PHONE]" in asked
    assert "[EMAIL]" in found["note"].messages[-1].content
    assert found["plain"].messages[-1].content == ROWS[1]["answer"]
    assert counts["phi"]["action"] == "mask" and counts["phi"]["rows"] == 1
    assert set(counts["phi"]["kinds"]) >= {"name", "record_number", "date", "phone", "email"}
    assert [json.loads(line)["id"] for line in (out / "masked.jsonl").read_text().splitlines()] == ["note"]
    assert {path.name for path in out.iterdir()} == {
        "records.parquet",
        "dropped.jsonl",
        "masked.jsonl",
        "progress.json",
    }
    written = [repr(found.values()), *((out / name).read_text() for name in ("dropped.jsonl", "masked.jsonl"))]
    for secret in ("Roe", "4471882", "555-0134", "j.roe"):
        assert not any(secret in text for text in written)


def test_rows_that_tell_a_person_can_be_dropped(tmp_path: Path) -> None:
    counts, found, out = run(tmp_path, phi={"name": "phi", "action": "drop"})
    assert set(found) == {"plain", "own"}
    assert counts["records"] == 2 and counts["phi"] == {"action": "drop", "rows": 0, "kinds": {}, "dropped": 1}
    line = json.loads((out / "dropped.jsonl").read_text())
    assert line["id"] == "note" and line["reason"].startswith("holds_")


def test_a_source_of_which_all_rows_are_dropped_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="filter phi dropped all 1 rows"):
        run(tmp_path, ROWS[:1], phi={"name": "phi", "action": "drop"})


def test_a_system_prompt_is_said_where_a_row_brings_none(tmp_path: Path) -> None:
    counts, found, _ = run(tmp_path, system_prompt="Answer plainly.")
    assert {name: prompt_of(record)[0].content for name, record in found.items()} == {
        "note": "Answer plainly.",
        "plain": "Answer plainly.",
        "own": "Be brief.",
    }
    assert isinstance(found["plain"], Conversation) and len(found["plain"].messages) == 3
    assert counts["phi"] is None


def test_a_question_is_asked_after_the_system_prompt(tmp_path: Path) -> None:
    rows = [{"id": "q", "question": "Which?", "choices": ["this", "that"], "answer": 1}]
    _, found, _ = run(tmp_path, rows, "multiple_choice", system_prompt="Weigh every option.")
    assert isinstance(found["q"], Question)
    assert [turn.role for turn in found["q"].prompt] == ["system", "user"]
