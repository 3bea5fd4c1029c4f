"""What bad input gets, through the real stages: each bad row is counted under its reason with file and row, or the build stops
with one line. Nothing else goes on to the records: a row is there as it was, or named.

Covers: data_prep/errors.
"""

import csv
import importlib
import io
import json
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rounds.data_prep import sources
from rounds.data_prep.errors import UserError
from rounds.data_prep.records import answers_of, prompt_of, read_records
from rounds.data_prep.sources import MAX_CHARACTERS
from tests import staged

GOOD: dict[str, list[dict[str, Any]]] = {
    "question_answer": [{"question": f"What is sign {n}?", "answer": f"It is kind {n}."} for n in range(20)],
    "messages": [
        {
            "messages": [
                {"role": "user", "content": f"What is sign {n}?"},
                {"role": "assistant", "content": f"Kind {n}."},
            ]
        }
        for n in range(20)
    ],
    "multiple_choice": [{"question": f"Which is {n}?", "choices": [f"{n}", f"not {n}"], "answer": 0} for n in range(20)],
    "preference": [{"prompt": f"Is {n} safe?", "chosen": f"Ask first {n}.", "rejected": "Sure."} for n in range(20)],
}
HOT = {"question": "Hot?", "answer": "Fever."}


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def system(content: Any) -> dict[str, Any]:
    return {"role": "system", "content": content}


def said(content: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


def jsonl(rows: Sequence[Any], encoding: str = "utf-8") -> bytes:
    return "\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode(encoding, "surrogatepass")


def table(rows: Sequence[dict[str, Any]], encoding: str = "utf-8") -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0])
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode(encoding)


def parquet(rows: Sequence[dict[str, Any]]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows)), buffer)
    return buffer.getvalue()


def parquet_of_bytes(rows: Sequence[bytes]) -> bytes:
    """A column that says that it is text, and is not."""
    raw = pa.array(rows, pa.binary())
    buffer = io.BytesIO()
    texts = pa.Array.from_buffers(pa.string(), len(rows), raw.buffers())
    pq.write_table(pa.table({"question": texts, "answer": texts}), buffer)
    return buffer.getvalue()


def parquet_of(value: Any, kind: pa.DataType, name: str = "when") -> bytes:
    """Good rows with one more column."""
    base, buffer = pa.Table.from_pylist(GOOD["question_answer"]), io.BytesIO()
    pq.write_table(base.append_column(name, pa.array([value] * base.num_rows, kind)), buffer)
    return buffer.getvalue()


def run(folder: Path, name: str, content: bytes, format: str, **fields: Any) -> tuple[dict[str, Any], Path]:
    """Put one file through the stages `source` and `data`; the counts of `source`, and the folder."""
    path, out = folder / name, folder / "source"
    path.write_bytes(content)
    out.mkdir()
    use = {"source": "file", "format": format, "max_bad_share": 0.9, **fields}
    params = {"use": use, "source_version": 1, "repository": None, "revision": None}
    counts = staged.run("source", params, {"path": path}, out, None)
    kind = {"multiple_choice": "conversation", "preference": "pair"}.get(format, "conversation")
    mixed = folder / "data"
    mixed.mkdir()
    filters = [{"name": each} for each in ("exact_dedup", "near_dedup", "decontaminate", "quality")]
    params = {"mix": [{"name": "own"}], "filters": filters, "seed": 0, "kind": kind}
    staged.run("data", params, {"source.own": out}, mixed, None)
    return counts, out


def dropped(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "dropped.jsonl").read_text().splitlines()]


