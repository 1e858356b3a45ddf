"""Scans with masks, as segmentation tasks train on them: one canonical grid, intensities in stored units, a training box.

    Volumes -> canonical -> resample (mask: nearest voxel) -> CT: HU window | MR: z-score in the brain, its box -> Labelled

The orientation is the header's: axes are permuted and flipped by the direction matrix, never by a convention of the data
set. Stored units are what a cache keeps as int16; `Preparation.to_unit` brings them to what a network sees.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from jaxtyping import Float32, Int64, Num, UInt8
from pydantic import BaseModel, ConfigDict, Field, model_validator

from pcrl_cli.core.errors import DataError
from pcrl_cli.core.plan import Grid, Labelled
from pcrl_cli.data.volume import MR_STORED_MAX, Intensity, Volume, canonical, check, index_to_world, prepare, resample
from pcrl_cli.pure.volumes import first_voxel

GRID_TOLERANCE = 0.1  # voxels by which a corner of one grid may lie off the other's
SAME_SPACING = 1e-3  # relative: a spacing this near the wanted one is it, and no voxel is interpolated
Z_STORED = 1000.0  # stored integers a standard deviation
Z_MAX = 32.0  # standard deviations that are kept


@dataclass(frozen=True)
class Volumes:
    """What a reader reads of one case: images of one grid, and the mask on it where there is one.

    names: of the images: ("ct",) or MR sequences.
    """

    images: tuple[Volume, ...]
    names: tuple[str, ...]
    mask: Volume | None = None


@dataclass(frozen=True)
class Imaged:
    """The images of a case on the grid that a network works on.

    image: stored units, not rounded. native: the file's grid, turned upright.
    """

    image: Float32[np.ndarray, "c x y z"]
    grid: Grid
    native: Grid
    scan_ids: tuple[str, ...]


class Preparation(BaseModel):
    """How images and masks become what is cached.

    modality: `ct`: HU, clipped to [hu_min, hu_max], stored as they are, [0, 1] for the network; `mr`: each sequence by
        `normalise`, 0 outside the brain, cut to the brain's box. The brain: voxels that are not 0 in some sequence.
    spacing_mm: of the grid, in all directions; None keeps the scan's own.
    margin: voxels round the foreground's box that training crops may reach (CT).
    normalise: `zscore`: mean 0 and deviation 1 over the brain, stored in thousandths and kept within +-32; `minmax`
        (the released code): the sequence's least and greatest value become 0 and 1, stored as 0 .. 30000.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    modality: Literal["ct", "mr"] = "ct"
    spacing_mm: float | None = Field(default=1.0, gt=0)
    hu_min: float = -200.0
    hu_max: float = 200.0
    margin: int = Field(default=30, ge=0)
    normalise: Literal["zscore", "minmax"] = "zscore"

    @model_validator(mode="after")
    def _window(self) -> "Preparation":
        if not -32768 <= self.hu_min < self.hu_max <= 32767:
            raise ValueError(f"hu_min {self.hu_min:g} must lie below hu_max {self.hu_max:g}, both within 16 bits")
        return self

    @property
    def to_unit(self) -> tuple[float, float]:
        """(scale, offset): what the network sees = stored * scale + offset."""
        if self.modality == "ct":
            return 1 / (self.hu_max - self.hu_min), -self.hu_min / (self.hu_max - self.hu_min)
        return 1 / (Z_STORED if self.normalise == "zscore" else MR_STORED_MAX), 0.0

    @property
    def of_images(self) -> dict[str, Any]:
        """What decides the images' values and grid, for this modality; the margin only says where crops come from."""
        own = ("hu_min", "hu_max") if self.modality == "ct" else ("normalise",)
        return {name: getattr(self, name) for name in ("modality", "spacing_mm", *own)}

    @property
    def pad(self) -> int:
        """The stored value beyond a scan's edge: what the network sees as 0."""
        scale, offset = self.to_unit
        return round(-offset / scale)


def prepare_images(volumes: Volumes, how: Preparation, identify: bool = True) -> Imaged:
    """The images on the working grid; without `identify` there may be no ids, which take seconds for MR.

    Raises:
        DataError: what `check` refuses, grids that differ, an MR sequence without a brain or of one value.
    """
    for volume in volumes.images:
        check(volume)
        require_same_grid(volumes.images[0], volume)
    return _ct(volumes, how) if how.modality == "ct" else _mr(volumes, how, identify)


