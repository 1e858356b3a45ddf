"""The corruptions of Models Genesis (Zhou et al., MedIA 2021) and TransVW's variants, for images and volumes in [0, 1].

Flip | local pixel shuffling, non-linear intensity, in- or out-painting. Each is drawn (`draw_x`: random, one stream a
view) and then applied (`x`: a function of the batch and of what was drawn). Shapes are (b, c, x, y) or (b, c, x, y, z).
"""

import math
from dataclasses import dataclass
from itertools import product

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Int32
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from pcrl_cli.core.rng import Stream

Shape = tuple[int, ...]
BEZIER_POINTS = 1000
"""Samples of the curve. Against 100,000 the largest error of random curves is 6e-5; where the slope is infinite (control
points in corners of the square) it is 5e-3."""
BORDER = 3
"""Voxels at the faces that no box touches; fewer where a view is too small for that."""
ROUNDS = 4
"""Of the mixing that permutes a window's voxels."""
CHUNK_VOXELS = 2**23
"""Of the covers of local shuffling that are held at a time."""


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

    on: whether the view is shuffled at all. start, side: voxels. keys: of every window's permutation.
    """

    on: Bool[Tensor, " b"]
    start: Int[Tensor, "b w d"]
    side: Int[Tensor, "b w d"]
    keys: Int32[Tensor, "b w"]


def draw_shuffle(stream: Stream, shape: Shape, probability: float = 0.5, windows: int = 10_000) -> Shuffle:
    """Sides uniform over 1 .. max(1, N // 10) an axis, positions uniform over those that fit."""
    on = stream.uniform() < probability
    sides, starts = [], []
    for n in shape:
        side = 1 + stream.integers(max(1, n // 10), windows)
        sides.append(side)
        starts.append(_up_to(stream.uniform(windows), n - side))
    return Shuffle(on, torch.stack(starts, dim=2), torch.stack(sides, dim=2), stream.bits(windows))


def _up_to(u: Float[Tensor, "*n"], most: Int[Tensor, "*n"]) -> Int[Tensor, "*n"]:
    """U[0, 1) to an integer, uniform over 0 .. most."""
    return torch.minimum((u * (most + 1)).long(), most)


def shuffle(batch: Float[Tensor, "b c *space"], params: Shuffle) -> Float[Tensor, "b c *space"]:
    """Every window's voxels are read from the original view, permuted alike in all channels and written to the result.

    So a voxel shows what the last window that covers it put there: a permutation of that window, seen from its end.
    """
    out = batch.clone()
    rows = params.on.nonzero().flatten()
    size = max(1, CHUNK_VOXELS // batch[0, 0].numel())
    for part in rows.split(size) if len(rows) else ():
        source = _sources(params.start[part], params.side[part], params.keys[part], tuple(batch.shape[2:]))
        flat = batch[part].flatten(2)
        out[part] = flat.gather(2, source[:, None].expand_as(flat)).view(-1, *batch.shape[1:])
    return out


def _sources(start: Tensor, side: Tensor, keys: Tensor, shape: Shape) -> Int[Tensor, "b n"]:
    """From where each voxel is read, as flat indices."""
    last = last_cover(start, side, shape).flatten(1).long() - 1  # b n; -1 where no window lies
    voxel = torch.arange(math.prod(shape), device=start.device)
    view, place = (last >= 0).nonzero(as_tuple=True)
    window = last[view, place]
    first, sides, key = start[view, window], side[view, window], keys[view, window]  # k d, k d, k
    within = torch.zeros_like(place)
    for i, n in enumerate(shape):
        steps = math.prod(shape[i + 1 :])
        within = within * sides[:, i] + place // steps % n - first[:, i]
    within = permuted(within, sides.prod(dim=1), key)
    read = torch.zeros_like(place)
    for i in reversed(range(len(shape))):
        read += (first[:, i] + within % sides[:, i]) * math.prod(shape[i + 1 :])
        within = within // sides[:, i]
    return voxel.expand(len(start), -1).index_put((view, place), read)


def last_cover(start: Int[Tensor, "b w d"], side: Int[Tensor, "b w d"], shape: Shape) -> Int32[Tensor, "b *space"]:
    """1 + the number of the last window that covers each voxel, 0 where none does.

    A window is the union of 2^d overlapping boxes whose sides are powers of two, at its corners. Boxes of a size note
    their windows at their first voxels; then boxes of 2^k are halved, axis by axis, down to single voxels.
    """
    b, w, d = start.shape
    level = (side.float() + 0.5).log2().floor().long()  # of the largest power of two within each side
    most = level.flatten(0, 1).amax(dim=0).tolist()
    grids = start.new_zeros(*(m + 1 for m in most), b, math.prod(shape), dtype=torch.int32)
    flat = grids.view(-1)
    number = torch.arange(1, w + 1, dtype=torch.int32, device=start.device).expand(b, w)
    view = torch.arange(b, device=start.device)[:, None]
    for corner in product((0, 1), repeat=d):
        index = torch.zeros_like(view)
        for i in range(d):
            index = index * (most[i] + 1) + level[:, :, i]
        index = index * b + view
        for i, far in enumerate(corner):
            first = start[:, :, i] + (side[:, :, i] - (1 << level[:, :, i]) if far else 0)
            index = index * shape[i] + first
        flat.scatter_reduce_(0, index.flatten(), number.flatten(), "amax")
    grids = grids.view(*grids.shape[:d], b, *shape)
    for i in range(d):
        for k in range(most[i], 0, -1):
            whole, half = grids.select(i, k), grids.select(i, k - 1)
            torch.maximum(half, whole, out=half)
            axis, step = d + i, 1 << (k - 1)
            shifted = half.narrow(axis, step, shape[i] - step)
            torch.maximum(shifted, whole.narrow(axis, 0, shape[i] - step), out=shifted)
        grids = grids.select(i, 0).unsqueeze(i)
    return grids.view(b, *shape)


def permuted(i: Int[Tensor, " k"], n: Int[Tensor, " k"], key: Int32[Tensor, " k"]) -> Int[Tensor, " k"]:
    """The place of i, 0 <= i < n, in the pseudo-random permutation of 0 .. n - 1 that the key names.

    A keyed bijection of the 2^m >= n numbers (products with odd numbers, sums, exclusive ors with own upper bits),
    applied again while its value is n or more: what it does within 0 .. n - 1 is a permutation.
    """
    bits = (n.float() - 0.5).clamp_min(1).log2().floor().long() + 1  # 2^bits >= n, at least 2
    mask, half = (1 << bits) - 1, (bits + 1) // 2
    words = Stream(torch.stack([key, key ^ 0x5BD1E995], dim=1)).bits(2 * ROUNDS).long() & 0xFFFFFFFF

    def step(x: Tensor, rows: Tensor) -> Tensor:
        for r in range(ROUNDS):
            x = (x * (2 * words[rows, 2 * r] + 1) + words[rows, 2 * r + 1]) & mask[rows]
            x = x ^ (x >> half[rows])
        return x

    everywhere = torch.arange(len(i), device=i.device)
    out = step(i, everywhere)
    beyond = (out >= n).nonzero().flatten()
    while len(beyond):
        again = step(out[beyond], beyond)
        out = out.index_put((beyond,), again)
        beyond = beyond[again >= n[beyond]]
    return out


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
        Shuffle(kind == 0, drawn.shuffle.start, drawn.shuffle.side, drawn.shuffle.keys),
        Curve(kind == 1, drawn.curve.control, drawn.curve.falling),
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
