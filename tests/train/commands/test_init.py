"""`rounds init`: the recipe that it writes plans as it is, says what it read of a data file, and overwrites nothing."""

import csv
import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from rounds.train import cli

THINGS = ("heart", "liver", "kidney", "spleen", "lung", "brain")
ASKED = [(f"What does the {one} owe to the {other}?", f"Its {other}.") for one in THINGS for other in THINGS]
FILES = {
    "alpaca.csv": ("Instruction", "Output"),
    "plain.jsonl": [{"question": asked, "answer": answer, "id": asked} for asked, answer in ASKED],
    "odd names.jsonl": [{"user": asked, "yes": "x", "Reply": answer, "system prompt": "Be brief."} for asked, answer in ASKED],
    "chat.json": [
        {"conversations": [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]} for asked, answer in ASKED
    ],
    "pairs.jsonl": [{"question": asked, "chosen": answer, "rejected": "Nothing."} for asked, answer in ASKED],
    "factory.jsonl": [{"instruction": asked, "input": "Now.", "chosen": answer, "rejected": "Nothing."} for asked, answer in ASKED],
    "openai.jsonl": [
        {
            "input": {"messages": [{"role": "user", "content": asked}]},
            "preferred_output": [{"role": "assistant", "content": answer}],
            "non_preferred_output": [{"role": "assistant", "content": "Nothing."}],
        }
        for asked, answer in ASKED
    ],
    "dolly.jsonl": [{"instruction": "Answer.", "context": asked, "response": answer} for asked, answer in ASKED],
    "hh.jsonl": [
        {"chosen": f"\n\nHuman: {asked}\n\nAssistant: {answer}", "rejected": f"\n\nHuman: {asked}\n\nAssistant: No."}
        for asked, answer in ASKED
    ],
    "one.jsonl": [{"question": "What now?", "answer": "Nothing."}],
}
EXPECTED = {
    "alpaca.csv": ("question_answer", {"question": "Instruction", "answer": "Output"}),
    "plain.jsonl": ("question_answer", {}),
    "odd names.jsonl": ("question_answer", {"question": "user", "answer": "Reply", "system": "system prompt"}),
    "chat.json": ("messages", {"messages": "conversations"}),
    "pairs.jsonl": ("preference", {"prompt": "question"}),
    "factory.jsonl": ("preference", {}),
    "openai.jsonl": ("preference", {"chosen": "preferred_output", "rejected": "non_preferred_output", "prompt": "input"}),
    "dolly.jsonl": ("alpaca", {"input": "context", "output": "response"}),
    "hh.jsonl": ("preference", {}),
    "one.jsonl": ("question_answer", {}),
}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ROUNDS_STORE", raising=False)
    return tmp_path


def rounds(*arguments: str, expect: int = 0) -> str:
    done = CliRunner().invoke(cli.app, [*arguments])
    assert done.exit_code == expect, done.output
    return " ".join(done.output.split())


def write(name: str) -> None:
    rows = FILES[name]
    if name.endswith(".csv"):
        with Path(name).open("w", newline="") as file:
            csv.writer(file).writerows([rows, *ASKED])
    else:
        Path(name).write_text(json.dumps(rows) if name.endswith(".json") else "\n".join(map(json.dumps, rows)))


@pytest.mark.parametrize("name", FILES)
def test_a_recipe_of_a_file_plans_as_it_is(name):
    write(name)
    said = rounds("init", "--data", name)
    mine = yaml.safe_load(Path("my-run.yaml").read_text())["sources"]["mine"]
    assert (mine["format"], mine.get("columns", {})) == EXPECTED[name] and mine["format"] in said
    assert ("not read: yes" in said) == ("not read" in said) == (name == "odd names.jsonl")
    assert "source.mine " in rounds("plan", "my-run.yaml", "--keys")


def test_a_recipe_without_a_file_plans_as_it_is_and_is_short():
    assert "wrote other.yaml" in rounds("init", "other")
    assert "dpo.first" in rounds("plan", "other.yaml", "--keys")
    assert len(Path("other.yaml").read_text().splitlines()) < 80


def test_a_file_that_is_there_is_left_as_it_is():
    Path("my-run.yaml").write_text("mine")
    assert "my-run.yaml is there already" in rounds("init", expect=1)
    assert Path("my-run.yaml").read_text() == "mine"


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (
            {"Frage": "Was?", "Antwort": "Nichts."},
            ["its columns are Frage, Antwort", "question_answer (question, answer)"],
        ),
        ({"messages": [{"role": "human", "content": "What?"}]}, ["looks like messages", "unknown_role (1)"]),
        ({"chosen": "Yes.", "rejected": "No."}, ["looks like preference", "missing_column_prompt (1)"]),
    ],
)
def test_columns_that_cannot_be_understood_are_told(row, expected):
    Path("rows.jsonl").write_text(json.dumps(row))
    said = rounds("init", "--data", "rows.jsonl", expect=1)
    assert not Path("my-run.yaml").exists()
    for part in expected:
        assert part in said


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("rows.csv", "question,answer\nFièvre à 40 °C ?,Oui.\n".encode("cp1252"), "encoding: cp1252"),
        ("rows.csv", b"question;answer\nHot?;Yes.\n", "separated by semicolons: save it with commas"),
        ("rows.jsonl", b'{"question": "Hot?\\f", "answer": "Yes."}\n', "`control_characters: clean`"),
        ("rows.csv", b"question,A,B,answer\nHot?,Yes.,No.,B\n", "A, B are choices"),
        ("rows.jsonl", b'{"question": "Hot?", "options": ["Yes.", "No."], "answer": "A"}\n', "options are choices"),
        ("rows.jsonl", b"{cut", "none of its first 1 rows can be read: not_json"),
    ],
)
def test_a_file_that_needs_a_choice_or_another_form_is_told_which(name, content, expected):
    Path(name).write_bytes(content)
    assert expected in rounds("init", "--data", name, expect=1)


@pytest.mark.parametrize("name", ["a/b", "", "-x", "x" * 61, "ü"])
def test_a_name_that_is_none_is_refused(name):
    assert "names no recipe" in rounds("init", "--", name, expect=1)
