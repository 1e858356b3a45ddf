"""How well scores separate two classes: AUROC, its intervals, the ROC curve; means over cases with intervals.

Everything is numpy in float64. Labels are 0 or 1; a higher score means "more likely 1". Ties count one half everywhere.
A quantity that does not exist (one class only) is None together with a reason, never an exception, so that a small
split still gets a report.
"""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float64, Shaped

from pcrl_cli.core.errors import NumericalError

Statistic = Callable[[np.ndarray, np.ndarray], float | None]
"""(labels, scores) -> value, or None where the sample at hand does not define it."""


@dataclass(frozen=True)
class Interval:
    """A value with its confidence limits; `note` says why a limit is missing or to be read with care."""

    value: float | None
    low: float | None
    high: float | None
    note: str | None = None


@dataclass(frozen=True)
class BootstrapInterval(Interval):
    """`used` replicates gave the limits; `left_out` had no value, e.g. held one class only."""

    used: int = 0
    left_out: int = 0


class RocPoints(NamedTuple):
    """The ROC curve from (0, 0) to (1, 1): one point a distinct score, the threshold "score >= t" of each."""

    fpr: Float64[np.ndarray, " t"]
    tpr: Float64[np.ndarray, " t"]
    threshold: Float64[np.ndarray, " t"]


def auroc(labels: Shaped[np.ndarray, " n"], scores: Float[np.ndarray, " n"]) -> float | None:
    """P(score of a 1 > score of a 0) + P(equal) / 2, from rank sums in O(n log n).

    Returns:
        None when a class is absent.

    Raises:
        ValueError: a label is neither 0 nor 1.
        NumericalError: a score is not finite.
    """
    positive, scores = _checked(labels, scores)
    m, n = int(positive.sum()), int((~positive).sum())
    if m == 0 or n == 0:
        return None
    return float((_midranks(scores)[positive].sum() - m * (m + 1) / 2) / (m * n))


def roc_points(labels: Shaped[np.ndarray, " n"], scores: Float[np.ndarray, " n"]) -> RocPoints | None:
    """The points of the ROC curve, all of them; None when a class is absent. The trapezoids below it sum to `auroc`."""
    positive, scores = _checked(labels, scores)
    if positive.all() or not positive.any():
        return None
    order = np.argsort(-scores, kind="stable")
    falling = scores[order]
    last = np.append(np.flatnonzero(np.diff(falling)), falling.size - 1)  # the last of every run of equal scores
    tp = np.cumsum(positive[order])[last]
    fp = 1 + last - tp
    fpr, tpr = np.append(0.0, fp / fp[-1]), np.append(0.0, tp / tp[-1])
    return RocPoints(fpr, tpr, np.append(np.inf, falling[last]))


def delong(labels: Shaped[np.ndarray, " n"], scores: Float[np.ndarray, " n"], level: float = 0.95) -> Interval:
    """AUROC with DeLong's interval: value -+ z * standard error, plain (not on the logit scale), clipped to [0, 1].

    The variance is that of DeLong et al. (1988), computed from midranks as by Sun and Xu (2014), O(n log n). It takes
    the samples as independent: where a patient gives several, `clustered_bootstrap` is the interval to trust.

    Returns:
        value None when a class is absent; limits None when a class has one sample, whose variance nobody knows; limits
        equal to the value, with a note, when the estimated variance is 0 (perfect separation, or all scores tied).
    """
    positive, scores = _checked(labels, scores)
    value = auroc(labels, scores)
    if value is None:
        return Interval(None, None, None, _one_class(positive))
    m, n = int(positive.sum()), int((~positive).sum())
    if min(m, n) < 2:
        return Interval(value, None, None, f"an interval needs two samples of each class, here {m} of 1 and {n} of 0")
    ranks = _midranks(scores)
    v10 = (ranks[positive] - _midranks(scores[positive])) / n  # share of the 0s that each 1 beats
    v01 = 1.0 - (ranks[~positive] - _midranks(scores[~positive])) / m  # share of the 1s that beat each 0
    error = float(np.sqrt(v10.var(ddof=1) / m + v01.var(ddof=1) / n))
    if error < 1e-12:
        return Interval(value, value, value, "the estimated variance is 0, so the interval is a point and says little")
    reach = NormalDist().inv_cdf(0.5 + level / 2) * error
    return Interval(value, max(0.0, value - reach), min(1.0, value + reach))