def label(volumes: Volumes, how: Preparation) -> Labelled:
    """The images with their mask, and the box that training crops come from.

    CT: the foreground's box and `margin` voxels round it, cut at the scan's edges; the whole scan where there is no
    foreground. MR: the brain's box, which is all that is kept of the image.

    Raises:
        DataError: as `prepare_images`; the mask has another grid.
    """
    mask = volumes.mask
    assert mask is not None, "a scan without a mask has nothing to learn from"
    require_same_grid(volumes.images[0], mask)
    imaged = prepare_images(volumes, how)
    upright = canonical(replace(volumes.images[0], array=mask.array))  # the image's axes, not nearly the same ones
    native_mask = np.ascontiguousarray(upright.array, np.uint8)
    on_grid = cut(nearest(native_mask, imaged.native, imaged.grid.spacing), imaged)
    box = foreground_box(on_grid, how.margin) if how.modality == "ct" else _whole(on_grid)
    return Labelled(imaged.image, on_grid, imaged.grid, native_mask, imaged.native, box, imaged.scan_ids)


def require_same_grid(one: Volume, other: Volume) -> None:
    """Two images of one case have to show the same places.

    Raises:
        DataError: their sizes differ, or a corner lies more than a tenth of a voxel off.
    """
    a, b = one.array.shape, other.array.shape
    if a != b:
        raise DataError(
            f"{other.source} has {_times(b)} voxels and {one.source} {_times(a)}: they have to share a grid; resample "
            "one of them or leave the case out.",
            slug="bad_geometry",
        )
    corners = np.array([(i, j, k) for i in (0, 1) for j in (0, 1) for k in (0, 1)]) * (np.array(a) - 1)
    off = float(np.linalg.norm(index_to_world(one, corners) - index_to_world(other, corners), axis=1).max())
    if not off <= GRID_TOLERANCE * float(one.spacing.min()):
        raise DataError(
            f"{other.source} lies up to {off:.3g} mm off the grid of {one.source} (its header states another position, "
            "spacing or direction): correct the header or leave the case out.",
            slug="bad_geometry",
        )


def require_labels(mask: Volume, known: Sequence[int]) -> None:
    """A mask may hold the documented labels only.

    Raises:
        DataError: it holds others; they are listed.
    """
    found = set[float]()
    for plane in mask.array.transpose(np.argsort([-abs(s) for s in mask.array.strides])):
        found.update(np.unique(plane).tolist())
    strange = sorted(found - set(known))
    if strange:
        listed = ", ".join(f"{value:g}" for value in strange[:10]) + ", ..." * (len(strange) > 10)
        raise DataError(
            f"{mask.source} holds the labels {listed}, and only {', '.join(map(str, known))} are known: correct it or "
            "leave the case out.",
            slug="bad_values",
        )


def nearest(
    mask: UInt8[np.ndarray, "x y z"], grid: Grid, spacing_mm: Num[np.ndarray, "3"]
) -> UInt8[np.ndarray, "i j k"]:
    """A mask on the grid that `resample` makes of an image: the label of the nearest voxel, the later one half way."""
    for axis, (n, old, new) in enumerate(zip(mask.shape, grid.spacing, spacing_mm, strict=True)):
        m = max(1, round(n * old / new))
        take = np.minimum(np.floor(np.arange(m) * (new / old) + 0.5).astype(np.int64), n - 1)
        if not np.array_equal(take, np.arange(n)):
            mask = mask.take(take, axis)
    return np.ascontiguousarray(mask)


def cut(mask: UInt8[np.ndarray, "i j k"], imaged: Imaged) -> UInt8[np.ndarray, "x y z"]:
    """The part of a mask on the uncut grid that an image kept."""
    first = first_voxel(imaged.grid, imaged.native)
    return np.ascontiguousarray(mask[tuple(slice(a, a + n) for a, n in zip(first, imaged.grid.shape, strict=True))])


def foreground_box(mask: UInt8[np.ndarray, "x y z"], margin: int = 0) -> Int64[np.ndarray, "2 3"]:
    """First voxel and size of the box of all labels but 0, `margin` voxels wider on each side, inside the grid.

    All of the grid where there is no such label.
    """
    bounds = [_bounds(mask, axis, margin) for axis in range(3)]
    return np.array([[a for a, _ in bounds], [b - a for a, b in bounds]], np.int64)


def _bounds(mask: UInt8[np.ndarray, "x y z"], axis: int, margin: int) -> tuple[int, int]:
    n = mask.shape[axis]
    there = np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
    return (max(0, int(there[0]) - margin), min(n, int(there[-1]) + 1 + margin)) if len(there) else (0, n)


