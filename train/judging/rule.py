"""Judges that read no answer: what any other judge must beat.

In: the samples of a policy. Out: a score of each, by its length, its number, or a hash.
"""

from collections.abc import Sequence

from rounds.data_prep.records import stable_hash
from rounds.train.config.judging import RuleJudge
from rounds.train.generation.samples import Sample
from rounds.train.judging.scores import Score


def score(judge: RuleJudge, samples: Sequence[Sample]) -> list[Score]:
    """Score each sample by the judge's rule."""
    return [Score(each.prompt_id, each.number, _value(judge.rule, each)) for each in samples]


def _value(rule: str, sample: Sample) -> float:
    if rule == "longer":
        return float(sample.tokens)
    if rule == "shorter":
        return float(-sample.tokens)
    if rule == "first":
        return float(-sample.number)
    return stable_hash("rule/random", sample.prompt_id, sample.number) / 2**64
