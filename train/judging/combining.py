"""Several judges of the same answers as one: the first that decides, or the mean of their ranks.

In: the scores of each judge, by its name, in the order of the recipe. Out: one score an answer, missing where the judges together have
none, and which judge decided how many prompts.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean

from rounds.train.config.judging import Rank
from rounds.train.judging.scores import Score

_OfPrompt = Mapping[str, Mapping[int, float]]
"""Judge -> number of an answer -> its score; missing ones are not there."""
NOBODY = "nobody"
"""Who decided a prompt whose answers no judge tells apart."""


def combine(rank: Rank, given: Mapping[str, Sequence[Score]]) -> tuple[list[Score], dict[str, int]]:
    """Combine the scores of the judges in `rank.by` to one score for each answer that any of them was given, sorted by prompt and number.

    `cascade`: of each prompt, the scores of the first judge that tells two of its answers apart, in that judge's unit. `mean_of_ranks`: the
    mean over the judges of the share of the other answers that an answer beats, a tie as a half, among those that all judges scored.
    """
    by_prompt: dict[str, dict[str, dict[int, float]]] = defaultdict(lambda: {name: {} for name in rank.by})
    numbers: dict[str, set[int]] = defaultdict(set)
    for name in rank.by:
        for row in given[name]:
            numbers[row.prompt_id].add(row.number)
            if row.score is not None:
                by_prompt[row.prompt_id][name][row.number] = row.score
    how: Callable[[_OfPrompt], tuple[dict[int, float], str]] = {"cascade": _cascade, "mean_of_ranks": _mean_of_ranks}[rank.how]
    found, deciders = [], Counter()
    for prompt_id in sorted(numbers):
        values, decider = how(by_prompt[prompt_id])
        deciders[decider] += 1
        for number in sorted(numbers[prompt_id]):
            value = values.get(number)
            found.append(Score(prompt_id, number, value, "" if value is not None else "missing_from_judges"))
    return found, dict(sorted(deciders.items()))


def _cascade(scores: _OfPrompt) -> tuple[dict[int, float], str]:
    decides = [name for name, values in scores.items() if len(set(values.values())) > 1]
    if decides:
        return dict(scores[decides[0]]), decides[0]
    # A tie of the first judge that read them is a tie, and not a missing score.
    return next((dict(values) for values in scores.values() if len(values) > 1), {}), NOBODY


def _mean_of_ranks(scores: _OfPrompt) -> tuple[dict[int, float], str]:
    common = set.intersection(*(set(values) for values in scores.values()))
    if len(common) < 2:
        return {}, NOBODY
    means = {number: fmean(_beaten(number, values, common) for values in scores.values()) for number in common}
    return means, "all" if len(set(means.values())) > 1 else NOBODY


def _beaten(number: int, values: Mapping[int, float], among: set[int]) -> float:
    return fmean((values[number] > values[other]) + (values[number] == values[other]) / 2 for other in among - {number})
