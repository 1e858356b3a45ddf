"""FROC and CPM of nodule candidates by the rule of the LUNA16 challenge (Setio et al. 2017, its evaluation script).

A candidate hits a nodule when its distance from the centre is less than half the diameter. A nodule counts as found at
the highest probability among its candidates; the others on it are ignored. A candidate that hits an excluded finding
and no nodule is ignored too. Every other candidate is a false positive. Nodules without a candidate stay in the
denominator of the sensitivity, scans without a nodule in that of the false positives per scan.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float, Float64

from pcrl_cli.core.errors import NumericalError

RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""False positives per scan at which CPM reads the sensitivity."""


def _none() -> Float64[np.ndarray, "0 4"]:
    return np.zeros((0, 4))


@dataclass(frozen=True)
class ScanFindings:
    """One scan: what was proposed and what is there. Positions and diameters in mm, all in one world frame.

    candidates: (m, 3) centres. probability: (m,), finite.
    nodules: (k, 4) centre and diameter. excluded: (e, 4) the same of findings that count for nothing. A negative
    diameter means "unknown" and is read as 10 mm, as the challenge does.
    """

    candidates: Float[np.ndarray, "m 3"]
    probability: Float[np.ndarray, " m"]
    nodules: Float[np.ndarray, "k 4"] = field(default_factory=_none)
    excluded: Float[np.ndarray, "e 4"] = field(default_factory=_none)


@dataclass(frozen=True)
class Froc:
    """The curve, rising from (0, 0), one point a distinct probability; and what CPM reads off it.

    false_positives: (t,) per scan. sensitivity: (t,).
    at: sensitivity at each of RATES. cpm: their mean. Both None with a `reason` when there is no scan or no nodule.
    hit: nodules that at least one candidate hits. ignored: candidates that count neither way.
    """

    false_positives: Float64[np.ndarray, " t"]
    sensitivity: Float64[np.ndarray, " t"]
    at: dict[float, float] | None
    cpm: float | None
    reason: str | None
    scans: int
    nodules: int
    hit: int
    ignored: int


def froc(scans: Sequence[ScanFindings], max_marks: int | None = 100) -> Froc:
    """FROC over scans; every scan of the split belongs in the list, those without candidates or nodules too.

    Args:
        max_marks: at most so many candidates a scan are read, the most probable; of those tied with the first one
            beyond the limit none is (the challenge's script does so, with 100). None reads all.

    Raises:
        NumericalError: a probability is not finite.
    """
    found, wrong, ignored = [np.zeros(0)], [np.zeros(0)], 0
    for scan in scans:
        hits, misses, passed = _judge(scan, max_marks)
        found.append(hits)
        wrong.append(misses)
        ignored += passed
    hits, misses = np.concatenate(found), np.concatenate(wrong)
    nodules = sum(len(scan.nodules) for scan in scans)
    if not scans or nodules == 0:
        reason = "there is no nodule in these scans" if scans else "there is no scan"
        return Froc(np.zeros(1), np.zeros(1), None, None, reason, len(scans), nodules, len(hits), ignored)
    rate, sensitivity = _curve(hits, misses, len(scans), nodules)
    # np.interp, like the script's: flat beyond the curve's end, the upper end on a vertical step.
    at = {r: float(s) for r, s in zip(RATES, np.interp(RATES, rate, sensitivity), strict=True)}
    mean = float(np.mean(list(at.values())))
    return Froc(rate, sensitivity, at, mean, None, len(scans), nodules, len(hits), ignored)


def cpm(scans: Sequence[ScanFindings], max_marks: int | None = 100) -> float | None:
    """The challenge's score: mean sensitivity at 1/8, 1/4, 1/2, 1, 2, 4, 8 false positives per scan; None as `froc`."""
    return froc(scans, max_marks).cpm


def _judge(
    scan: ScanFindings, max_marks: int | None
) -> tuple[Float64[np.ndarray, " h"], Float64[np.ndarray, " f"], int]:
    """Probabilities at which nodules are found, probabilities of the false positives, number of ignored candidates."""
    probability = scan.probability.astype(np.float64)
    if not np.isfinite(probability).all():
        raise NumericalError("a candidate's probability is not finite: check the weights that made it.")
    kept = _most_probable(probability, max_marks)
    probability, places = probability[kept], scan.candidates[kept]
    inside = _inside(places, scan.nodules)
    best = [int(np.argmax(np.where(column, probability, -np.inf))) for column in inside.T if column.any()]
    false = ~inside.any(axis=1) & ~_inside(places, scan.excluded).any(axis=1)
    return probability[best], probability[false], len(probability) - int(false.sum()) - len(set(best))


def _most_probable(probability: Float64[np.ndarray, " m"], limit: int | None) -> Bool[np.ndarray, " m"]:
    if limit is None or len(probability) <= limit:
        return np.ones(len(probability), bool)
    return probability > np.sort(probability)[::-1][limit]


def _inside(places: Float[np.ndarray, "m 3"], findings: Float[np.ndarray, "k 4"]) -> Bool[np.ndarray, "m k"]:
    """Which place lies strictly inside which finding."""
    centre, diameter = findings[:, :3].astype(np.float64), findings[:, 3].astype(np.float64)
    radius = np.where(diameter < 0, 10.0, diameter) / 2
    square = ((places.astype(np.float64)[:, None] - centre[None]) ** 2).sum(axis=2)
    return square < radius[None] ** 2


def _curve(
    hits: Float64[np.ndarray, " h"], misses: Float64[np.ndarray, " f"], scans: int, nodules: int
) -> tuple[Float64[np.ndarray, " t"], Float64[np.ndarray, " t"]]:
    """(false positives per scan, sensitivity) at every distinct probability, falling; the first point is (0, 0)."""
    threshold = np.unique(np.concatenate([hits, misses]))[::-1]
    found = len(hits) - np.searchsorted(np.sort(hits), threshold, side="left")
    wrong = len(misses) - np.searchsorted(np.sort(misses), threshold, side="left")
    return np.append(0.0, wrong / scans), np.append(0.0, found / nodules)
