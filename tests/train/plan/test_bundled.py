"""Tasks that lm-eval ships are found by name, and refused where this environment cannot run them; nothing is imported for that."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from rounds.data_prep.errors import UserError
from rounds.train.config.evaluation import TaskUse
from rounds.train.plan import bundled, eval_tasks

pytestmark = pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm-eval is not installed")


@pytest.mark.parametrize("name", ["medqa_4options", "medmcqa", "mmlu_anatomy", "mmlu", "toxigen", "gsm8k", "arc_easy", "ai2_arc"])
def test_tasks_groups_and_tags_that_run_here(name: str):
    assert bundled.is_task(name) and bundled.obstacle(name) is None


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("pubmedqa", "bigbio/pubmed_qa is a script.*the source `pubmedqa` has its rows: ask it with `choice_likelihood`"),
        ("multimedqa", r"bigbio/pubmed_qa is a script.* \(pubmedqa\)"),
        ("mts_dialog", "metrics that are scripts on the hub"),
        ("meqsum", "metrics that are scripts on the hub"),
        ("squadv2", "metrics that are scripts on the hub"),
        ("humaneval", "runs code that the model wrote"),
    ],
)
def test_what_cannot_run_here_is_refused_with_the_way_on(name: str, says: str, tmp_path: Path):
    with pytest.raises(UserError, match=f"evaluate.tasks.{name}: lm-eval's task '{name}' cannot run here: .*{says}"):
        eval_tasks.check(TaskUse(task=name), tmp_path, f"evaluate.tasks.{name}")


@pytest.mark.skipif(importlib.util.find_spec("langdetect") is not None, reason="langdetect is installed")
def test_a_package_that_is_missing_is_named():
    """ifeval's functions import it two files away."""
    assert "pip install" in str(bundled.obstacle("ifeval")) and "langdetect" in str(bundled.obstacle("ifeval"))


def test_looking_imports_neither_lm_eval_nor_a_package_of_its_tasks():
    code = "import sys; from rounds.train.plan import bundled; bundled.obstacle('ifeval'), bundled.obstacle('mmlu')\n"
    code += "assert not {'lm_eval', 'torch', 'nltk', 'numpy', 'datasets'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("source", "packages", "scripts"),
    [
        ("import missing_one\ndef f(): pass", {"missing-one"}, False),
        ("def f():\n    import missing_one", {"missing-one"}, False),
        ("def g():\n    import missing_one\ndef f():\n    g()", {"missing-one"}, False),
        ("def g():\n    import missing_one\ndef f(): pass", set(), False),
        ("try:\n    import missing_one\nexcept ImportError:\n    missing_one = None\ndef f(): pass", set(), False),
        ("try:\n    import missing_one\nexcept ImportError:\n    raise\ndef f(): pass", {"missing-one"}, False),
        ("import json, numpy, helper\ndef f(): pass", set(), False),
        ("import evaluate\ndef f():\n    return evaluate.load('bleu')", set(), True),
        ("import evaluate\ndef g():\n    return evaluate.load('bleu')\ndef f(): pass", set(), False),
    ],
)
def test_what_runs_when_a_function_is_called_is_what_counts(tmp_path: Path, monkeypatch, source: str, packages: set[str], scripts: bool):
    monkeypatch.setitem(bundled._PYPI, "missing_one", "missing-one")
    (tmp_path / "helper.py").touch()
    (tmp_path / "utils.py").write_text(source)
    needs = bundled._Needs()
    bundled._note({"task": "x", "process_results": "!function utils.f"}, tmp_path, "x", needs)
    assert set(needs.packages) == packages and bool(needs.others) == scripts


def test_names_that_are_no_plain_words_and_files_of_a_built_in_name_are_refused(tmp_path: Path):
    with pytest.raises(UserError, match="a plain word"):
        eval_tasks.check(TaskUse(task="../x"), tmp_path, "evaluate.tasks.x")
    with pytest.raises(UserError, match=r"source: required"):
        eval_tasks.check(TaskUse(task="choice_likelihood"), tmp_path, "evaluate.tasks.x")
    with pytest.raises(UserError, match=r"num_fewshot: .*expected 0, found 3"):
        eval_tasks.check(TaskUse(task="choice_likelihood", source="s", num_fewshot=3), tmp_path, "evaluate.tasks.x")
    (tmp_path / "eval_tasks").mkdir()
    (tmp_path / "eval_tasks" / "choice_likelihood.yaml").write_text("task: x\n")
    with pytest.raises(UserError, match="is built in, so this file would not be read"):
        eval_tasks.check(TaskUse(task="choice_likelihood", source="s"), tmp_path, "evaluate.tasks.x")
    assert eval_tasks.metrics("choice_likelihood", tmp_path) == ["acc", "acc_norm", "acc_bytes"]
    assert eval_tasks.metrics("free_answer", tmp_path) == ["exact_match"]
