"""The corruptions of Models Genesis (Zhou et al., MedIA 2021) and TransVW's variants, for images and volumes in [0, 1].

Flip | local pixel shuffling, non-linear intensity, in- or out-painting. Each is drawn (`draw_x`: random, one stream a
view) and then applied (`x`: a function of the batch and of what was drawn). Shapes are (b, c, x, y) or (b, c, x, y, z).
"""

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import permutations, product

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Int32
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from pcrl_cli.core.rng import Stream, mix

Shape = tuple[int, ...]
BEZIER_POINTS = 1000
"""Samples of the curve. Against 100,000 the largest error of random curves is 6e-5; where the slope is infinite (control
points in corners of the square) it is 5e-3."""
BORDER = 3
"""Voxels at the faces that no box touches; fewer where a view is too small for that."""
ROUNDS = 8
"""Of the mixing that permutes a window's voxels, of rows and of columns in turn."""
SMALL = 6
"""Voxels of a window that is permuted as one row."""
CHOICES = math.factorial(SMALL)
"""Permutations that a row of a given length may have."""
CHUNK_VOXELS = {"cpu": 2**17}
"""Voxels of the views that are shuffled at a time: what a core's cache holds. Elsewhere 2^23, for the covers' memory."""


# ------------------------------------------------------------------------------------------------------------ flip


def draw_flips(stream: Stream, axes: int, chance: float = 0.4, most: int = 3) -> Bool[Tensor, "b axes"]:
    """While U < chance, at most `most` times: a random axis is reversed; twice the same axis is none.

    The released code draws the axis among channel, x, y, so that depth never flips; here every spatial axis may.
    """
    goes_on = (stream.uniform(most) < chance).cumprod(dim=1)
    axis = F.one_hot(stream.integers(axes, most), axes)
    return (axis * goes_on[:, :, None]).sum(dim=1) % 2 == 1


def flip(batch: Float[Tensor, "b c *space"], axes: Bool[Tensor, "b d"]) -> Float[Tensor, "b c *space"]:
    """Reverses these axes of each view."""
    for i in range(axes.shape[1]):
        chosen = axes[:, i].view(-1, *[1] * (batch.dim() - 1))
        batch = torch.where(chosen, batch.flip(2 + i), batch)
    return batch


# ------------------------------------------------------------------------------------------- local pixel shuffling


@dataclass(frozen=True)
class Shuffle:
    """Windows of each view whose voxels are permuted, in order: later ones overwrite earlier ones.

    on: whether the view is shuffled at all. start, side: voxels. keys: of every window's permutation. most: the largest
    sides that windows can have, which the host knows without asking.
    """

    on: Bool[Tensor, " b"]
    start: Int[Tensor, "b w d"]
    side: Int[Tensor, "b w d"]
    keys: Int32[Tensor, "b w"]
    most: Shape


