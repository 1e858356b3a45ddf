"""Scores of several findings at once: AUROC a finding, their mean, and its interval over patients.

Labels are 1 present, 0 absent, -1 not known; a -1 is left out of its finding and of nothing else. A finding of which
a split has no positive or no negative has no AUROC: it is left out of the mean, and the result says so.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64, Int, Shaped

from pcrl_cli.pure.metrics import BootstrapInterval, Interval, auroc, delong

NOT_KNOWN = -1


@dataclass(frozen=True)
class Finding:
    """One finding's AUROC with DeLong's interval, and how many of each label there were."""

    name: str
    auroc: Interval
    positive: int
    negative: int
    unknown: int


def per_finding(
    labels: Int[np.ndarray, "n k"], scores: Float[np.ndarray, "n k"], names: Sequence[str], level: float = 0.95
) -> list[Finding]:
    """AUROC of every finding over the images whose label is known."""
    found = []
    for k, name in enumerate(names):
        column = labels[:, k]
        known = column != NOT_KNOWN
        value = delong(column[known], scores[known, k], level)
        counts = [int((column == label).sum()) for label in (1, 0, NOT_KNOWN)]
        found.append(Finding(name, value, *counts))
    return found


def mean_auroc(labels: Int[np.ndarray, "n k"], scores: Float[np.ndarray, "n k"]) -> float | None:
    """Over the findings that have one; None where none has."""
    values = [auroc(y[y != NOT_KNOWN], s[y != NOT_KNOWN]) for y, s in zip(labels.T, scores.T, strict=True)]
    there = [v for v in values if v is not None]
    return float(np.mean(there)) if there else None


def mean_auroc_interval(
    labels: Int[np.ndarray, "n k"],
    scores: Float[np.ndarray, "n k"],
    patients: Shaped[np.ndarray, " n"],
    n: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> BootstrapInterval:
    """The mean AUROC with a percentile interval over resampled patients, all images and findings of one together.

    The replicates are those of `metrics.clustered_bootstrap`, but an image drawn t times has weight t, so that nothing
    is sorted again: 2,000 replicates of 25,000 images and 14 findings are seconds. A finding of which a replicate holds
    one class only is left out of that replicate's mean; such replicates are counted in the note.
    """
    value = mean_auroc(labels, scores)
    if value is None:
        return BootstrapInterval(None, None, None, "no finding has both a positive and a negative")
    names, member = np.unique(patients, return_inverse=True)
    if len(names) < 2:
        return BootstrapInterval(value, None, None, "resampling needs two patients, here all images are of one")
    ranked = [r for y, s in zip(labels.T, scores.T, strict=True) if (r := Ranked.of(y, s)) is not None]
    rng = np.random.default_rng(seed)
    means, incomplete = [], 0
    for _ in range(n):
        drawn = np.bincount(rng.integers(len(names), size=len(names)), minlength=len(names))
        weight = drawn[member].astype(np.float64)
        values = [v for r in ranked if (v := r.auroc(weight)) is not None]
        incomplete += len(values) < len(ranked)
        if values:
            means.append(sum(values) / len(values))
    if not means:
        return BootstrapInterval(value, None, None, "no replicate held both classes of any finding", 0, n)
    low, high = np.quantile(means, [0.5 - level / 2, 0.5 + level / 2])
    note = f"{incomplete} of {n} replicates lacked a finding, whose mean is over the others" if incomplete else None
    return BootstrapInterval(value, float(low), float(high), note, len(means), n - len(means))


@dataclass(frozen=True)
class Ranked:
    """One finding's images in the order of their scores, sorted once for all replicates.

    negatives: positions of the 0s, by rising score. positives: positions of the 1s. below, upto: how many 0s have a
    lower score than each 1, and a lower or equal one.
    """

    negatives: Int[np.ndarray, " m"]
    positives: Int[np.ndarray, " p"]
    below: Int[np.ndarray, " p"]
    upto: Int[np.ndarray, " p"]

    @classmethod
    def of(cls, labels: Int[np.ndarray, " n"], scores: Float[np.ndarray, " n"]) -> "Ranked | None":
        """None where a class is absent."""
        negatives, positives = np.flatnonzero(labels == 0), np.flatnonzero(labels == 1)
        if not len(negatives) or not len(positives):
            return None
        negatives = negatives[np.argsort(scores[negatives], kind="stable")]
        below, upto = (np.searchsorted(scores[negatives], scores[positives], side) for side in ("left", "right"))
        return cls(negatives, positives, below, upto)

    def auroc(self, weight: Float64[np.ndarray, " n"]) -> float | None:
        """As if every image were there `weight` times; None where a class has no weight."""
        passed = np.concatenate([[0.0], np.cumsum(weight[self.negatives])])
        own = weight[self.positives]
        total = own.sum() * passed[-1]
        return float(own @ (passed[self.below] + passed[self.upto]) / (2 * total)) if total > 0 else None
