"""Suites: what is measured together, in a file of its own that recipes name.

In: a recipe's fields with `evaluate.suites: [med42-v2]`. Out: the same with each suite's `sources` and `evaluate` laid beneath: what
the recipe says goes first, tasks, sets of answers and averages by their names. A suite may mark a task `optional`: where the rows are
the user's own and are not given, the task is left out, and every average that needs it is not available.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from rounds.data_prep import sources
from rounds.data_prep.errors import UserError, nearest
from rounds.data_prep.schema import Name, Section, SourceUse, listed
from rounds.train.config import shipped, yaml_file, yaml_layers
from rounds.train.config.evaluation import Evaluate


class Suite(Section):
    """One file of `recipes/suites`."""

    about: str
    """What it measures and why, in one or two sentences."""
    sources: dict[Name, SourceUse] = Field(default_factory=dict)
    """The sets of rows that it asks; a recipe with a source of the same name brings its own."""
    evaluate: Evaluate
    """As in a recipe."""


def names() -> list[str]:
    """List the shipped suites."""
    return sorted(path.stem for path in (shipped.RECIPES / "suites").glob("*.yaml"))


def beneath(data: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Lay the suites that a recipe's fields name beneath them. `folder` is the recipe's, where its own suites are looked for first.

    Raises `UserError` for a suite that is not there, or with file and line for a mistake in it.
    """
    evaluate = data.get("evaluate")
    named = listed(evaluate.get("suites")) if isinstance(evaluate, dict) else None
    suites = [_read(name, folder) for name in named] if isinstance(named, list | tuple) else []
    longest = [suite["evaluate"]["max_length"] for suite in suites if "max_length" in suite["evaluate"]]
    if longest and isinstance(evaluate, dict) and "max_length" not in evaluate:
        # What one suite leaves room for, another must not cut short.
        data = {**data, "evaluate": {**evaluate, "max_length": max(longest)}}
    for suite in suites:
        data = _lay(data, suite)
    return data


def source_names(named: Sequence[str], folder: Path) -> set[str]:
    """Return the names of the sources that some suites bring. Raises `UserError` as `beneath` does."""
    return set(beneath({"evaluate": {"suites": list(named)}}, folder)["sources"])


def _read(name: Any, folder: Path) -> dict[str, Any]:
    file = yaml_file.find(f"suites/{name}.yaml", folder) if isinstance(name, str) else None
    if file is None:
        raise UserError(
            f"evaluate.suites: no suite {name!r} beside the recipe (suites/NAME.yaml), and Rounds ships none. {nearest(str(name), names())}"
        )
    suite = yaml_file.load(file, Suite)
    if suite.evaluate.suites:
        raise UserError(
            f"{file}: evaluate.suites: a suite takes in no other ({', '.join(suite.evaluate.suites)}): name both in the recipe, or say "
            "`extends: OTHER.yaml` at the top of the file"
        )
    return yaml_layers.merged(yaml_layers.read(file, yaml_file.absolute))


def _lay(data: dict[str, Any], suite: dict[str, Any]) -> dict[str, Any]:
    own, under = data["evaluate"], suite["evaluate"]
    evaluate = {**under, **own}
    for field, label in (("tasks", _task_label), ("answers", _name), ("preferences", _name)):
        if field in under and isinstance(listed(own.get(field, [])), list | tuple):
            evaluate[field] = _joined(listed(own.get(field, [])), listed(under[field]), label)
    if isinstance(own.get("averages", {}), dict):
        evaluate["averages"] = {**under.get("averages", {}), **own.get("averages", {})}
    own_sources = data.get("sources", {})
    laid = {**data, "evaluate": evaluate}
    if isinstance(own_sources, dict):
        # A recipe may say of a suite's source only what differs, such as where the rows are.
        below = suite.get("sources", {})
        both = {name: {**below[name], **use} for name, use in own_sources.items() if name in below and isinstance(use, dict)}
        laid["sources"] = {**below, **own_sources, **both}
    return laid


def _joined(own: Sequence[Any], under: Sequence[Any], label: Any) -> list[Any]:
    """Return the recipe's own elements, each over the suite's of its name, and then the suite's others."""
    below = {label(item): item for item in under}
    both = [{**below[label(item)], **item} if isinstance(item, dict) and isinstance(below.get(label(item)), dict) else item for item in own]
    taken = {label(item) for item in own}
    return [*both, *(item for name, item in below.items() if name not in taken)]


def _task_label(item: Any) -> Any:
    return item.get("name") or item.get("task") if isinstance(item, dict) else str(item)


def _name(item: Any) -> Any:
    return item.get("name") if isinstance(item, dict) else str(item)


def settled(evaluate: Evaluate, given: dict[str, SourceUse]) -> tuple[Evaluate, dict[str, SourceUse]]:
    """Leave out the optional tasks and sets of answers whose rows are not at hand, and their sources; noted under `absent`."""
    asked = [(each.label, each.source, each.optional) for each in evaluate.tasks] + [
        (e.name, e.source, e.optional) for e in evaluate.answers
    ]
    why = {label: _missing(source, given) for label, source, optional in asked if optional and source}
    absent = {label: reason for label, reason in why.items() if reason}
    left = {
        "tasks": tuple(each for each in evaluate.tasks if each.label not in absent),
        "answers": tuple(each for each in evaluate.answers if each.name not in absent),
        "absent": {**evaluate.absent, **absent},
    }
    unused = {source for label, source, _ in asked if label in absent} - {source for label, source, _ in asked if label not in absent}
    return evaluate.model_copy(update=left), {name: use for name, use in given.items() if name not in unused}


def _missing(name: str, given: dict[str, SourceUse]) -> str | None:
    """Say why a source's rows are not at hand, or return None."""
    use = given.get(name)
    if use is None or use.path:
        return None
    source = sources.load(use.source)
    if source.home(use) is None and (source.origin or source.kind_by_format or _refuses(source, use)):
        return f"its rows are your own to bring: --set sources.{name}.path=FOLDER"
    return None


def _refuses(source: sources.Source, use: SourceUse) -> bool:
    try:
        source.check(use)
    except UserError:
        return True
    return False
