"""How often one policy's answers beat another's to the same prompts, and how often they would at equal length.

In: verdicts of two policies' answers, the new one's first. Out: rates over prompts, each with its error and interval, and what tells how
far the judge can be believed. A prompt without a whole verdict is missing and counted, never a tie.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from rounds.train.engine.records import Score
from rounds.train.evaluation.paired import Z95, clustered
from rounds.train.judging import verdicts
from rounds.train.judging.verdicts import Verdict

_LEVEL_SCALE, _LENGTH_SCALE = 2.5, 30.0
"""Standard deviations of the two coefficients before anything is seen, in logits. 2.5 is the usual weak one (Gelman et al. 2008,
doi:10.1214/08-AOAS191). What length can explain is put down to length: its own is so wide that it takes what the two share."""
_MOST_STEPS, _SMALLEST_STEP = 100, 1e-10


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt whose answers were compared."""

    prompt_id: str
    value: float
    """Share of its comparisons that the new policy won, a tie as a half."""
    longer_by: float
    """Tokens that the new policy's answers have more, in the mean of these comparisons."""


@dataclass(frozen=True, slots=True)
class Rate:
    """A share of prompts, how sure it is, and the ends of its 95 % interval."""

    value: float
    stderr: float | None
    """Standard error over questions; None for a single one."""
    low: float
    high: float
    prompts: int
    questions: int

    def score(self) -> Score:
        """Return it as a metric's score."""
        return Score(value=self.value, stderr=self.stderr, n=self.prompts, questions=self.questions)


def by_prompt(given: Sequence[Verdict]) -> list[Prompt]:
    """Return the prompts of which a whole verdict is there, sorted; of several comparisons of one prompt the mean."""
    found: dict[str, list[tuple[float, int]]] = defaultdict(list)
    for each in given:
        if each.outcome is not None:
            found[each.prompt_id].append((each.outcome, each.first_tokens - each.second_tokens))
    return [Prompt(name, fmean(value for value, _ in found[name]), fmean(longer for _, longer in found[name])) for name in sorted(found)]


def win_rate(prompts: Sequence[Prompt], questions: Mapping[str, str]) -> Rate:
    """Return the share of prompts that the new policy wins, a tie as a half; `questions` names the question of each prompt by its id.

    The error is that of the mean over questions; where nothing varies, as at 0 or 1, it is Wilson's there (J. Am. Stat. Assoc. 22, 1927).
    The interval is Wilson's, over as many prompts as would have that error.
    """
    value, stderr, number = clustered([each.value for each in prompts], [questions.get(each.prompt_id, each.prompt_id) for each in prompts])
    value = min(max(value, 0.0), 1.0)
    if stderr < 1e-12:
        stderr = Z95 / (2 * (number + Z95**2))
    effective = value * (1 - value) / stderr**2 if 0 < value < 1 and number > 1 else number
    middle = (value + Z95**2 / (2 * effective)) / (1 + Z95**2 / effective)
    half = Z95 / (1 + Z95**2 / effective) * math.sqrt(value * (1 - value) / effective + Z95**2 / (4 * effective**2))
    low, high = (0.0 if value == 0 else middle - half), (1.0 if value == 1 else middle + half)
    return Rate(value, stderr if number > 1 else None, low, high, len(prompts), number)