def clustered_bootstrap(
    labels: Shaped[np.ndarray, " n"],
    scores: Float[np.ndarray, " n"],
    clusters: Shaped[np.ndarray, " n"],
    statistic: Statistic = auroc,
    n: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> BootstrapInterval:
    """The statistic with a percentile interval over resampled clusters (patients), all samples of one kept together.

    A replicate draws as many clusters as there are, with replacement; one drawn twice counts twice. Replicates in which
    the statistic is None are left out and counted.

    Args:
        clusters: what each sample belongs to; any values that `np.unique` can sort.
        n: replicates.
        seed: of the resampling; equal arguments give equal limits.
    """
    positive, scores = _checked(labels, scores)
    value = statistic(positive, scores)
    names, member = np.unique(clusters, return_inverse=True)
    if value is None:
        return BootstrapInterval(None, None, None, _one_class(positive))
    if len(names) < 2:
        return BootstrapInterval(value, None, None, "resampling needs two clusters, here all samples belong to one")
    groups = np.split(np.argsort(member, kind="stable"), np.cumsum(np.bincount(member))[:-1])
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(n):
        rows = np.concatenate([groups[k] for k in rng.integers(len(groups), size=len(groups))])
        replicate = statistic(positive[rows], scores[rows])
        if replicate is not None:
            found.append(replicate)
    if not found:
        return BootstrapInterval(value, None, None, "no replicate held both classes", 0, n)
    low, high = np.quantile(found, [0.5 - level / 2, 0.5 + level / 2])
    note = f"{n - len(found)} of {n} replicates held one class only and were left out" if len(found) < n else None
    return BootstrapInterval(value, float(low), float(high), note, len(found), n - len(found))


def bootstrap_mean(
    values: Float[np.ndarray, " n"],
    clusters: Shaped[np.ndarray, " n"],
    n: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> BootstrapInterval:
    """The mean over samples (cases) with a percentile interval over resampled clusters (patients), as above.

    Returns:
        value None without samples; limits None for a single cluster.
    """
    if not len(values):
        return BootstrapInterval(None, None, None, "there is no sample")
    values = values.astype(np.float64)
    names, member = np.unique(clusters, return_inverse=True)
    value = float(values.mean())
    if len(names) < 2:
        return BootstrapInterval(value, None, None, "resampling needs two clusters, here all samples belong to one")
    total, count = np.bincount(member, values), np.bincount(member)
    drawn = np.random.default_rng(seed).integers(len(names), size=(n, len(names)))
    means = total[drawn].sum(axis=1) / count[drawn].sum(axis=1)
    low, high = np.quantile(means, [0.5 - level / 2, 0.5 + level / 2])
    return BootstrapInterval(value, float(low), float(high), None, n)


def _checked(
    labels: Shaped[np.ndarray, " n"], scores: Float[np.ndarray, " n"]
) -> tuple[Bool[np.ndarray, " n"], Float64[np.ndarray, " n"]]:
    """Labels as booleans, scores as float64."""
    assert labels.shape == scores.shape
    assert labels.ndim == 1
    if not np.isin(labels, (0, 1)).all():
        raise ValueError("labels must be 0 or 1")
    finite = np.isfinite(scores)
    if not finite.all():
        first = int(np.flatnonzero(~finite)[0])
        raise NumericalError(
            f"{int((~finite).sum())} of {scores.size} scores are not finite (the first at position {first}): "
            "check the weights that made them."
        )
    return labels.astype(bool), scores.astype(np.float64)


def _midranks(values: Float64[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
    """Ranks from 1; equal values share the mean of their ranks."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def _one_class(positive: Bool[np.ndarray, " n"]) -> str:
    if positive.size == 0:
        return "there is no sample"
    return f"all {positive.size} samples are of class {int(positive[0])}, both classes are needed"
