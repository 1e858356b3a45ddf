"""Whether predicted probabilities mean what they say: a reliability diagram's numbers and the expected error."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64, Int, Int64


@dataclass(frozen=True)
class Calibration:
    """Equal bins of [0, 1], the last closed above.

    predicted, observed: mean probability and share of 1s in each bin, NaN in an empty one. count: samples in each.
    ece: sum over bins of count / n * |predicted - observed| (Naeini et al. 2015); None without samples.
    brier: mean of (probability - label)^2.
    """

    edges: Float64[np.ndarray, " bins_1"]
    predicted: Float64[np.ndarray, " bins"]
    observed: Float64[np.ndarray, " bins"]
    count: Int64[np.ndarray, " bins"]
    ece: float | None
    brier: float | None


def calibration(labels: Int[np.ndarray, " n"], probabilities: Float[np.ndarray, " n"], bins: int = 10) -> Calibration:
    """Of labels 0 or 1; others (-1, not known) are left out.

    Raises:
        ValueError: a probability lies outside [0, 1] or is not finite.
    """
    known = (labels == 0) | (labels == 1)
    y, p = labels[known].astype(np.float64), probabilities[known].astype(np.float64)
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError("probabilities must lie in [0, 1]")
    edges = np.linspace(0, 1, bins + 1)
    index = np.minimum((p * bins).astype(np.int64), bins - 1)
    count = np.bincount(index, minlength=bins)
    with np.errstate(invalid="ignore"):
        predicted = np.bincount(index, p, bins) / count
        observed = np.bincount(index, y, bins) / count
    if not len(y):
        return Calibration(edges, predicted, observed, count, None, None)
    ece = float(np.nansum(count * np.abs(predicted - observed)) / len(y))
    return Calibration(edges, predicted, observed, count, ece, float(((p - y) ** 2).mean()))
