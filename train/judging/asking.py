"""Any judge, asked in one way: which of a policy's answers to a prompt are better.

In: a judge as its section says, answers with the records of their prompts, and where its weights or its policy are. Out: a score of each
answer; of a judge that compares also its verdicts on every two different answers to a prompt; and what can be counted. What a judge needs
is imported when it is asked, so that a rule or an endpoint needs no torch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rounds.data_prep.records import Message, Record, prompt_of
from rounds.train.config.cluster import Machine
from rounds.train.config.judging import Judge, Llm, Pairwise, RewardModel, RuleJudge, Verifiable
from rounds.train.generation import privacy
from rounds.train.generation.samples import Sample
from rounds.train.judging import rule, scores, verdicts, verifiable
from rounds.train.judging.scores import Score
from rounds.train.judging.verdicts import Verdict

Tell = Callable[[int], None]
_Compared = Sequence[tuple[tuple[Message, ...], Sample, Sample]]


@dataclass(frozen=True)
class Where:
    """Where a judge is asked."""

    name: str
    """What the recipe calls it, for messages."""
    weights: Path | None
    """Its model folder, or the stage folder of the policy that judges; None for a judge of the hub, an endpoint, or a rule."""
    folder: Path
    """Where replies are kept, so that none is paid for twice."""
    machine: Machine


@dataclass(frozen=True)
class Found:
    """What a judge says."""

    scores: list[Score]
    verdicts: list[Verdict] | None = None
    counts: dict[str, Any] = field(default_factory=dict)


def ask(judge: Judge, asked: Sequence[tuple[Record, Sample]], where: Where, tell: Tell = lambda done: None) -> Found:
    """Ask a judge about answers; `tell` is told how many answers, or orders of two answers, are done.

    Raises `UserError` where more is missing than the judge's `max_missing_share`, and for a judge that cannot be asked.
    """
    if isinstance(judge, RuleJudge):
        return _scored(rule.score(judge, [sample for _, sample in asked]), 0.0, where.name)
    if isinstance(judge, Verifiable):
        found = _scored(verifiable.score(judge, asked), judge.max_missing_share, where.name)
        return replace(found, counts={**found.counts, **verifiable.counts(found.scores)})
    if isinstance(judge, RewardModel):
        return _scored(_rewarded(judge, asked, where, tell), judge.max_missing_share, where.name)
    prompts = {sample.prompt_id: prompt_of(record) for record, sample in asked}
    samples = [sample for _, sample in asked]
    found, spent = compare(judge, [(prompts[one.prompt_id], one, other) for one, other in verdicts.comparisons(samples)], where, tell)
    rows = verdicts.scores_of(found, samples)
    return Found(rows, found, {**scores.counts(rows), **verdicts.counts(found), **spent})


def compare(judge: Pairwise | Llm, asked: _Compared, where: Where, tell: Tell = lambda done: None) -> tuple[list[Verdict], dict[str, Any]]:
    """Let a judge compare two answers to each prompt in both orders, in the order given; returns what it cost beside the verdicts.

    Raises `UserError` as `ask` does.
    """
    found, spent = _compared(judge, asked, where, tell)
    verdicts.check_missing(found, judge.max_missing_share, where.name)
    return found, spent


def _scored(rows: list[Score], max_missing_share: float, name: str) -> Found:
    scores.check_missing(rows, max_missing_share, name)
    return Found(rows, counts=scores.counts(rows))


def _rewarded(judge: RewardModel, asked: Sequence[tuple[Record, Sample]], where: Where, tell: Tell) -> list[Score]:
    from rounds.train.judging import reward_model
    from rounds.train.weights import models

    models.set_threads(where.machine)
    opened = reward_model.opened(judge, _weights(judge, where), where.machine)
    return reward_model.score(opened, [(prompt_of(record), sample) for record, sample in asked], tell)


def _compared(judge: Pairwise | Llm, asked: _Compared, where: Where, tell: Tell) -> tuple[list[Verdict], dict[str, Any]]:
    if isinstance(judge, Llm) and judge.endpoint:
        from rounds.train.judging import llm

        endpoint = privacy.endpoint_of(judge, where.machine.endpoints)
        return llm.compare(judge, endpoint, judge.rubric, asked, where.folder, where.machine.offline, tell)
    from rounds.train.weights import models

    models.set_threads(where.machine)
    if isinstance(judge, Pairwise):
        from rounds.train.judging import pairwise

        return pairwise.compare(pairwise.opened(judge, _weights(judge, where), where.machine), asked, tell), {}
    from rounds.train.engine import policy
    from rounds.train.judging import likelihood

    assert where.weights
    return likelihood.compare(likelihood.opened(policy.read(where.weights), where.machine), judge.rubric, asked, tell), {}


def _weights(judge: RewardModel | Pairwise, where: Where) -> str:
    found = str(where.weights) if where.weights else judge.id
    assert found
    return found
