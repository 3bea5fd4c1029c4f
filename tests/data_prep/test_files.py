"""Broken lines cost one row each; files that cannot be rows at all are one clear message.

Covers: data_prep/json_rows.
"""

import bz2
import gzip
import json
from pathlib import Path

import pytest

from rounds.data_prep import files, inventory
from rounds.data_prep.errors import UserError
from rounds.data_prep.turns import RowError


def reasons(path: Path) -> list[str | int]:
    """The number of each row that was read, or the reason why it was not."""
    return [str(row) if isinstance(row, RowError) else row[files.ROW] for row in files.read(path)]


def test_lines_that_cannot_be_read_are_reasons(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    lines = [b'{"a": 1}', b"", b'{"a": "\xff"}', b"[1]", b'"text"', b"[" * 100_000, b'{"a": 2}', b'{"a": "cut o']
    path.write_bytes(b"\n".join(lines))
    assert reasons(path) == [1, "not_utf8", "not_an_object", "not_an_object", "not_json", 7, "not_json"]
    assert [row.row for row in files.read(path) if isinstance(row, RowError)] == [3, 4, 5, 6, 8]


def test_a_byte_order_mark_and_windows_line_ends_are_no_trouble(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n{"a": 2}\r\n')
    assert reasons(path) == [1, 2]


@pytest.mark.parametrize("content", [[{"a": 1}, {"a": 2}], {"x": {"a": 1}, "y": {"a": 2, "id": "own"}}], ids=["list", "object"])
def test_json_is_a_list_or_an_object_of_rows(tmp_path: Path, content: object) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(content))
    rows = [row for row in files.read(path) if not isinstance(row, RowError)]
    assert [row["a"] for row in rows] == [1, 2]
    assert [row.get("id") for row in rows] == ([None, None] if isinstance(content, list) else ["x", "own"])


FORMS = {
    "list": [{"a": 1}, {"a": 2}],
    "data": {"version": "1.0", "data": [{"a": 1}, {"a": 2}]},
    "ids": {"x": {"a": 1}, "y": {"a": 2}},
    "columns": {"a": [1, 2], "b": ["x", "y"]},
    "pandas": {"a": {"0": 1, "1": 2}, "b": {"0": "x", "1": "y"}},
    "pandas split": {"columns": ["a"], "index": [0, 1], "data": [[1], [2]]},
    "pandas table": {"schema": {"fields": [{"name": "a"}]}, "data": [{"a": 1}, {"a": 2}]},
    "viewer": {"features": [], "rows": [{"row_idx": 0, "row": {"a": 1}}, {"row_idx": 1, "row": {"a": 2}}]},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl", "rows.ndjson"])
def test_json_that_is_read_as_a_whole_has_many_forms_under_any_name(tmp_path: Path, form: str, indent: int | None, name: str) -> None:
    (tmp_path / name).write_text(json.dumps(FORMS[form], indent=indent))
    assert [row["a"] for row in files.read(tmp_path / name) if not isinstance(row, RowError)] == [1, 2]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "user", "content": "Hot?"}]},
        {"conversations": [{"from": "human", "value": "Hot?"}]},
        {"prompt": {"role": ["user"], "content": ["Hot?"]}, "chosen": {"role": ["assistant"], "content": ["No."]}},
        {"input": {"messages": []}, "preferred_output": [{"role": "assistant"}], "non_preferred_output": [{"role": "assistant"}]},
        {"question": "Hot?", "answers": [{"text": "No.", "score": 1}, {"text": "Yes.", "score": 2}]},
        {"chosen": [{"role": "assistant", "content": "No."}], "rejected": [{"role": "assistant", "content": "Yes."}]},
    ],
)
def test_one_row_of_json_lines_is_one_row(tmp_path: Path, row: dict[str, object]) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    (found,) = files.read(tmp_path / "rows.jsonl")
    assert isinstance(found, dict) and {name: found[name] for name in row} == row


