"""Tasks by name, without importing lm-eval: built in, ours in recipes/eval_tasks, and those that lm-eval ships."""

import re
from pathlib import Path

from rounds.data_prep.errors import UserError, nearest
from rounds.train.config import shipped, yaml_file
from rounds.train.config.evaluation import TaskUse
from rounds.train.plan import bundled, own_task

BUILT_IN = {"choice_likelihood": ["acc", "acc_norm", "acc_bytes"]}
"""Tasks that this project scores itself, and their metrics."""
_WORD = re.compile(r"[\w.-]+", re.ASCII)


def metrics(name: str, recipe_folder: Path) -> list[str] | None:
    """List the metrics that a task of our own computes, one per filter where it has several; None for lm-eval's own."""
    if name in BUILT_IN:
        return BUILT_IN[name]
    file = _find(name, recipe_folder)
    return None if file is None else own_task.metrics(own_task.read(file)[1])


def check(task: TaskUse, recipe_folder: Path, where: str) -> str | None:
    """Return the text of an own task's file; None for one that is built in or that lm-eval ships. Raises `UserError` for none of these,
    and for one that cannot run here."""
    if not _WORD.fullmatch(task.task):
        raise UserError(f"{where}: a task's name is a plain word of letters, digits, `_`, `-` and `.`; found {task.task!r:.80}")
    file = _find(task.task, recipe_folder)
    if (file or task.task in BUILT_IN) and not task.source:
        raise UserError(f"{where}.source: required: the name under `sources` whose questions {task.task!r} asks")
    if task.task in BUILT_IN:
        if file:
            raise UserError(f"{file}: {task.task} is built in, so this file would not be read: give it and its uses another name")
        if task.num_fewshot:
            raise UserError(f"{where}.num_fewshot: {task.task} asks each question by itself; expected 0, found {task.num_fewshot}")
        return None
    if file:
        return own_task.read(file)[0]
    if task.source:
        raise UserError(
            f"{where}.source: only {', '.join(BUILT_IN)} and tasks of recipes/eval_tasks read a source; {nearest(task.task, own_names())}"
        )
    if not bundled.is_task(task.task):
        raise UserError(
            f"{where}: no such task in recipes/eval_tasks or in lm-eval. {nearest(task.task, own_names())}; "
            "`lm-eval ls tasks` lists lm-eval's own"
        )
    if reason := bundled.obstacle(task.task):
        raise UserError(f"{where}: lm-eval's task {task.task!r} cannot run here: {reason}")
    return None


def own_names() -> list[str]:
    """List the tasks that the project ships or has built in."""
    return sorted({*BUILT_IN, *(path.stem for path in (shipped.RECIPES / "eval_tasks").glob("*.yaml"))})


def _find(name: str, recipe_folder: Path) -> Path | None:
    """Return the file of a task of our own, or None."""
    return yaml_file.find(f"eval_tasks/{name}.yaml", recipe_folder) if _WORD.fullmatch(name) else None
