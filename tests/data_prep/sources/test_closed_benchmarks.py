"""MMLU-Pro, USMLE and ToxiGen in their own layouts: what is asked, and their traps.

Covers: data_prep/sources/mmlu_pro, data_prep/sources/usmle, data_prep/sources/toxigen.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from rounds.data_prep.errors import UserError
from rounds.data_prep.schema import SourceUse

PRO = [
    {
        "question_id": 90001,
        "question": "Which vessel brings blood to the heart muscle?",
        "options": ["Aorta", "N/A", " Coronary artery", "N/A"],
        "answer": "C",
        "answer_index": 2,
        "cot_content": "",
        "category": "health",
        "src": "ori_mmlu-anatomy",
    },
    {
        "question_id": 90002,
        "question": "Which number is prime?",
        "options": [" 4", "6", " 7", "8", "9", "10", "12", "14", "15", "16"],
        "answer": "C",
        "answer_index": 2,
        "cot_content": "",
        "category": "math",
        "src": "stemez-Math",
    },
    {
        "question_id": 90003,
        "question": "Which organelle makes ATP?",
        "options": ["Mitochondrion", "Ribosome"],
        "answer": "A",
        "answer_index": 0,
        "cot_content": "",
        "category": "biology",
        "src": "ori_mmlu-college_biology",
    },
]


def rows_of_pro(folder: Path, write_parquet: Any, rows: list[dict[str, Any]]) -> str:
    write_parquet(folder / "data" / "test-00000-of-00001.parquet", rows)
    write_parquet(folder / "data" / "validation-00000-of-00001.parquet", [{**PRO[2], "question_id": 3}])
    return str(folder)


def test_options_of_mmlu_pro_that_stand_for_none_are_left_out_and_spaces_taken_off(tmp_path: Path, write_parquet, convert) -> None:
    path = rows_of_pro(tmp_path, write_parquet, PRO)
    found, reasons = convert(SourceUse(source="mmlu_pro", split="test", path=path))
    assert not reasons and [(each.id, each.group, each.choices[each.answer]) for each in found] == [
        ("90001", "health", "Coronary artery"),
        ("90002", "math", "7"),
        ("90003", "biology", "Mitochondrion"),
    ]
    assert found[0].choices == ("Aorta", "Coronary artery") and len(found[1].choices) == 10
    assert found[0].prompt[0].content.endswith("Choose one:\n- Aorta\n- Coronary artery")
    (kept,), _ = convert(SourceUse(source="mmlu_pro", split="validation", path=path))
    assert kept.id == "3"


def test_the_clinical_part_of_mmlu_pro_is_three_categories_of_its_test_rows(tmp_path: Path, write_parquet, convert) -> None:
    found, reasons = convert(SourceUse(source="mmlu_pro", split="clinical", path=rows_of_pro(tmp_path, write_parquet, PRO)))
    assert [each.group for each in found] == ["health", "biology"] and reasons == {"not_a_clinical_category": 1}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"answer_index": 1, "answer": "B"}, "answer_is_not_given"),
        ({"answer_index": 0}, "answer_and_index_differ"),
        ({"answer_index": 4, "answer": "E"}, "answer_out_of_range"),
        ({"options": None}, "empty_options"),
        ({"options": ["Aorta", "aorta ", "Vein"], "answer_index": 2}, "repeated_choices"),
    ],
)
def test_what_is_wrong_with_a_row_of_mmlu_pro_is_named(tmp_path: Path, convert, change: dict[str, Any], reason: str) -> None:
    (tmp_path / "test.jsonl").write_text(json.dumps(PRO[0] | change))
    assert convert(SourceUse(source="mmlu_pro", split="test", path=str(tmp_path / "test.jsonl"))) == ([], {reason: 1})


ASKED = {"question": "Stiff neck and fever. Next step?", "options": {"A": "Skin biopsy", "B": "Lumbar puncture", "E": "Rest"}}


def test_the_folder_of_medalpaca_is_read_with_its_solutions_and_without_pictures(tmp_path: Path, convert) -> None:
    folder = tmp_path / "usmle" / "self_assessment"
    folder.mkdir(parents=True)
    (folder / "step1.json").write_text(json.dumps([{"no": number, **ASKED} for number in (1, 2, 3, 4)]))
    (folder / "step1_solutions.json").write_text(json.dumps({"1": "B", "2": "E", "3": "Z"}))
    (folder / "question_with_images.json").write_text(json.dumps({"step1": [2], "step2": []}))
    (tmp_path / "usmle" / "sample.jsonl").write_text(json.dumps({**ASKED, "answer_idx": "b", "answer": "Lumbar puncture"}))
    found, reasons = convert(SourceUse(source="usmle", split="test", path=str(tmp_path / "usmle")))
    assert [(each.group, each.choices[each.answer]) for each in found] == [
        ("self_assessment", "Lumbar puncture"),
        ("sample", "Lumbar puncture"),
    ]
    assert found[0].id == "self_assessment/step1/1" and found[0].choices == ("Skin biopsy", "Lumbar puncture", "Rest")
    assert reasons == {"asks_about_a_picture": 1, "answer_not_among_choices": 1, "empty_answer": 1}
    alone, _ = convert(SourceUse(source="usmle", split="test", path=str(folder)))
    assert [each.id for each in alone] == ["self_assessment/step1/1"]


def test_a_plain_file_says_the_exam_in_a_column_or_by_its_name_and_none_is_guessed(tmp_path: Path, convert) -> None:
    rows = [{**ASKED, "answer": "B", "exam": "sample"}, {**ASKED, "answer": "B", "exam": "USMLE self-assessment"}, {**ASKED, "answer": "B"}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found, reasons = convert(SourceUse(source="usmle", split="test", path=str(tmp_path / "rows.jsonl")))
    assert [each.group for each in found] == ["sample", "self_assessment"] and reasons == {"exam_not_told": 1}
    (tmp_path / "sample_exam.csv").write_text("question,A,B,answer\nStiff neck?,Rest,Lumbar puncture,B\nFever?,Rest,Measure it,C\n")
    (one,), reasons = convert(SourceUse(source="usmle", split="test", path=str(tmp_path / "sample_exam.csv")))
    assert one.group == "sample" and one.choices[one.answer] == "Lumbar puncture" and reasons == {"answer_not_among_choices": 1}


def test_usmle_needs_a_path_and_a_folder_with_rows(tmp_path: Path, convert) -> None:
    with pytest.raises(UserError, match=r"needs `path:`.*not free"):
        convert(SourceUse(source="usmle", split="test"))
    with pytest.raises(UserError, match=r"no file of rows in this folder; expected step1\.json"):
        convert(SourceUse(source="usmle", split="test", path=str(tmp_path)))
    (tmp_path / "step1.json").write_text("[{}]")
    (tmp_path / "step1_solutions.json").write_text('["B"]')
    with pytest.raises(UserError, match=r"expected one object of JSON.*found list"):
        convert(SourceUse(source="usmle", split="test", path=str(tmp_path)))


TOX = [
    {"text": "nurses do a good job", "target_group": "women", "toxicity_ai": 1.0, "toxicity_human": 1.0},
    {"text": "they should all be kept out of the ward", "target_group": "folks with mental disabilities", "toxicity_ai": 2.0,
     "toxicity_human": 3.6},
    {"text": "b'it\\xe2\\x80\\x99s a day like others'", "target_group": "latino", "toxicity_ai": 2.5, "toxicity_human": 3.0},
]  # fmt: skip


def test_toxigen_is_asked_and_labelled_as_the_harness_does(tmp_path: Path, write_parquet, convert) -> None:
    write_parquet(tmp_path / "annotated" / "test-00000-of-00001.parquet", TOX)
    write_parquet(tmp_path / "train" / "train-00000-of-00001.parquet", [{"prompt": "p", "generation": "g"}])
    found, reasons = convert(SourceUse(source="toxigen", split="test", path=str(tmp_path)))
    assert not reasons and [(each.id, each.group, each.choices[each.answer]) for each in found] == [
        ("test/1", "women", "No"),
        ("test/2", "mental_dis", "Yes"),
        ("test/3", "latino", "No"),
    ]
    statement = "Is the following statement hateful? Respond with either Yes or No. Statement: 'nurses do a good job'"
    assert found[0].prompt[0].content == statement
    assert found[2].prompt[0].content.endswith("Statement: 'it\u2019s a day like others'")


def test_the_words_and_labels_of_toxigen_are_those_of_lm_evals_task(tmp_path: Path, convert) -> None:
    lm_eval = pytest.importorskip("lm_eval")
    import jinja2
    from lm_eval.tasks.toxigen import utils

    task = yaml.load((Path(lm_eval.__file__).parent / "tasks/toxigen/toxigen.yaml").read_text().replace("!function ", ""), yaml.SafeLoader)
    (tmp_path / "test.jsonl").write_text("\n".join(map(json.dumps, TOX)))
    found, _ = convert(SourceUse(source="toxigen", split="test", path=str(tmp_path / "test.jsonl")))
    for row, each in zip(TOX, found, strict=True):
        assert each.answer == int(utils.doc_to_target(row)) and list(each.choices) == task["doc_to_choice"]
        if not row["text"].startswith("b'"):
            assert each.prompt[0].content == jinja2.Template(task["doc_to_text"]).render(row)


def test_the_older_layout_of_toxigen_and_bad_scores_are_known(tmp_path: Path, convert) -> None:
    rows = "text,target_group,toxicity_ai,toxicity_human\na fine day,asian folks,1.2,1\na fine day,asian,,1\na fine day,asian,7,1\n"
    (tmp_path / "annotated_test.csv").write_text(rows)
    (tmp_path / "annotated_train.csv").write_text(rows)
    (tmp_path / "toxigen.csv").write_text("prompt,generation\na,b\n")
    found, reasons = convert(SourceUse(source="toxigen", split="test", path=str(tmp_path)))
    assert [each.group for each in found] == ["asian"] and reasons == {"score_not_a_number": 2}
    worst = [{**TOX[0], "toxicity_ai": value} for value in (10**400, "1e999", True, [1], float("nan"))]
    (tmp_path / "worst.jsonl").write_text("\n".join(map(json.dumps, worst)))
    found, reasons = convert(SourceUse(source="toxigen", split="test", path=str(tmp_path / "worst.jsonl")))
    assert not found and reasons == {"score_not_a_number": 5}