def length_controlled(prompts: Sequence[Prompt], questions: Mapping[str, str]) -> Rate:
    """Return the win rate that a logistic regression expects at equal length, after AlpacaEval-LC (Dubois et al. 2024, arXiv 2404.04475).

    Like there: verdicts (ties as halves) by a level and by tanh of the length difference over its spread, weakly held to 0, read at a
    difference of 0. Unlike there: one regression of two policies' answers to these prompts alone, so no term for how hard a prompt is;
    the spread is the root mean square, so that 0 stays equal length; the level is held to 0 too. Where every answer of one policy is
    longer, nothing was seen at equal length: the rate is then about a half, and its error says that it is not known.

    The error is the larger of two, that over questions and the model's own, both with the weak knowledge of before; `stderr` is half the
    interval in units of `Z95`.
    """
    y = np.array([each.value for each in prompts])
    longer = np.array([each.longer_by for each in prompts])
    spread = math.sqrt(float(np.mean(longer**2)))
    x = np.stack([np.ones(len(y)), np.tanh(longer / spread) if spread else np.zeros(len(y))], axis=1)
    prior = np.diag([_LEVEL_SCALE**-2, _LENGTH_SCALE**-2])
    beta = _fitted(x, y, prior)
    chance = _logistic(x @ beta)
    seen = (x * (chance * (1 - chance))[:, None]).T @ x
    bread = np.linalg.inv(seen + prior)
    scores: dict[str, Any] = defaultdict(lambda: np.zeros(2))
    for each, row, rest in zip(prompts, x, y - chance, strict=True):
        scores[questions.get(each.prompt_id, each.prompt_id)] += row * rest
    number = len(scores)
    # A tie varies less than a coin: the model's own variance counts only what was decided.
    decided = max(float(np.mean((2 * y - 1) ** 2)), 1 / len(y))
    over_questions = sum(np.outer(each, each) for each in scores.values()) * (number / max(number - 1, 1))
    error = math.sqrt(max(float((bread @ (middle + prior) @ bread)[0, 0]) for middle in (over_questions, decided * seen)))
    low, value, high = (float(_logistic(beta[0] + step * Z95 * error)) for step in (-1, 0, 1))
    return Rate(value, (high - low) / (2 * Z95) if number > 1 else None, low, high, len(prompts), number)


def counts(given: Sequence[Verdict], in_both_orders: bool) -> dict[str, Any]:
    """Tell of a comparison what is missing and, of a judge that was asked `in_both_orders`, how far it goes by the place."""
    told = verdicts.counts(given)
    whole = [each for each in given if each.outcome is not None]
    by_place = {name: told[name] if in_both_orders else None for name in ("first_place_share", "flip_share")}
    prompts = len({each.prompt_id for each in given})
    return {
        "prompts": prompts,
        "prompts_missing": prompts - len({each.prompt_id for each in whole}),
        "comparisons": told["comparisons"],
        "missing": told["missing"],
        "missing_by_reason": told["missing_by_reason"],
        "parsed_share": _share(len(whole), len(given)),
        "remarks": told["remarks"],
        **by_place,
        "tie_share": told["tie_share"],
        "agrees_with_longer_share": told["longer_share"],
        "tokens": round(fmean(each.first_tokens for each in given), 2) if given else None,
        "tokens_against": round(fmean(each.second_tokens for each in given), 2) if given else None,
        "longer_share": _share(sum(each.first_tokens > each.second_tokens for each in given), len(given)),
    }


def _fitted(x: Any, y: Any, prior: Any) -> Any:
    """Return the coefficients of a logistic regression of shares, by Newton's steps, halved where they would lead up."""
    beta = np.zeros(x.shape[1])

    def loss(at: Any) -> float:
        return float(np.sum(np.logaddexp(0, x @ at) - y * (x @ at)) + at @ prior @ at / 2)

    for _ in range(_MOST_STEPS):
        chance = _logistic(x @ beta)
        gradient = x.T @ (chance - y) + prior @ beta
        step = np.linalg.solve((x * (chance * (1 - chance))[:, None]).T @ x + prior, gradient)
        while loss(beta - step) > loss(beta) + 1e-12 and np.abs(step).max() > _SMALLEST_STEP:
            step = step / 2
        beta = beta - step
        if np.abs(step).max() < _SMALLEST_STEP:
            break
    return beta


def _logistic(value: Any) -> Any:
    return np.exp(-np.logaddexp(0, -value))


def _share(part: int, of: int) -> float | None:
    return round(part / of, 4) if of else None
