"""PubMedQA in the hub's columns and in those of the GitHub file: the same questions, and the conclusion never shown."""

import json
from pathlib import Path

import pytest

from rounds.data_prep.schema import SourceUse
from rounds.data_prep.sources import RowError, pubmedqa

ROWS = [
    {
        "pubid": 101,
        "question": "Does a reminder letter raise attendance?",
        "context": {
            "contexts": ["Missed visits are common.", "Of 90 with a letter 80 came; of 90 others, 61."],
            "labels": ["BACKGROUND", "RESULTS"],
            "meshes": ["Reminder Systems"],
        },
        "long_answer": "A letter raised attendance.",
        "final_decision": "yes",
    },
    {
        "pubid": 102,
        "question": "Is a second swab needed?",
        "context": {"contexts": ["Two swabs agreed in 99 of 100."], "labels": ["RESULTS"], "meshes": []},
        "long_answer": "One swab is enough.",
        "final_decision": "no",
    },
    {
        "pubid": 103,
        "question": "Do stockings prevent clots?",
        "context": {"contexts": ["Three trials disagreed."], "labels": ["RESULTS"], "meshes": []},
        "long_answer": "The evidence is mixed.",
        "final_decision": "maybe",
    },
]


def test_hub_rows_become_questions(tmp_path: Path, write_parquet, convert) -> None:
    write_parquet(tmp_path / "pqa_labeled" / "train-00000-of-00001.parquet", ROWS)
    records, reasons = convert(SourceUse(source="pubmedqa", split="labeled", path=str(tmp_path)))
    assert [(record.id, record.choices[record.answer]) for record in records] == [
        ("101", "yes"),
        ("102", "no"),
        ("103", "maybe"),
    ]
    assert not reasons
    assert records[0].prompt[0].content == (
        "BACKGROUND: Missed visits are common.\nRESULTS: Of 90 with a letter 80 came; of 90 others, 61.\n\n"
        "Question: Does a reminder letter raise attendance?\n\nAnswer yes, no or maybe."
    )
    assert not any(row["long_answer"] in record.prompt[0].content for row, record in zip(ROWS, records, strict=True))


def test_the_github_file_gives_the_same_questions(tmp_path: Path, write_parquet, convert) -> None:
    rows = {
        str(row["pubid"]): {
            "QUESTION": row["question"],
            "CONTEXTS": row["context"]["contexts"],
            "LABELS": row["context"]["labels"],
            "LONG_ANSWER": row["long_answer"],
            "final_decision": row["final_decision"],
        }
        for row in ROWS
    }
    (tmp_path / "ori_pqal.json").write_text(json.dumps(rows))
    hub_path = write_parquet(tmp_path / "rows.parquet", ROWS)
    uses = [SourceUse(source="pubmedqa", split="labeled", path=str(tmp_path / name)) for name in ("ori_pqal.json", hub_path)]
    assert convert(uses[0]) == convert(uses[1])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"final_decision": "perhaps"}, "not_a_decision"),
        ({"final_decision": None}, "empty_final_decision"),
        ({"context": {"contexts": []}}, "empty_context"),
        ({"context": "text"}, "empty_context"),
        ({"context": {"contexts": [None]}}, "empty_context"),
        ({"question": " "}, "empty_question"),
        ({"pubid": None}, "empty_pubid"),
    ],
)
def test_what_is_wrong_with_a_row_is_named(change: dict, reason: str) -> None:
    with pytest.raises(RowError, match=f"^{reason}$"):
        pubmedqa.to_record(ROWS[0] | change, 0, SourceUse(source="pubmedqa", split="labeled"))


def test_the_rows_of_fold_0_are_the_same_questions_named_by_their_text(tmp_path: Path, write_parquet, convert) -> None:
    rows = [
        {
            "QUESTION": row["question"],
            "CONTEXTS": row["context"]["contexts"],
            "LABELS": row["context"]["labels"],
            "final_decision": row["final_decision"],
        }
        for row in ROWS
    ]
    write_parquet(tmp_path / "pubmed_qa_labeled_fold0_source" / "train-00000-of-00001.parquet", rows)
    records, reasons = convert(SourceUse(source="pubmedqa", split="train", path=str(tmp_path)))
    whole = write_parquet(tmp_path / "rows.parquet", ROWS)
    labeled, _ = convert(SourceUse(source="pubmedqa", split="labeled", path=str(whole)))
    assert not reasons
    assert [record.prompt for record in records] == [record.prompt for record in labeled]
    assert len({record.id for record in records}) == len(ROWS)


def test_the_official_test_half_and_all_rows_together_are_for_evaluation() -> None:
    assert set(pubmedqa.SOURCE.splits) - set(pubmedqa.SOURCE.evaluation_only) == {"train", "validation"}


def test_the_real_half(shared_data: Path, convert) -> None:
    path = shared_data / "pubmedqa" / "pqal_trainval.json"
    records, reasons = convert(SourceUse(source="pubmedqa", split="labeled", path=str(path)))
    assert not reasons
    counts = [sum(record.answer == place for record in records) for place in range(3)]
    assert counts == [276, 169, 55]
