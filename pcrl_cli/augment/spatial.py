"""Flip and affine map, merged into one trilinear resampling.

Conventions are those of TorchIO 1.2.1: voxel i of an axis sits at coordinate i, the centre is (N - 1) / 2, spacing
counts as 1. A point whose source lies outside [-0.5, N - 0.5] of an axis is filled with the minimum that its channel
had before; between the last voxel's centre and that border the edge value holds.

The maps are between coordinates centred on the view, where a flip is a change of sign.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int32
from torch import Tensor

from pcrl_cli.core.rng import Stream

GATHER_LIMIT = 2**24
"""Voxels of views that are looked up together, up to which float32 holds their index exactly."""

FIRST = 1e-30
"""The lowest position that is looked up: the voxel above it is the second one, and it has none of its weight."""

PART_VOXELS = 2**16
"""On a CPU about as many voxels a thread are looked up at a time: positions and corners stay in the core's cache."""


@dataclass(frozen=True)
class Affine:
    """One flip (first) and one affine map (second) a view, about the view's centre.

    flip: reverse this axis.
    scale: 1.1 makes things look 1.1 times larger along this axis.
    rotation_deg: angles about the three axes; the matrix is Rz Rx Ry.
    translation_voxel: shift of the content after scaling and rotation.
    """

    flip: Bool[Tensor, "b 3"]
    scale: Float[Tensor, "b 3"]
    rotation_deg: Float[Tensor, "b 3"]
    translation_voxel: Float[Tensor, "b 3"]


def draw_affine(
    stream: Stream,
    flip_axes: tuple[int, ...] = (0,),
    flip_probability: float = 0.5,
    scale: tuple[float, float] = (0.9, 1.1),
    rotation_deg: tuple[float, float] = (-10.0, 10.0),
    translation_voxel: tuple[float, float] = (0.0, 0.0),
) -> Affine:
    """Every axis by itself: scales are not isotropic; only `flip_axes` may be reversed."""
    chance = [flip_probability if axis in flip_axes else 0.0 for axis in range(3)]
    flip, *others = stream.uniform(4, 3).unbind(1)
    ranges = (scale, rotation_deg, translation_voxel)
    return Affine(
        torch.stack([u < p for u, p in zip(flip.unbind(1), chance, strict=True)], dim=1),
        *(u.mul(high - low).add_(low) for u, (low, high) in zip(others, ranges, strict=True)),
    )


def affine(batch: Float[Tensor, "b c x y z"], params: Affine) -> Float[Tensor, "b c x y z"]:
    """Flips, scales, rotates and shifts each view in one resampling; a channel's fill is its own minimum."""
    matrix, shift = affine_map(params)
    return resample(batch, matrix, shift)


def affine_map(params: Affine) -> tuple[Float[Tensor, "b 3 3"], Float[Tensor, "b 3"]]:
    """Output position -> source position, both relative to the view's centre: source = matrix @ output + shift.

    matrix = F R^T diag(1 / scale) and shift = -F R^T translation, with F the signs of the flip.
    """
    back = rotation(params.rotation_deg).transpose(1, 2)
    sign = torch.where(params.flip, -1.0, 1.0)
    matrix = sign[:, :, None] * back / params.scale[:, None, :]
    shift = -sign * (back * params.translation_voxel[:, None, :]).sum(dim=2)
    return matrix, shift


def rotation(degrees: Float[Tensor, "b 3"]) -> Float[Tensor, "b 3 3"]:
    """Rz Rx Ry, written out: no matrix product that a reduced-precision mode of the device could round."""
    angle = degrees * (math.pi / 180)
    (cx, cy, cz), (sx, sy, sz) = angle.cos().unbind(1), angle.sin().unbind(1)
    rows = [
        [cz * cy - sz * sx * sy, -sz * cx, cz * sy + sz * sx * cy],
        [sz * cy + cz * sx * sy, cz * cx, sz * sy - cz * sx * cy],
        [-cx * sy, sx, cx * cy],
    ]
    return torch.stack([torch.stack(row, dim=1) for row in rows], dim=1)


def resample(
    batch: Float[Tensor, "b c x y z"], matrix: Float[Tensor, "b 3 3"], shift: Float[Tensor, "b 3"]
) -> Float[Tensor, "b c x y z"]:
    """Trilinear values at matrix @ position + shift (centred coordinates), minimum of the channel outside.

    On a CPU the own gather is used: PyTorch's volumetric `grid_sample` is not vectorised there. Both give the same.
    No gradient goes through.
    """
    lines, planes = _sources(matrix, shift, batch.shape[2:])
    fill = batch.amin(dim=(2, 3, 4), keepdim=True)
    result = torch.empty_like(batch, memory_format=torch.contiguous_format)
    for rows, slab in _parts(batch):
        views = batch[rows]
        sources = [line[rows, slab] + plane[rows] for line, plane in zip(lines, planes, strict=True)]
        by_gather = batch.device.type == "cpu" and views[:, 0].numel() <= GATHER_LIMIT
        values, inside = (_by_gather if by_gather else _by_grid_sample)(views, sources)
        torch.where(inside[:, None], values, fill[rows], out=result[rows, :, slab])
    return result


