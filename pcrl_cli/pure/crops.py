"""Boxes of a scan and what is cut from them: overlapping pairs, local crops, blocks round candidates.

Boxes are integer voxels of the prepared grid, axes (x, y, z). The plans at the end say what a method or a task wants
cached; `data/build` executes them. PCRLv2: section 3.2 (sub-crop) and 4.3 (sizes) of Zhou et al., TPAMI 2023.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Annotated, Literal

import numpy as np
from jaxtyping import Bool, Float, Float64, Int, Int16
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt

from pcrl_cli.core.case import Case
from pcrl_cli.core.errors import DataError
from pcrl_cli.core.plan import Drawn, Prepared
from pcrl_cli.pure.resize import resize

Triple = tuple[int, int, int]
Size = tuple[PositiveInt, PositiveInt, PositiveInt]
Sizes = Annotated[tuple[Size, ...], Field(min_length=1)]

GLOBAL_SIZES: tuple[Triple, ...] = ((64, 64, 32), (96, 96, 64), (96, 96, 96), (112, 112, 64))
LOCAL_SIZES: tuple[Triple, ...] = ((8, 8, 8), (16, 16, 16), (32, 32, 16), (32, 32, 32))
CORNER_MARGIN = 3  # voxels beyond the hull that the released code lets a local crop start


@dataclass(frozen=True, slots=True)
class Box:
    """The voxels start <= i < start + size."""

    start: Triple
    size: Triple

    @property
    def stop(self) -> Triple:
        return _triple(s + n for s, n in zip(self.start, self.size, strict=True))

    @property
    def volume(self) -> int:
        return math.prod(self.size)

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        x, y, z = (slice(a, b) for a, b in zip(self.start, self.stop, strict=True))
        return x, y, z


def iou(a: Box, b: Box) -> float:
    """Intersection over union of two boxes."""
    ends = zip(a.start, b.start, a.stop, b.stop, strict=True)
    common = math.prod(max(0, min(stop_a, stop_b) - max(start_a, start_b)) for start_a, start_b, stop_a, stop_b in ends)
    return common / (a.volume + b.volume - common)


def hull(a: Box, b: Box) -> Box:
    """The smallest box that holds both."""
    low = _triple(map(min, a.start, b.start))
    high = map(max, a.stop, b.stop)
    return Box(low, _triple(stop - start for start, stop in zip(low, high, strict=True)))


def inside(inner: Box, outer: Box) -> bool:
    """Whether every voxel of `inner` belongs to `outer`."""
    starts = all(o <= i for i, o in zip(inner.start, outer.start, strict=True))
    return starts and all(i <= o for i, o in zip(inner.stop, outer.stop, strict=True))


@lru_cache(maxsize=64)
def reachable_pairs(sizes: tuple[Triple, ...], min_iou: float) -> tuple[tuple[Triple, Triple], ...]:
    """The ordered pairs of sizes that can overlap with IoU >= min_iou in some position: 10 of the paper's 16."""
    return tuple((a, b) for a, b in product(sizes, sizes) if iou(Box((0, 0, 0), a), Box((0, 0, 0), b)) >= min_iou)


def fits(size: Triple, shape: Triple, border: Triple = (0, 0, 0)) -> bool:
    """Whether a box of this size has a position in a scan of this shape, `border` voxels away from its faces."""
    return all(n <= extent - 2 * b for n, extent, b in zip(size, shape, border, strict=True))


def draw_pair(
    shape: Triple, rng: np.random.Generator, sizes: tuple[Triple, ...], min_iou: float, border: Triple = (0, 0, 0)
) -> tuple[Box, Box]:
    """Two boxes with IoU >= min_iou, without rejection.

    The ordered pair of sizes is uniform among those that can reach the overlap and fit; the first box is uniform over
    its positions; the second is uniform over the positions with enough overlap (there is always one).

    Raises:
        DataError: no such pair of sizes fits.
    """
    pairs = [p for p in reachable_pairs(sizes, min_iou) if all(fits(size, shape, border) for size in p)]
    if not pairs:
        raise _too_small(shape, sizes, border)
    size_1, size_2 = pairs[rng.integers(len(pairs))]
    first = _anywhere(shape, size_1, rng, border)
    return first, _overlapping(first, size_2, shape, rng, min_iou, border)