BAD_ROWS = {
    "question_answer": [
        ({**HOT, "answer": None}, "empty_answer"),
        ({**HOT, "answer": ""}, "empty_answer"),
        ({**HOT, "answer": "\u200b \ufeff"}, "empty_answer"),
        ({**HOT, "answer": ["Fever."]}, "answer_not_text"),
        ({**HOT, "answer": float("nan")}, "answer_not_text"),
        ({**HOT, "question": {"text": None}}, "question_not_text"),
        ({"question": "Hot?"}, "missing_column_answer"),
        ({**HOT, "question": "a\x00b"}, "control_characters"),
        ({**HOT, "question": "\x1b[31mred"}, "control_characters"),
        ({**HOT, "question": "\u202etoh"}, "control_characters"),
        ({**HOT, "question": "\uffff"}, "control_characters"),
        ({**HOT, "answer": "x" * MAX_CHARACTERS}, "too_many_characters"),
        ({**HOT, "answer": "word " * 2_000_000}, "too_many_characters"),
        ({**HOT, "system": 7}, "system_not_text"),
        ({**HOT, "id": ""}, "empty_id"),
        ({**HOT, "id": 1.5}, "id_not_text"),
        ({**HOT, "id": ["a"]}, "id_not_text"),
        ({**HOT, "id": "x" * 2000}, "id_too_long"),
        ({**HOT, "id": "twice"}, None),
        ({**HOT, "id": "twice"}, "duplicate_id"),
        (["Hot?", "Fever."], "not_an_object"),
        ("Hot?", "not_an_object"),
        (None, "not_an_object"),
    ],
    "messages": [
        ({"messages": [said("Fever."), user("Hot?")]}, "turns_out_of_order"),
        ({"messages": [user("Hot?"), user("Hot?"), said("Fever.")]}, "turns_out_of_order"),
        ({"messages": [user("Hot?"), system("Be brief."), said("Fever.")]}, "turns_out_of_order"),
        ({"messages": [system("Be brief."), said("Fever.")]}, "turns_out_of_order"),
        ({"messages": [system("Be brief."), system("Be long."), user("Hot?"), said("Fever.")]}, "two_system_messages"),
        ({"messages": [user("Hot?")]}, "last_turn_not_assistant"),
        ({"messages": [system("Be brief.")]}, "no_messages"),
        ({"messages": []}, "no_messages"),
        ({"messages": None}, "empty_messages"),
        ({"messages": [None]}, "message_not_an_object"),
        ({"messages": [{"role": None, "content": None}]}, "unknown_role"),
        ({"messages": [{"role": "tool", "content": "7"}, said("Fever.")]}, "unknown_role"),
        ({"messages": [user(None), said("Fever.")]}, "empty_content"),
        ({"messages": [user(["Hot?"]), said("Fever.")]}, "content_not_text"),
        ({"messages": "Hot?"}, "messages_not_a_list"),
        ({"talk": []}, "missing_column_messages"),
    ],
    "multiple_choice": [
        ({"question": "Which?", "answer": 0}, "missing_column_choices"),
        ({"question": "Which?", "choices": None, "answer": 0}, "empty_choices"),
        ({"question": "Which?", "choices": [], "answer": 0}, "fewer_than_two_choices"),
        ({"question": "Which?", "choices": ["one"], "answer": 0}, "fewer_than_two_choices"),
        ({"question": "Which?", "choices": ["one", None], "answer": 0}, "empty_choice"),
        ({"question": "Which?", "choices": ["one", " ONE"], "answer": 0}, "repeated_choices"),
        ({"question": "Which?", "choices": "one, two", "answer": 0}, "choices_not_a_list"),
        ({"question": "Which?", "choices": ["one", "two"], "answer": 2}, "answer_out_of_range"),
        ({"question": "Which?", "choices": ["one", "two"], "answer": -1}, "answer_out_of_range"),
        ({"question": "Which?", "choices": ["one", "two"], "answer": 10**30}, "answer_out_of_range"),
        ({"question": "Which?", "choices": ["one", "two"], "answer": "three"}, "answer_not_among_choices"),
        ({"question": "Which?", "choices": ["one", "two"], "answer": 1.5}, "answer_not_index_or_text"),
        ({"question": "Which?", "choices": ["one", "two"], "answer": True}, "answer_not_index_or_text"),
        ({"question": "Which?", "choices": ["one", "two"]}, "missing_column_answer"),
    ],
    "preference": [
        ({"prompt": "Safe?", "chosen": "No.", "rejected": " No."}, "identical_answers"),
        ({"prompt": "Safe?", "chosen": None, "rejected": "Yes."}, "empty_chosen"),
        ({"prompt": "Safe?", "chosen": "No."}, "missing_column_rejected"),
        ({"prompt": None, "chosen": "No.", "rejected": "Yes."}, "missing_column_prompt"),
        ({"prompt": [said("Safe?")], "chosen": "No.", "rejected": "Yes."}, "turns_out_of_order"),
        ({"prompt": "Safe?", "chosen": [user("Safe?"), said("No.")], "rejected": [user("So?"), said("Yes.")]}, "prompts_differ"),
        ({"prompt": "Safe?", "chosen": [], "rejected": "Yes."}, "no_messages"),
        ({"prompt": {"text": "Safe?"}, "chosen": "No.", "rejected": "Yes."}, "messages_not_a_list"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("format", BAD_ROWS)
def test_every_bad_row_is_counted_under_its_reason_with_file_and_row(tmp_path: Path, format: str) -> None:
    """Bad rows stand between good ones, in an order by chance; all good ones come out as they were."""
    rows = [*((row, None) for row in GOOD[format]), *BAD_ROWS[format]]
    shuffled = random.Random(3).sample(rows, len(rows))
    twins = [place for place, (row, _) in enumerate(shuffled) if row == HOT | {"id": "twice"}]
    for place, reason in zip(twins, (None, "duplicate_id"), strict=False):  # whichever comes second is the one too many
        shuffled[place] = (shuffled[place][0], reason)
    counts, out = run(tmp_path, "rows.jsonl", jsonl([row for row, _ in shuffled]), format)
    wanted = Counter(reason for _, reason in rows if reason)
    assert counts["rows"] == len(rows) and counts["dropped"] == dict(wanted)
    assert counts["records"] == len(rows) - wanted.total()
    named = {(each["file"], each["row"]): each["reason"] for each in dropped(out)}
    places = {("rows.jsonl", number): reason for number, (_, reason) in enumerate(shuffled, start=1) if reason}
    assert named == places
    kept = "\n".join(turn.content for record in read_records(out / "records.parquet") for turn in prompt_of(record))
    for row in GOOD[format]:
        assert (row.get("question") or row.get("prompt") or row["messages"][0]["content"]) in kept


TORN = jsonl(GOOD["question_answer"])
FILES = {
    "empty.jsonl": (b"", "holds no rows"),
    "blank.jsonl": (b"\n \n\n", "holds no rows"),
    "empty.json": (b"", "holds no rows"),
    "empty.csv": (b"", "holds no rows"),
    "header.csv": (b"question,answer\r\n", "holds no rows"),
    "empty.parquet": (b"", "cannot be read as parquet"),
    "header.parquet": (parquet(GOOD["question_answer"])[:0], "cannot be read as parquet"),
    "torn.parquet": (parquet(GOOD["question_answer"])[:300], "cannot be read as parquet"),
    "latin1.parquet": (parquet_of_bytes(["Größe".encode("latin-1")] * 3), "not UTF-8"),
    "latin1.jsonl": (jsonl([{"question": "Größe?", "answer": "Groß."}] * 9, "latin-1"), "9 of 9 rows.*not_utf8"),
    "latin1.json": (json.dumps([{"question": "Größe?"}], ensure_ascii=False).encode("latin-1"), "not UTF-8 at byte"),
    "latin1.csv": (table([{"question": "Größe?", "answer": "Groß."}] * 9, "latin-1"), "9 of 9 rows.*not_utf8"),
    "names.csv": ("Größe,answer\n1,2\n".encode("latin-1"), "first line.*not UTF-8"),
    "torn.csv": (b'"quest"ion,answer\n1,2\n', "first line.*cannot be read"),
    "twice.csv": (b"question,question\n1,2\n", "name each column once"),
    "semicolon.csv": (b"question;answer\nHot?;Fever.\n", "expected: question, answer; found in row 1.*question;answer"),
    "utf16.jsonl": (jsonl(GOOD["question_answer"], "utf-16"), "UTF-16"),
    "utf16be.jsonl": (b"\xfe\xff" + jsonl(GOOD["question_answer"], "utf-16-be"), "UTF-16"),
    "utf16bare.jsonl": (jsonl(GOOD["question_answer"], "utf-16-le"), "UTF-16 or UTF-32; save it as UTF-8"),
    "utf16.json": (json.dumps(GOOD["question_answer"]).encode("utf-16"), "UTF-16"),
    "utf16.csv": (table(GOOD["question_answer"], "utf-16"), "UTF-16"),
    "utf16bare.csv": (table(GOOD["question_answer"], "utf-16-be"), "UTF-16"),
    "key.json": (b'[{"question": "a", "question": "b", "answer": "c"}]', "one key twice"),
    "date.parquet": (parquet_of(2**30, pa.date32()), "column 'when'.*cannot be read"),
    "time.parquet": (parquet_of(2**62, pa.timestamp("us")), "column 'when'.*cannot be read"),
    "long.parquet": (parquet_of(2**62, pa.duration("s")), "column 'when'.*cannot be read"),
    "zone.parquet": (parquet_of(1, pa.timestamp("us", tz="Mars/Phobos")), "column 'when'.*Mars/Phobos"),
    "columns.parquet": (parquet_of("c", pa.string(), "answer"), "a name of its own; found question, answer, answer"),
    "utf32.jsonl": (jsonl(GOOD["question_answer"], "utf-32"), "UTF-16 or UTF-32"),
    "deep.json": (b"[" * 100_000, "nested too deeply|not JSON"),
    "object.json": (b'"rows"', "list of rows"),
    "surrogate.jsonl": (b'{"a\\ud800\\nb": 1}', r"found in row 1.*a\\ud800\\nb"),
    "binary.parquet": (parquet([{"question": b"Hot?", "answer": "Fever."}]), "question_not_text"),
    "rows.xlsx": (b"PK", "cannot be read as .xlsx|xlsx. is read with openpyxl"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_holds_nothing_to_use_stops_with_one_line(tmp_path: Path, name: str) -> None:
    content, message = FILES[name]
    with pytest.raises(UserError, match=message) as caught:
        run(tmp_path, name, content, "question_answer", max_bad_share=0.5)
    shown = str(caught.value)
    assert name in shown and "\n" not in shown and len(shown) < 600
    shown.encode()


LINES = {
    "bom.jsonl": (b"\xef\xbb\xbf" + TORN, {}),
    "bom.csv": (b"\xef\xbb\xbf" + table(GOOD["question_answer"]), {}),
    "bom.json": (b"\xef\xbb\xbf" + json.dumps(GOOD["question_answer"]).encode(), {}),
    "blank.csv": (b"\r\n\r\n" + table(GOOD["question_answer"]), {}),
    "parquet.parquet": (parquet(GOOD["question_answer"]), {}),
    "null.parquet": (parquet([*GOOD["question_answer"], {"question": None, "answer": "x"}]), {21: "empty_question"}),
    "one.jsonl": (TORN + b'\n{"question": "Gr\xf6\xdfe?", "answer": "x"}', {21: "not_utf8"}),
    "nul.jsonl": (TORN + b"\n\0\0\0\0", {21: "not_json"}),
    "deep.jsonl": (TORN + b"\n" + b"[" * 100_000, {21: "not_json"}),
    "digits.jsonl": (TORN + b'\n{"question": "x", "answer": ' + b"9" * 5000 + b"}", {21: "not_json"}),
    "surrogate.jsonl": (TORN + b'\n{"question": "\\ud800", "answer": "x"}', {21: "not_utf8"}),
    "key.jsonl": (TORN + b'\n{"question": "a", "answer": "b", "answer": "c"}', {21: "repeated_key"}),
    "key.json": (
        b'{"question": "a", "answer": "b", "answer": "c"}\n' + jsonl(GOOD["question_answer"]),
        {1: "repeated_key"},
    ),
    "nul.csv": (table(GOOD["question_answer"]) + b"Wh\0t?,x\r\n", {21: "control_characters"}),
    "latin1.csv": (table(GOOD["question_answer"]) + b"Gr\xf6\xdfe?,x\r\n", {21: "not_utf8"}),
    "cells.csv": (
        table(GOOD["question_answer"]) + b"one\r\n1,2,3\r\n",
        dict.fromkeys((21, 22), "wrong_number_of_cells"),
    ),
    # A quote without an end takes the lines up to the next quote, or all: each of them is counted.
    "quote.csv": (
        table(GOOD["question_answer"]) + b'q,"open\r\na,b\r\nc,"d"\r\n',
        dict.fromkeys((21, 22, 23), "not_csv"),
    ),
    "open.csv": (
        table(GOOD["question_answer"]) + b'q,"open\r\n' + b"a,b\r\n" * 5,
        dict.fromkeys(range(21, 27), "not_csv"),
    ),
}


@pytest.mark.parametrize("name", LINES)
def test_what_cannot_be_read_costs_its_rows_and_no_others(tmp_path: Path, name: str) -> None:
    content, wanted = LINES[name]
    counts, out = run(tmp_path, name, content, "question_answer")
    assert counts["records"] == 20 and counts["rows"] == 20 + len(wanted)
    assert {each["row"]: each["reason"] for each in dropped(out)} == wanted
    assert all(each["file"] == name for each in dropped(out))


def test_json_too_large_to_be_read_as_a_whole_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rounds.data_prep.files._JSON_LIMIT", 1 << 20)
    with pytest.raises(UserError, match=r"up to 1 MiB, and the file has 2 MiB; save it as \.jsonl"):
        run(tmp_path, "rows.json", b" " * (2 << 20), "question_answer")


def test_the_columns_found_are_the_file_s_own(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"found in row 1, the first .*: frage, antwort\. .*`columns: {answer: antwort}`$"):
        run(tmp_path, "rows.jsonl", jsonl([{"frage": "Heiß?", "antwort": "Ja."}]), "question_answer")


def test_a_line_without_an_end_is_not_held_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rounds.data_prep.files._LIMIT", 2000)
    content = TORN + b"\n" + b"x" * 9001 + b"\n" + jsonl([HOT]) + b"\n" + b"y" * 2000
    counts, out = run(tmp_path, "rows.jsonl", content, "question_answer")
    assert counts["records"] == 21
    assert [(each["row"], each["reason"]) for each in dropped(out)] == [(21, "line_too_long"), (23, "line_too_long")]


def test_rows_in_other_languages_are_counted_by_the_filter(tmp_path: Path) -> None:
    german = (
        "Das Fieber ist eine Erhöhung der Temperatur und wird von dem Arzt mit einem Thermometer nach der Aufnahme auf "
        "der Station gemessen."
    )
    chinese = "发烧是指体温升高。医生用体温计测量体温，然后开药，患者应该多喝水多休息。"
    mixed = "A fever is a high temperature (发烧, жар), and the doctor will measure it with a thermometer before any drug is given."
    rows = [{"question": f"Say {n}.", "answer": text} for n, text in enumerate((german, chinese, mixed))]
    run(tmp_path, "rows.jsonl", jsonl([*GOOD["question_answer"], *rows]), "question_answer")
    assert [each["reason"] for each in dropped(tmp_path / "data") if each["filter"] == "quality"] == ["not_english"] * 2
    assert mixed in [answers_of(record)[0] for record in read_records(tmp_path / "data" / "records.parquet")]


LINE = st.binary(max_size=60) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["question", "answer", "id", "\ud800"]), inner),
    max_leaves=6,
).map(lambda value: json.dumps(value).encode())


@settings(max_examples=60, deadline=None)
@given(lines=st.lists(LINE, max_size=6), suffix=st.sampled_from([".jsonl", ".json", ".csv", ".tsv"]))
def test_any_bytes_are_counted_or_stop_with_one_line(tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], suffix: str) -> None:
    folder = tmp_path_factory.mktemp("any")
    try:
        counts, out = run(folder, f"rows{suffix}", b"\n".join(lines), "question_answer", max_bad_share=1)
    except UserError as error:
        assert len(str(error).splitlines()) == 1
        str(error).encode()
    else:
        assert counts["rows"] == counts["records"] + sum(counts["dropped"].values())
        assert len(dropped(out)) == sum(counts["dropped"].values())


def examples() -> dict[str, tuple[str, str | None, dict[str, Any]]]:
    """For each source, and each format of `file`: its name, the format, and a row of it, that of its docstring."""
    found: dict[str, tuple[str, str | None, dict[str, Any]]] = {}
    for name in sources.names():
        text = " ".join((importlib.import_module(f"rounds.data_prep.sources.{name}").__doc__ or "").split())
        start = text.find('{"') if name != "clinic_facts" else -1
        while start >= 0:
            form = text[:start].split()[-1] if name == "file" else None
            # The docstring's own escapes leave line ends in the texts; strict parsing would refuse them.
            row, end = json.JSONDecoder(strict=False).raw_decode(text, start)
            found[f"{name}-{form or start}"] = name, form, row
            start = text.find('{"', end)
    return found


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from([10**400, "", "A", "<![foo[bar]]>", "\ud800"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["from", "role", "value"]), inner, max_size=2),
    max_leaves=3,
)  # fmt: skip


