"""Methods against each other on the same patients: paired bootstrap, and Holm's correction for many comparisons.

A replicate draws patients with replacement: every sample gets the weight of how often its patient was drawn. All
methods and seeds are scored with the same weights, so differences are paired.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64, Shaped

CHUNK = 64
"""Replicates that are scored at a time."""
Scorer = Callable[[Float64[np.ndarray, "r n"]], Float64[np.ndarray, " r"]]
"""Weights of the samples, a replicate a row -> the statistic of each replicate; NaN where it does not exist."""


@dataclass(frozen=True)
class Between:
    """A difference of means (first - second): value, 95 % interval and two-sided p, from paired replicates."""

    value: float
    low: float | None
    high: float | None
    p: float | None


def auroc_scorer(labels: Shaped[np.ndarray, " n"], scores: Float64[np.ndarray, " n"]) -> Scorer:
    """AUROC with weights: the share of (positive, negative) pairs in order, ties counting half."""
    _, group = np.unique(scores, return_inverse=True)
    positive = np.asarray(labels) > 0
    ties = int(group.max()) + 1 if len(group) else 0

    def score(weights: Float64[np.ndarray, "r n"]) -> Float64[np.ndarray, " r"]:
        out = np.full(len(weights), np.nan)
        for i, row in enumerate(weights):
            up = np.bincount(group[positive], row[positive], ties)
            down = np.bincount(group[~positive], row[~positive], ties)
            pairs = up.sum() * down.sum()
            if pairs > 0:
                below = np.cumsum(down) - down
                out[i] = float((up * (below + 0.5 * down)).sum() / pairs)
        return out

    return score


def mean_scorer(values: Float64[np.ndarray, " n"]) -> Scorer:
    """The weighted mean of a value a sample."""
    return lambda weights: (weights @ values) / np.maximum(weights.sum(axis=1), 1e-300)


def average(scorers: Sequence[Scorer]) -> Scorer:
    """The mean of several statistics, of those that exist in a replicate: findings, or seeds."""

    def score(weights: Float64[np.ndarray, "r n"]) -> Float64[np.ndarray, " r"]:
        found = np.stack([scorer(weights) for scorer in scorers])
        there = np.isfinite(found)
        count = there.sum(axis=0)
        return np.where(count > 0, np.where(there, found, 0.0).sum(axis=0) / np.maximum(count, 1), np.nan)

    return score


def known_only(labels: Float64[np.ndarray, " n"], scores: Float64[np.ndarray, " n"]) -> Scorer:
    """AUROC over the samples whose label is known (not NaN)."""
    rows = np.flatnonzero(np.isfinite(labels))
    scorer = auroc_scorer(labels[rows], scores[rows])
    return lambda weights: scorer(weights[:, rows])


def draws(patients: int, n: int, seed: int) -> Int64[np.ndarray, "n patients"]:
    """How often each patient is drawn, a replicate a row."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(patients, np.full(patients, 1.0 / patients), size=n).astype(np.int64)


def replicates(
    scorer: Scorer, member: Int64[np.ndarray, " n"], drawn: Int64[np.ndarray, "r patients"]
) -> Float64[np.ndarray, " r"]:
    """The statistic in every replicate; member: the patient of each sample."""
    parts = [scorer(drawn[i : i + CHUNK][:, member].astype(np.float64)) for i in range(0, len(drawn), CHUNK)]
    return np.concatenate(parts)


def value_of(scorer: Scorer, n: int) -> float | None:
    """The statistic of n samples as they are."""
    found = float(scorer(np.ones((1, n)))[0])
    return found if np.isfinite(found) else None


def interval(found: Float64[np.ndarray, " r"], level: float = 0.95) -> tuple[float, float] | None:
    """Percentiles of the replicates that exist; None where fewer than two do."""
    found = found[np.isfinite(found)]
    if len(found) < 2:
        return None
    low, high = np.quantile(found, [0.5 - level / 2, 0.5 + level / 2])
    return float(low), float(high)


def between(
    value: float | int, first: Float64[np.ndarray, " r"], second: Float64[np.ndarray, " r"], level: float = 0.95
) -> Between:
    """p = 2 min(share of replicates <= 0, share >= 0), both with one added, so that it is never 0; at most 1."""
    difference = (first - second)[np.isfinite(first) & np.isfinite(second)]
    limits = interval(difference, level)
    if limits is None:
        return Between(float(value), None, None, None)
    n = len(difference)
    below, above = ((np.count_nonzero(side) + 1) / (n + 1) for side in (difference <= 0, difference >= 0))
    return Between(float(value), *limits, float(min(1.0, 2 * min(below, above))))


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """Adjusted p: the i-th smallest of m times m - i + 1, made rising, at most 1 (Holm 1979)."""
    ordered = sorted(p, key=lambda name: p[name])
    adjusted, most = {}, 0.0
    for i, name in enumerate(ordered):
        most = max(most, min(1.0, (len(ordered) - i) * p[name]))
        adjusted[name] = most
    return {name: adjusted[name] for name in p}
