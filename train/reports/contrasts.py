"""Variants against a baseline, asked the same items: how large each difference is, how sure, and what survives correction.

In: the values of one metric by variant, seed and item, and which items belong together. Out: a `Contrast` for each variant.

- A difference is the mean over items and seeds of (variant - baseline), item by item and seed by seed.
- Its 95 % interval is a paired bootstrap: whole clusters of items are drawn with replacement (Cameron, Gelbach and Miller
  2008), and a draw of the seeds' own error is added to each replicate, from Student's t for its few degrees of freedom.
  That error is pooled over the policies, since two or three seeds say little alone; a variant with a spread of its
  own wider than the others' is given the wider error (`_seed_errors`).
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

from rounds.data_prep.records import stable_hash
from rounds.train.config.evaluation import MIN_ITEMS
from rounds.train.evaluation.paired import Z95
from rounds.train.reports import figures

Verdict = Literal["better", "worse", "not after correction", "within noise", "too few items", "same policy", ""]
REPLICATES = 10_000
"""The 95 % ends then lie within about 0.02 standard errors of what endless replicates would give."""
ALPHA = 0.05
_PRIOR = 4.0
"""How far the policies' common spread speaks for a single one. Measured on pages of 4 metrics and 13 variants of which one has
five times the others' spread and none differs: with 4, that one is falsely claimed on 12 % (2 seeds) and 7 % (3 seeds) of the
pages; with the pooled spread alone on 45 % and 52 %. A difference of 8 true standard errors is still found in 76 % and 90 %."""
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
    table = {name: np.array([[items[item] for item in common] for _, items in sorted(seeds.items())]) for name, seeds in values.items()}
    labels = [cluster_of(item) for item in common]
    places = {label: place for place, label in enumerate(dict.fromkeys(labels))}
    index = np.array([places[label] for label in labels])
    differences = np.stack([table[name] - table[baseline] for name in names])  # variant, seed, item
    levels = np.stack([table[name].mean(axis=1) for name in (baseline, *names)])
    seed_errors, freedoms = _seed_errors(levels)
    sums = np.zeros((len(places), len(names)))
    np.add.at(sums, index, differences.mean(axis=1).T)
    is_share = all(((each == 0) | (each == 1)).all() for each in table.values())  # of items that are right
    most = 1.0 if is_share else math.inf
    replicates, flipped = _draw(metric, sums, np.bincount(index), seed_errors, freedoms)
    found = []
    for place, name in enumerate(names):
        difference = float(differences[place].mean())
        low, high = np.clip(np.quantile(replicates[:, place], [ALPHA / 2, 1 - ALPHA / 2]), -most, most)
        # A little slack: sums of the same numbers in another order differ in their last bits.
        extreme = int((np.abs(flipped[:, place]) >= abs(difference) - 1e-12).sum())
        found.append(
            Contrast(
                metric,
                name,
                float(table[baseline].mean()),
                float(table[name].mean()),
                difference,
                float(low),
                float(high),
                (extreme + 1) / (REPLICATES + 1),
                len(common),
                len(places),
                float(seed_errors[place]) if levels.shape[1] > 1 else None,
            )
        )
    return found


def _seed_errors(levels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the standard error that seeds alone give each variant's difference, and its degrees of freedom.

    `levels` holds the means by policy (the baseline first) and seed. What is pooled over the policies, each counted once:

    - Between two policies that seeds move: the residual of the two-way table of policies and seeds. Luck that a seed brings
      to all, as a shared SFT does, cancels in differences; the baseline's luck, which all differences share, counts once.
    - Against a policy that seeds do not move (the base model), nothing cancels: the whole spread of the moved one. Shared
      luck makes the spreads of P policies alike, so they weigh as P / (1 + (P - 1) rho^2) of them, rho the shared part.

    Some policies are less stable than others, so a variant's own spread is moderated by the pooled one and not replaced by it:
    the pooled counts as `_PRIOR` degrees of freedom beside the variant's own (Smyth 2004).
    """
    seeds = levels.shape[1]
    errors, freedoms = np.zeros(len(levels) - 1), np.ones(len(levels) - 1)
    moved = np.unique(levels[np.ptp(levels, axis=1) > 0], axis=0) if seeds > 1 else levels[:0]
    if not len(moved):
        return errors, freedoms
    deviations = moved - moved.mean(axis=1, keepdims=True)
    spread = float((deviations**2).sum()) / len(moved) / (seeds - 1)
    residual, residual_freedom = 0.0, (len(moved) - 1) * (seeds - 1)
    if residual_freedom:
        residual = float(((deviations - deviations.mean(axis=0)) ** 2).sum()) / residual_freedom
    shared = max(0.0, 1 - residual / spread) if residual_freedom else 0.0
    spread_freedom = len(moved) * (seeds - 1) / (1 + (len(moved) - 1) * shared**2)
    for place, level in enumerate(levels[1:]):
        alike, both = (level == levels[0]).all(), np.ptp(level) > 0 and np.ptp(levels[0]) > 0
        if alike or not (np.ptp(level) or np.ptp(levels[0])):
            continue
        pooled, freedom = (2 * residual, residual_freedom) if both else (spread, spread_freedom)
        own = float((level - levels[0]).var(ddof=1))
        prior = min(_PRIOR, max(0.0, freedom - (seeds - 1)))  # its own spread is in the pooled one already
        freedom = prior + seeds - 1
        pooled = (prior * pooled + (seeds - 1) * own) / freedom
        errors[place], freedoms[place] = math.sqrt(pooled / seeds), freedom
    return errors, freedoms


def _draw(metric: str, sums: np.ndarray, sizes: np.ndarray, seed_errors: np.ndarray, freedoms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
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
    noise = random.standard_t(freedoms, (2, REPLICATES, len(freedoms))) * seed_errors
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
    adjusted = dict(zip(((each.metric, each.variant) for each in tested), holm([each.p for each in tested]), strict=True))
    return [_with_verdict(each, adjusted.get((each.metric, each.variant)), higher_is_better, same) for each in family]


def _with_verdict(each: Contrast, p_holm: float | None, higher: Mapping[str, bool], same: set[str]) -> Contrast:
    if p_holm is None:
        return replace(each, verdict="same policy" if each.variant in same else "too few items")
    verdict: Any = "not after correction" if each.p < ALPHA else "within noise"
    if p_holm < ALPHA:
        verdict = "better" if (each.difference > 0) == higher[each.metric] else "worse"
    return replace(each, p_holm=p_holm, verdict=verdict)


def intervals(contrasts: Sequence[Contrast]) -> list[figures.Interval]:
    """Return what a picture shows of the contrasts on one metric."""
    sides = {"better": 1, "worse": -1}
    return [figures.Interval(each.variant, each.difference, each.low, each.high, sides.get(each.verdict, 0)) for each in contrasts]