@st.composite
def spoilt(draw: st.DrawFn, value: Any) -> Any:
    """The value with any other in the place of one of its parts."""
    if not isinstance(value, dict | list) or not value or draw(st.integers(0, 3)) == 0:
        return draw(ANY)
    place = draw(st.sampled_from(sorted(value) if isinstance(value, dict) else range(len(value))))
    copy: Any = value.copy()
    copy[place] = draw(spoilt(value[place]))
    return copy


EXAMPLES = examples()


def test_every_source_and_format_has_an_example() -> None:
    assert {name for name, _, _ in EXAMPLES.values()} == set(sources.names()) - {"clinic_facts"}
    assert {form for _, form, _ in EXAMPLES.values() if form} == set(sources.load("file").kind_by_format)


@pytest.mark.parametrize("example", EXAMPLES)
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_any_value_in_any_column_is_counted_by_every_source(
    tmp_path_factory: pytest.TempPathFactory, example: str, data: st.DataObject
) -> None:
    name, form, row = EXAMPLES[example]
    splits = [split for split in sources.load(name).splits if split != "heldout"]
    folder, split = tmp_path_factory.mktemp("any"), data.draw(st.sampled_from(splits))
    rows = [row, *data.draw(st.lists(spoilt(row), min_size=1, max_size=6))]
    path = folder / ("anatomy_test.jsonl" if name == "mmlu_medical" else "rows.jsonl")
    path.write_text("\n".join(json.dumps(each) for each in rows))
    tags = {"system_prompt": "You are a helpful assistant.", "question": "Name a citrus fruit.", "id": f"{split}.1"}
    (folder / "1M-GPT4-Augmented.parquet").write_bytes(parquet([tags]))  # slim_orca looks for it beside its rows
    use = {"source": name, "split": split, "format": form, "max_bad_share": 1}
    out = folder / "out"
    out.mkdir()
    params = {"use": use, "source_version": 1, "repository": None, "revision": None}
    try:
        counts = staged.run("source", params, {"path": path}, out, None)
    except UserError as error:
        assert len(str(error).splitlines()) == 1
    else:
        assert counts["rows"] == counts["records"] + sum(counts["dropped"].values())
