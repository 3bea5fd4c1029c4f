"""A task file says what it may say, or is refused with file and line."""

from pathlib import Path

import pytest

from rounds.data_prep.errors import UserError
from rounds.train.plan import own_task
from tests.train.conftest import REPOSITORY

SHIPPED = REPOSITORY / "recipes" / "eval_tasks"
GOOD = """task: written
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{choices[answer]}}"
generation_kwargs:
  until: ["."]
  max_gen_toks: 8
filter_list:
  - name: first
    filter:
      - function: take_first
  - name: yes-or-no
    filter:
      - {function: regex, regex_pattern: "(yes|no)"}
      - function: take_first
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
metadata:
  version: 1
"""


def put(folder: Path, text: str) -> Path:
    file = folder / "mine.yaml"
    file.write_text(text)
    return file


@pytest.mark.parametrize("file", sorted(SHIPPED.glob("*.yaml")), ids=lambda file: file.stem)
def test_every_shipped_task_is_taken(file: Path):
    text, said = own_task.read(file)
    assert text == file.read_text() and own_task.metrics(said)


def test_a_metric_is_listed_once_for_each_filter(tmp_path: Path):
    _, said = own_task.read(put(tmp_path, GOOD))
    assert own_task.metrics(said) == ["exact_match,first", "exact_match,yes-or-no"]


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('"{{question}}"', "!function utils.text", "mine.yaml: not a task file: line 3.*`!function`"),
        ("metadata:\n", "class: !function task.Mine\nmetadata:\n", "mine.yaml: not a task file: line 20"),
        ("metadata:\n", "include: ../other.yaml\nmetadata:\n", "mine.yaml:20: include: a task file here may not say this"),
        ("metadata:\n", "dataset_path: json\nmetadata:\n", "mine.yaml:20: dataset_path: a task file here may not say this"),
        ("metadata:\n", "process_results: run\nmetadata:\n", "mine.yaml:20: process_results:"),
        ("aggregation: mean", "hf_evaluate: true", "mine.yaml:18: metric_list.0.hf_evaluate: a task file here may not say this"),
        ("metric: exact_match", "metric: rouge", "mine.yaml:17: metric_list.0.metric: found 'rouge'; "),
        ("function: take_first\n  -", "function: custom\n  -", "mine.yaml:11: filter_list.0.filter.0.function: found 'custom'"),
        ("name: first", "name: 'a/b'", "mine.yaml:9: filter_list.0.name: expected a plain word"),
        ("task: written", "task: ../written", "mine.yaml:1: task: expected a plain word"),
        ("output_type: generate_until", "output_type: code", "mine.yaml:2: output_type: found 'code'"),
        ("max_gen_toks: 8", "num_beams: 8", "mine.yaml:7: generation_kwargs.num_beams"),
        ('doc_to_target: "{{choices[answer]}}"\n', "", "mine.yaml: the whole: required field doc_to_target is missing"),
        ("metric: exact_match\n    ", "", "mine.yaml:17: metric_list.0: required field metric is missing"),
        ('"{{choices[answer]}}"', "[1, 2]", "mine.yaml:4: doc_to_target: expected a template"),
    ],
)
def test_what_a_task_file_may_not_say_is_refused_with_its_line(tmp_path: Path, old: str, new: str, says: str):
    assert old in GOOD
    with pytest.raises(UserError, match=says):
        own_task.read(put(tmp_path, GOOD.replace(old, new, 1)))


@pytest.mark.parametrize("text", ["", "- a list", "plain", "metric_list: {metric: acc}", "a: [", "metric_list: [1]"])
def test_what_is_no_task_file_is_refused(tmp_path: Path, text: str):
    with pytest.raises(UserError, match=r"mine\.yaml"):
        own_task.read(put(tmp_path, text))
