"""Swap: pairs of blocks of a view exchanged, one pair after the other (TorchIO 1.2.1's RandomSwap)."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from pcrl_cli.core.errors import ConfigError
from pcrl_cli.core.rng import Stream


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


def swap(batch: Float[Tensor, "b c x y z"], params: Swap) -> Float[Tensor, "b c x y z"]:
    """Both blocks are read, then the first's content goes to the second's place, then the second's to the first's.

    Where the blocks overlap the second write wins. (TorchIO reads after writing there: 5e-5 of its voxels differ.)
    """
    source, target = _exchanges(params, batch.shape)
    values = batch.flatten().clone()
    for read, write in zip(source.unbind(0), target.unbind(0), strict=True):
        values.scatter_(0, write, values.index_select(0, read))
    return values.view_as(batch)


def _exchanges(params: Swap, shape: torch.Size) -> tuple[Int64[Tensor, "k m"], Int64[Tensor, "k m"]]:
    """Flat indices of the batch to read and to write, k exchanges of m = b * c * 2 * patch voxels.

    A voxel of the second block that is also in the first, at first + j, is read from where the second write would
    take it: second + j. So equal targets have equal sources, and the order of writing within an exchange is free.
    """
    b, c, x, y, z = shape
    device = params.first.device
    inner = torch.cartesian_prod(*(torch.arange(p, device=device) for p in params.patch))  # p 3
    first, second, offset = (
        i[..., 0] * (y * z) + i[..., 1] * z + i[..., 2] for i in (params.first, params.second, inner)
    )
    shared = torch.ones((), dtype=torch.bool, device=device)
    for axis, size in enumerate(params.patch):
        place = (params.second - params.first)[:, :, axis, None] + inner[:, axis]
        shared = shared & (place >= 0) & (place < size)  # b k p
    to_second = torch.where(shared, (2 * second - first)[:, :, None], first[:, :, None]) + offset
    at_first, at_second = first[:, :, None] + offset, second[:, :, None] + offset
    source, target = torch.cat([to_second, at_second], dim=2), torch.cat([at_second, at_first], dim=2)  # b k 2p
    view = torch.arange(b * c, device=device).view(1, b, c, 1) * (x * y * z)
    return tuple((index.transpose(0, 1)[:, :, None] + view).flatten(1) for index in (source, target))  # type: ignore[return-value]
