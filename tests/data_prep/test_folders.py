"""A folder gives the rows that its files give one by one; what is not read is named with the reason.

Covers: data_prep/arrow_rows, data_prep/compressed, data_prep/encodings, data_prep/inventory, data_prep/sheets.
"""

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, DatasetDict

from rounds.data_prep import build, encodings, files, folders, inventory
from rounds.data_prep.errors import UserError
from rounds.data_prep.records import read_records
from rounds.data_prep.schema import SourceParams, SourceUse
from rounds.data_prep.sources import RowError, file


def jsonl(path: Path, *rows: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def asked(number: int) -> dict[str, Any]:
    return {"question": f"Is {number} high?", "answer": f"No, {number} is not."}


def read(path: Path, **fields: Any) -> list[Any]:
    """The rows of a path under their own columns; the reasons of those that cannot be read."""
    use = SourceUse(source="file", path=str(path), format="question_answer", **fields)
    own = (files.ROW, files.FILE)
    return [str(row) if isinstance(row, RowError) else {k: v for k, v in row.items() if k not in own} for row in file.raw_rows(use)]


def names(path: Path, split: str = "train", **fields: Any) -> tuple[list[str], dict[str, str]]:
    """The files of a split, and why the others are not read."""
    with inventory.noting() as noted:
        found = folders.split_files(path, split, **fields)
    return [each.relative_to(path).as_posix() for each in found], noted.not_read


MIXED: dict[str, list[dict[str, Any]]] = {
    "text_and_number": [asked(1) | {"answer": 'Yes, "at once".'}, asked(2) | {"answer": 4}],
    "text_and_list": [asked(1), asked(2) | {"answer": [{"type": "text", "text": "No."}]}],
    "null_and_text": [asked(1) | {"system": None}, asked(2) | {"system": "Be brief."}],
    "int_and_float": [asked(1) | {"weight": 3}, asked(2) | {"weight": 3.7}],
    "text_that_is_json": [asked(1) | {"answer": '{"a": 1}'}, asked(2) | {"answer": "[1]"}],
    "objects_that_differ": [asked(1) | {"meta": {"a": 1}}, asked(2) | {"meta": {"b": "x"}}],
    "sides": [
        {"prompt": "Hot?", "chosen": "Yes.", "rejected": "No."},
        {"prompt": "Cold?", "chosen": [{"role": "assistant"}], "rejected": []},
    ],
}


@pytest.mark.parametrize("kind", MIXED)
@pytest.mark.parametrize("several", [False, True])
def test_a_folder_of_json_lines_changes_no_value(tmp_path: Path, kind: str, several: bool) -> None:
    for number, rows in enumerate([[row] for row in MIXED[kind]] if several else [MIXED[kind]]):
        jsonl(tmp_path / f"a-{number}.jsonl", *rows)
    assert read(tmp_path) == MIXED[kind]


@pytest.mark.parametrize("kind", MIXED)
def test_what_datasets_writes_as_json_text_is_read_back(tmp_path: Path, kind: str) -> None:
    dataset = Dataset.from_json(str(jsonl(tmp_path / "rows.jsonl", *MIXED[kind])), cache_dir=str(tmp_path / "cache"))
    assert isinstance(dataset, Dataset)
    dataset.save_to_disk(tmp_path / "saved")
    dataset.to_parquet(tmp_path / "parquet" / "rows.parquet")
    saved = read(tmp_path / "saved")
    assert saved == read(tmp_path / "parquet")
    if kind in ("int_and_float", "objects_that_differ"):  # Arrow has one type a column: 3 is 3.0, and both keys are in each object
        assert [row["question"] for row in saved] == [row["question"] for row in MIXED[kind]]
    elif kind != "sides":
        assert saved == MIXED[kind]


def test_parquet_shards_of_two_types_are_read(tmp_path: Path) -> None:
    for number, (kind, value) in enumerate([(pa.null(), None), (pa.string(), "Be brief."), (pa.int64(), 3), (pa.float64(), 3.5)]):
        columns = {name: [text] for name, text in asked(number).items()} | {"system": pa.array([value], kind)}
        pq.write_table(pa.table(columns), tmp_path / f"part-{number}.parquet")
    assert [row["system"] for row in read(tmp_path)] == [None, "Be brief.", 3, 3.5]


def test_cells_of_csv_are_the_text_that_they_are(tmp_path: Path) -> None:
    answers = ["None", "NA", "2024-03-01", "True", "007", "1e5", "null", "1.0", "", "nan"]
    content = "question,answer\n" + "".join(f"Q{number}?,{answer}\n" for number, answer in enumerate(answers))
    (tmp_path / "rows.csv").write_text(content)
    (tmp_path / "more.tsv").write_text(content.replace(",", "\t"))
    assert [row["answer"] for row in read(tmp_path)] == answers * 2


def test_one_broken_line_costs_one_row_of_a_folder(tmp_path: Path) -> None:
    jsonl(tmp_path / "a.jsonl", *map(asked, range(30)))
    (tmp_path / "b.jsonl").write_text('{"question": "cut o\n')
    jsonl(tmp_path / "c.jsonl", asked(30))
    (tmp_path / "empty.jsonl").write_text("")
    counts, out = run(tmp_path)
    assert counts["rows"] == 32 and counts["dropped"] == {"not_json": 1}
    assert json.loads((out / build.DROPPED).read_text()) == {"row": 1, "reason": "not_json", "file": "b.jsonl"}
    assert counts["files"]["read"] == {"a.jsonl": 30, "b.jsonl": 1, "c.jsonl": 1, "empty.jsonl": 0}


def run(path: Path, source: str = "file", **fields: Any) -> tuple[dict[str, Any], Path]:
    """The counts and the folder of a source's stage."""
    given = {"format": "question_answer", "max_bad_share": 0.1} if source == "file" else {}
    use = SourceUse(source=source, path=str(path), **{**given, **fields})
    out = path.parent / f"{path.name}.out"
    out.mkdir()
    plain = use.model_dump(exclude={"path", "licence", "phi", "system_prompt"})
    params = SourceParams.model_validate({"use": plain, "source_version": 1, "repository": None, "revision": None})
    return build.source(params, {"path": path}, out, None), out


def test_each_file_that_was_read_and_each_that_was_not_is_told(tmp_path: Path) -> None:
    root = tmp_path / "set"
    jsonl(root / "train_notes.jsonl", asked(1))
    jsonl(root / "symptoms.jsonl", asked(2))
    jsonl(root / "blood_test.jsonl", asked(3))
    (root / "more.csv").write_text("question,answer\nHot?,Yes.\n")
    jsonl(root / "test.jsonl", asked(4))
    jsonl(root / "inner" / "validation" / "rows.jsonl", asked(5))
    for name in ("notes.txt", "old.xls", "model.pkl", "README.md", ".hidden.jsonl", "dataset_info.json"):
        (root / name).write_text("x")
    counts, out = run(root)
    assert counts["files"]["read"] == {"blood_test.jsonl": 1, "more.csv": 1, "symptoms.jsonl": 1, "train_notes.jsonl": 1}
    not_read = counts["files"]["not_read"]
    assert set(not_read) == {"test.jsonl", "inner/validation/rows.jsonl", "notes.txt", "old.xls", "model.pkl", "dataset_info.json"}
    assert not_read["test.jsonl"] == "its name says split 'test'"
    assert "save it as .xlsx or CSV" in not_read["old.xls"] and "runs what is in it" in not_read["model.pkl"]
    assert len(list(read_records(out / "records.parquet"))) == 4


def test_a_registered_source_reads_a_folder_as_its_files(tmp_path: Path) -> None:
    rows = [{"input": f"Q{number}?", "output": f"A{number}.", "instruction": "Answer."} for number in range(20)]
    jsonl(tmp_path / "set" / "a.jsonl", *rows, {**rows[0], "output": 4})
    counts, out = run(tmp_path / "set", "medical_flashcards")
    assert counts["dropped"] == {"output_not_text": 1}
    assert {record.messages[-1].content for record in read_records(out / "records.parquet")} == {row["output"] for row in rows}  # type: ignore[union-attr]


def test_rows_of_a_registered_source_are_cleaned_too(tmp_path: Path) -> None:
    rows = [{"input": f"Q{number}?", "output": f"A\x0c{number}.\x01", "instruction": "Answer."} for number in range(3)]
    jsonl(tmp_path / "set" / "a.jsonl", *rows)
    counts, out = run(tmp_path / "set", "medical_flashcards", control_characters="clean")
    assert (counts["records"], counts["cleaned"], counts["dropped"]) == (3, 3, {})
    assert next(read_records(out / "records.parquet")).messages[-1].content == "A\n0."  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("present", "train", "test"),
    [
        (["blood_test.jsonl"], ["blood_test.jsonl"], None),
        (["blood_test.jsonl", "urine_test.jsonl"], ["blood_test.jsonl", "urine_test.jsonl"], None),
        (["medqa_test.jsonl", "medqa_train.jsonl"], ["medqa_train.jsonl"], ["medqa_test.jsonl"]),
        (["test.csv", "train.jsonl"], ["train.jsonl"], ["test.csv"]),
        (["test/a.jsonl", "train/a.jsonl"], ["train/a.jsonl"], ["test/a.jsonl"]),
        (["train-1.jsonl", "train-2.jsonl", "test.jsonl"], ["train-1.jsonl", "train-2.jsonl"], ["test.jsonl"]),
        (["data/test-00000-of-00001.parquet", "data/train-00000-of-00001.parquet"], ["data/train-00000-of-00001.parquet"], None),
        (["rows-00000-of-00002.jsonl", "rows-00001-of-00002.jsonl"], ["rows-00000-of-00002.jsonl", "rows-00001-of-00002.jsonl"], None),
        (["evaluation.jsonl", "a.jsonl.gz"], ["a.jsonl.gz"], ["evaluation.jsonl"]),
        (["latest.jsonl", "contest.jsonl", "strain.jsonl"], ["contest.jsonl", "latest.jsonl", "strain.jsonl"], None),
    ],
)
def test_only_a_name_that_says_a_split_makes_one(tmp_path: Path, present: list[str], train: list[str], test: list[str] | None) -> None:
    for name in present:
        jsonl(tmp_path / name, asked(1))
    assert names(tmp_path)[0] == train
    if test:
        assert names(tmp_path, "test")[0] == test


