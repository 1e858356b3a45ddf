"""What a method or task wants cached: a crop plan. `data/build` executes plans and knows no method."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Float32, Float64, Int8, Int64, UInt8

from pcrl_cli.core.case import Case


@runtime_checkable
class Scan(Protocol):
    """What a reader's kind makes of a case, for plans to draw from.

    scan_ids: one a scan or image, equal for the same voxels whatever their name and reader: by them a leak is found.
    """

    @property
    def scan_ids(self) -> tuple[str, ...]: ...


@dataclass(frozen=True)
class Prepared:
    """A scan on the grid and in the intensity range that crops are cut from.

    values: (x, y, z) float32, resampled and clipped, not rounded; CT in HU, others in stored units.
    spacing: millimetres a voxel; origin, direction: of voxel (0, 0, 0), LPS: world = origin + direction @ (index * spacing).
    background: what lies below is air (CT: -150 HU; others: Otsu's threshold).
    air: the value that stands for "outside the scan" (CT: -1000 HU).
    """

    values: Float[np.ndarray, "x y z"]
    spacing: Float64[np.ndarray, "3"]
    origin: Float64[np.ndarray, "3"]
    direction: Float64[np.ndarray, "3 3"]
    background: float
    air: float
    scan_ids: tuple[str, ...] = ()


@dataclass(frozen=True)
class Grid:
    """Where voxels lie: world = origin + direction @ (index * spacing), LPS mm, index of a voxel's centre."""

    shape: tuple[int, int, int]
    spacing: Float64[np.ndarray, "3"]
    origin: Float64[np.ndarray, "3"]
    direction: Float64[np.ndarray, "3 3"]

    def row(self) -> Float64[np.ndarray, "18"]:
        """Shape, spacing, origin and direction as a cache stores them."""
        return np.concatenate([np.array(self.shape, float), self.spacing, self.origin, self.direction.ravel()])

    @classmethod
    def of_row(cls, row: Float64[np.ndarray, "18"]) -> "Grid":
        x, y, z = (int(n) for n in row[:3])
        return cls((x, y, z), row[3:6].copy(), row[6:9].copy(), row[9:].reshape(3, 3).copy())


@dataclass(frozen=True)
class Labelled:
    """A scan of one or more channels with its mask, on the grid that a segmentation task works on.

    image: float32 in stored units, not rounded; mask: the data set's labels on the same grid, `grid`.
    native_mask: the labels as the data set gives them, on `native`: its file's grid with its axes turned upright.
    box: (2, 3) first voxel and size of the part of `image` that training crops come from.
    """

    image: Float32[np.ndarray, "c x y z"]
    mask: UInt8[np.ndarray, "x y z"]
    grid: Grid
    native_mask: UInt8[np.ndarray, "i j k"]
    native: Grid
    box: Int64[np.ndarray, "2 3"]
    scan_ids: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pictures:
    """The images of one shard, decoded and brought to one size.

    label: one row an image, see `case.ImageRef`. bad: why an image of the shard could not be used, by its id.
    """

    image: UInt8[np.ndarray, "n 1 s s"]
    id: tuple[str, ...]
    patient: tuple[str, ...]
    label: Int8[np.ndarray, "n k"]
    scan_ids: tuple[str, ...]
    bad: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Drawn:
    """What a plan took from one scan.

    arrays: by name, first axis = items (pairs, candidates, ...); written to the shard as they are.
    counts: tried, kept, and refused by reason, for `prep --json`.
    chunks: what is read in one piece, by array; one item if it is not said.
    packed: arrays that are stored compressed: masks.
    source: of a shard of images, which of the scan's images each item was made from; without it item k is image k.
    """

    arrays: dict[str, np.ndarray]
    counts: Counter[str] = field(default_factory=Counter)
    chunks: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    packed: frozenset[str] = frozenset()
    source: Int64[np.ndarray, " n"] | None = None


@runtime_checkable
class CropPlan(Protocol):
    """A recipe for arrays of one scan. Implementations are frozen pydantic models, so that settings have a fingerprint."""

    @property
    def group(self) -> str:
        """The HDF5 group its arrays are stored in: `pairs`, `candidates`, `volumes`, `images`."""
        ...

    def draw(self, scan: Any, case: Case, rng: np.random.Generator) -> Drawn:
        """Cuts the arrays out of what the reader's kind made of the case: `Prepared`, `Labelled` or `Pictures`.

        Raises:
            DataError: the scan cannot serve (too small, no acceptable crop); the case is quarantined with the reason.
        """
        ...