def _parts(batch: Float[Tensor, "b c x y z"]) -> Iterator[tuple[slice, slice]]:
    """Views, and slabs along x of the output, that are looked up together: on an accelerator all."""
    b, x, voxels = len(batch), batch.shape[2], max(1, math.prod(batch.shape[2:]))
    if batch.device.type != "cpu":
        return iter([(slice(0, b), slice(0, x))])
    together = PART_VOXELS * torch.get_num_threads()
    views, slab = max(1, together // voxels), max(1, x * together // voxels)
    return (
        (slice(first, first + views), slice(start, start + slab))
        for first in range(0, b, views)
        for start in range(0, x, slab)
    )


def _sources(
    matrix: Float[Tensor, "b 3 3"], shift: Float[Tensor, "b 3"], shape: torch.Size
) -> tuple[list[Float[Tensor, "b x 1 1"]], list[Float[Tensor, "b 1 y z"]]]:
    """Two terms an axis, whose sum is the source of every output voxel, counted from the first voxel's centre."""
    x, y, z = (torch.arange(n, device=matrix.device, dtype=matrix.dtype) - (n - 1) / 2 for n in shape)
    lines, planes = [], []
    for row, offset, n in zip(matrix.unbind(1), shift.unbind(1), shape, strict=True):
        by_x, by_y, by_z = (factor[:, None] * axis for factor, axis in zip(row.unbind(1), (x, y, z), strict=True))
        lines.append(by_x[:, :, None, None])
        planes.append((by_y[:, :, None] + by_z[:, None, :] + (offset + (n - 1) / 2)[:, None, None])[:, None])
    return lines, planes


def _within(distances: list[Float[Tensor, "b slab y z"]], most: float) -> Bool[Tensor, "b slab y z"]:
    """Where no axis' distance, of either sign, is more than `most`; works in place."""
    a, b, c = (distance.abs_() for distance in distances)
    return torch.maximum(torch.maximum(a, b, out=a), c, out=a) <= most


def _by_grid_sample(
    batch: Float[Tensor, "b c x y z"], sources: list[Float[Tensor, "b slab y z"]]
) -> tuple[Float[Tensor, "b c slab y z"], Bool[Tensor, "b slab y z"]]:
    """Values, and which of the sources are in the view or at most half a voxel beyond."""
    scaled = [(at - (n - 1) / 2).mul_(2 / n) for at, n in zip(sources, batch.shape[2:], strict=True)]
    grid = torch.stack(scaled[::-1], dim=-1)  # b slab y z 3, fastest axis first
    values = F.grid_sample(batch, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return values, _within(scaled, 1.0)


def _by_gather(
    batch: Float[Tensor, "b c x y z"], sources: list[Float[Tensor, "b slab y z"]]
) -> tuple[Float[Tensor, "b c slab y z"], Bool[Tensor, "b slab y z"]]:
    """The same by eight flat look-ups a voxel, blended along z, y, x; uses the sources up.

    A position is between the voxel above it (itself, if it is one, but for the first) and the one before. Both are
    inside, so that a NaN stays in its own view.
    """
    b, c, *shape = batch.shape
    positions = [source.clamp(FIRST, n - 1) for source, n in zip(sources, shape, strict=True)]
    inside = _within([source.sub_(at) for source, at in zip(sources, positions, strict=True)], 0.5)
    index = torch.arange(b, dtype=torch.float32, device=batch.device).view(-1, 1, 1, 1)
    parts = []
    for position, n in zip(positions, shape, strict=True):
        above = position.ceil()
        parts.append(torch.sub(above, position, out=position).view(-1))
        index = above.add_(index, alpha=n)
    steps = [0 if n == 1 else math.prod(shape[axis + 1 :]) for axis, n in enumerate(shape)]
    before = index.view(-1).int().sub_(sum(steps))
    channels = [_blend(batch[:, i].reshape(-1), before, steps, parts).view_as(index) for i in range(c)]
    return torch.stack(channels, dim=1) if c > 1 else channels[0][:, None], inside


def _blend(
    values: Float[Tensor, " n"], before: Int32[Tensor, " m"], steps: list[int], parts: list[Float[Tensor, " m"]]
) -> Float[Tensor, " m"]:
    """Linear interpolation along every axis from `before + step` to `before`, innermost axis first."""

    def corner(offset: int, axis: int) -> Tensor:
        if axis == len(steps):
            return values[offset:].index_select(0, before)
        above = corner(offset + steps[axis], axis + 1)
        return above.lerp_(corner(offset, axis + 1), parts[axis])

    return corner(0, 0)
