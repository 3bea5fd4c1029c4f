"""`rounds data preview` of rows that do not fit: the reasons that a run gives, and what to do, without a long wait.

Covers: data_prep/tally, train/display/first_rows.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rounds.data_prep import build
from rounds.data_prep.errors import UserError
from rounds.data_prep.schema import SourceParams
from rounds.train.config import recipe
from rounds.train.display import first_rows
from rounds.train.plan.pipeline import Plan, build_plan
from tests.train.plan.test_pipeline import BLOCKED, REPOSITORY

RECIPE = """
name: own
base: {{kind: tiny, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 1, num_attention_heads: 2, vocab_size: 400,
  max_position_embeddings: 256}}
sources:
  notes: {{source: file, path: {path}, format: question_answer, licence: mine, phi: off, max_bad_share: 0.2}}
sft: {{data: [notes], max_length: 128, global_batch_size: 2, learning_rate: 1.0e-3}}
wandb: off
"""


def planned(folder: Path, rows: list[Any]) -> Plan:
    (folder / "notes.jsonl").write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    (folder / "own.yaml").write_text(RECIPE.format(path=folder / "notes.jsonl"))
    return build_plan(recipe.load(folder / "own.yaml"), folder / "store", folder)


def test_preview_gives_the_reasons_of_a_run_with_the_nearest_column_and_a_mapping(tmp_path: Path) -> None:
    plan = planned(tmp_path, [{"question": f"Is {n} even?", "reply": "Count."} for n in range(201)])
    with pytest.raises(UserError) as preview:
        first_rows.rows(plan, tmp_path / "store", "notes", 3)
    assert "201 of 201 rows do not fit" in str(preview.value) and "missing_column_answer (201)" in str(preview.value)
    assert "expected: question, answer; found in row 1" in str(preview.value)
    assert str(preview.value).endswith("Perhaps answer is reply; then say in the recipe `columns: {answer: reply}`")
    params = plan.stage("source.notes").params
    assert isinstance(params, SourceParams)
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError) as run:
        build.source(params, {"path": tmp_path / "notes.jsonl"}, tmp_path / "out", None)
    assert str(run.value).partition("201 of")[2] == str(preview.value).partition("201 of")[2]


def test_preview_names_what_nobody_reads_and_what_to_do_about_reasoning(tmp_path: Path) -> None:
    good = {"question": "Is 2 even?", "answer": "Yes.", "input": "", "tools": None}
    found = first_rows.rows(
        planned(tmp_path, [good, good | {"question": "Is 3?", "input": "3", "images": ["a"]}]), tmp_path / "store", "notes", 1
    )
    assert (found.not_used, found.unfit) == ("images, input", "")
    thought = {"role": "assistant", "reasoning_content": "Count.", "content": "Yes."}
    planned(tmp_path, [{"messages": [{"role": "user", "content": "Is 2 even?"}, thought]}])
    (tmp_path / "own.yaml").write_text((tmp_path / "own.yaml").read_text().replace("question_answer", "messages"))
    plan = build_plan(recipe.load(tmp_path / "own.yaml"), tmp_path / "store", tmp_path)
    with pytest.raises(UserError, match=r"has_reasoning \(1\) \(`reasoning: learn` learns"):
        first_rows.rows(plan, tmp_path / "store", "notes", 1)


def test_preview_tells_of_the_rows_beside_those_that_fit(tmp_path: Path) -> None:
    good = [{"question": f"Is {n} even?", "answer": "Count."} for n in range(9)]
    found = first_rows.rows(planned(tmp_path, [*good, good[0] | {"id": "x", "answer": ""}, "{cut"]), tmp_path / "store", "notes", 2)
    assert len(found.records) == 2
    assert found.unfit == "of the first 11 rows 2 give no record: empty_answer (1), not_json (1)"
    bad = first_rows.rows(planned(tmp_path, [*good, *["{cut"] * 6]), tmp_path / "store", "notes", 2)
    assert len(bad.records) == 2 and "a run would refuse this source" in bad.unfit and "6 of 15 rows do not fit" in bad.unfit
    assert first_rows.rows(planned(tmp_path, good), tmp_path / "store", "notes", 2).unfit == ""


def test_preview_tells_of_the_files_of_a_folder_that_are_not_read(tmp_path: Path) -> None:
    planned(tmp_path, [])
    for name in ("symptoms", "validation"):
        (tmp_path / "rows").mkdir(exist_ok=True)
        (tmp_path / "rows" / f"{name}.jsonl").write_text('{"question": "Hot?", "answer": "Yes.\\f"}\n')
    (tmp_path / "own.yaml").write_text(RECIPE.format(path=tmp_path / "rows, control_characters: clean"))
    plan = build_plan(recipe.load(tmp_path / "own.yaml"), tmp_path / "store", tmp_path)
    said = "of the first 1 rows 1 had control characters taken out; not read: validation.jsonl (its name says split 'validation')"
    assert first_rows.rows(plan, tmp_path / "store", "notes", 2).unfit == said


@pytest.mark.parametrize(
    ("rows", "name", "said"),
    [
        ([{"question": "Why?", "answer": "So."}], "note", "no stage of this recipe reads a source 'note': did you mean 'notes'"),
        ([{"question": "Why?", "reply": "So."}], "notes", "columns: {answer: reply}"),
    ],
)
def test_preview_of_a_mistake_imports_no_torch(tmp_path: Path, rows: list[Any], name: str, said: str) -> None:
    planned(tmp_path, rows)
    command = [sys.executable, "-c", BLOCKED + "from rounds.train.cli import main; main()", "data", "preview", str(tmp_path / "own.yaml")]
    found = subprocess.run([*command, "--source", name, "--store", str(tmp_path)], capture_output=True, text=True, cwd=REPOSITORY)
    assert found.returncode == 1 and said in found.stderr + found.stdout, found.stderr
