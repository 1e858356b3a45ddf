"""Volumes in the scanner's frame: checked, turned upright, resampled, brought into the intensity range of the cache.

    read_volume -> Volume -> canonical -> resample -> clip -> core.plan.Prepared

World coordinates are LPS millimetres (x to the left, y to the back, z to the head) everywhere:
world = origin + direction @ (index * spacing), with the index of a voxel's centre.
"""

import hashlib
from dataclasses import dataclass, replace
from itertools import permutations
from typing import Literal

import numpy as np
from jaxtyping import Float, Float32, Float64, Int16, Int64, Num, Shaped
from pydantic import BaseModel, ConfigDict, model_validator

from pcrl_cli.core.errors import DataError
from pcrl_cli.core.plan import Prepared

MIN_SPACING_MM, MAX_SPACING_MM = 0.01, 50.0
MAX_EXTENT_MM, MAX_VOXELS = 3000.0, 2**31  # beyond any scanner's; voxels of 1 mm, which are what resampling makes
DIRECTION_TOLERANCE = 1e-3  # headers hold float32 quaternions and cosines of four digits
MR_STORED_MAX = 30_000  # stored integer that stands for 1.0
ALL_VOXELS = 2**21  # 128^3: up to which size every voxel of a scan counts for its id


@dataclass(frozen=True, eq=False)
class Volume:
    """A scan on its own grid.

    array: (x, y, z), int16 where the values are such integers, float32 otherwise; CT in HU.
    spacing: millimetres a voxel along each axis.
    origin: world position of the centre of voxel (0, 0, 0).
    direction: columns are the world directions of the three axes.
    source: the file, for messages.
    """

    array: Int16[np.ndarray, "x y z"] | Float32[np.ndarray, "x y z"]
    spacing: Float64[np.ndarray, "3"]
    origin: Float64[np.ndarray, "3"]
    direction: Float64[np.ndarray, "3 3"]
    source: str = "a scan in memory"


def index_to_world(grid: Volume | Prepared, index: Num[np.ndarray, "*n 3"]) -> Float64[np.ndarray, "*n 3"]:
    """World positions (mm) of voxel indices; whole numbers are voxel centres."""
    return np.asarray((index * grid.spacing) @ grid.direction.T + grid.origin, np.float64)


def world_to_index(grid: Volume | Prepared, world: Num[np.ndarray, "*n 3"]) -> Float64[np.ndarray, "*n 3"]:
    """Fractional voxel indices of world positions (mm); the inverse of `index_to_world`."""
    return np.asarray((world - grid.origin) @ np.linalg.inv(grid.direction).T / grid.spacing, np.float64)


def check(volume: Volume) -> None:
    """Refuses scans that no later step can use.

    Raises:
        DataError: fewer than 2 voxels along an axis, a spacing or an extent that no scanner has, axes that are not
            orthonormal, a position or a voxel that is not a finite number.
    """
    where, shape = volume.source, volume.array.shape
    if min(shape) < 2:
        raise DataError(
            f"{where} has {_times(shape)} voxels, and a 3D scan needs 2 or more along each axis: leave it out."
        )
    if not all(MIN_SPACING_MM <= s <= MAX_SPACING_MM for s in volume.spacing):  # also refuses NaN
        raise DataError(
            f"{where} states a spacing of {_times(volume.spacing)} mm, outside {MIN_SPACING_MM} to "
            f"{MAX_SPACING_MM:g} mm: correct its header or leave it out."
        )
    extent = np.array(shape) * volume.spacing
    if extent.max() > MAX_EXTENT_MM or float(np.prod(extent)) > MAX_VOXELS:
        raise DataError(
            f"{where} states an extent of {_times(extent)} mm, larger than any scan: correct the spacing in its header or "
            "leave it out."
        )
    if not np.isfinite(volume.origin).all():
        raise DataError(f"{where} states an origin that is not finite: correct its header or leave it out.")
    skew = np.abs(volume.direction.T @ volume.direction - np.eye(3)).max()
    if not skew <= DIRECTION_TOLERANCE:
        raise DataError(f"{where} states axes that are not orthonormal: resample it or leave it out.")
    if volume.array.dtype.kind == "f":
        bad = sum(int(plane.size - np.isfinite(plane).sum()) for plane in _slowest_first(volume.array)[0])
        if bad:
            raise DataError(f"{where} holds {bad} voxels that are NaN or infinite: repair it or leave it out.")