def draw_pair_blind(
    shape: Triple, rng: np.random.Generator, sizes: tuple[Triple, ...], border: Triple = (0, 0, 0)
) -> tuple[Box, Box]:
    """Two independent boxes, each of a size drawn among those that fit: the released code's proposal, to be rejected.

    Raises:
        DataError: no size fits.
    """
    fitting = [size for size in sizes if fits(size, shape, border)]
    if not fitting:
        raise _too_small(shape, sizes, border)
    first, second = (_anywhere(shape, fitting[rng.integers(len(fitting))], rng, border) for _ in range(2))
    return first, second


def draw_local_in(outer: Box, sizes: Sequence[Triple], rng: np.random.Generator) -> Box:
    """A box inside `outer`: uniform size among those that fit, starts uniform over [low, high - size] inclusive.

    Raises:
        DataError: no size fits.
    """
    local = draw_local_anywhere(outer.size, sizes, rng)
    return Box(_triple(s + o for s, o in zip(local.start, outer.start, strict=True)), local.size)


def draw_local_anywhere(shape: Triple, sizes: Sequence[Triple], rng: np.random.Generator) -> Box:
    """A box anywhere in the scan.

    Raises:
        DataError: no size fits.
    """
    fitting = [size for size in sizes if fits(size, shape)]
    if not fitting:
        raise _too_small(shape, sizes, (0, 0, 0))
    return _anywhere(shape, fitting[rng.integers(len(fitting))], rng)


def draw_local_corner(outer: Box, sizes: Sequence[Triple], shape: Triple, rng: np.random.Generator) -> Box:
    """The released code's local box: its start is drawn in the hull +- 3 voxels, its end is cut at the scan's edge."""
    size = sizes[int(rng.integers(len(sizes)))]
    low = [max(0, s - CORNER_MARGIN) for s in outer.start]
    high = [min(extent, s + CORNER_MARGIN) for s, extent in zip(outer.stop, shape, strict=True)]
    start = _triple(int(rng.integers(a, b)) for a, b in zip(low, high, strict=True))
    return Box(start, _triple(min(n, extent - s) for n, extent, s in zip(size, shape, start, strict=True)))


def _anywhere(shape: Triple, size: Triple, rng: np.random.Generator, border: Triple = (0, 0, 0)) -> Box:
    high = (extent - b - n for extent, n, b in zip(shape, size, border, strict=True))
    return Box(_triple(int(rng.integers(b, h + 1)) for b, h in zip(border, high, strict=True)), size)


