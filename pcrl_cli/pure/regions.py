"""How well a predicted mask agrees with the true one: overlap, surface distances in mm, volume; and what if one is empty.

The policy for empty masks, so that a model cannot look better by missing more:

    both empty        Dice 1, NSD 1, all distances 0, volume difference 0
    one of them empty Dice 0, NSD 0, all distances the image's diagonal in mm, and counted in every mean;
                      volume difference -100 % (nothing predicted) or +100 % (nothing there)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, UInt8

from pcrl_cli.pure.surface import surface_distances


@dataclass(frozen=True)
class Agreement:
    """Of one region of one case.

    dice: 2 |A and B| / (|A| + |B|). hd95_mm: the greater of the two directed 95th percentiles. assd_mm: average symmetric
    surface distance. max_mm: Hausdorff distance. nsd: share of surface voxels within a tolerance. rvd_percent: (predicted -
    true) / true volume x 100, signed. true_ml, predicted_ml: volumes.
    """

    dice: float
    hd95_mm: float
    nsd: float
    assd_mm: float
    max_mm: float
    rvd_percent: float
    true_ml: float
    predicted_ml: float


def masks_of(labels: UInt8[np.ndarray, "*s"], regions: Mapping[str, Sequence[int]]) -> Bool[np.ndarray, "r *s"]:
    """A mask a region, true at the labels that make it up."""
    found = np.empty((len(regions), *labels.shape), dtype=bool)
    for mask, parts in zip(found, regions.values(), strict=True):
        belongs = np.zeros(256, dtype=bool)
        belongs[list(parts)] = True
        for i, plane in enumerate(labels):  # an index takes 8 bytes a voxel
            mask[i] = belongs[plane]
    return found


def rivals(regions: Sequence[Sequence[int]]) -> Bool[np.ndarray, "r r"]:
    """Which regions exclude each other: those without a common label, of which a voxel can be in one only."""
    return np.array([[set(a).isdisjoint(b) for b in regions] for a in regions])


def decided(
    probability: Float[np.ndarray, "r *s"], threshold: float, exclude: Bool[np.ndarray, "r r"] | None = None
) -> Bool[np.ndarray, "r *s"]:
    """Where a region's probability exceeds the threshold and that of no rival is greater (of equal ones the first wins).

    exclude: see `rivals`; None: every region is decided by itself.
    """
    found = probability > threshold
    if exclude is None or not exclude.any():
        return found
    several = found.sum(axis=0, dtype=np.uint8) > 1
    if several.any():
        p, taken = probability[:, several], found[:, several]  # r m
        kept = taken.copy()
        for i, j in zip(*np.nonzero(exclude), strict=True):
            kept[i] &= ~(taken[j] & ((p[j] > p[i]) | ((p[j] == p[i]) & (j < i))))
        found[:, several] = kept
    return found


def dice(truth: Bool[np.ndarray, "*s"], predicted: Bool[np.ndarray, "*s"]) -> float:
    """2 |A and B| / (|A| + |B|); 1 where both are empty."""
    total = np.count_nonzero(truth) + np.count_nonzero(predicted)
    return float(2 * np.count_nonzero(truth & predicted) / total) if total else 1.0


def agreement(
    truth: Bool[np.ndarray, "*s"],
    predicted: Bool[np.ndarray, "*s"],
    spacing: Float[np.ndarray, " d"],
    tolerance_mm: float = 2.0,
) -> Agreement:
    """All numbers of one region.

    Args:
        spacing: mm a voxel along each axis.
        tolerance_mm: of the normalised surface Dice.
    """
    n, m = int(np.count_nonzero(truth)), int(np.count_nonzero(predicted))
    ml = float(np.prod(spacing)) / 1000
    volumes = {"true_ml": n * ml, "predicted_ml": m * ml}
    if n == 0 and m == 0:
        return Agreement(1.0, 0.0, 1.0, 0.0, 0.0, 0.0, **volumes)
    if n == 0 or m == 0:
        far = float(np.linalg.norm(np.array(truth.shape) * spacing))
        return Agreement(0.0, far, 0.0, far, far, 100.0 if n == 0 else -100.0, **volumes)
    d = surface_distances(truth, predicted, spacing)
    return Agreement(
        dice(truth, predicted), d.percentile(95.0), d.within(tolerance_mm), d.mean, d.max, 100 * (m - n) / n, **volumes
    )


def settled(
    masks: Bool[np.ndarray, "r *s"], regions: Sequence[Sequence[int]], largest: bool
) -> Bool[np.ndarray, "r *s"]:
    """Predicted masks as they are written and scored: of each its largest part if asked, then inner regions in outer ones.

    A region whose labels are all among another's lies in it by definition (ET in TC in WT), which masks that were
    decided one by one need not respect.

    regions: the labels that make up each.
    """
    each = np.stack([largest_component(mask) for mask in masks]) if largest else masks
    nested = each.copy()
    for outer, labels in zip(nested, regions, strict=True):
        for inner, others in zip(each, regions, strict=True):
            if set(others) < set(labels):
                outer |= inner
    return nested


def largest_component(mask: Bool[np.ndarray, "*s"]) -> Bool[np.ndarray, "*s"]:
    """The largest part that is connected over faces, edges or corners; of equal ones the first in array order."""
    from scipy.ndimage import generate_binary_structure, label

    parts, count = label(mask, generate_binary_structure(mask.ndim, mask.ndim))
    if count < 2:
        return mask.copy()
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    return parts == sizes.argmax()
