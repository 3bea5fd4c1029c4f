"""A task file over a source's questions: lm-eval gets finished texts, and reads none of them as a program or as Python."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from rounds.data_prep.errors import UserError
from rounds.data_prep.records import Message, Question
from rounds.train.config.cluster import Machine
from rounds.train.engine import policy
from rounds.train.engine.params import Task
from rounds.train.evaluation import lm_eval, own_tasks
from rounds.train.weights import models
from tests.train.conftest import REPOSITORY

WRITTEN = (REPOSITORY / "recipes" / "eval_tasks" / "free_answer.yaml").read_text()
CHOSEN = """output_type: multiple_choice
description: "Of {{group}}. "
doc_to_text: question
doc_to_choice: "{{choices}}"
doc_to_target: "{{choices[answer]}}"
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""


def task(yaml: str) -> Task:
    return Task(task="mine", name="mine", source="asked", num_fewshot=0, limit=None, yaml=yaml)


@pytest.fixture
def folder(put: Callable) -> Path:
    """Questions whose texts are Python's lists, numbers, dates and Jinja."""
    sets = [("[1]", '["a"]'), ("1", "0"), ("2020-01-01", "2021-01-01"), ("{{ 7 * 7 }}", "{% raw %}"), ("None", "True")]
    rows = [Question(f"q{n}", "made", (Message("user", f"[{n}]"),), texts, n % 2, "part") for n, texts in enumerate(sets)]
    return put("asked", rows)


def test_right_answers_are_texts_whatever_they_look_like(folder: Path, tmp_path: Path):
    config = own_tasks.configuration(task(WRITTEN), folder, tmp_path / "cache" / "tasks")
    rows = {row["id"]: row for row in pq.read_table(config["dataset_kwargs"]["data_files"]["test"]).to_pylist()}
    assert {row["rounds_target"] for row in rows.values()} == {"[1]", "0", "2020-01-01", "{% raw %}", "None"}
    assert config["doc_to_text"] == "rounds_text" and config["doc_to_target"] == "rounds_target"
    assert rows["q0"]["rounds_text"] == "[0]"


def test_right_choices_are_places_and_choices_lists_of_texts(folder: Path, tmp_path: Path):
    config = own_tasks.configuration(task(CHOSEN), folder, tmp_path / "cache" / "tasks")
    rows = {row["id"]: row for row in pq.read_table(config["dataset_kwargs"]["data_files"]["test"]).to_pylist()}
    assert rows["q0"]["rounds_choices"] == ["[1]", '["a"]'] and rows["q3"]["rounds_choices"] == ["{{ 7 * 7 }}", "{% raw %}"]
    assert [rows[f"q{n}"]["rounds_target"] for n in (0, 2, 3, 4)] == [0, 0, 1, 0]
    assert rows["q0"]["rounds_description"] == "Of part. "


def test_no_list_of_choices_is_refused(folder: Path, tmp_path: Path):
    no_list = CHOSEN.replace('"{{choices}}"', "\"{{ 'yes' }}\"")
    with pytest.raises(UserError, match=r"task 'mine': doc_to_choice: expected a list of texts.*found 'yes'"):
        own_tasks.configuration(task(no_list), folder, tmp_path / "cache" / "tasks")


@pytest.mark.parametrize(("yaml", "metric"), [(WRITTEN, "exact_match"), (CHOSEN, "acc")], ids=["written", "chosen"])
def test_lm_eval_asks_such_questions_to_the_end(folder: Path, shelf: Path, tmp_path: Path, yaml: str, metric: str):
    """A right answer of `[1]` ended it with a TypeError."""
    start = policy.read(shelf / "base")
    out = tmp_path / "out"
    out.mkdir()
    machine = Machine(device="cpu", threads=1)
    lm = lm_eval.wrap(models.load_to_score(start, machine), models.load_tokenizer(start), 4, 256, out)
    log = io.StringIO()
    found = list(lm_eval.run_tasks(lm, [task(yaml)], {"asked": folder}, out, "drop", log, {}))
    named = [given for given in found if given.metric == f"mine/{metric}"]
    assert {given.item for given in named if isinstance(given, lm_eval.Value)} == {f"mine/q{n}" for n in range(5)}
    assert len([json.loads(line) for line in log.getvalue().splitlines()]) == 5