def canonical(volume: Volume) -> Volume:
    """The same scan with its axes permuted and flipped so that its direction is as near the identity as can be.

    Every voxel keeps its world position; the array is a view.
    """
    axes, sign = _upright(volume.direction)
    array, spacing, direction = volume.array.transpose(axes), volume.spacing[axes], volume.direction[:, axes]
    far_end = np.where(sign < 0, np.array(array.shape) - 1, 0)
    origin = volume.origin + direction @ (far_end * spacing)
    array = array[tuple(slice(None, None, int(s)) for s in sign)]
    return replace(volume, array=array, spacing=spacing, origin=origin, direction=direction * sign)


def as_filed(array: Shaped[np.ndarray, "x y z"], direction: Float64[np.ndarray, "3 3"]) -> Shaped[np.ndarray, "i j k"]:
    """Voxels of an upright scan with their axes as in the file that it was read from: `canonical` undone, a view.

    direction: of the file's grid.
    """
    axes, sign = _upright(direction)
    return array[tuple(slice(None, None, int(s)) for s in sign)].transpose(np.argsort(axes))


def _upright(direction: Float64[np.ndarray, "3 3"]) -> tuple[list[int], Int64[np.ndarray, "3"]]:
    """Which axis of the file becomes x, y and z, and which of these are to be flipped (-1)."""
    order = max(permutations(range(3)), key=lambda p: sum(abs(direction[i, p[i]]) for i in range(3)))
    axes = list(order)
    return axes, np.where(np.diagonal(direction[:, axes]) < 0, -1, 1)


@dataclass(frozen=True)
class _Taps:
    """Linear interpolation along one axis: out[k] = in[low[k]] + weight[k] * (in[high[k]] - in[low[k]])."""

    low: Int64[np.ndarray, " m"]
    high: Int64[np.ndarray, " m"]
    weight: Float32[np.ndarray, " m"]

    @classmethod
    def of(cls, n: int, spacing: float, new: float) -> "_Taps":
        """Positions k * new / spacing, k < round(n * spacing / new), held at the last voxel."""
        m = max(1, round(n * spacing / new))
        position = np.minimum(np.arange(m) * (new / spacing), n - 1)
        low = np.floor(position).astype(np.int64)
        return cls(low, np.minimum(low + 1, n - 1), (position - low).astype(np.float32))

    def apply(self, plane: Float32[np.ndarray, "a b"], axis: int) -> Float32[np.ndarray, "c d"]:
        if len(self.low) == plane.shape[axis] and not self.weight.any():
            return plane
        low, difference = plane.take(self.low, axis), plane.take(self.high, axis)
        difference -= low
        difference *= self.weight[:, None] if axis == 0 else self.weight
        return np.add(low, difference, out=low)


def resample(volume: Volume, spacing_mm: float) -> Volume:
    """The scan on a grid of `spacing_mm` in all directions: separable linear interpolation, float32.

    The centre of the first voxel stays, the size becomes round(n * spacing / spacing_mm), and beyond the last voxel's
    centre its value is held. Works plane by plane in memory order, so that it needs little besides its result, whose
    axes lie in memory in the order of the input's.
    """
    source, order = _slowest_first(volume.array)
    taps = [_Taps.of(volume.array.shape[axis], float(volume.spacing[axis]), spacing_mm) for axis in order]
    out = np.empty([len(t.low) for t in taps], np.float32)
    planes: dict[int, np.ndarray] = {}
    for k, (low, high, weight) in enumerate(zip(taps[0].low, taps[0].high, taps[0].weight, strict=True)):
        planes = {j: planes[j] if j in planes else _plane(source[j], taps) for j in {int(low), int(high)}}
        np.subtract(planes[int(high)], planes[int(low)], out=out[k])
        out[k] *= weight
        out[k] += planes[int(low)]
    back = [order.index(axis) for axis in range(3)]
    return replace(volume, array=out.transpose(back), spacing=np.full(3, float(spacing_mm)))


def _plane(plane: Num[np.ndarray, "a b"], taps: list[_Taps]) -> Float32[np.ndarray, "c d"]:
    return taps[2].apply(taps[1].apply(plane.astype(np.float32), 0), 1)


def _slowest_first(array: Num[np.ndarray, "x y z"]) -> tuple[Num[np.ndarray, "a b c"], list[int]]:
    """A view whose first axis has the longest stride, and the axes it took."""
    order = sorted(range(3), key=lambda axis: -abs(array.strides[axis]))
    return array.transpose(order), order


