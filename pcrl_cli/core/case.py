"""What a reader knows of a scan before it reads a voxel."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float64, UInt8

Part = Literal["train", "val", "test"]


@dataclass(frozen=True)
class Points:
    """Labelled places in a scan: nodule candidates.

    world: (m, 3) millimetres in the scanner's LPS frame (x to the left, y to the back, z to the head).
    label: (m,) 1 = lesion, 0 = not.
    id: a name for each, unique in its data set.
    """

    world: Float64[np.ndarray, "m 3"]
    label: UInt8[np.ndarray, " m"]
    id: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.id)


@dataclass(frozen=True)
class ImageRef:
    """One image of a 2D data set.

    id: unique in its data set. label: one a class: 1 present, 0 absent, -1 not known and left out of the loss.
    part: where the user's own table puts its patient.
    """

    id: str
    patient: str
    path: Path
    label: tuple[int, ...] = ()
    part: Part | None = None


@dataclass(frozen=True)
class Case:
    """One scan of one patient; of a 2D data set, as many images as a shard holds.

    id: unique in its data set and stable over time; also a file name, so [A-Za-z0-9._-] only.
    patient: what splits and leakage checks count by; empty where there are `images`, which name theirs.
    path: the file or folder to read.
    files: further files by name, such as `mask` or a modality.
    images: of a 2D data set. label, part: of a scan, as of an image; see `ImageRef`.
    points: candidates, for data sets that have them.
    lesions: (k, 4) centre (LPS, mm) and diameter (mm) of every annotated lesion, for data sets that have them.
    excluded: (k, 4) the same of findings that count neither as hit nor as false alarm; a diameter of -1 is unknown.
    """

    id: str
    patient: str
    path: Path
    points: Points | None = field(default=None, compare=False)
    lesions: Float64[np.ndarray, "k 4"] | None = field(default=None, compare=False)
    excluded: Float64[np.ndarray, "e 4"] | None = field(default=None, compare=False)
    files: Mapping[str, Path] = field(default_factory=dict, compare=False)
    images: tuple[ImageRef, ...] = field(default=(), compare=False)
    label: tuple[int, ...] = field(default=(), compare=False)
    part: Part | None = field(default=None, compare=False)

    @property
    def patients(self) -> tuple[str, ...]:
        """Everybody in it, sorted."""
        return tuple(sorted({image.patient for image in self.images})) if self.images else (self.patient,)