def test_a_split_or_a_configuration_is_read_by_its_name(tmp_path: Path) -> None:
    for number, name in enumerate(("train", "dev")):
        jsonl(tmp_path / "set" / "one" / f"{name}.jsonl", asked(number))
        jsonl(tmp_path / "set" / "two" / f"{name}.jsonl", asked(number + 2))
    DatasetDict({"train": Dataset.from_list([asked(4)]), "extra": Dataset.from_list([asked(5)])}).save_to_disk(tmp_path / "saved")
    Dataset.from_list([asked(6)]).save_to_disk(tmp_path / "inner" / "extra")
    for name in ("one", "two"):
        DatasetDict({"dev": Dataset.from_list([asked(7) | {"id": name}])}).save_to_disk(tmp_path / "many" / name)
    assert read(tmp_path / "set", config="two", from_split="validation") == [asked(3)]
    assert read(tmp_path / "set", config="one") == [asked(0)]
    assert read(tmp_path / "saved", from_split="extra") == [asked(5)]
    assert read(tmp_path / "inner", from_split="extra") == read(tmp_path / "inner", config="extra") == [asked(6)]
    assert read(tmp_path / "many", config="two", from_split="dev") == [asked(7) | {"id": "two"}]
    for folder, fields, said in (
        ("set", {"config": "three"}, "no configuration 'three'.*one, two"),
        ("set", {"from_split": "test"}, "no split 'test'.*Valid: dev, train"),
        ("saved", {"from_split": "exta"}, "did you mean 'extra'"),
        ("saved", {"config": "two"}, "no configuration 'two'"),
        ("inner", {}, "sets from `save_to_disk` in extra"),
        ("saved/extra", {"from_split": "train_2"}, "says no split, so it may not be 'train_2'"),
        ("many", {}, "sets from `save_to_disk` in one, two: give one of them as `path:`, or as `config:`"),
    ):
        with pytest.raises(UserError, match=said):
            read(tmp_path / folder, **fields)