def _whole(mask: UInt8[np.ndarray, "x y z"]) -> Int64[np.ndarray, "2 3"]:
    return np.array([[0, 0, 0], mask.shape], np.int64)


def _spacing(volume: Volume, how: Preparation) -> Num[np.ndarray, "3"]:
    """The working spacing (mm) along the axes of an upright volume."""
    if how.spacing_mm is None or np.allclose(volume.spacing, how.spacing_mm, rtol=SAME_SPACING, atol=0):
        return volume.spacing
    return np.full(3, how.spacing_mm)


def _ct(volumes: Volumes, how: Preparation) -> Imaged:
    """HU in the window. The id is that of the scan at 1 mm in the window of pre-training, whatever the grid here."""
    if len(volumes.images) != 1:
        raise DataError(f"{volumes.images[0].source} is one of {len(volumes.images)} images, and a CT scan is one.")
    upright = canonical(volumes.images[0])
    wide = Intensity(hu_min=min(how.hu_min, -1000.0), hu_max=max(how.hu_max, 1000.0))
    ready = prepare(volumes.images[0], wide, 1.0)
    spacing, values = _spacing(upright, how), ready.values
    if not np.array_equal(spacing, ready.spacing):
        values = _resampled(upright, spacing)
    np.clip(values, how.hu_min, how.hu_max, out=values)
    return Imaged(values[None], _grid(values, spacing, upright), _grid_of(upright), ready.scan_ids)


def _mr(volumes: Volumes, how: Preparation, identify: bool) -> Imaged:
    """Every sequence normalised in the brain, cut to the brain's box."""
    ids = tuple(name for volume in volumes.images for name in _mr_ids(volume)) if identify else ()
    upright = [canonical(volume) for volume in volumes.images]
    spacing = _spacing(upright[0], how)
    image = np.stack([_resampled(volume, spacing) for volume in upright])
    brain = (image != 0).any(axis=0)
    if not brain.any():
        raise DataError(f"{upright[0].source} is 0 everywhere: leave the case out.", slug="bad_values")
    for values, volume in zip(image, upright, strict=True):
        _normalise(values, brain, how, volume.source)
    grid = _grid(image[0], spacing, upright[0])
    low, size = foreground_box(brain.astype(np.uint8))
    part = image[(slice(None), *(slice(a, a + n) for a, n in zip(low, size, strict=True)))]
    x, y, z = (int(n) for n in size)
    cropped = replace(grid, shape=(x, y, z), origin=grid.origin + grid.direction @ (low * grid.spacing))
    return Imaged(np.ascontiguousarray(part), cropped, _grid_of(upright[0]), ids)


def _mr_ids(volume: Volume) -> tuple[str, ...]:
    """Of a sequence by itself, as pre-training on a folder of them would see it; none where that would refuse it."""
    try:
        return prepare(volume, Intensity(modality="mr"), 1.0).scan_ids
    except DataError:
        return ()


def _normalise(values: Float32[np.ndarray, "x y z"], brain: np.ndarray, how: Preparation, source: str) -> None:
    """Brings a sequence to stored units, in place; 0 outside the brain."""
    inside = values[brain].astype(np.float64)
    if how.normalise == "zscore":
        zero, unit, scale = float(inside.mean()), float(inside.std()), Z_STORED
    else:
        zero, unit, scale = float(values.min()), float(np.ptp(values)), float(MR_STORED_MAX)
    if not inside.std() > 0:
        raise DataError(f"{source} has one value in all of the brain: leave the case out.", slug="bad_values")
    values -= np.float32(zero)
    values *= np.float32(scale / unit)
    np.clip(values, -Z_MAX * Z_STORED, Z_MAX * Z_STORED, out=values)
    values[~brain] = 0


def _resampled(upright: Volume, spacing: Num[np.ndarray, "3"]) -> Float32[np.ndarray, "x y z"]:
    """The values on the working grid, in memory of their own."""
    if np.array_equal(spacing, upright.spacing):
        return np.array(upright.array, np.float32, order="C")
    return np.asarray(resample(upright, float(spacing[0])).array, np.float32)


def _grid(values: np.ndarray, spacing: Num[np.ndarray, "3"], upright: Volume) -> Grid:
    x, y, z = values.shape
    return Grid((x, y, z), np.array(spacing, np.float64), upright.origin, upright.direction)


def _grid_of(volume: Volume) -> Grid:
    return _grid(volume.array, volume.spacing, volume)


def _times(numbers: Sequence[int]) -> str:
    return " x ".join(map(str, numbers))
