"""Whole volumes with masks: what is cached of them, and probabilities brought back to a scan's own grid."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int32, Num, UInt8
from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from pcrl_cli.core.case import Case
from pcrl_cli.core.plan import Drawn, Grid, Labelled
from pcrl_cli.pure.crops import to_int16
from pcrl_cli.pure.regions import decided

BESIDE = 12_000
"""Bytes that a shard holds besides image and foreground, about: names and shapes, and masks, which shrink to little."""
CHUNK = (64, 64, 32)  # voxels (x, y, z) that are read in one piece, at most
PADDED = 255
"""The value of a mask where a crop reaches beyond its volume: no label."""


class WholeVolumes(BaseModel):
    """A scan with its mask, for random crops and for scoring on its own grid.

    foreground: at most so many voxels of the mask's foreground, a seeded sample, are listed for crops round them.

    Arrays: `image` (c, x, y, z) int16 stored units; `mask` (x, y, z) uint8 and `native_mask` (i, j, k) uint8, the data
    set's labels on the working grid and on the file's; `box` (2, 3) int32, first voxel and size of what training crops
    come from; `foreground` (k, 3) int32, voxels; `grid` and `native` (18,) float64, see `core.plan.Grid.row`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    foreground: PositiveInt = Field(default=4096)

    @property
    def group(self) -> str:
        return "volumes"

    def bytes_beside(self, voxels: float) -> float:
        """Of what is stored of a case besides its image, about: three numbers a voxel of the foreground, if that is a third."""
        return 12.0 * min(self.foreground, voxels / 3) + BESIDE

    def draw(self, scan: Labelled, case: Case, rng: np.random.Generator) -> Drawn:
        """Everything, rounded to what the cache stores.

        Counts: volumes (1), without_foreground (1 where the mask is empty), and label_L, the voxels of each label.

        Raises:
            DataError: a value is not finite or beyond 16 bits.
        """
        image = to_int16(scan.image)
        voxels = np.sum([np.bincount(plane.ravel(), minlength=256) for plane in scan.mask], axis=0)
        counts = Counter({f"label_{k}": int(n) for k, n in enumerate(voxels) if k and n})
        counts.update(volumes=1, without_foreground=int(not voxels[1:].any()))
        arrays = {
            "image": image,
            "mask": scan.mask,
            "native_mask": scan.native_mask,
            "box": scan.box.astype(np.int32),
            "foreground": sample_foreground(scan.mask, self.foreground, rng),
            "grid": scan.grid.row(),
            "native": scan.native.row(),
        }
        chunks = {name: chunk_of(arrays[name].shape) for name in ("image", "mask", "native_mask")}
        if foreground := len(arrays["foreground"]):  # in one piece: as many pieces would have an index of 50 bytes each
            chunks["foreground"] = (foreground, 3)
        return Drawn(arrays, counts, chunks, frozenset({"mask", "native_mask"}))


