"""Which policy of a run came from which, on which rows, and what each training step changed."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rounds.data_prep import records
from rounds.train.config.metrics import is_main
from rounds.train.engine import store
from rounds.train.engine.kinds import Kind
from rounds.train.engine.records import ITEMS, METRICS, Counts, Done, Score, Spec
from rounds.train.evaluation.paired import Comparison, compare, conclude, read_items, read_questions
from rounds.train.generation import samples


@dataclass(frozen=True, eq=False)
class Finished:
    """A finished stage of the run, as its folder tells."""

    name: str
    folder: Path
    spec: Spec
    record: Done

    @property
    def kind(self) -> Kind:
        """The stage's kind."""
        return self.spec.kind

    @property
    def skipped(self) -> bool:
        """Whether the rounds had ended before this stage."""
        return self.record.skipped

    @property
    def counts(self) -> Counts:
        """What the stage counted; empty when it was skipped."""
        return self.record.counts

    def input(self, name: str) -> str | None:
        """Return the folder name of a stage that this one reads."""
        return self.spec.stages().get(name)


def finished(name: str, folder: Path) -> Finished:
    """Read a stage's folder; `name` is the stage's in this run."""
    return Finished(name, folder, store.spec(folder), store.done(folder) or Done(status="not finished"))


@dataclass(frozen=True, eq=False)
class Step:
    """A policy that the run made, what became of it, and how it was measured."""

    name: str
    stage: Finished
    start: "Step | None"
    """The policy that it was trained from."""
    status: str
    """`start`, `trained`, `accepted`, `rejected` or `skipped`."""
    because: str
    evaluation: Finished | None
    written: Finished | None
    """What it answered."""
    training: dict[str, Any] | None
    """Its section of the recipe."""

    @cached_property
    def scores(self) -> dict[str, Score]:
        """Its metrics; empty when it was not measured."""
        return store.scores(self.evaluation.folder) if self.evaluation else {}

    @cached_property
    def items(self) -> dict[str, dict[str, float]]:
        """The values of its metrics, item by item."""
        known = self.evaluation and (self.evaluation.folder / ITEMS).is_file()
        return read_items(self.evaluation.folder) if self.evaluation and known else {}

    @cached_property
    def questions(self) -> dict[str, dict[str, str]]:
        """The question that each item of a metric asks."""
        return read_questions(self.evaluation.folder) if self.evaluation and self.items else {}

    @cached_property
    def answers(self) -> dict[tuple[str, str], samples.Sample]:
        """Its first answer to each prompt, by the prompt's set and id."""
        if self.written is None:
            return {}
        names = [name.removeprefix("prompts.") for name in self.written.spec.inputs if name.startswith("prompts.")]
        return {
            (name, sample.prompt_id): sample
            for name in names
            for sample in samples.read(samples.file_of(self.written.folder, name))
            if sample.number == 0
        }

    def prompts(self, wanted: Collection[tuple[str, str]]) -> dict[tuple[str, str], str]:
        """Return the last turn of prompts that it answered."""
        found = {}
        for name in {name for name, _ in wanted} if self.written else ():
            assert self.written
            source = self.written.folder.parent / (self.written.input(f"prompts.{name}") or "")
            for row in records.read_records(source / records.RECORDS):
                if (name, row.id) in wanted:
                    found[name, row.id] = records.prompt_of(row)[-1].content
        return found

    @cached_property
    def metrics(self) -> list[dict[str, Any]]:
        """What was logged while it was trained, step by step."""
        return _json_lines(self.stage, METRICS)

    def against(self, old: "Step") -> dict[str, Comparison]:
        """Compare it with another policy on every metric that both were measured on."""
        return {
            metric: compare(metric, old.items[metric], items, higher_is_better(self, metric), self.questions.get(metric))
            for metric, items in self.items.items()
            if metric in old.items and items.keys() & old.items[metric].keys()
        }


@dataclass(frozen=True, eq=False)
class Judged:
    """Did a training step help, measured against the policy that it started from?"""

    title: str
    step: Step
    old: Step
    comparisons: dict[str, Comparison]

    @property
    def is_round(self) -> bool:
        """Whether this is one DPO round, and not SFT or all rounds together."""
        return self.title == self.step.name and self.step.stage.kind.is_round

    @property
    def main(self) -> list[Comparison]:
        """The comparisons that rank the two policies."""
        return [c for c in self.comparisons.values() if is_main(c.metric)]

    @property
    def conclusion(self) -> str:
        """The verdict in a few words."""
        return "skipped" if self.step.status == "skipped" else conclude(self.main)

    def having(self, *verdicts: str) -> list[Comparison]:
        """Return the main comparisons with one of these verdicts."""
        return [comparison for comparison in self.main if comparison.verdict in verdicts]


def find_steps(recipe: Mapping[str, Any], stages: Mapping[str, Finished]) -> list[Step]:
    """List the policies of a run in order: base, sft, and the rounds'."""
    by_folder = {stage.folder.name: stage for stage in stages.values()}
    sections = {"sft": recipe.get("sft"), **{item["name"]: item for item in recipe.get("rounds") or ()}}
    wanted = [("base", "base"), ("sft", "sft"), *((name, f"dpo.{name}") for name in sections if name != "sft")]
    steps: dict[str, Step] = {}
    for name, stage_name in wanted:
        if stage_name not in stages:
            continue
        stage, gate = stages[stage_name], stages.get(f"gate.{name}")
        evaluation, written = stages.get(f"evaluate.{name}"), stages.get(f"answers.{name}")
        start = steps.get(policy_of(stage.input("policy"), by_folder) or "")
        status = "skipped" if stage.skipped else gate.counts["decision"] if gate else "trained" if start else "start"
        steps[stage.folder.name] = Step(
            name,
            stage,
            start,
            status,
            stage.record.because,
            evaluation if evaluation and not evaluation.skipped else None,
            written if written and not written.skipped else None,
            sections.get(name),
        )
    return list(steps.values())


def policy_of(folder_name: str | None, by_folder: Mapping[str, Finished]) -> str | None:
    """Follow gates, and training stages that were skipped, to the folder name of the stage whose weights they pass on."""
    stage = by_folder.get(folder_name or "")
    if stage is not None and stage.skipped and stage.kind.trains:
        return policy_of(stage.input("policy"), by_folder)
    if stage is None or not stage.kind.decides:
        return folder_name
    return policy_of(stage.input("candidate" if stage.counts["decision"] == "accepted" else "current"), by_folder)


def judge(steps: Sequence[Step]) -> list[Judged]:
    """Compare every trained policy with its start, and the last policy that went on with where the rounds began."""
    found = [Judged(s.name, s, s.start, s.against(s.start)) for s in steps if s.start]
    went_on = [judged for judged in found if judged.step.name != "sft" and judged.step.status in ("accepted", "trained")]
    if len(went_on) > 1:
        last, first = went_on[-1].step, went_on[0].old
        found.append(Judged("all rounds", last, first, last.against(first)))
    return found


def higher_is_better(step: Step, metric: str) -> bool:
    """Tell which direction of a metric is better, as its evaluation says."""
    return metric not in step.scores or bool(step.scores[metric].higher_is_better)


def _json_lines(stage: Finished | None, name: str) -> list[dict[str, Any]]:
    if stage is None or not (stage.folder / name).is_file():
        return []
    with (stage.folder / name).open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines if line.strip()]
