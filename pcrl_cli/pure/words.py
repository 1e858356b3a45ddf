"""Visual words (TransVW): places that patients of a like anatomy share, found without labels, and cubes cut there.

A word is a corner in voxels of the prepared grid (pixels of the cached image), and the scans nearest to a reference scan
by their descriptors: the crops at that corner in all of them look alike and carry one label. A scan may be an image of
two axes everywhere here, and its cubes are squares.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, UInt8
from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from pcrl_cli.core.case import Case
from pcrl_cli.core.errors import DataError
from pcrl_cli.core.plan import Drawn, Pictures, Prepared
from pcrl_cli.pure.crops import to_int16
from pcrl_cli.pure.resize import resize

Corner = tuple[int, ...]
Sides = tuple[PositiveInt, ...]
TRIES = 200
"""Corners that are tried in a reference scan before another one is taken."""


@dataclass(frozen=True)
class Word:
    """members: positions of the scans, the reference first, the others by distance, one a patient."""

    corner: Corner
    members: tuple[int, ...]


def nearest(descriptors: Float[np.ndarray, "n c"], reference: int) -> Int[np.ndarray, " n"]:
    """All scans by their distance to the reference's descriptor; the reference itself comes first."""
    distance = np.linalg.norm(descriptors - descriptors[reference], axis=1)
    distance[reference] = -1.0
    return np.argsort(distance, kind="stable")


def discover(
    descriptors: Float[np.ndarray, "n c"],
    shapes: Int[np.ndarray, "n d"],
    owners: Int[np.ndarray, " n"],
    acceptable: Callable[[int, Corner], bool],
    rng: np.random.Generator,
    words: int,
    members: int,
    cube: Corner,
    border: Corner,
    apart: float,
) -> list[Word]:
    """So many words: each has a reference that no other word has as long as there are such, and `members` patients.

    Of a patient with several scans the nearest counts, since two films of one chest would be each other's neighbours.

    owners: a number for the patient of every scan. acceptable: whether the crop of a scan at a corner is good enough.
    border: kept free at the faces, less where a scan is too small for that. apart: least distance of two corners, voxels.

    Raises:
        DataError: no place for another word was found.
    """
    found: list[Word] = []
    unused: list[int] = []
    failed = 0
    while len(found) < words:
        unused = unused or rng.permutation(len(descriptors)).tolist()
        reference = unused.pop()
        word = _try(descriptors, shapes, owners, acceptable, rng, reference, found, members, cube, border, apart)
        failed = 0 if word else failed + 1
        if word is not None:
            found.append(word)
        elif failed > 2 * len(descriptors):
            raise DataError(
                f"only {len(found)} of {words} visual words found a place that {members} patients share; lower words.classes, "
                "words.neighbours or words.border"
            )
    return found