def _times(numbers: "tuple[int, ...] | np.ndarray") -> str:
    return " x ".join(f"{n:g}" for n in numbers)


class Intensity(BaseModel):
    """The range of values that is kept, and how the cache stores it.

    modality: `ct`: values are HU, clipped to [hu_min, hu_max] and stored as they are; `mr`: percentiles 0.5 and 99.5 of
        the scan become 0 and 1, stored as 0 .. 30000.
    background_hu: below it a CT voxel is air (MR: Otsu's threshold of the scan).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    modality: Literal["ct", "mr"] = "ct"
    hu_min: float = -1000.0
    hu_max: float = 1000.0
    background_hu: float = -150.0

    @model_validator(mode="after")
    def _window(self) -> "Intensity":
        if not -32768 <= self.hu_min < self.hu_max <= 32767:
            raise ValueError(f"hu_min {self.hu_min:g} must lie below hu_max {self.hu_max:g}, both within 16 bits")
        return self

    @property
    def air(self) -> float:
        """The stored value that stands for "outside the scan"."""
        return self.hu_min if self.modality == "ct" else 0.0

    @property
    def store_scale(self) -> float:
        """Unit range [0, 1] = stored * store_scale + store_offset."""
        return 1 / (self.hu_max - self.hu_min) if self.modality == "ct" else 1 / MR_STORED_MAX

    @property
    def store_offset(self) -> float:
        return -self.hu_min / (self.hu_max - self.hu_min) if self.modality == "ct" else 0.0


def prepare(volume: Volume, intensity: Intensity, spacing_mm: float = 1.0) -> Prepared:
    """A scan as crops are cut from it: upright, resampled, clipped, float32, not rounded.

    Raises:
        DataError: what `check` refuses, or an MR scan of one value.
    """
    check(volume)
    grid = resample(canonical(volume), spacing_mm)
    values = np.asarray(grid.array, np.float32)
    if intensity.modality == "ct":
        np.clip(values, intensity.hu_min, intensity.hu_max, out=values)
        background = intensity.background_hu
    else:
        low, high = np.percentile(volume.array, [0.5, 99.5])
        if not high > low:
            raise DataError(f"{volume.source} has one value in 99 % of its voxels, which is no MR scan: leave it out.")
        values -= np.float32(low)
        values *= np.float32(MR_STORED_MAX / (high - low))
        np.clip(values, 0, MR_STORED_MAX, out=values)
        background = otsu(values)
    ids = (scan_id(values if intensity.modality == "ct" else values * np.float32(1000 / MR_STORED_MAX)),)
    return Prepared(values, grid.spacing, grid.origin, grid.direction, background, intensity.air, ids)


def scan_id(values: Float[np.ndarray, "x y z"]) -> str:
    """20 hexadecimal digits that are equal for the same prepared scan, whatever its name, its patient and its reader.

    The SHA-256 of the grid's shape and of its voxels, clipped to -1000 .. 1000 and rounded (MR: of thousandths of the
    range that is kept, since stored units are beyond that in all of a stripped brain); of scans of more than
    ALL_VOXELS, every fourth along each axis. Of a small one that would be too few: what is not empty may lie between. Two
    copies of a scan get different ids where they were prepared with another spacing or with a window that ends inside
    that range, where one was cropped or converted with rounding (of its voxels, or of its spacing), or MR scans were
    scaled differently. Equal ids mean, in practice, equal scans.
    """
    step = 4 if values.size > ALL_VOXELS else 1
    sample = np.rint(np.clip(values[::step, ::step, ::step], -1000, 1000)).astype("<i2")
    content = np.array(values.shape, "<i8").tobytes() + sample.tobytes(order="C")
    return hashlib.sha256(content).hexdigest()[:20]


def otsu(values: Float[np.ndarray, "*s"], bins: int = 256) -> float:
    """The threshold that best separates two classes of values: the most variance between them (Otsu, 1979).

    A bin edge: values below it are the darker class.
    """
    count, edges = np.histogram(values, bins)
    centre = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(count)[:-1].astype(np.float64)
    above = values.size - below
    sum_below = np.cumsum(count * centre)
    with np.errstate(divide="ignore", invalid="ignore"):
        distance = sum_below[:-1] / below - (sum_below[-1] - sum_below[:-1]) / above
        between = np.nan_to_num(below * above * distance**2)
    return float(edges[1 + int(np.argmax(between))])