def test_a_split_that_no_file_names_is_told_with_those_there_are(tmp_path: Path) -> None:
    jsonl(tmp_path / "rows.jsonl", asked(1))
    with pytest.raises(UserError, match=r"no split 'validation'.*Valid: train"):
        read(tmp_path, from_split="validation")


def test_labels_of_datasets_come_as_their_names(tmp_path: Path) -> None:
    rows = Dataset.from_dict({"question": ["a", "b", "c"], "answer": [1, 0, -1]}).cast_column("answer", ClassLabel(names=["no", "yes"]))
    rows.save_to_disk(tmp_path / "saved")
    rows.to_parquet(tmp_path / "rows.parquet")
    for path in (tmp_path / "saved", tmp_path / "rows.parquet"):
        assert [row["answer"] for row in read(path)] == ["yes", "no", None]


def _zstd(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


PACKED: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": _zstd}
PLAIN = {
    "rows.jsonl": b'{"question": "Hot?", "answer": "Yes."}\n{"question": "Cold?", "answer": "No."}\n',
    "rows.json": b'[{"question": "Hot?", "answer": "Yes."}, {"question": "Cold?", "answer": "No."}]',
    "rows.csv": b"question,answer\nHot?,Yes.\nCold?,No.\n",
    "rows.tsv": b"question\tanswer\nHot?\tYes.\nCold?\tNo.\n",
}


@pytest.mark.parametrize("packing", PACKED)
@pytest.mark.parametrize("name", [*PLAIN, "rows.parquet"])
def test_a_compressed_file_is_read_like_a_plain_one(tmp_path: Path, write_parquet, name: str, packing: str) -> None:
    rows = [{"question": "Hot?", "answer": "Yes."}, {"question": "Cold?", "answer": "No."}]
    plain = PLAIN[name] if name in PLAIN else write_parquet(tmp_path / name, rows).read_bytes()
    packed = tmp_path / "folder" / f"{name}{packing}"
    packed.parent.mkdir()
    packed.write_bytes(PACKED[packing](plain))
    assert read(packed) == read(packed.parent) == rows
    assert files.find(packed.parent, ["rows.*", name]) == [packed]
    packed.write_bytes(packed.read_bytes()[:-9])
    with pytest.raises(UserError, match=r"cannot be unpacked|cannot be read"):
        read(packed)


def test_what_is_there_plain_and_compressed_is_read_once(tmp_path: Path) -> None:
    jsonl(tmp_path / "rows.jsonl", asked(1))
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress((tmp_path / "rows.jsonl").read_bytes()))
    found, not_read = names(tmp_path)
    assert found == ["rows.jsonl"] and not_read == {"rows.jsonl.gz": "rows.jsonl is there, unpacked"}
    assert files.find(tmp_path, ["*.jsonl"]) == [tmp_path / "rows.jsonl"]


