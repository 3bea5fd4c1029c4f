"""Variants against a baseline, asked the same items: how large each difference is, how sure, and what survives correction.

In: the values of one metric by variant, seed and item, and which items belong together. Out: a `Contrast` for each variant.

- A difference is the mean over items and seeds of (variant - baseline), item by item and seed by seed.
- Its 95 % interval is a paired bootstrap: whole clusters of items are drawn with replacement (Cameron, Gelbach and Miller
  2008), and a draw of the seeds' own error is added to each replicate. That error is the spread of the seeds' differences,
  pooled over the variants since two or three seeds say little alone, with Student's t for its few degrees of freedom.
- Its p-value is a sign-flip test over clusters, with the same draw added. For one seed and items that are right or wrong
  and stand alone this is McNemar's test (1947), by simulation.
- Over all metrics and variants of one page, p-values are adjusted by Holm (1979): with 48 differences of which none is real,
  the chance of claiming even one stays 5 %.

With one seed there is no telling a change from another seed's luck: intervals then speak of the items alone.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from data_prep.records import stable_hash
from train.scores import MIN_ITEMS, Z95

Verdict = Literal["better", "worse", "not after correction", "within noise", "too few items", "same policy", ""]
REPLICATES = 10_000
"""The 95 % ends then lie within about 0.02 standard errors of what endless replicates would give."""
ALPHA = 0.05
_ENTRIES = 2_000_000
"""Replicates are drawn in parts of about this many numbers: some 16 MB each."""

Values = Mapping[str, Mapping[int, Mapping[str, float]]]
"""Variant -> seed -> item -> value."""


@dataclass(frozen=True)
class Contrast:
    """One variant against the baseline on one metric."""

    metric: str
    variant: str
    baseline_value: float
    value: float
    difference: float
    low: float
    high: float
    p: float
    items: int
    clusters: int
    seed_stderr: float | None
    """Standard error that the seeds alone give the difference; None with one seed."""
    p_holm: float | None = None
    """Adjusted over the page; None where the metric or the variant is not judged."""
    verdict: Verdict = ""

    @property
    def stderr(self) -> float:
        """What a normal interval of the same width would have as its standard error: numbers are rounded by it."""
        return (self.high - self.low) / 2 / Z95


def contrast(metric: str, baseline: str, values: Values, cluster_of: Callable[[str], str]) -> list[Contrast]:
    """Compare every other variant with the baseline, over the items that all were asked under every seed.

    Every variant has the baseline's seeds. Returns nothing where there is no common item.
    """
    columns = [items for seeds in values.values() for items in seeds.values()]
    common = sorted(set.intersection(*(set(items) for items in columns))) if columns else []
    names = [name for name in values if name != baseline]
    if not common or not names or baseline not in values:
        return []
    table = {name: np.array([[items[item] for item in common] for _, items in sorted(seeds.items())])
             for name, seeds in values.items()}  # fmt: skip
    labels = [cluster_of(item) for item in common]
    places = {label: place for place, label in enumerate(dict.fromkeys(labels))}
    index = np.array([places[label] for label in labels])
    differences = np.stack([table[name] - table[baseline] for name in names])  # variant, seed, item
    by_seed = differences.mean(axis=2)
    seed_error, freedom = _seed_error(by_seed)
    sums = np.zeros((len(places), len(names)))
    np.add.at(sums, index, differences.mean(axis=1).T)
    replicates, flipped = _draw(metric, sums, np.bincount(index), seed_error, freedom)
    found = []
    for place, name in enumerate(names):
        difference = float(differences[place].mean())
        low, high = np.quantile(replicates[:, place], [ALPHA / 2, 1 - ALPHA / 2])
        # A little slack: sums of the same numbers in another order differ in their last bits.
        extreme = int((np.abs(flipped[:, place]) >= abs(difference) - 1e-12).sum())
        found.append(Contrast(
            metric, name, float(table[baseline].mean()), float(table[name].mean()), difference, float(low), float(high),
            (extreme + 1) / (REPLICATES + 1), len(common), len(places), None if freedom == 0 else seed_error,
        ))  # fmt: skip
    return found


def _seed_error(by_seed: np.ndarray) -> tuple[float, int]:
    """Return the standard error that seeds give a mean difference, pooled over variants, and its degrees of freedom."""
    variants, seeds = by_seed.shape
    moved = by_seed[np.ptp(by_seed, axis=1) > 0] if seeds > 1 else by_seed[:0]
    if not len(moved):
        return 0.0, variants * (seeds - 1)
    return math.sqrt(float(moved.var(axis=1, ddof=1).mean()) / seeds), len(moved) * (seeds - 1)


def _draw(
    metric: str, sums: np.ndarray, sizes: np.ndarray, seed_error: float, freedom: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return replicates of the differences (variants in columns): clusters drawn anew, and their signs flipped."""
    random = np.random.default_rng(stable_hash("bootstrap", metric) % 2**32)
    clusters, part = len(sizes), max(1, _ENTRIES // len(sizes))
    drawn, flipped = [], []
    for start in range(0, REPLICATES, part):
        rows = min(part, REPLICATES - start)
        chosen = random.integers(0, clusters, (rows, clusters)) + np.arange(rows)[:, None] * clusters
        counts = np.bincount(chosen.ravel(), minlength=rows * clusters).reshape(rows, clusters)
        drawn.append(counts @ sums / (counts @ sizes)[:, None])
        flipped.append(random.choice((-1.0, 1.0), (rows, clusters)) @ sums / sizes.sum())
    noise = random.standard_t(freedom, (2, REPLICATES, sums.shape[1])) * seed_error if seed_error else (0.0, 0.0)
    return np.concatenate(drawn) + noise[0], np.concatenate(flipped) + noise[1]


def holm(values: Sequence[float]) -> list[float]:
    """Adjust p-values by Holm's step-down method: the smallest times their number, the next times one less, and so on."""
    adjusted, least = [0.0] * len(values), 0.0
    for rank, place in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        least = max(least, min(1.0, values[place] * (len(values) - rank)))
        adjusted[place] = least
    return adjusted


def judged(family: Sequence[Contrast], higher_is_better: Mapping[str, bool], same: set[str]) -> list[Contrast]:
    """Give verdicts to the contrasts of one page; `same` are variants whose policy is the baseline's own.

    Those and contrasts over too few clusters are not tested, so they cost the others no power.
    """
    tested = [each for each in family if each.variant not in same and each.clusters >= MIN_ITEMS]
    adjusted = dict(
        zip(((each.metric, each.variant) for each in tested), holm([each.p for each in tested]), strict=True)
    )
    return [_with_verdict(each, adjusted.get((each.metric, each.variant)), higher_is_better, same) for each in family]


def _with_verdict(each: Contrast, p_holm: float | None, higher: Mapping[str, bool], same: set[str]) -> Contrast:
    if p_holm is None:
        return replace(each, verdict="same policy" if each.variant in same else "too few items")
    verdict: Any = "not after correction" if each.p < ALPHA else "within noise"
    if p_holm < ALPHA:
        verdict = "better" if (each.difference > 0) == higher[each.metric] else "worse"
    return replace(each, p_holm=p_holm, verdict=verdict)
