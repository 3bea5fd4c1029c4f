"""Pairs of a prompt's scored answers, by rules that are gone through in one order: each prompt gives pairs, or has one reason why not.

In: the samples of a prompt and their scores. Out: which answers are chosen and rejected, as places and as records of kind pair. The
candidates for the rejected side are narrowed from rule to rule; the rule that leaves none is the reason.
"""

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from rounds.data_prep import refusals
from rounds.data_prep.records import Message, Pair, stable_hash
from rounds.data_prep.whole import whole
from rounds.train.config.judging import PairRules
from rounds.train.generation.samples import Sample
from rounds.train.judging.scores import Score

REASONS = (
    "missing_score",
    "one_distinct_answer",
    "all_tied",
    "below_margin",
    "chosen_truncated",
    "chosen_refuses",
    "rejected_truncated",
    "length_ratio",
)
"""Why a prompt gives no pair, in the order in which the rules are asked."""
INFO = "pairs_info.parquet"
INFO_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("pair_id", "prompt_id")),
        *((name, pa.int32()) for name in ("chosen_number", "rejected_number")),
        *((name, pa.float64()) for name in ("chosen_score", "rejected_score", "margin")),
        *((name, pa.int32()) for name in ("chosen_tokens", "rejected_tokens")),
    ]
)


class Scored(NamedTuple):
    """An answer and its score."""

    sample: Sample
    score: float


class Choice(NamedTuple):
    """Two answers to one prompt, the first with the higher score."""

    chosen: Scored
    rejected: Scored


@dataclass(frozen=True, slots=True)
class PairInfo:
    """What is known of a pair beside its texts."""

    pair_id: str
    prompt_id: str
    chosen_number: int
    rejected_number: int
    chosen_score: float
    rejected_score: float
    margin: float
    chosen_tokens: int
    rejected_tokens: int


def choose(samples: Sequence[Sample], scores: Sequence[Score], rules: PairRules, seed: int) -> list[Choice] | str:
    """Return the pairs of one prompt, best first, or the one reason of `REASONS` why it gives none.

    An answer without a score is not there; the others may still make a pair. Raises `ValueError` for samples or scores of several prompts,
    or two of one answer.
    """
    answers = _distinct(scored := _scored(samples, scores))
    if len(scored) < 2:
        return "missing_score"
    if len(answers) < 2:
        return "one_distinct_answer"
    best = max(each.score for each in answers)
    below = [each for each in answers if each.score < best]
    if not below:
        return "all_tied"
    below = [each for each in below if best - each.score >= rules.min_margin]
    if not below:
        return "below_margin"
    drops_refusals = rules.refusals == "drop"
    chosen = min(
        (each for each in answers if each.score == best),
        key=lambda each: (not each.sample.ended, drops_refusals and _refuses(each), each.sample.number),
    )
    if not chosen.sample.ended:
        return "chosen_truncated"
    if drops_refusals and _refuses(chosen):
        return "chosen_refuses"
    below = [each for each in below if each.sample.ended or rules.truncated == "may_lose"]
    if not below:
        return "rejected_truncated"
    below = [each for each in below if rules.max_length_ratio is None or _length_ratio(chosen, each) <= rules.max_length_ratio]
    if not below:
        return "length_ratio"
    ordered = _rejected_first(below, answers, rules, seed)
    return [Choice(chosen, each) for each in ordered[: rules.per_prompt]]


def record(prompt: tuple[Message, ...], source: str, choice: Choice) -> Pair:
    """Return a choice as a pair. Its group is the prompt's id, with which its own id begins, as in published sets of pairs."""
    prompt_id = choice.chosen.sample.prompt_id
    return Pair(
        id=_pair_id(choice),
        source=source,
        prompt=prompt,
        chosen=choice.chosen.sample.answer,
        rejected=choice.rejected.sample.answer,
        group=prompt_id,
        rejected_ending="" if choice.rejected.sample.ended else "cut",
    )


def info(choice: Choice) -> PairInfo:
    """Return what is known of a pair beside its texts."""
    chosen, rejected = choice
    return PairInfo(
        pair_id=_pair_id(choice),
        prompt_id=chosen.sample.prompt_id,
        chosen_number=chosen.sample.number,
        rejected_number=rejected.sample.number,
        chosen_score=chosen.score,
        rejected_score=rejected.score,
        margin=chosen.score - rejected.score,
        chosen_tokens=chosen.sample.tokens,
        rejected_tokens=rejected.sample.tokens,
    )


def write_info(path: Path, rows: Iterable[PairInfo]) -> None:
    """Write what is known of pairs; the file appears only when it is complete."""
    with whole(path) as partial:
        pq.write_table(pa.Table.from_pylist([asdict(row) for row in rows], INFO_SCHEMA), partial, compression="zstd")


def counts(outcomes: Iterable[list[Choice] | str]) -> dict[str, int | dict[str, int]]:
    """Count prompts and pairs, and the prompts without a pair by reason: those of `REASONS` in their order, and those of a stage."""
    outcomes = list(outcomes)
    why = Counter(each for each in outcomes if isinstance(each, str))
    ordered = [*(name for name in REASONS if why[name]), *sorted(why.keys() - set(REASONS))]
    return {
        "prompts": len(outcomes),
        "prompts_with_pairs": len(outcomes) - why.total(),
        "pairs": sum(len(each) for each in outcomes if not isinstance(each, str)),
        "dropped": {name: why[name] for name in ordered},
    }


def _scored(samples: Sequence[Sample], scores: Sequence[Score]) -> list[Scored]:
    by_number = {score.number: score.score for score in scores}
    prompts = {each.prompt_id for each in (*samples, *scores)}
    numbers = [sample.number for sample in samples]
    if len(prompts) > 1 or len(by_number) < len(scores) or len(set(numbers)) < len(numbers):
        raise ValueError(f"expected the answers of one prompt, each once; found {sorted(prompts)}, {sorted(numbers)}, {len(scores)} scores")
    found = [(sample, by_number.get(sample.number)) for sample in sorted(samples, key=lambda each: each.number)]
    return [Scored(sample, score) for sample, score in found if score is not None]


def _distinct(answers: Sequence[Scored]) -> list[Scored]:
    """Keep of answers that say the same the one with the lowest number."""
    kept: dict[str, Scored] = {}
    for each in answers:
        kept.setdefault(" ".join(each.sample.answer.casefold().split()), each)
    return list(kept.values())


def _refuses(answer: Scored) -> bool:
    return refusals.refuses(answer.sample.answer)


def _length_ratio(one: Scored, other: Scored) -> float:
    shorter, longer = sorted((one.sample.tokens, other.sample.tokens))
    return longer / max(shorter, 1)


def _rejected_first(below: Sequence[Scored], answers: Sequence[Scored], rules: PairRules, seed: int) -> list[Scored]:
    """Order candidates for the rejected side, the first to be taken first."""
    if rules.rejected == "random":
        return sorted(below, key=lambda each: stable_hash("pairs/rejected", seed, each.sample.prompt_id, each.sample.number))
    if rules.rejected == "worst":
        return sorted(below, key=lambda each: (each.score, each.sample.number))
    values = [each.score for each in answers]
    low = statistics.fmean(values) - 2 * statistics.pstdev(values)
    return sorted(below, key=lambda each: (abs(each.score - low), each.score, each.sample.number))


def _pair_id(choice: Choice) -> str:
    return f"{choice.chosen.sample.prompt_id}:{choice.chosen.sample.number}-{choice.rejected.sample.number}"