def draw_shuffle(stream: Stream, shape: Shape, probability: float = 0.5, windows: int = 10_000) -> Shuffle:
    """Sides uniform over 1 .. max(1, N // 10) an axis, positions uniform over those that fit."""
    on = stream.uniform() < probability
    most = tuple(max(1, n // 10) for n in shape)
    sides, starts = [], []
    for n, largest in zip(shape, most, strict=True):
        side = 1 + stream.integers(largest, windows)
        sides.append(side)
        starts.append(_up_to(stream.uniform(windows), n - side))
    return Shuffle(on, torch.stack(starts, dim=2), torch.stack(sides, dim=2), stream.bits(windows), most)


def _up_to(u: Float[Tensor, "*n"], most: Int[Tensor, "*n"]) -> Int[Tensor, "*n"]:
    """U[0, 1) to an integer, uniform over 0 .. most."""
    return torch.minimum((u * (most + 1)).long(), most)


def shuffle(batch: Float[Tensor, "b c *space"], params: Shuffle) -> Float[Tensor, "b c *space"]:
    """Every window's voxels are read from the original view, permuted alike in all channels and written to the result.

    So a voxel shows what the last window that covers it put there: a permutation of that window, seen from its end.
    On a CPU only the views and the voxels that windows cover are computed; elsewhere as many as they could cover, to the
    same numbers, since the host would wait to hear which.
    """
    if batch.device.type != "cpu":
        return shuffle_all(batch, params)
    return _shuffled(batch, params, params.on.nonzero().flatten(), sparse=True)


def shuffle_all(batch: Float[Tensor, "b c *space"], params: Shuffle) -> Float[Tensor, "b c *space"]:
    """The same by a number of kernels that depends on shapes alone."""
    return _shuffled(batch, params, torch.arange(len(batch), device=batch.device), sparse=False)


def _shuffled(batch: Tensor, params: Shuffle, rows: Int[Tensor, " k"], sparse: bool) -> Float[Tensor, "b c *space"]:
    out = batch.clone()
    size = max(1, CHUNK_VOXELS.get(batch.device.type, 2**23) // batch[0, 0].numel())
    for part in rows.split(size) if len(rows) else ():
        on, start, side, keys = params.on[part], params.start[part], params.side[part], params.keys[part]
        source = _sources(Shuffle(on, start, side, keys, params.most), tuple(batch.shape[2:]), sparse)
        flat = batch[part].flatten(2)
        out[part] = flat.gather(2, source[:, None].expand_as(flat)).view(-1, *batch.shape[1:])
    return out


def _sources(params: Shuffle, shape: Shape, sparse: bool) -> Int[Tensor, "b n"]:
    """From where each voxel is read, as flat indices. sparse: the host looks up which are covered."""
    b, windows, d = params.start.shape
    device, n = params.start.device, math.prod(shape)
    last = last_cover(params.start, params.side, shape, params.most).flatten(1) * params.on[:, None]
    last = F.pad(last.flatten(), (0, 1))  # one more, for voxels that are not there
    voxel = last.nonzero().flatten() if sparse else _covered(last, b * min(n, windows * math.prod(params.most)))
    window = last[voxel].long() - 1  # -1 where none lies
    covered, place = window >= 0, (voxel % n).int()
    window = torch.where(covered, window + voxel.div(n, rounding_mode="floor") * windows, 0)
    table = torch.cat([t.flatten(0, -2).T for t in (params.start, params.side, params.keys[..., None])]).int()
    first, sides, (key,) = table.index_select(1, window).split([d, d, 1])
    within = torch.zeros_like(place)
    for i, size in enumerate(shape):
        within = within * sides[i] + place // math.prod(shape[i + 1 :]) % size - first[i]
    columns = math.prod(sides[1:], start=torch.ones_like(key))
    longest = max(params.most[0], math.prod(params.most[1:]))
    within = permuted(within * covered, sides[0], columns, key, longest)
    read = torch.zeros_like(place)
    for i in reversed(range(d)):
        read += (first[i] + within % sides[i]) * math.prod(shape[i + 1 :])
        within = within // sides[i]
    everywhere = F.pad(torch.arange(n, device=device).repeat(b), (0, 1))
    return everywhere.index_put((voxel,), torch.where(covered, read, place).long())[:-1].view(b, n)


def _covered(last: Int32[Tensor, " n"], most: int) -> Int[Tensor, " most"]:
    """Where `last` is not 0, which is `most` times at most; then n - 1. Every place where that is no fewer, as is cheaper."""
    if most >= len(last) - 1:
        return torch.arange(len(last), device=last.device)
    found = torch.searchsorted((last > 0).cumsum(0), torch.arange(1, most + 1, device=last.device))
    return found.clamp_max(len(last) - 1)


def last_cover(
    start: Int[Tensor, "b w d"], side: Int[Tensor, "b w d"], shape: Shape, most: Shape
) -> Int32[Tensor, "b *space"]:
    """1 + the number of the last window that covers each voxel, 0 where none does. most: of the sides.

    A window is the union of 2^d overlapping boxes whose sides are powers of two, at its corners. Boxes of a size note
    their windows at their first voxels; then boxes of 2^k are halved, axis by axis, down to single voxels.
    """
    b, w, d = start.shape
    level = (side.float() + 0.5).log2().floor().long()  # of the largest power of two within each side
    top = [n.bit_length() - 1 for n in most]
    grids = start.new_zeros(*(k + 1 for k in top), b, math.prod(shape), dtype=torch.int32)
    flat = grids.view(-1)
    number = torch.arange(1, w + 1, dtype=torch.int32, device=start.device).expand(b, w)
    view = torch.arange(b, device=start.device)[:, None]
    for corner in product((0, 1), repeat=d):
        index = torch.zeros_like(view)
        for i in range(d):
            index = index * (top[i] + 1) + level[:, :, i]
        index = index * b + view
        for i, far in enumerate(corner):
            first = start[:, :, i] + (side[:, :, i] - (1 << level[:, :, i]) if far else 0)
            index = index * shape[i] + first
        flat.scatter_reduce_(0, index.flatten(), number.flatten(), "amax")
    grids = grids.view(*grids.shape[:d], b, *shape)
    for i in range(d):
        for k in range(top[i], 0, -1):
            whole, half = grids.select(i, k), grids.select(i, k - 1)
            torch.maximum(half, whole, out=half)
            axis, step = d + i, 1 << (k - 1)
            shifted = half.narrow(axis, step, shape[i] - step)
            torch.maximum(shifted, whole.narrow(axis, 0, shape[i] - step), out=shifted)
        grids = grids.select(i, 0).unsqueeze(i)
    return grids.view(b, *shape)


def permuted(
    i: Int32[Tensor, " k"],
    rows: Int32[Tensor, " k"],
    columns: Int32[Tensor, " k"],
    key: Int32[Tensor, " k"],
    longest: int,
) -> Int32[Tensor, " k"]:
    """The place of i, 0 <= i < rows * columns, in the pseudo-random permutation of these numbers that the key names.

    They are written row by row; then every row is permuted by itself, every column, every row again, ROUNDS times in all,
    each by one of CHOICES permutations, which a hash of (key, round, row or column) picks. SMALL numbers or fewer are one
    row, so that all their orders are equally likely; of more, each stands in each place equally often. (Every order is
    reached: permuting rows, columns and rows again gives any. How evenly: docs/performance.md.)

    longest: no row nor column is longer.
    """
    table = _row_permutations(max(longest, SMALL), i.device)
    n = rows * columns
    rows, columns = torch.where(n <= SMALL, 1, rows), torch.where(n <= SMALL, n, columns)
    row = i // columns
    at, length = [row, i - row * columns], [rows, columns]
    before = [CHOICES // 2 * (m - 1) * m for m in length]  # numbers of the shorter permutations
    for r in range(ROUNDS):
        along, other = (1, 0) if r % 2 == 0 else (0, 1)
        bits = mix((at[other] * ROUNDS + r) ^ key) >> 11 & 0x1FFFFF
        choice = bits * CHOICES >> 21
        at[along] = table.index_select(0, before[along] + choice * length[along] + at[along])
    return at[0] * columns + at[1]


@lru_cache(maxsize=16)
def _row_permutations(longest: int, device: torch.device) -> Int32[Tensor, " n"]:
    """CHOICES permutations of 0 .. n - 1 for n = 1 .. longest: all, equally often, up to SMALL; then random ones."""
    parts = []
    for n in range(1, longest + 1):
        if n <= SMALL:
            every = torch.tensor(list(permutations(range(n))))
            parts.append(every.repeat(CHOICES // len(every), 1))
        else:
            keys = Stream.of("row permutations", n).bits(CHOICES * n)
            parts.append(keys.view(CHOICES, n).argsort(dim=1, stable=True))
    return torch.cat([part.flatten() for part in parts]).int().to(device)


# ----------------------------------------------------------------------------------------------- non-linear intensity


@dataclass(frozen=True)
class Curve:
    """A monotone map of [0, 1]: a cubic Bezier curve from (0, 0) to (1, 1).

    control: the x of P1 and P2, then their y. falling: turned, so that 0 becomes 1 and 1 becomes 0.
    """

    on: Bool[Tensor, " b"]
    control: Float[Tensor, "b 2 2"]
    falling: Bool[Tensor, " b"]


def draw_curve(stream: Stream, probability: float = 0.9) -> Curve:
    on = stream.uniform() < probability
    return Curve(on, stream.uniform(2, 2), stream.uniform() < 0.5)


def bezier(control: Float[Tensor, "b 2 2"], points: int = BEZIER_POINTS) -> Float[Tensor, "b 2 points"]:
    """x and y of the curve at equally spaced parameters. Both rise, wherever in the unit square P1 and P2 lie."""
    t = torch.linspace(0, 1, points, device=control.device)
    p1, p2 = control[:, :, :1], control[:, :, 1:]
    curve = 3 * (1 - t) ** 2 * t * p1 + 3 * (1 - t) * t**2 * p2 + t**3
    return curve.cummax(dim=2).values  # rounding alone could make it fall


def curve(batch: Float[Tensor, "b c *space"], params: Curve) -> Float[Tensor, "b c *space"]:
    """Intensities through the curve by linear interpolation; what lies outside [0, 1] is clamped first."""
    x, y = (table.contiguous() for table in bezier(params.control).unbind(1))
    y = torch.where(params.falling[:, None], y.flip(1), y)
    values = batch.flatten(1).clamp(0, 1)
    upper = torch.searchsorted(x, values).clamp(1, x.shape[1] - 1)
    x0, x1, y0, y1 = (table.gather(1, index) for table in (x, y) for index in (upper - 1, upper))
    part = (values - x0) / (x1 - x0).clamp_min(1e-12)
    mapped = torch.lerp(y0, y1, part).view_as(batch)
    return torch.where(_per_view(params.on, batch), mapped, batch)


def _per_view(flag: Tensor, batch: Tensor) -> Tensor:
    return flag.view(-1, *[1] * (batch.dim() - 1))


# ------------------------------------------------------------------------------------------------ in- and out-painting


@dataclass(frozen=True)
class Paint:
    """Boxes of each view, and what becomes of them.

    inside: the boxes are filled with noise (in-painting). outside: everything but the boxes is (out-painting).
    start, side: voxels; a side of 0 is no box. keys: of the streams of the noise, U[0, 1) a voxel.
    """

    inside: Bool[Tensor, " b"]
    outside: Bool[Tensor, " b"]
    start: Int[Tensor, "b boxes d"]
    side: Int[Tensor, "b boxes d"]
    keys: Int32[Tensor, "b 2"]


def draw_paint(
    stream: Stream, shape: Shape, probability: float = 0.9, inside: float = 0.2, boxes: int = 5, more: float = 0.95
) -> Paint:
    """With `probability` a view is painted: inside its boxes with probability `inside`, else outside of them.

    In-painting: up to `boxes` boxes, each drawn while U < more; sides uniform over N // 6 .. N // 3. Out-painting: one
    box for certain, and up to `boxes` - 1 more; sides N - U{3N // 7 .. 4N // 7}. Corners keep BORDER voxels free.
    """
    painted, within = stream.uniform() < probability, stream.uniform() < inside
    inside_on, outside_on = painted & within, painted & ~within
    first = stream.uniform(boxes)
    first = torch.where((outside_on[:, None]) & (torch.arange(boxes, device=first.device) == 0), 0.0, first)
    there = (first < more).cumprod(dim=1) == 1
    starts, sides = [], []
    for n in shape:
        u = stream.uniform(boxes)
        small = n // 6 + _up_to(u, torch.full_like(u, n // 3 - n // 6).long())
        large = n - 3 * n // 7 - _up_to(u, torch.full_like(u, 4 * n // 7 - 3 * n // 7).long())
        side = torch.where(inside_on[:, None], small, large).clamp_min(1)
        border = torch.clamp_max((n - side) // 2, BORDER)
        starts.append(border + _up_to(stream.uniform(boxes), n - side - 2 * border))
        sides.append(side * there)
    return Paint(inside_on, outside_on, torch.stack(starts, 2), torch.stack(sides, 2), stream.fork("noise").keys)


def boxes_of(params: Paint, shape: Shape) -> Bool[Tensor, "b *space"]:
    """Where the boxes lie."""
    d = len(shape)
    held = torch.ones((), dtype=torch.bool, device=params.start.device)
    for i, n in enumerate(shape):
        place = torch.arange(n, device=params.start.device)
        first, stop = params.start[:, :, i, None], (params.start + params.side)[:, :, i, None]
        along = (place >= first) & (place < stop)  # b boxes n
        held = held & along.view(*along.shape[:2], *(n if j == i else 1 for j in range(d)))
    return held.any(dim=1)


def paint(batch: Float[Tensor, "b c *space"], params: Paint) -> Float[Tensor, "b c *space"]:
    held = boxes_of(params, tuple(batch.shape[2:]))[:, None]
    hidden = (held & _per_view(params.inside, batch)) | (~held & _per_view(params.outside, batch))
    return torch.where(hidden, Stream(params.keys).uniform(*batch.shape[1:]), batch)


# ---------------------------------------------------------------------------------------------------------- the chain


class GenesisRates(BaseModel):
    """How often, and how much. The defaults are the released code's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    flip: float = Field(
        0.4, ge=0, le=1, description="another axis is reversed while U is below it, three times at most"
    )
    shuffle: float = Field(0.5, ge=0, le=1)
    windows: int = Field(10_000, ge=1)
    curve: float = Field(0.9, ge=0, le=1)
    paint: float = Field(0.9, ge=0, le=1)
    inside: float = Field(0.2, ge=0, le=1, description="of the painted: in-painting, the others are out-painted")
    boxes: int = Field(5, ge=1)


@dataclass(frozen=True)
class Corruption:
    """All that is random about views between the clean crop and what the network sees."""

    shuffle: Shuffle
    curve: Curve
    paint: Paint


def draw_corruption(stream: Stream, shape: Shape, rates: GenesisRates) -> Corruption:
    return Corruption(
        draw_shuffle(stream.fork("shuffle"), shape, rates.shuffle, rates.windows),
        draw_curve(stream.fork("curve"), rates.curve),
        draw_paint(stream.fork("paint"), shape, rates.paint, rates.inside, rates.boxes),
    )


def corrupt(batch: Float[Tensor, "b c *space"], params: Corruption) -> Float[Tensor, "b c *space"]:
    """Shuffling, then the curve, then paint."""
    return paint(curve(shuffle(batch, params.shuffle), params.curve), params.paint)


def draw_one_of(stream: Stream, shape: Shape, windows: int = 5) -> Corruption:
    """TransVW: exactly one of shuffling, curve, in- and out-painting, a quarter each; few windows, one box."""
    kind = stream.integers(4)
    rates = GenesisRates(shuffle=1, windows=windows, curve=1, paint=1, boxes=1)
    drawn = draw_corruption(stream, shape, rates)
    inner = draw_paint(stream.fork("inside"), shape, 1.0, 1.0, boxes=1, more=1.0)
    outer = draw_paint(stream.fork("outside"), shape, 1.0, 0.0, boxes=1, more=1.0)
    within = kind == 2
    return Corruption(
        replace(drawn.shuffle, on=kind == 0),
        replace(drawn.curve, on=kind == 1),
        Paint(
            within,
            kind == 3,
            torch.where(within[:, None, None], inner.start, outer.start),
            torch.where(within[:, None, None], inner.side, outer.side),
            outer.keys,
        ),
    )


# ------------------------------------------------------------------------------------------------- elastic deformation


@dataclass(frozen=True)
class Elastic:
    """A smooth field of displacements in the plane (x, y), in voxels."""

    displacement: Float[Tensor, "b 2 *space"]


def draw_elastic(stream: Stream, shape: Shape, alpha: float = 991.0, sigma: float = 8.0) -> Elastic:
    """U(-1, 1) a voxel, smoothed by a Gaussian along every axis (zeros beyond the faces), times alpha.

    In a plane a Gaussian averages over fewer values, so there alpha is scaled to give the displacements of a volume.
    """
    field = stream.uniform(2, *shape, low=-1.0, high=1.0)
    for i, n in enumerate(shape):
        place = torch.arange(n, device=field.device, dtype=torch.float32)
        weight = torch.exp(-0.5 * ((place[:, None] - place) / sigma) ** 2) / (sigma * math.sqrt(2 * math.pi))
        weight = weight * ((place[:, None] - place).abs() <= int(4 * sigma + 0.5))
        field = torch.einsum("ij,b...j->b...i", weight, field.movedim(2 + i, -1)).movedim(-1, 2 + i)
    if len(shape) == 2:
        alpha /= math.sqrt(2 * math.sqrt(math.pi) * sigma)
    return Elastic(alpha * field)


def elastic(batch: Float[Tensor, "b c *space"], params: Elastic) -> Float[Tensor, "b c *space"]:
    """Every voxel is read, linearly, from where its displacement points in its own slice; edges are repeated."""
    b, c, x, y, *depth = batch.shape
    slices = batch if depth else batch[..., None]
    shift = params.displacement if depth else params.displacement[..., None]
    z = slices.shape[-1]
    flat = slices.permute(0, 4, 1, 2, 3).reshape(b * z, c, x, y)
    dx, dy = (shift[:, i].permute(0, 3, 1, 2).reshape(b * z, x, y) for i in (0, 1))
    px = (torch.arange(x, device=batch.device)[:, None] + dx - (x - 1) / 2) * (2 / x)
    py = (torch.arange(y, device=batch.device) + dy - (y - 1) / 2) * (2 / y)
    moved = F.grid_sample(flat, torch.stack([py, px], dim=-1), padding_mode="border", align_corners=False)
    return moved.view(b, z, c, x, y).permute(0, 2, 3, 4, 1).reshape(batch.shape)