def chunk_of(shape: tuple[int, ...]) -> tuple[int, ...]:
    """What is read in one piece: the last three axes in as few equal parts of at most CHUNK as can be, one of the others.

    Equal parts, because a file stores whole pieces: 140 voxels in pieces of 64 would take the room of 192.
    """
    parts = (-(-n // -(-n // most)) for n, most in zip(shape[-3:], CHUNK, strict=True))
    return (*(1 for _ in shape[:-3]), *parts)


def sample_foreground(
    mask: UInt8[np.ndarray, "x y z"], most: int, rng: np.random.Generator
) -> Int32[np.ndarray, "k 3"]:
    """At most so many voxels of any label but 0, all equally likely, in the order of the grid."""
    there = np.flatnonzero(mask)
    if len(there) > most:
        there = np.sort(rng.choice(there, most, replace=False, shuffle=False))
    return np.stack(np.unravel_index(there, mask.shape), axis=1).astype(np.int32)


def to_native(
    probability: Float[np.ndarray, "c x y z"],
    grid: Grid,
    native: Grid,
    threshold: float = 0.5,
    exclude: Bool[np.ndarray, "c c"] | None = None,
) -> Bool[np.ndarray, "c i j k"]:
    """Where a probability exceeds the threshold, on the grid of the scan's file (axes upright).

    exclude: which regions exclude each other, see `pure.regions.decided`.

    The probabilities are interpolated linearly and then compared, which leaves a smoother surface than the nearest
    voxel's decision. Beyond the last voxel of the working grid its value is held, as `data.volume.resample` held the
    scan's; in what was cut off (a brain's surroundings) the probability is 0. One plane of the file at a time, so that
    little is needed besides the result.
    """
    x, y, z = (_taps(grid, native, axis) for axis in range(3))
    out = np.zeros((len(probability), *native.shape), bool)
    for k in range(native.shape[2]):
        low, high, of_low, of_high = (part[k] for part in z)
        if of_low or of_high:
            plane = probability[..., low] * of_low + probability[..., high] * of_high
            out[..., k] = decided(_along(_along(plane, x, 1), y, 2), threshold, exclude)
    return out


def label_map(masks: Bool[np.ndarray, "r *s"], regions: Sequence[tuple[int, ...]]) -> UInt8[np.ndarray, "*s"]:
    """Regions that may overlap, as the labels of a data set: BraTS' WT, TC, ET are 2, 1, 4.

    A voxel gets the first label that belongs to exactly the regions that it is in. Where no label does, as of a voxel that
    is in an inner region alone, it is that which leaves out the fewest of its regions, then that which adds the fewest.

    regions: the labels that make up each; at most 64.
    """
    out = np.zeros(masks.shape[1:], np.uint8)
    there = masks.any(axis=0)
    key = np.zeros(np.count_nonzero(there), np.uint64)
    for k, mask in enumerate(masks):
        key |= mask[there].astype(np.uint64) << np.uint64(k)
    patterns, which = np.unique(key, return_inverse=True)
    labels = list(dict.fromkeys(label for members in regions for label in members))
    belongs = {label: sum(1 << k for k, members in enumerate(regions) if label in members) for label in labels}

    def nearest_label(pattern: int) -> int:
        return min(labels, key=lambda n: ((pattern & ~belongs[n]).bit_count(), (belongs[n] & ~pattern).bit_count()))

    if len(patterns):
        out[there] = np.array([nearest_label(int(pattern)) for pattern in patterns], np.uint8)[which]
    return out


def first_voxel(grid: Grid, native: Grid) -> tuple[int, int, int]:
    """Where a cut grid begins, in its own voxels from the first voxel of the scan that it was made of."""
    x, y, z = np.rint(grid.direction.T @ (grid.origin - native.origin) / grid.spacing).astype(int)
    return int(x), int(y), int(z)


Taps = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""For every voxel of the target: two voxels of the source and their weights; both 0 where there is no source."""


def _taps(grid: Grid, native: Grid, axis: int) -> Taps:
    """Along one axis. The uncut grid starts at the file's first voxel and has round(n * spacing / new) voxels."""
    n, ratio, first = native.shape[axis], native.spacing[axis] / grid.spacing[axis], first_voxel(grid, native)[axis]
    whole = max(1, round(n * float(ratio)))
    at = np.minimum(np.arange(n) * ratio, whole - 1)
    low = np.floor(at + 1e-9).astype(np.int64)
    of_high = np.clip(at - low, 0, 1)
    pair, weights = (low, np.minimum(low + 1, whole - 1)), (1 - of_high, of_high)
    inside = [(first <= i) & (i < first + grid.shape[axis]) for i in pair]
    low, high = (np.where(there, i - first, 0) for i, there in zip(pair, inside, strict=True))
    of_low, of_high = (np.where(there, w, 0).astype(np.float32) for w, there in zip(weights, inside, strict=True))
    return low, high, of_low, of_high


def _along(plane: Num[np.ndarray, "c a b"], taps: Taps, axis: int) -> Num[np.ndarray, "c i j"]:
    low, high, of_low, of_high = taps
    shape = (-1, 1) if axis == 1 else (-1,)
    return plane.take(low, axis) * of_low.reshape(shape) + plane.take(high, axis) * of_high.reshape(shape)
