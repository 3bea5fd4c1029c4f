"""A task file of recipes/eval_tasks over a source's questions, as lm-eval takes it.

In: the file's text, a folder of questions. Out: the task's configuration, and its rows with what its templates write in columns of their
own, so that lm-eval neither runs a template nor reads a text as Python: it takes `[1]` for a list, and a list for several right answers.

A template sees `id`, `group`, `question`, `choices` and `answer`, the place of the right choice.
"""

import ast
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from rounds.data_prep import records
from rounds.data_prep.errors import UserError
from rounds.data_prep.records import RECORDS, Question
from rounds.train.engine.params import Task
from rounds.train.tokens import sandbox

_TEXTS = {"description": "rounds_description", "doc_to_text": "rounds_text", "doc_to_target": "rounds_target",
          "doc_to_choice": "rounds_choices"}  # fmt: skip
"""Fields of a task file that write a text for each row, and the columns that hold it."""


def configuration(task: Task, source: Path, folder: Path) -> dict[str, Any]:
    """Write the rows of a task and return its configuration for lm-eval.

    The rows are in an order by hash, so that the first `limit` of them are a fair sample and the same for every policy. Raises `UserError`
    for a template that cannot be rendered, or that writes no list where choices are wanted.
    """
    config = yaml.safe_load(task.yaml or "")
    rows = _rows(source)
    templates = {name: config[name] for name in _TEXTS if isinstance(config.get(name), str) and config[name] not in rows[0]}
    written = sandbox.render(templates, rows, f"task {task.name!r}")
    columns: dict[str, list[Any]] = {name: [row[name] for row in rows] for name in rows[0]}
    for name, column in _TEXTS.items():
        if name in templates:
            columns[column] = [line[name] for line in written]
        elif isinstance(config.get(name), str):
            columns[column] = columns[config[name]]
    if "rounds_choices" in columns and "doc_to_choice" in templates:
        columns["rounds_choices"] = [_choices(task.name, text) for text in columns["rounds_choices"]]
    if "rounds_target" in columns:
        given = columns.get("rounds_choices") or [config.get("doc_to_choice")] * len(rows)
        columns["rounds_target"] = [_target(value, choices) for value, choices in zip(columns["rounds_target"], given, strict=True)]
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{task.name}.parquet"  # not JSON, of which `datasets` would guess the types
    pq.write_table(pa.table(columns), file)
    return {
        **config,
        **{name: column for name, column in _TEXTS.items() if column in columns},
        "task": task.name,
        "dataset_path": "parquet",
        "dataset_kwargs": {"data_files": {"test": str(file)}, "cache_dir": str(folder.parent)},
        "test_split": "test",
    }


def _rows(source: Path) -> list[dict[str, Any]]:
    questions = [record for record in records.read_records(source / RECORDS) if isinstance(record, Question)]
    return [
        {
            "id": question.id,
            "group": question.group,
            "question": "\n\n".join(message.content for message in question.prompt),
            "choices": list(question.choices),
            "answer": question.answer,
        }
        for question in sorted(questions, key=lambda record: records.stable_hash("evaluate", record.id))
    ]


def _choices(task: str, text: str) -> list[str]:
    try:
        found = ast.literal_eval(text)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        found = None
    if not isinstance(found, list) or not found or not all(isinstance(each, str) for each in found):
        raise UserError(f"task {task!r}: doc_to_choice: expected a list of texts, as {{{{choices}}}} writes one; found {text[:100]!r}")
    return found


def _target(value: Any, choices: Sequence[str] | None) -> str | int:
    """Return the text that is right or, where there are choices, the place of the right one among them; -100, as lm-eval has it, for a text
    that is none."""
    if choices is None:
        return str(value)
    text = str(value)
    return int(text) if text.isdigit() else choices.index(text) if text in choices else -100