def _overlapping(
    first: Box, size: Triple, shape: Triple, rng: np.random.Generator, min_iou: float, border: Triple
) -> Box:
    """A box of `size`, uniform over all positions whose IoU with `first` is enough.

    Position (i, j, k) is good where the overlap along z reaches need[i, j] = enough / (overlap_x * overlap_y), so
    counting the good k by a table makes weights over (i, j), and one integer picks the position.
    """
    starts = [np.arange(b, extent - b - n + 1) for b, extent, n in zip(border, shape, size, strict=True)]
    x, y, z = (
        np.clip(np.minimum(s + n, stop) - np.maximum(s, start), 0, None)
        for s, n, start, stop in zip(starts, size, first.start, first.stop, strict=True)
    )
    enough = _least_common(first.volume, math.prod(size), min_iou)
    at_least = np.array([np.count_nonzero(z >= k) for k in range(int(z.max()) + 1)] + [0])
    area = np.multiply.outer(x, y).ravel()
    never = len(at_least) - 1
    need = np.where(area > 0, np.minimum(-(-enough // np.maximum(area, 1)), never), never if enough else 0)
    total = np.cumsum(at_least[need])
    pick = int(rng.integers(total[-1]))
    ij = int(np.searchsorted(total, pick, side="right"))
    k = np.flatnonzero(z >= need[ij])[pick - total[ij]]  # negative: counted from the end of this (i, j)'s good k
    i, j = divmod(ij, len(y))
    return Box((int(starts[0][i]), int(starts[1][j]), int(starts[2][k])), size)


def _least_common(volume_a: int, volume_b: int, min_iou: float) -> int:
    """The least intersection, in voxels, with which two boxes of these volumes reach min_iou as `iou` computes it."""
    both = volume_a + volume_b
    common = max(0, math.ceil(min_iou * both / (1.0 + min_iou)) - 1)
    while common / (both - common) < min_iou:
        common += 1
    return common


def _triple(values: Iterable[int]) -> Triple:
    x, y, z = values
    return x, y, z


def _by(size: Sequence[int]) -> str:
    return "x".join(map(str, size))


_INSTEAD = "leave it out, set smaller pairs.global_sizes, or with --labels cut none (--pairs 0)"


def _too_small(shape: Triple, sizes: Sequence[Triple], border: Triple) -> DataError:
    kept_free = f" with {_by(border)} kept free on each side" if any(border) else ""
    least = min(sizes, key=math.prod)
    return DataError(
        f"too small: the scan has {_by(shape)} voxels after resampling{kept_free}, "
        f"and a crop of {_by(least)} must fit: {_INSTEAD}",
        slug="too_small",
    )


class _Plan(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class CropPairs(_Plan):
    """Pairs of overlapping global crops with their local crops (PCRLv2, Fig. 5).

    The defaults are recipe `paper`; recipe `released` is what the released code does. Each option can be set alone.

    pairs: kept a scan; with 0 a cache has none, and needs no scan that is large enough for them.
    global_sizes, local_sizes: voxels of the prepared grid (x, y, z), resized to global_shape and local_shape.
    min_iou: of the two global boxes.
    pair_rule: `overlap` draws the second box among the positions with enough overlap; `blind` (released) draws both
        anywhere and rejects unless IoU > min_iou.
    background_rule: `paper` refuses a pair if a crop, before resizing, has more than max_background of its voxels under
        the scan's background value; `released` refuses the opposite: tissue voxels of the *resized* crop over
        (1 - max_background) x the *first* box's volume before resizing.
    max_tries: pairs judged by the background rule, for all pairs of a scan together. Blind proposals without enough
        overlap are counted but are no try; there may be 100 of them a try.
    border_mm: kept free of global boxes on each side; voxels of the prepared grid, which for CT are millimetres.
    local_rule: `inside` the hull of the pair; `corner` (released) draws only the start there, +- 3 voxels, and what
        sticks out of the scan is cut off, so that the crop is stretched.

    Arrays (n pairs, int16 stored units, HU for CT): `globals` (n, 2, 1, *global_shape); `locals_sub` (from the hull)
    and `locals_multi` (from anywhere in the scan), each (n, n_locals, 1, *local_shape); `boxes` (n, 2 + 2 n_locals, 6):
    start and size of the globals, the sub and the multi locals.
    """

    pairs: NonNegativeInt = 16
    global_sizes: Sizes = GLOBAL_SIZES
    local_sizes: Sizes = LOCAL_SIZES
    min_iou: float = Field(default=0.3, ge=0.0, le=1.0)
    global_shape: Size = (64, 64, 32)
    local_shape: Size = (16, 16, 16)
    n_locals: int = Field(default=6, ge=0)
    pair_rule: Literal["overlap", "blind"] = "overlap"
    background_rule: Literal["paper", "released"] = "paper"
    max_background: float = Field(default=0.85, ge=0.0, le=1.0)
    max_tries: PositiveInt = 1000
    border_mm: tuple[NonNegativeInt, NonNegativeInt, NonNegativeInt] = (0, 0, 0)
    local_rule: Literal["inside", "corner"] = "inside"

    @property
    def group(self) -> str:
        return "pairs"

    @property
    def pair_bytes(self) -> int:
        """Of the arrays of one pair: two bytes a voxel, and a number of a box."""
        globals_, locals_ = 2 * math.prod(self.global_shape), 2 * self.n_locals * math.prod(self.local_shape)
        return 2 * (globals_ + locals_ + 6 * (2 + 2 * self.n_locals))

    def draw(self, scan: Prepared, case: Case, rng: np.random.Generator) -> Drawn:
        """Cuts `pairs` pairs.

        Counts: tried (= kept + refused_iou + refused_background), kept, and unfit_sizes: the ordered pairs of sizes
        (single sizes, if blind) that this scan has no room for.

        Raises:
            DataError: no pair fits the scan, or max_tries were not enough.
        """
        counts = Counter(tried=0, kept=0, refused_iou=0, refused_background=0)
        counts["unfit_sizes"] = self._unfit(_shape(scan))
        rows: dict[str, list[Int16[np.ndarray, "..."]]] = {name: [] for name in ARRAYS}
        while counts["kept"] < self.pairs:
            boxes = self._propose(scan, rng, counts)
            crops = self._cut_globals(scan, boxes)
            if crops is None:
                counts["refused_background"] += 1
                continue
            counts["kept"] += 1
            for name, row in self._finish(scan, boxes, crops, rng).items():
                rows[name].append(row)
        return Drawn({name: np.stack(row) for name, row in rows.items()}, counts)

    def _propose(self, scan: Prepared, rng: np.random.Generator, counts: Counter[str]) -> tuple[Box, Box]:
        """The next pair with enough overlap, counted as tried."""
        shape = _shape(scan)
        while True:
            self._check_patience(counts)
            counts["tried"] += 1
            if self.pair_rule == "overlap":
                return draw_pair(shape, rng, self.global_sizes, self.min_iou, self.border_mm)
            first, second = draw_pair_blind(shape, rng, self.global_sizes, self.border_mm)
            if iou(first, second) > self.min_iou:
                return first, second
            counts["refused_iou"] += 1

    def _check_patience(self, counts: Counter[str]) -> None:
        judged = counts["kept"] + counts["refused_background"]
        if judged < self.max_tries and counts["refused_iou"] < 100 * self.max_tries:
            return
        raise DataError(
            f"no acceptable crops: {counts['kept']} of {self.pairs} pairs after {judged} tries "
            f"({counts['refused_background']} refused for background, {counts['refused_iou']} for IoU): {_INSTEAD}",
            slug="no_crops",
            counts=counts,
        )

    def _cut_globals(self, scan: Prepared, boxes: tuple[Box, Box]) -> Float64[np.ndarray, "2 x y z"] | None:
        """Both global crops, resized; None where the background rule refuses the pair."""
        crops = [scan.values[box.slices] for box in boxes]
        if self.background_rule == "paper":
            if any(_count(crop < scan.background) > self.max_background * crop.size for crop in crops):
                return None
            return np.stack([resize(crop, self.global_shape) for crop in crops])
        # Released code: too much *tissue* refuses, a count on the resized grid against the first box's own volume.
        limit = (1.0 - self.max_background) * boxes[0].volume
        resized = np.stack([resize(crop, self.global_shape) for crop in crops])
        return None if any(_count(crop >= scan.background) > limit for crop in resized) else resized

    def _finish(
        self, scan: Prepared, boxes: tuple[Box, Box], crops: Float64[np.ndarray, "2 x y z"], rng: np.random.Generator
    ) -> dict[str, Int16[np.ndarray, "..."]]:
        """The arrays of one accepted pair, without their first axis."""
        shape, outer = _shape(scan), hull(*boxes)
        sub = [self._local(outer, shape, rng) for _ in range(self.n_locals)]
        multi = [draw_local_anywhere(shape, self.local_sizes, rng) for _ in range(self.n_locals)]
        return {
            "globals": to_int16(crops)[:, None],
            "locals_sub": self._cut_locals(scan, sub),
            "locals_multi": self._cut_locals(scan, multi),
            "boxes": np.array([(*box.start, *box.size) for box in (*boxes, *sub, *multi)], dtype=np.int16),
        }

    def _local(self, outer: Box, shape: Triple, rng: np.random.Generator) -> Box:
        if self.local_rule == "inside":
            return draw_local_in(outer, self.local_sizes, rng)
        return draw_local_corner(outer, self.local_sizes, shape, rng)

    def _cut_locals(self, scan: Prepared, boxes: list[Box]) -> Int16[np.ndarray, "l 1 x y z"]:
        out = np.empty((len(boxes), 1, *self.local_shape), np.int16)
        for row, box in zip(out, boxes, strict=True):
            row[0] = to_int16(resize(scan.values[box.slices], self.local_shape))
        return out

    def _unfit(self, shape: Triple) -> int:
        if self.pair_rule == "blind":
            return sum(not fits(size, shape, self.border_mm) for size in self.global_sizes)
        pairs = reachable_pairs(self.global_sizes, self.min_iou)
        return sum(not all(fits(size, shape, self.border_mm) for size in pair) for pair in pairs)


ARRAYS = ("globals", "locals_sub", "locals_multi", "boxes")


class CandidateBlocks(_Plan):
    """A cube round every candidate of class 1 and round a seeded sample of those of class 0.

    negatives: of class 0, at most, a scan. side_mm: voxels of the prepared grid, which for CT are millimetres.

    Arrays (m candidates in the order of the data set's list): `blocks` (m, 1, side, side, side) int16, `world` (m, 3)
    LPS mm, `label` (m,) uint8, `id` (m,) UTF-8 bytes; and, as centre LPS and diameter in mm, `lesions` (k, 4), all
    annotated lesions of the scan, and `excluded` (e, 4), its findings that count for nothing.
    """

    negatives: int = Field(default=20, ge=0)
    side_mm: PositiveInt = 64

    @property
    def group(self) -> str:
        return "candidates"

    @property
    def block_bytes(self) -> int:
        """Of one candidate's block: two bytes a voxel."""
        return 2 * self.side_mm**3

    def draw(self, scan: Prepared, case: Case, rng: np.random.Generator) -> Drawn:
        """Cuts the blocks; a case without candidates gives empty arrays.

        Counts: candidates_0 and candidates_1 (all that lie in the scan), candidates_outside (left out), and the cached
        ones: cached_0, cached_1.
        """
        points = case.points
        world = points.world if points is not None else np.zeros((0, 3))
        label = points.label if points is not None else np.zeros(0, np.uint8)
        names = np.array([name.encode() for name in points.id] if points is not None else [], dtype=np.bytes_)
        within = contains(scan, world)
        negative, positive = (np.flatnonzero(within & (label == c)) for c in (0, 1))
        sample = rng.permutation(negative)[: self.negatives]
        chosen = np.sort(np.concatenate([sample, positive]))
        blocks = np.empty((len(chosen), 1, self.side_mm, self.side_mm, self.side_mm), np.int16)
        for row, i in zip(blocks, chosen, strict=True):
            row[0] = block_at(scan, world[i], self.side_mm)
        arrays = {"blocks": blocks, "world": world[chosen], "label": label[chosen], "id": names[chosen]}
        for name, findings in (("lesions", case.lesions), ("excluded", case.excluded)):
            arrays[name] = findings if findings is not None else np.zeros((0, 4))
        counts = Counter(candidates_0=len(negative), candidates_1=len(positive), candidates_outside=_count(~within))
        counts.update(cached_0=len(sample), cached_1=len(positive))
        return Drawn(arrays, counts)


class WholeScan(_Plan):
    """A whole scan at one size, with its labels: what a scan is classified by.

    shape: voxels (x, y, z). fit: `resize` brings the scan's whole extent to the shape, low-passed where it shrinks;
    `crop` keeps its voxels and takes those in the middle, with air round a scan that is smaller.
    classes: names of the labels, from the data set.

    Arrays (one item, as in a cache of images): `image` (1, 1, *shape) int16 stored units, `label` (1, k) int8 (1 present,
    0 absent, -1 not known), `id` and `patient` (1,) UTF-8 bytes.
    """

    shape: Size = (64, 64, 64)
    fit: Literal["resize", "crop"] = "resize"
    classes: tuple[str, ...] = ()

    @property
    def group(self) -> str:
        return "images"

    @property
    def scan_bytes(self) -> int:
        """Of one scan: two bytes a voxel."""
        return 2 * math.prod(self.shape)

    def draw(self, scan: Prepared, case: Case, rng: np.random.Generator) -> Drawn:
        """The scan and what is known of it. Counts: kept, and by class `with` and `unknown`."""
        arrays = {
            "image": whole(scan, self.shape, self.fit)[None, None],
            "label": np.array([case.label], np.int8),
            "id": np.array([case.id.encode()]),
            "patient": np.array([case.patient.encode()]),
        }
        counts = Counter(kept=1)
        for name, value in zip(self.classes, case.label, strict=True):
            counts[f"with {name}"] = int(value == 1)
            if value < 0:
                counts[f"unknown {name}"] = 1
        return Drawn(arrays, counts)


def whole(scan: Prepared, shape: Triple, fit: Literal["resize", "crop"]) -> Int16[np.ndarray, "a b c"]:
    """A whole scan in an array of this shape; see `WholeScan`."""
    if fit == "resize":
        return to_int16(resize(scan.values, shape))
    out = np.full(shape, round(scan.air), np.int16)
    spare = [have - want for have, want in zip(scan.values.shape, shape, strict=True)]
    source = tuple(slice(max(0, s // 2), max(0, s // 2) + n) for s, n in zip(spare, shape, strict=True))
    part = scan.values[source]
    first = [max(0, -s // 2) for s in spare]
    out[tuple(slice(a, a + n) for a, n in zip(first, part.shape, strict=True))] = to_int16(part)
    return out


def voxel_of(scan: Prepared, world: Float64[np.ndarray, "*m 3"]) -> Int[np.ndarray, "*m 3"]:
    """The voxels of the prepared grid that hold these points (LPS, mm); may lie outside the scan."""
    index = (world - scan.origin) @ np.linalg.inv(scan.direction).T / scan.spacing
    return np.rint(index).astype(np.int64)


def contains(scan: Prepared, world: Float64[np.ndarray, "m 3"]) -> Bool[np.ndarray, " m"]:
    """Which points (LPS, mm) lie in the scan."""
    voxels = voxel_of(scan, world)
    return np.all((voxels >= 0) & (voxels < np.array(scan.values.shape)), axis=1)


def block_at(scan: Prepared, world: Float64[np.ndarray, "3"], side: int) -> Int16[np.ndarray, "side side side"]:
    """The cube whose voxel [side // 2] of each axis holds the point (LPS, mm); `scan.air` where it leaves the scan."""
    start = voxel_of(scan, world) - side // 2
    block = np.full((side, side, side), round(scan.air), np.int16)
    low = np.clip(start, 0, scan.values.shape)
    high = np.clip(start + side, 0, scan.values.shape)
    target = tuple(slice(a, b) for a, b in zip(low - start, high - start, strict=True))
    source = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    block[target] = to_int16(scan.values[source])
    return block


def to_int16(values: Float[np.ndarray, "*s"]) -> Int16[np.ndarray, "*s"]:
    """The nearest 16-bit integers: the last step of every crop.

    Raises:
        DataError: a value is not finite or beyond 16 bits.
    """
    rounded = np.rint(values)
    if rounded.size and not (rounded.min() >= -32768 and rounded.max() <= 32767):  # also false for NaN
        raise DataError(
            "bad values: voxels are not finite or beyond 16 bits after resampling: repair the scan or leave it out",
            slug="bad_values",
        )
    return rounded.astype(np.int16)


def _shape(scan: Prepared) -> Triple:
    x, y, z = scan.values.shape
    return x, y, z


def _count(mask: Bool[np.ndarray, "*s"]) -> int:
    return int(np.count_nonzero(mask))
