"""All policies of a run on one scale, out of comparisons of two: Bradley and Terry's strengths (Biometrika 39, 1952), by evalica.

In: for every two policies that were compared, by prompt the share that the first one won. Out: of each policy the logarithm of its
strength over the first one's, with an interval by drawing prompts again, and the win rate over the first that follows. Chains count: who
beat a policy that beat the first stands above it, though the two were never compared.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import evalica
import numpy as np

Comparisons = Mapping[tuple[str, str], Mapping[str, float]]
"""Two policies -> prompt -> share won by the first of them, a tie as a half."""

_DRAWS = 500
_BEFORE = 0.5
"""Wins that each side of a comparison has before anything is seen (Jeffreys): who won every prompt is stronger, and not infinitely. Each
draw draws these too, so that where no prompt differs an interval is left."""
_LEAST = 1e-3
"""Of what is drawn for them: below it only the scale's far end moves, and the fit takes long."""


@dataclass(frozen=True, slots=True)
class Strength:
    """A policy's place."""

    policy: str
    strength: float
    """Logarithm of its strength over the first policy's."""
    low: float
    high: float
    """Ends of the 95 % interval over prompts."""
    win_rate: float
    """What follows for its win rate over the first policy; chained, where the two were not compared."""


def table(first: str, comparisons: Comparisons, seed: int = 0) -> tuple[list[Strength], list[str]]:
    """Return the policies that comparisons join to `first`, strongest first, and those that none does.

    Prompts are drawn again for all comparisons at once, since all policies answered the same ones.
    """
    seen = {pair: values for pair, values in comparisons.items() if values}
    joined = _joined(first, list(seen))
    seen = {pair: values for pair, values in seen.items() if pair[0] in joined}
    apart = sorted({name for pair in comparisons for name in pair} - joined)
    if not seen:
        return [], apart
    prompts = sorted({prompt for values in seen.values() for prompt in values})
    won = np.array([[values.get(prompt, 0.0) for prompt in prompts] for values in seen.values()])
    asked = np.array([[float(prompt in values) for prompt in prompts] for values in seen.values()])
    pairs, before = list(seen), np.full((len(seen), 2), _BEFORE)
    whole = _strengths(first, pairs, won.sum(axis=1), asked.sum(axis=1), before)
    rng = np.random.default_rng(seed)
    drawn: dict[str, list[float]] = {name: [] for name in whole}
    for _ in range(_DRAWS):
        often = rng.multinomial(len(prompts), np.full(len(prompts), 1 / len(prompts)))
        before = np.maximum(rng.gamma(_BEFORE, size=(len(seen), 2)), _LEAST)
        for name, value in _strengths(first, pairs, won @ often, asked @ often, before).items():
            drawn[name].append(value)
    found = []
    for name, value in whole.items():
        low, high = np.quantile(drawn[name], [0.025, 0.975])
        found.append(Strength(name, value, float(low), float(high), float(1 / (1 + np.exp(-value)))))
    return sorted(found, key=lambda each: (-each.strength, each.policy)), apart


def _strengths(first: str, pairs: Sequence[tuple[str, str]], won: Any, asked: Any, before: Any) -> dict[str, float]:
    """Return the logarithms of strengths over the first policy's. What each side won is a weight, so ties and shares count as they are."""
    xs, ys, winners, weights = [], [], [], []
    for (one, other), wins, number, (mine, yours) in zip(pairs, won, asked, before, strict=True):
        xs += [one, one]
        ys += [other, other]
        winners += [evalica.Winner.X, evalica.Winner.Y]
        weights += [float(wins + mine), float(number - wins + yours)]
    fitted = evalica.bradley_terry(xs, ys, winners, weights=weights, tolerance=1e-10, limit=20_000).scores
    logs = {str(name): float(np.log(value)) for name, value in fitted.items()}
    return {name: value - logs[first] for name, value in logs.items()}


def _joined(first: str, pairs: Sequence[tuple[str, str]]) -> set[str]:
    found = {first}
    while more := {name for pair in pairs if found & set(pair) for name in pair} - found:
        found |= more
    return found
