"""The two stages end to end on small files: what they write, what they count, and what they refuse.

Covers: data_prep/progress.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pytest

from rounds.data_prep.errors import UserError
from rounds.data_prep.records import Conversation, Message, Pair, Question, read_kind, read_records, write_records
from tests import staged

QA = {"source": "file", "format": "question_answer"}


def run_source(tmp_path: Path, rows: list[Any], use: dict[str, Any], name: str = "source") -> tuple[dict[str, Any], Path]:
    path, out = tmp_path / f"{name}.jsonl", tmp_path / name
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    out.mkdir()
    params = {"use": use, "source_version": 1, "repository": None, "revision": None}
    return staged.run("source", params, {"path": path}, out, None), out


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def folder(path: Path, records: list[Any], kind: Any) -> Path:
    path.mkdir()
    write_records(path / "records.parquet", records, kind)
    return path


def talk(name: str, question: str, answer: str) -> Conversation:
    return Conversation(name, "file", (Message("user", question), Message("assistant", answer)))


def params(*mix: Any, filters: Any = (), kind: str = "conversation") -> dict[str, Any]:
    items = [each if isinstance(each, dict) else {"name": each} for each in mix]
    return {"mix": items, "filters": [{"name": each} for each in filters], "seed": 0, "kind": kind}


def test_source_counts_what_it_drops_and_never_writes_its_text(tmp_path: Path) -> None:
    rows = [{"id": f"r{number}", "question": f"Is {number} even?", "answer": "Count."} for number in range(6)]
    secret = {"id": "x", "question": "secret", "answer": ""}
    result, out = run_source(tmp_path, [*rows, rows[0], secret, '{"cut'], QA | {"max_bad_share": 0.5})
    assert result == {
        "rows": 9,
        "records": 6,
        "dropped": {"duplicate_id": 1, "empty_answer": 1, "not_json": 1},
        "not_chosen": 0,
        "phi": None,
        "files": {"read": {"source.jsonl": 9}, "not_read": {}},
        "licence": None,
        "repository": None,
        "revision": None,
    }
    assert lines(out / "dropped.jsonl") == [
        {"row": 7, "reason": "duplicate_id", "file": "source.jsonl", "id": "r0"},
        {"row": 8, "reason": "empty_answer", "file": "source.jsonl", "id": "x"},
        {"row": 9, "reason": "not_json", "file": "source.jsonl"},
    ]
    assert "secret" not in (out / "dropped.jsonl").read_text()
    assert [record.id for record in read_records(out / "records.parquet")] == [row["id"] for row in rows]
    assert json.loads((out / "progress.json").read_text())["step"] == 9
    assert {path.name for path in out.iterdir()} == {"records.parquet", "dropped.jsonl", "progress.json"}


def test_source_stops_over_the_share_of_bad_rows_and_says_what_it_saw(tmp_path: Path) -> None:
    rows = [{"question": "Why?", "reply": "So."}] * 3
    said = (
        r"3 of 3 rows do not fit, more than max_bad_share 0.05; most often missing_column_answer \(3\). "
        r"Columns expected: question, answer; found in row 1, the first .missing_column_answer.: question, reply"
    )
    with pytest.raises(UserError, match=said):
        run_source(tmp_path, rows, QA)


def test_rows_that_say_nothing_are_not_held_against_the_share(tmp_path: Path) -> None:
    rows = [{"prompt": "Why?", "chosen": "So.", "rejected": each} for each in ("No.", "So.", "So. ", " So.")]
    result, _ = run_source(tmp_path, rows, {"source": "file", "format": "preference"})
    assert (result["records"], result["dropped"]) == (1, {"identical_answers": 3})


def test_source_without_a_record_is_refused(tmp_path: Path) -> None:
    rows = [{"prompt": "Why?", "chosen": "So.", "rejected": "So."}]
    with pytest.raises(UserError, match=r"none of 1 rows of split 'train' became a record .*identical_answers"):
        run_source(tmp_path, rows, {"source": "file", "format": "preference"})


def test_max_rows_are_the_same_rows_in_any_order(tmp_path: Path) -> None:
    rows = [{"id": str(number), "question": f"{number}?", "answer": "Yes."} for number in range(50)]
    result, one = run_source(tmp_path, rows, QA | {"max_rows": 10}, "one")
    _, two = run_source(tmp_path, rows[::-1], QA | {"max_rows": 10}, "two")
    _, three = run_source(tmp_path, rows, QA | {"max_rows": 10, "seed": 1}, "three")
    ids = [{record.id for record in read_records(out / "records.parquet")} for out in (one, two, three)]
    assert (result["records"], result["not_chosen"]) == (10, 40)
    assert ids[0] == ids[1] != ids[2]


def test_data_filters_in_order_mixes_and_counts(tmp_path: Path) -> None:
    one = [talk("1", "Why?", "So."), talk("2", "why?", "so."), talk("3", "Held out?", "Yes."), talk("4", "Who?", "Me.")]
    question = Question("5", "exam", (Message("user", "Which?"),), ("this", "that"), 1)
    heldout = Question("6", "exam", (Message("user", "Held out?"),), ("Yes.", "No."), 0)
    inputs = {
        "source.one": folder(tmp_path / "one", one, "conversation"),
        "source.two": folder(tmp_path / "two", [question], "question"),
        "heldout.exam": folder(tmp_path / "exam", [heldout], "question"),
    }
    out = tmp_path / "out"
    out.mkdir()
    result = staged.run("data", params("one", "two", filters=["exact_dedup", "decontaminate"]), inputs, out, None)
    assert result == {
        "in": {"one": 4, "two": 1},
        "dropped": {"exact_dedup": {"duplicate": 1}, "decontaminate": {"overlaps_exam": 1}},
        "dropped_by_source": {
            "one": {"exact_dedup": {"duplicate": 1}, "decontaminate": {"overlaps_exam": 1}},
            "two": {},
        },
        "masked": {},
        "out": {"one": 2, "two": 1},
        "repeats": {},
        "records": 3,
    }
    assert lines(out / "dropped.jsonl") == [
        {"id": "2", "source": "one", "filter": "exact_dedup", "reason": "duplicate"},
        {"id": "3", "source": "one", "filter": "decontaminate", "reason": "overlaps_exam"},
    ]
    found = {record.id: record for record in read_records(out / "records.parquet")}
    assert set(found) == {"1", "4", "5"}
    assert found["1"] == replace(one[0], source="one")
    assert found["5"] == Conversation("5", "two", (Message("user", "Which?"), Message("assistant", "that")))
    files = {"records.parquet", "dropped.jsonl", "masked.jsonl", "progress.json"}
    assert {path.name for path in out.iterdir()} == files


def test_data_of_pairs_opens_as_a_dataset(tmp_path: Path) -> None:
    pairs = [Pair(str(number), "file", (Message("user", f"{number}?"),), "Yes.", "No.") for number in range(5000)]
    inputs, out = {"source.pairs": folder(tmp_path / "pairs", pairs, "pair")}, tmp_path / "out"
    out.mkdir()
    result = staged.run("data", params({"name": "pairs", "max_rows": 4500}, kind="pair"), inputs, out, None)
    assert result["out"] == {"pairs": 4500}
    assert read_kind(out / "records.parquet") == "pair"
    table = datasets.load_dataset("parquet", data_files=str(out / "records.parquet"), split="train")
    assert len(set(table["id"])) == 4500
    assert table[0]["prompt"][0]["role"] == "user"


def test_repeated_rows_have_ids_of_their_own_and_the_name_of_their_source(tmp_path: Path) -> None:
    inputs = {
        f"source.{name}": folder(tmp_path / name, [talk(f"{name}{n}", f"{name} {n}?", "Yes.") for n in range(4)], "conversation")
        for name in ("one", "two")
    }
    out = tmp_path / "out"
    out.mkdir()
    result = staged.run("data", params({"name": "one", "epochs": 2.5}, {"name": "two", "share": 0.2}), inputs, out, None)
    found = list(read_records(out / "records.parquet"))
    assert (result["out"], result["repeats"], result["records"]) == ({"one": 10, "two": 2}, {"one": 6}, 12)
    assert len({record.id for record in found}) == 12
    texts = [record.messages for record in found if isinstance(record, Conversation) and record.id.startswith("one1")]
    assert len(texts) in (2, 3) and len(set(texts)) == 1
    assert {record.source for record in found} == {"one", "two"}


def test_data_refuses_what_it_cannot_mix(tmp_path: Path) -> None:
    pairs = [Pair("1", "file", (Message("user", "Why?"),), "Yes.", "No.")]
    inputs = {
        "source.pairs": folder(tmp_path / "pairs", pairs, "pair"),
        "source.talk": folder(tmp_path / "talk", [talk("1", "Why?", "So.")], "conversation"),
        "heldout.talk": folder(tmp_path / "held", [talk("2", "Why?", "Oh.")], "conversation"),
    }
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(UserError, match="'pairs' holds records of kind pair; this mix takes conversation or question"):
        staged.run("data", params("pairs"), inputs, out, None)
    with pytest.raises(UserError, match="twice in one mix"):
        staged.run("data", params("talk", "talk"), inputs, out, None)
    with pytest.raises(UserError, match=r"mix of talk is empty.*overlaps_talk': 1"):
        staged.run("data", params("talk", filters=["decontaminate"]), inputs, out, None)


@pytest.fixture
def fetch(tmp_path: Path, shared_data: Path) -> Callable[..., Path]:
    """Run `source` on a real file; returns its folder."""

    def run(name: str, path: str, **use: Any) -> Path:
        out = tmp_path / name
        out.mkdir()
        stage = {"use": use, "source_version": 1, "repository": None, "revision": None}
        staged.run("source", stage, {"path": shared_data / path}, out, None)
        return out

    return run


def test_real_rows_through_both_stages(tmp_path: Path, fetch: Callable[..., Path]) -> None:
    inputs = {
        "source.medquad": fetch("medquad", "medquad/medquad_answered.jsonl", **QA),
        "heldout.pubmedqa": fetch("exam", "pubmedqa/pqal_trainval.json", source="pubmedqa", split="labeled"),
    }
    out = tmp_path / "out"
    out.mkdir()
    result = staged.run("data", params("medquad", filters=["exact_dedup", "decontaminate"]), inputs, out, None)
    assert result["in"] == {"medquad": 9840}
    assert result["dropped"] == {"exact_dedup": {"duplicate": 9}, "decontaminate": {}}


def test_real_vignettes_that_are_told_again_are_counted_by_benchmark(tmp_path: Path, fetch: Callable[..., Path]) -> None:
    """MEDEC's notes re-tell some of MedQA's vignettes; both together are mixed by share and repeated."""

    medec = {**QA, "columns": {"question": "Text", "answer": "Corrected Sentence"}, "max_bad_share": 0.6}
    inputs = {
        "source.medec": fetch("medec", "medec/medec_ms_validation.jsonl", **medec),
        "source.mts": fetch("mts", "mts_dialog/mts_dialog_train.jsonl", source="mts_dialog"),
        "heldout.medqa.test": fetch("exam", "medqa_usmle/medqa_us_dev_facts.jsonl", source="medqa", split="test"),
    }
    out = tmp_path / "out"
    out.mkdir()
    mixed = params({"name": "medec", "share": 0.2}, {"name": "mts", "epochs": 2}, filters=["decontaminate"])
    result = staged.run("data", mixed, inputs, out, None)
    assert result["in"] == {"medec": 511, "mts": 1201}
    assert set(result["dropped"]["decontaminate"]) <= {"overlaps_medqa.test", "heldout_prompt_medqa.test"}
    assert result["dropped"]["decontaminate"]["overlaps_medqa.test"] >= 40
    assert result["repeats"] == {"mts": result["out"]["mts"] - 1201}
    assert result["out"]["medec"] / result["records"] == pytest.approx(0.2, abs=0.001)
