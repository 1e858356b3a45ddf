"""What a method or task wants cached: a crop plan. `data/build` executes plans and knows no method."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Float64, Int8, UInt8

from pcrl_cli.core.case import Case


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


@dataclass(frozen=True)
class Pictures:
    """The images of one shard of a 2D data set, grey and of one size, without those that could not be read.

    label: 1 present, 0 absent, -1 not known. bad: why, by the id of the image. scan_ids: one an image, for leaks.
    """

    image: UInt8[np.ndarray, "n 1 s s"]
    id: tuple[str, ...]
    patient: tuple[str, ...]
    label: Int8[np.ndarray, "n k"]
    bad: Mapping[str, str]
    scan_ids: tuple[str, ...]


@dataclass
class Drawn:
    """What a plan took from one scan.

    arrays: by name, first axis = items (pairs, candidates, ...); written to the shard as they are.
    counts: tried, kept, and refused by reason, for `prep --json`.
    """

    arrays: dict[str, np.ndarray]
    counts: Counter[str] = field(default_factory=Counter)


@runtime_checkable
class CropPlan(Protocol):
    """A recipe for arrays of one scan. Implementations are frozen pydantic models, so that settings have a fingerprint."""

    @property
    def group(self) -> str:
        """The HDF5 group its arrays are stored in: `pairs`, `candidates`, ..."""
        ...

    def draw(self, scan: Prepared, case: Case, rng: np.random.Generator) -> Drawn:
        """Cuts the arrays.

        Raises:
            DataError: the scan cannot serve (too small, no acceptable crop); the case is quarantined with the reason.
        """
        ...
