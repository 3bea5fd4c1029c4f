"""What a run needs from the Hugging Face hub: the datasets of its sources, its base model, its judges, the sets of lm-eval's tasks.

In: the stages of a plan. Out: one `Need` for each repository at a commit, and for each task. Nothing is read or asked.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from rounds.data_prep import sources
from rounds.data_prep.schema import SourceParams, SourceUse
from rounds.train.config.judging import Weights
from rounds.train.config.recipe import Start, StartHub
from rounds.train.engine.graph import Stage, parents_first
from rounds.train.engine.params import BaseParams, EvaluateParams, RankParams
from rounds.train.engine.policy import MODEL_FILES


@dataclass(frozen=True)
class Need:
    """Something that must be there before the stages named can run."""

    kind: Literal["dataset", "model", "task"]
    name: str
    """Hub id, or the name of a task that lm-eval ships, which fetches its own dataset."""
    revision: str | None
    """Commit of the repository; None for a task."""
    patterns: tuple[str, ...]
    """The repository's files that are read; empty where it may be all."""
    stages: tuple[str, ...]
    judge: bool = False
    """A model that is opened as a judge, and not as a policy."""
    licence: str = ""
    """That of a judge's weights, as the recipe states it."""


def of(stages: Iterable[Stage]) -> list[Need]:
    """List what these stages need, each repository once, in the order of the stages.

    Give only the stages that are still to do: what is done needs nothing any more, but a stage that trains or measures
    needs the base model again.
    """
    merged: dict[tuple, Need] = {}
    for stage in stages:
        for need in _of(stage):
            known = merged.setdefault((need.kind, need.name, need.revision), need)
            whole = not (known.patterns and need.patterns)
            patterns = () if whole else tuple(dict.fromkeys([*known.patterns, *need.patterns]))
            names = tuple(dict.fromkeys([*known.stages, *need.stages]))
            merged[need.kind, need.name, need.revision] = replace(known, patterns=patterns, stages=names)
    return list(merged.values())


def use_of(stage: Stage) -> SourceUse:
    """Return what a `source` stage reads, at the revision that its key says."""
    assert isinstance(stage.params, SourceParams)
    return SourceUse.model_validate({**stage.params.use.model_dump(), "revision": stage.params.revision})


def _of(stage: Stage) -> Sequence[Need]:
    if isinstance(stage.params, SourceParams):
        return _of_source(stage, stage.params)
    found = []
    judge = stage.params.judge if isinstance(stage.params, RankParams) else None
    if isinstance(judge, Weights) and judge.id:
        found.append(Need("model", judge.id, judge.revision, MODEL_FILES, (stage.name,), True, judge.licence or "not stated"))
    if stage.kind.reads_weights or (judge and isinstance(stage.inputs.get("judge"), Stage)):
        base = _base(stage)
        if isinstance(base, StartHub):
            found.append(Need("model", base.id, base.revision, MODEL_FILES, (stage.name,)))
    if isinstance(stage.params, EvaluateParams):
        found += [Need("task", task.task, None, (), (stage.name,)) for task in stage.params.tasks if not task.source]
    return found


def _of_source(stage: Stage, params: SourceParams) -> list[Need]:
    if "path" in stage.inputs or params.repository is None:
        return []
    use = use_of(stage)
    source = sources.load(use.source)
    read = [each for each in (source.home(use), *source.companions) if each]
    return [Need("dataset", each.repository, each.revision, each.files, (stage.name,)) for each in read]


def _base(stage: Stage) -> Start | None:
    """Return the recipe's `base` section from the stage that all policies start from."""
    return next((each.params.base for each in parents_first([stage]) if isinstance(each.params, BaseParams)), None)
