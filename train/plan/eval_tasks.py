"""lm-eval tasks by name, without importing lm-eval: ours in recipes/eval_tasks, and those that lm-eval ships."""

import importlib.util
import os
import re
from functools import cache
from pathlib import Path

import yaml

from rounds.data_prep.errors import UserError, nearest
from rounds.train.config import own_file, shipped, yaml_file, yaml_layers
from rounds.train.config.evaluation import TaskUse


def find(name: str, recipe_folder: Path) -> Path | None:
    """Return the file of a task of our own, or None."""
    return yaml_file.find(f"eval_tasks/{name}.yaml", recipe_folder)


def metrics(file: Path | None) -> list[str] | None:
    """List the metrics that a task of our own computes, one per filter where it has several; None for lm-eval's own."""
    if file is None:
        return None
    try:
        task, _ = yaml_layers.parse(own_file.text(file))
        names = [entry["metric"] for entry in task["metric_list"]]
        filters = [entry["name"] for entry in task.get("filter_list", [])]
        return names if len(filters) < 2 else [f"{name},{each}" for name in names for each in filters]
    except (yaml.YAMLError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{file}: not a task file of lm-eval: expected a `metric_list` of `metric: NAME` ({error})") from None


def check(task: TaskUse, file: Path | None, where: str) -> str | None:
    """Return the text of an own task's file; None for a task that lm-eval ships. Raises `UserError` for neither."""
    if file is not None:
        if not task.source:
            raise UserError(f"{where}.source: required: the name under `sources` whose questions {task.task!r} asks")
        return own_file.text(file)
    if task.source:
        raise UserError(f"{where}.source: only tasks of recipes/eval_tasks read a source; {nearest(task.task, own_names())}")
    if not re.fullmatch(r"[\w.-]+", task.task) or not _is_bundled(task.task):
        raise UserError(
            f"{where}: no such task in recipes/eval_tasks or in lm-eval. {nearest(task.task, own_names())}; "
            "`lm-eval ls tasks` lists lm-eval's own"
        )
    return None


def own_names() -> list[str]:
    """List the tasks that the project ships."""
    return sorted(path.stem for path in (shipped.RECIPES / "eval_tasks").glob("*.yaml"))


@cache
def _is_bundled(name: str) -> bool:
    """Look for a task, group or tag of that name in lm-eval's files. Reads names only: lm-eval itself takes 10 s."""
    files = _bundled_files()
    if any(path.endswith(f"{os.sep}{name}.yaml") for path in files):
        return True
    pattern = re.compile(rf"""^["']?(task|group|tag)["']?\s*:\s*["']?{re.escape(name)}["']?\s*$""".encode(), re.MULTILINE)
    # Folders are named after what is in them: the likeliest files first, of 13,000.
    likely = sorted(files, key=lambda path: name.partition("_")[0] not in path)
    return any(pattern.search(Path(path).read_bytes()) for path in likely)


@cache
def _bundled_files() -> list[str]:
    spec = importlib.util.find_spec("lm_eval")
    if spec is None or spec.origin is None:
        raise UserError("lm-eval is not installed, so its tasks cannot be checked; install the project's dependencies")
    top = Path(spec.origin).parent / "tasks"
    return [f"{folder}{os.sep}{file}" for folder, _, files in os.walk(top) for file in files if file.endswith(".yaml")]
