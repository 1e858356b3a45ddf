"""Visual words (TransVW): places that patients of a like anatomy share, found without labels, and cubes cut there.

A word is a corner in voxels of the prepared grid, and the scans nearest to a reference scan by their descriptors: the
crops at that corner in all of them look alike and carry one label.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from pcrl_cli.core.case import Case
from pcrl_cli.core.errors import DataError
from pcrl_cli.core.plan import Drawn, Prepared
from pcrl_cli.pure.crops import Box, Size, to_int16
from pcrl_cli.pure.resize import resize

Corner = tuple[int, int, int]
TRIES = 200
"""Corners that are tried in a reference scan before another one is taken."""


@dataclass(frozen=True)
class Word:
    """members: positions of the scans, the reference first, the others by distance."""

    corner: Corner
    members: tuple[int, ...]


def nearest(descriptors: Float[np.ndarray, "n d"], reference: int) -> Int[np.ndarray, " n"]:
    """All scans by their distance to the reference's descriptor; the reference itself comes first."""
    distance = np.linalg.norm(descriptors - descriptors[reference], axis=1)
    distance[reference] = -1.0
    return np.argsort(distance, kind="stable")


def discover(
    descriptors: Float[np.ndarray, "n d"],
    shapes: Int[np.ndarray, "n 3"],
    acceptable: Callable[[int, Corner], bool],
    rng: np.random.Generator,
    words: int,
    members: int,
    cube: tuple[int, int, int],
    border: tuple[int, int, int],
    apart: float,
) -> list[Word]:
    """So many words: each has a reference that no other word has as long as there are such, and `members` scans.

    acceptable: whether the crop of a scan at a corner is good enough. border: kept free at the faces, less where a scan
    is too small for that. apart: least distance of two corners, voxels.

    Raises:
        DataError: no place for another word was found.
    """
    found: list[Word] = []
    unused: list[int] = []
    failed = 0
    while len(found) < words:
        unused = unused or rng.permutation(len(descriptors)).tolist()
        reference = unused.pop()
        word = _try(descriptors, shapes, acceptable, rng, reference, found, members, cube, border, apart)
        failed = 0 if word else failed + 1
        if word is not None:
            found.append(word)
        elif failed > 2 * len(descriptors):
            raise DataError(
                f"only {len(found)} of {words} visual words found a place that {members} scans share; lower words.classes, "
                "words.neighbours or words.border"
            )
    return found


def _try(
    descriptors: Float[np.ndarray, "n d"],
    shapes: Int[np.ndarray, "n 3"],
    acceptable: Callable[[int, Corner], bool],
    rng: np.random.Generator,
    reference: int,
    found: Sequence[Word],
    members: int,
    cube: tuple[int, int, int],
    border: tuple[int, int, int],
    apart: float,
) -> Word | None:
    """A word of this reference, or None where its tries are used up."""
    order = nearest(descriptors, reference)
    free = shapes[reference] - cube
    low = np.minimum(border, np.maximum(free, 0) // 2)
    high = free - low
    if (free < 0).any():
        return None
    for _ in range(TRIES):
        corner = rng.integers(low, high + 1)
        far = all(np.linalg.norm(corner - word.corner) >= apart for word in found)
        fits: Bool[np.ndarray, " n"] = (corner + cube <= shapes[order]).all(axis=1)
        if far and fits.sum() >= members:
            place = (int(corner[0]), int(corner[1]), int(corner[2]))
            if acceptable(reference, place):
                return Word(place, tuple(int(i) for i in order[fits][:members]))
    return None


def instances(words: Sequence[Word], names: Sequence[str]) -> dict[str, tuple[tuple[int, int, int, int], ...]]:
    """(label, corner) of all that is to be cut from each scan."""
    rows: dict[str, list[tuple[int, int, int, int]]] = {}
    for label, word in enumerate(words):
        for member in word.members:
            rows.setdefault(names[member], []).append((label, *word.corner))
    return {name: tuple(values) for name, values in sorted(rows.items())}


class Thumbnails(BaseModel):
    """A whole scan, small, for its descriptor. Arrays: `image` (1, 1, *shape) int16; `shape` (1, 3): of the scan."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shape: Size = (128, 128, 64)

    @property
    def group(self) -> str:
        return "thumbnails"

    def draw(self, scan: Prepared, case: Case, rng: np.random.Generator) -> Drawn:
        small = to_int16(resize(scan.values, self.shape))
        arrays = {"image": small[None, None], "shape": np.array([scan.values.shape], dtype=np.int32)}
        return Drawn(arrays, Counter(tried=1, kept=1))


class Words(BaseModel):
    """The cubes of the words that a scan belongs to, three each: the exact crop, and two of another extent.

    instances: (label, x, y, z) by case. Arrays: `word` (n, 1, *cube) int16, `label` (n,), `corner` (n, 3): where the
    exact crop lies. The other two: in-plane sides U{sides}, corner moved by U{-shift .. shift - 1} in the plane, the depth
    the cube's, all moved and cut so that they lie in the scan; resized to the cube.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    cube: Size = (64, 64, 32)
    others: int = Field(2, ge=0, description="cubes of another extent, an instance")
    sides: tuple[PositiveInt, PositiveInt] = (50, 79)
    shift: int = Field(10, ge=0)
    instances: Mapping[str, tuple[tuple[int, int, int, int], ...]] = Field(default_factory=dict)

    @property
    def group(self) -> str:
        return "words"

    def draw(self, scan: Prepared, case: Case, rng: np.random.Generator) -> Drawn:
        """Cuts the case's cubes.

        Raises:
            DataError: the case belongs to no word.
        """
        rows = self.instances.get(case.id, ())
        if not rows:
            raise DataError(f"{case.id} belongs to no visual word: nothing to do", slug="no_crops")
        cubes, labels, corners = [], [], []
        for label, *corner in rows:
            place = (corner[0], corner[1], corner[2])
            boxes = [Box(place, self.cube), *(self._other(place, scan.values.shape, rng) for _ in range(self.others))]
            cubes += [resize(scan.values[box.slices], self.cube) for box in boxes]
            labels += [label] * len(boxes)
            corners += [corner] * len(boxes)
        arrays = {
            "word": np.stack([to_int16(cube) for cube in cubes])[:, None],
            "label": np.array(labels, dtype=np.int16),
            "corner": np.array(corners, dtype=np.int32),
        }
        return Drawn(arrays, Counter(tried=len(rows), kept=len(rows)))

    def _other(self, corner: Corner, shape: tuple[int, ...], rng: np.random.Generator) -> Box:
        start, size = [], []
        for axis in range(3):
            n = int(rng.integers(self.sides[0], self.sides[1] + 1)) if axis < 2 else self.cube[2]
            move = int(rng.integers(-self.shift, self.shift)) if axis < 2 and self.shift else 0
            n = min(n, shape[axis])
            size.append(n)
            start.append(min(max(corner[axis] + move, 0), shape[axis] - n))
        return Box((start[0], start[1], start[2]), (size[0], size[1], size[2]))
