"""What a reader knows of a scan before it reads a voxel."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Float64, UInt8


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
    """One image of a shard of a 2D data set.

    id: unique in its data set and stable over time. label: a number a class, 1 present, 0 absent, -1 not known (which
    the loss leaves out).
    """

    id: str
    patient: str
    path: Path
    label: tuple[int, ...] = ()


@dataclass(frozen=True)
class Case:
    """One scan of one patient.

    id: unique in its data set and stable over time; also a file name, so [A-Za-z0-9._-] only.
    patient: what splits and leakage checks count by.
    path: the file or folder to read.
    points: candidates, for data sets that have them.
    lesions: (k, 4) centre (LPS, mm) and diameter (mm) of every annotated lesion, for data sets that have them.
    excluded: (k, 4) the same of findings that count neither as hit nor as false alarm; a diameter of -1 is unknown.
    images: of a 2D data set, where a case is a shard of many images; `patient` is empty then.
    """

    id: str
    patient: str
    path: Path
    points: Points | None = field(default=None, compare=False)
    lesions: Float64[np.ndarray, "k 4"] | None = field(default=None, compare=False)
    excluded: Float64[np.ndarray, "e 4"] | None = field(default=None, compare=False)
    images: tuple[ImageRef, ...] = field(default=(), compare=False)