def test_a_second_list_of_rows_in_one_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text(json.dumps({"train": [{"a": 1}], "test": [{"a": 2}]}))
    with inventory.noting() as noted:
        assert reasons(tmp_path / "rows.json") == [1]
    assert noted.read == {"rows.json": 1}
    assert noted.not_read == {"rows.json: test": "rows are read from 'train', beside it; give it as a file of its own"}


def test_a_control_character_in_json_is_one_of_the_text(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(b'{"a": "page 1\x0cpage 2"}\n')
    (tmp_path / "rows.json").write_bytes(b'[{"a": "page 1\x0cpage 2"}]')
    for path in tmp_path.iterdir():
        assert [row["a"] for row in files.read(path) if isinstance(row, dict)] == ["page 1\x0cpage 2"]


def test_jsonl_under_the_suffix_json_is_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text('{"a": 1}\n{"a": 2}\n')
    assert reasons(path) == [1, 2]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("rows.jsonl", b"", "holds no rows"),
        ("rows.jsonl", b"\n \n", "holds no rows"),
        ("rows.json", b"", "holds no rows"),
        ("rows.json", b"[]", "holds no rows"),
        ("rows.json", b'[{"a": 1', "not JSON at line 1"),
        ("rows.json", b'[{"a": "\xff"}]', "not UTF-8"),
        ("rows.json", b"3", "found int"),
        ("rows.json", b"[" * 100_000, "nested too deeply"),
        ("rows.jsonl", '{"a": 1}\n'.encode("utf-16"), "UTF-16"),
        ("rows.parquet", b"no parquet", "cannot be read as parquet"),
        ("rows.txt", b"a,b\n1,2\n", "files that end in.*save it as JSONL or CSV"),
        ("rows.csv", b"a,b\n", "holds no rows"),
        ("rows.csv", b"a,a\n1,2\n", "name each column once"),
        ("rows.tsv", "a\tb\n".encode("utf-16"), "UTF-16"),
        ("rows.jsonl", gzip.compress(b'{"a": 1}', mtime=0), "is gzip .*name it as what it is"),
        ("rows.csv", bz2.compress(b"a,b\n1,2\n"), "is bzip2"),
        ("rows.json", b"PAR1....PAR1", "is parquet"),
        ("rows.csv", b"PK\x03\x04....", "spreadsheet"),
    ],
)
def test_a_file_that_cannot_be_rows_is_one_message(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=said):
        list(files.read(tmp_path / name))


def test_csv_rows_that_cannot_be_read_are_reasons(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    long = b"x" * 200_000
    lines = [b"\xef\xbb\xbfa,b", b'1,"two\nlines, ""here"""', b"", b"3", b"4,\xff", b'5"6",7', b"8," + long]
    path.write_bytes(b"\r\n".join(lines))
    assert reasons(path) == [1, "wrong_number_of_cells", "not_utf8", 4, 5]
    rows = [row for row in files.read(path) if not isinstance(row, RowError)]
    assert rows[0] == {"a": "1", "b": 'two\nlines, "here"', files.ROW: 1, files.FILE: "rows.csv"}
    assert len(rows[-1]["b"]) == len(long)


def test_a_quote_that_never_ends_costs_its_row_and_all_that_it_swallows(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text('a,b\n1,2\n3,"open\n5,6\n')
    assert reasons(tmp_path / "rows.csv") == [1, "not_csv", "not_csv"]


def test_csv_without_a_first_line_of_names_is_given_them(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("1,2\n3,4\n")
    (tmp_path / "rows.tsv").write_text("\ta\n0\t5\n")
    assert list(files.read(tmp_path / "rows.csv", header=("a", "b")))[1] == {
        "a": "3",
        "b": "4",
        files.ROW: 2,
        files.FILE: "rows.csv",
    }
    assert list(files.read(tmp_path / "rows.tsv")) == [{"column 1": "0", "a": "5", files.ROW: 1, files.FILE: "rows.tsv"}]


def test_a_missing_file_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        list(files.read(tmp_path / "rows.jsonl"))
