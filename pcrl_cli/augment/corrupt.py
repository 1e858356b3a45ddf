"""Swap: pairs of blocks of a view exchanged, one pair after the other (TorchIO 1.2.1's RandomSwap)."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from pcrl_cli.core.errors import ConfigError
from pcrl_cli.core.rng import Stream

INDEXED = 50
"""On a CPU the voxels' indices of so many exchanges are made at a time: a core's cache does not hold all of them."""


@dataclass(frozen=True)
class Swap:
    """k exchanges a view, in order; first and second hold the blocks' lowest corners in voxels."""

    first: Int64[Tensor, "b k 3"]
    second: Int64[Tensor, "b k 3"]
    patch: tuple[int, int, int]


def draw_swap(
    stream: Stream, shape: tuple[int, int, int], patch: tuple[int, int, int] = (8, 4, 4), count: int = 100
) -> Swap:
    """Corners uniform over 0 .. N - patch - 1 an axis (the last position never; 0 where the patch fills the axis).

    The two blocks of a pair differ but may overlap: the second corner is uniform over all positions but the first.

    Raises:
        ConfigError: fewer than two positions for the patch.
    """
    free = [max(n - p, 1) for n, p in zip(shape, patch, strict=True)]
    if any(p > n for n, p in zip(shape, patch, strict=True)) or math.prod(free) < 2:
        block, view = ("x".join(map(str, size)) for size in (patch, shape))
        raise ConfigError(f"swap: no two places for {block} voxels in a view of {view}: choose a smaller swap_patch.")
    first = stream.integers(math.prod(free), count)
    second = stream.integers(math.prod(free) - 1, count)
    second = second + (second >= first)
    return Swap(_corner(first, free), _corner(second, free), patch)


def _corner(position: Int64[Tensor, "b k"], free: list[int]) -> Int64[Tensor, "b k 3"]:
    yz, z = free[1] * free[2], free[2]
    return torch.stack([position // yz, position // z % free[1], position % z], dim=2)


def swap_(batch: Float[Tensor, "b c x y z"], params: Swap) -> Float[Tensor, "b c x y z"]:
    """Both blocks are read, then the first's content goes to the second's place, then the second's to the first's.

    In place, of a contiguous batch. Where the blocks overlap the second write wins. (TorchIO reads after writing there:
    5e-5 of its voxels differ.)
    """
    values = batch.view(-1)
    count = params.first.shape[1]
    size = INDEXED if batch.device.type == "cpu" else max(1, count)
    for some in (slice(start, start + size) for start in range(0, count, size)):
        part = Swap(params.first[:, some], params.second[:, some], params.patch)
        for read, write in zip(*(index.unbind(0) for index in _exchanges(part, batch.shape)), strict=True):
            values.scatter_(0, write, values.index_select(0, read))
    return batch


def _exchanges(params: Swap, shape: torch.Size) -> tuple[Int64[Tensor, "k m"], Int64[Tensor, "k m"]]:
    """Flat indices of the batch to read and to write, k exchanges of m = b * c * 2 * patch voxels.

    A voxel of the second block that is also in the first, at first + j, is read from where the second write would
    take it: second + j. So equal targets have equal sources, and the order of writing within an exchange is free.
    """
    b, c, x, y, z = shape
    device = params.first.device
    view = torch.arange(b * c, device=device).view(b, c) * (x * y * z)
    first, second = (_flat(corner.transpose(0, 1), y, z) for corner in (params.first, params.second))  # k b
    inner = [torch.arange(p, device=device) for p in params.patch]
    offset = _flat(torch.cartesian_prod(*inner), y, z)  # p
    apart = (params.second - params.first).transpose(0, 1)
    places = [(apart[:, :, axis, None] + within, len(within)) for axis, within in enumerate(inner)]
    in_x, in_y, in_z = ((place >= 0) & (place < size) for place, size in places)
    shared = in_x[..., :, None, None] & in_y[..., None, :, None] & in_z[..., None, None, :]  # k b, the patch's axes
    moved = shared.flatten(2) * (2 * (second - first))[..., None]  # k b p
    at_first, at_second = ((corner[..., None] + view)[..., None] + offset for corner in (first, second))  # k b c p
    to_second = at_first + moved[:, :, None]
    source, target = torch.cat([to_second, at_second], dim=3), torch.cat([at_second, at_first], dim=3)
    return source.flatten(1), target.flatten(1)


def _flat(voxel: Int64[Tensor, "*n 3"], y: int, z: int) -> Int64[Tensor, "*n"]:
    """Index of a voxel in a flattened view."""
    return voxel[..., 0] * (y * z) + voxel[..., 1] * z + voxel[..., 2]
