"""Flip and affine map, merged into one trilinear resampling.

Conventions are those of TorchIO 1.2.1: voxel i of an axis sits at coordinate i, the centre is (N - 1) / 2, spacing
counts as 1. A point whose source lies outside [-0.5, N - 0.5] of an axis is filled with the minimum that its channel
had before; between the last voxel's centre and that border the edge value holds.

Everything is computed in coordinates centred on the view, where a flip is a change of sign and rounding is smallest.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from pcrl_cli.core.rng import Stream

GATHER_LIMIT = 2**24
"""Voxels of a batch up to which float32 holds their index exactly."""


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
    return Affine(
        flip=torch.stack([u < p for u, p in zip(stream.uniform(3).unbind(1), chance, strict=True)], dim=1),
        scale=stream.uniform(3, low=scale[0], high=scale[1]),
        rotation_deg=stream.uniform(3, low=rotation_deg[0], high=rotation_deg[1]),
        translation_voxel=stream.uniform(3, low=translation_voxel[0], high=translation_voxel[1]),
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
    """
    sources = _sources(matrix, shift, batch.shape[2:])
    beyond = _beyond(sources, batch.shape[2:])[:, None]
    fill = batch.amin(dim=(2, 3, 4), keepdim=True)
    by_gather = batch.device.type == "cpu" and batch[:, 0].numel() <= GATHER_LIMIT
    values = (_by_gather if by_gather else _by_grid_sample)(batch, sources)
    return torch.where(beyond, fill, values)


def _sources(
    matrix: Float[Tensor, "b 3 3"], shift: Float[Tensor, "b 3"], shape: torch.Size
) -> list[Float[Tensor, "b x y z"]]:
    """The centred source coordinate of every output voxel, an axis each."""
    x, y, z = (torch.arange(n, device=matrix.device, dtype=matrix.dtype) - (n - 1) / 2 for n in shape)
    sources = []
    for row, offset in zip(matrix.unbind(1), shift.unbind(1), strict=True):
        plane = (row[:, 1, None] * y + offset[:, None])[:, :, None] + (row[:, 2, None] * z)[:, None, :]
        sources.append((row[:, 0, None] * x)[:, :, None, None] + plane[:, None])
    return sources


def _beyond(sources: list[Float[Tensor, "b x y z"]], shape: torch.Size) -> Bool[Tensor, "b x y z"]:
    """Whose source is more than half a voxel outside the outermost voxel centres."""
    a, b, c = ((source * (2 / n)).abs_() for source, n in zip(sources, shape, strict=True))
    return torch.maximum(torch.maximum(a, b), c) > 1


def _by_grid_sample(
    batch: Float[Tensor, "b c x y z"], sources: list[Float[Tensor, "b x y z"]]
) -> Float[Tensor, "b c x y z"]:
    scaled = [source * (2 / n) for source, n in zip(sources, batch.shape[2:], strict=True)]
    grid = torch.stack(scaled[::-1], dim=-1)  # b x y z 3, fastest axis first
    return F.grid_sample(batch, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _by_gather(
    batch: Float[Tensor, "b c x y z"], sources: list[Float[Tensor, "b x y z"]]
) -> Float[Tensor, "b c x y z"]:
    """Eight flat look-ups a voxel, blended along z, y, x. All corners are inside: a NaN stays in its own view."""
    b, c, *shape = batch.shape
    index = torch.arange(b, dtype=torch.float32, device=batch.device).view(-1, 1, 1, 1).expand_as(sources[0]).clone()
    parts = []
    for source, n in zip(sources, shape, strict=True):
        half = (n - 1) / 2
        position = source.clamp(-half, half).add_(half)
        lower = position.floor().clamp_(max=max(n - 2, 0))
        parts.append(position.sub_(lower))
        index.mul_(n).add_(lower)
    flat_index = index.long().view(-1)
    steps = [0 if n == 1 else math.prod(shape[axis + 1 :]) for axis, n in enumerate(shape)]
    channels = [_blend(batch[:, i].reshape(-1), flat_index, steps, parts) for i in range(c)]
    return torch.stack(channels, dim=1)


def _blend(
    values: Float[Tensor, " n"], index: Tensor, steps: list[int], parts: list[Float[Tensor, "b x y z"]]
) -> Float[Tensor, "b x y z"]:
    """Linear interpolation along every axis between `index` and `index + step`, innermost axis first."""

    def corner(offset: int, axis: int) -> Tensor:
        if axis == len(steps):
            return values[offset:].index_select(0, index).view_as(parts[0])
        low = corner(offset, axis + 1)
        return low.lerp_(corner(offset + steps[axis], axis + 1), parts[axis])

    return corner(0, 0)
