"""Surfaces of masks and the distances between them, in millimetres on an anisotropic grid.

A surface voxel is a voxel of the mask of which at least one of the six face neighbours is not in the mask. Where the
image cuts an organ off is no surface: what lies outside the image counts as inside the mask (so does the CHAOS challenge,
whose published distances are met this way only). If a mask fills the image, so that it would have no surface at all, the
image's faces are taken for the surface of both. Distances are between centres of surface voxels, each counted once.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float32, Int64

Slices = tuple[slice, ...]


@dataclass(frozen=True)
class SurfaceDistances:
    """From every surface voxel of either mask to the nearest surface voxel of the other, in mm."""

    of_a: Float32[np.ndarray, " n"]
    of_b: Float32[np.ndarray, " m"]

    @property
    def mean(self) -> float:
        """Average symmetric surface distance (ASSD): the mean over all surface voxels of both masks."""
        total = self.of_a.sum(dtype=np.float64) + self.of_b.sum(dtype=np.float64)
        return float(total / (len(self.of_a) + len(self.of_b)))

    @property
    def max(self) -> float:
        """Hausdorff distance, also called maximum symmetric surface distance."""
        return float(max(self.of_a.max(), self.of_b.max()))

    def percentile(self, q: float) -> float:
        """The greater of the two masks' percentiles: HD95 at q = 95 (linear between order statistics)."""
        return float(max(np.percentile(self.of_a, q), np.percentile(self.of_b, q)))

    def within(self, tolerance_mm: float) -> float:
        """Normalised surface Dice (NSD): the share of both masks' surface voxels that lie within the tolerance."""
        near = np.count_nonzero(self.of_a <= tolerance_mm) + np.count_nonzero(self.of_b <= tolerance_mm)
        return float(near / (len(self.of_a) + len(self.of_b)))


def surface(mask: Bool[np.ndarray, "*s"], faces: bool = False) -> Bool[np.ndarray, "*s"]:
    """The surface voxels of a mask; `faces`: what lies outside the image counts as outside the mask."""
    inner = mask.copy()
    for axis in range(mask.ndim):
        along, body = np.moveaxis(mask, axis, 0), np.moveaxis(inner, axis, 0)
        body[1:] &= along[:-1]
        body[:-1] &= along[1:]
        if faces:
            body[[0, -1]] = False
    return mask & ~inner


def bounding_box(mask: Bool[np.ndarray, "*s"]) -> Slices | None:
    """The smallest box that holds the mask; None for an empty mask."""
    found = []
    for axis in range(mask.ndim):
        hit = np.flatnonzero(mask.any(axis=tuple(i for i in range(mask.ndim) if i != axis)))
        if not len(hit):
            return None
        found.append(slice(int(hit[0]), int(hit[-1]) + 1))
    return tuple(found)


def surface_distances(
    a: Bool[np.ndarray, "*s"], b: Bool[np.ndarray, "*s"], spacing: Float[np.ndarray, " d"]
) -> SurfaceDistances:
    """Both ways between two masks, neither of them empty.

    Works in the box that holds both: no nearest surface voxel lies outside it. Takes 12 bytes a voxel of that box (3D).
    """
    box_a, box_b = bounding_box(a), bounding_box(b)
    assert box_a is not None
    assert box_b is not None
    box = tuple(  # and one voxel more, where the image has one, since a neighbour outside the mask makes a surface
        slice(max(0, min(i.start, j.start) - 1), max(i.stop, j.stop) + 1) for i, j in zip(box_a, box_b, strict=True)
    )
    edge_a, edge_b = surface(a[box]), surface(b[box])
    if not edge_a.any() or not edge_b.any():
        edge_a, edge_b = surface(a[box], faces=True), surface(b[box], faces=True)
    return SurfaceDistances(_to_nearest(edge_a, edge_b, spacing), _to_nearest(edge_b, edge_a, spacing))


def _to_nearest(
    points: Bool[np.ndarray, "*s"], target: Bool[np.ndarray, "*s"], spacing: Float[np.ndarray, " d"]
) -> Float32[np.ndarray, " n"]:
    """From every voxel of `points` to the nearest of `target`, mm: SciPy's exact feature transform, read at the points."""
    from scipy.ndimage import distance_transform_edt

    nearest = distance_transform_edt(~target, sampling=list(spacing), return_distances=False, return_indices=True)
    index: Int64[np.ndarray, "d n"] = np.stack(np.nonzero(points))
    steps = (nearest[(slice(None), *index)] - index) * np.asarray(spacing, np.float64)[:, None]
    return np.sqrt((steps**2).sum(axis=0)).astype(np.float32)