def test_the_readme_of_a_folder_says_which_files_are_a_split(tmp_path: Path) -> None:
    jsonl(tmp_path / "one.jsonl", asked(1))
    jsonl(tmp_path / "two.jsonl", asked(2))
    (tmp_path / "README.md").write_text("---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: one.*\n---\n")
    found, not_read = names(tmp_path)
    assert found == ["one.jsonl"] and list(not_read) == ["two.jsonl"]


CYRILLIC = "Какая температура тела считается нормальной? Ответ: около тридцати шести градусов. Пациент жалуется на кашель."


@pytest.mark.parametrize(
    ("text", "encoding"), [("Größe über 40 °C?", "cp1252"), ("Température élevée, fièvre à 39 °C ?", "cp1252"), (CYRILLIC, "cp1251")]
)
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.csv", "set/rows.jsonl"])
def test_the_encoding_that_fits_is_named_and_reads_the_file(tmp_path: Path, name: str, text: str, encoding: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    rows = [{"question": f"{text} {number}", "answer": text} for number in range(30)]
    lines = {".jsonl": [json.dumps(row, ensure_ascii=False) for row in rows], ".json": [json.dumps(rows, ensure_ascii=False)]}
    cells = ["question,answer", *(f'"{row["question"]}","{row["answer"]}"' for row in rows)]
    path.write_bytes("\n".join(lines.get(path.suffix, cells)).encode(encoding))
    asked = path if path.parent == tmp_path else path.parent
    with pytest.raises(UserError, match=f"it reads as {encoding}: with source `file`, `encoding: {encoding}`"):
        run(asked)
    assert read(asked, encoding=encoding) == rows


WRITTEN = {
    "cp1250": "Jaké léky pacient užívá? Horečka přetrvává.",
    "iso8859_2": "Pacjent ma wysoką gorączkę i kaszel od trzech dni. Proszę zażyć lek.",
    "koi8_r": CYRILLIC,
    "cp1253": "Ποια θερμοκρασία σώματος θεωρείται φυσιολογική; Ο ασθενής έχει βήχα.",
    "cp1254": "Hastanın ateşi üç gündür yüksek. İlaç alıyor mu, öksürüyor mu?",
    "cp1256": "ما هي درجة حرارة الجسم الطبيعية؟ المريض يسعل.",
    "gb18030": "发烧是指体温升高。医生用体温计测量体温，然后开药。",
    "big5": "發燒是指體溫升高。醫生用體溫計測量體溫。",
    "shift_jis": "体温はどのくらいが正常ですか。患者は咳をしています。",
    "euc_kr": "정상 체온은 얼마입니까? 환자가 기침을 합니다.",
    "mac_roman": "Größe über 40 °C? Fièvre élevée, ça va",
    "utf-16": "Größe über 40 °C?",
}


@pytest.mark.parametrize("encoding", WRITTEN)
def test_the_encoding_that_is_named_gives_back_what_was_written(encoding: str) -> None:
    raw = (f"question,answer\n{WRITTEN[encoding]},Yes.\n" * 5).encode(encoding)
    named = encodings.fitting(raw)
    assert named and WRITTEN[encoding] in raw.decode(named)


def test_a_sheet_is_read_under_its_first_row(tmp_path: Path) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    said = {"Hot?": "Yes.", "How many?": 7, "Since when?": date(2024, 3, 1), "Any?": True, "Which?": "#N/A"}
    for row in ((None, None), ("question", "answer"), *said.items(), (None, None)):
        book.active.append(row)
    book.create_sheet("empty")
    book.save(tmp_path / "rows.xlsx")
    (tmp_path / "~$rows.xlsx").write_bytes(b"open elsewhere")
    shown = {**said, "Since when?": "2024-03-01", "Any?": "TRUE", "Which?": None}
    assert read(tmp_path / "rows.xlsx") == read(tmp_path) == [{"question": name, "answer": value} for name, value in shown.items()]
    book["empty"].append(("question", "answer"))
    book.save(tmp_path / "rows.xlsx")
    with pytest.raises(UserError, match=r"several sheets have rows \(Sheet, empty\); save the one that is meant"):
        read(tmp_path / "rows.xlsx")