def _try(
    descriptors: Float[np.ndarray, "n c"],
    shapes: Int[np.ndarray, "n d"],
    owners: Int[np.ndarray, " n"],
    acceptable: Callable[[int, Corner], bool],
    rng: np.random.Generator,
    reference: int,
    found: Sequence[Word],
    members: int,
    cube: Corner,
    border: Corner,
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
        if not far:
            continue
        near = one_each(order[(corner + cube <= shapes[order]).all(axis=1)], owners)[:members]
        place = tuple(int(c) for c in corner)
        if len(near) == members and acceptable(reference, place):
            return Word(place, tuple(int(i) for i in near))
    return None


def one_each(order: Int[np.ndarray, " k"], owners: Int[np.ndarray, " n"]) -> Int[np.ndarray, " m"]:
    """The first scan of each patient, in this order."""
    return order[np.sort(np.unique(owners[order], return_index=True)[1])]


def instances(words: Sequence[Word], names: Sequence[str]) -> dict[str, tuple[tuple[int, ...], ...]]:
    """(label, corner) of all that is to be cut from each scan."""
    rows: dict[str, list[tuple[int, ...]]] = {}
    for label, word in enumerate(words):
        for member in word.members:
            rows.setdefault(names[member], []).append((label, *word.corner))
    return {name: tuple(values) for name, values in sorted(rows.items())}


class Thumbnails(BaseModel):
    """A whole scan, small, for its descriptor. Arrays: `image` (1, 1, *shape) int16; `shape` (1, 3): of the scan.

    Images are made small when they are described; nothing is cached for that.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    shape: Sides = (128, 128, 64)

    @property
    def group(self) -> str:
        return "thumbnails"

    def draw(self, scan: Prepared, case: Case, rng: np.random.Generator) -> Drawn:
        small = to_int16(resize(scan.values, self.shape))
        arrays = {"image": small[None, None], "shape": np.array([scan.values.shape], dtype=np.int32)}
        return Drawn(arrays, Counter(tried=1, kept=1))


@dataclass(frozen=True)
class Window:
    """The voxels start <= i < start + size, along two or three axes."""

    start: Corner
    size: Corner

    @property
    def slices(self) -> tuple[slice, ...]:
        return tuple(slice(first, first + n) for first, n in zip(self.start, self.size, strict=True))


class Words(BaseModel):
    """The cubes of the words that a scan belongs to, three each: the exact crop, and two of another extent.

    instances: (label, *corner) by scan. Arrays: `word` (n, 1, *resized) int16, of images uint8; `label` (n,); `corner`
    (n, d): where the exact crop lies. The other two: in-plane sides U{sides}, corner moved by U{-shift .. shift - 1} in
    the plane, the depth the cube's, all moved and cut so that they lie in the scan.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    cube: Sides = (64, 64, 32)
    resized: Sides | None = Field(None, description="what crops are resized to; none: cube")
    others: int = Field(2, ge=0, description="cubes of another extent, an instance")
    sides: tuple[PositiveInt, PositiveInt] = (50, 79)
    shift: int = Field(10, ge=0)
    instances: Mapping[str, tuple[tuple[int, ...], ...]] = Field(default_factory=dict)

    @property
    def group(self) -> str:
        return "words"

    @property
    def stored(self) -> Corner:
        """The shape of what is cached."""
        return self.resized or self.cube

    def draw(self, scan: Prepared | Pictures, case: Case, rng: np.random.Generator) -> Drawn:
        """Cuts the cubes of a scan, or of all images of a shard.

        Raises:
            DataError: the case belongs to no word.
        """
        images = [scan.values] if isinstance(scan, Prepared) else list(scan.image[:, 0])
        names = (case.id,) if isinstance(scan, Prepared) else scan.id
        rows = [(i, row[0], row[1:]) for i, name in enumerate(names) for row in self.instances.get(name, ())]
        if not rows:
            raise DataError(f"{case.id} belongs to no visual word: nothing to do", slug="no_crops")
        cubes, labels, corners, source = [], [], [], []
        for i, label, corner in rows:
            windows = [Window(corner, self.cube)]
            windows += [self._other(corner, images[i].shape, rng) for _ in range(self.others)]
            cubes += [resize(images[i][w.slices].astype(np.float32), self.stored) for w in windows]
            labels += [label] * len(windows)
            corners += [corner] * len(windows)
            source += [i] * len(windows)
        flat = isinstance(scan, Pictures)
        arrays = {
            "word": np.stack([to_uint8(cube) if flat else to_int16(cube) for cube in cubes])[:, None],
            "label": np.array(labels, dtype=np.int16),
            "corner": np.array(corners, dtype=np.int32),
        }
        return Drawn(arrays, Counter(tried=len(rows), kept=len(rows)), source=np.array(source) if flat else None)

    def _other(self, corner: Corner, shape: tuple[int, ...], rng: np.random.Generator) -> Window:
        start, size = [], []
        for axis, extent in enumerate(shape):
            n = int(rng.integers(self.sides[0], self.sides[1] + 1)) if axis < 2 else self.cube[2]
            move = int(rng.integers(-self.shift, self.shift)) if axis < 2 and self.shift else 0
            n = min(n, extent)
            size.append(n)
            start.append(min(max(corner[axis] + move, 0), extent - n))
        return Window(tuple(start), tuple(size))


def to_uint8(values: Float[np.ndarray, "*s"]) -> UInt8[np.ndarray, "*s"]:
    """The nearest grey levels; resizing is a mean of grey levels and leaves none beyond them."""
    return np.rint(values).astype(np.uint8)
