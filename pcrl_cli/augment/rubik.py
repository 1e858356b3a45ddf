"""The moves of a Rubik's cube on a volume: layers one sub-cube thick turn in their own plane (Rubik's cube++)."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from pcrl_cli.core.constants import constant
from pcrl_cli.core.errors import ConfigError
from pcrl_cli.core.rng import Stream


@dataclass(frozen=True)
class Moves:
    """n moves a view, in order: layer `layer` normal to `axis` turns by `turns` quarters. side: of a sub-cube, voxels."""

    axis: Int[Tensor, "b n"]
    layer: Int[Tensor, "b n"]
    turns: Int[Tensor, "b n"]
    side: int


def draw_moves(stream: Stream, shape: tuple[int, ...], side: int = 8, count: int = 10) -> Moves:
    """Axis and layer uniform; 1, 2 or 3 quarters where the layer's plane is square, else the half turn.

    Raises:
        ConfigError: the sub-cubes do not fill the views.
    """
    if any(n % side for n in shape):
        view = "x".join(map(str, shape))
        raise ConfigError(
            f"sub-cubes of side {side} do not fill a view of {view}; set learner.side to a common divisor"
        )
    device = stream.device
    axis = stream.integers(3, count)
    layers = constant(tuple(n // side for n in shape), device)[axis]
    layer = torch.minimum((stream.uniform(count) * layers).long(), layers - 1)
    square = tuple(shape[(a + 1) % 3] == shape[(a + 2) % 3] for a in range(3))
    quarters = 1 + stream.integers(3, count)
    return Moves(axis, layer, torch.where(constant(square, device)[axis], quarters, 2), side)


def inverse(moves: Moves) -> Moves:
    """The moves that undo these."""
    return Moves(moves.axis.flip(1), moves.layer.flip(1), 4 - moves.turns.flip(1), moves.side)


def turn(batch: Float[Tensor, "b c x y z"], moves: Moves) -> Float[Tensor, "b c x y z"]:
    """Every view after its moves; voxels are moved, none is changed.

    Layer by layer on a CPU, where that is 6 times as fast; elsewhere at once, since the host would wait to hear the moves.
    """
    return (_layer_by_layer if batch.device.type == "cpu" else at_once)(batch, moves)


def _layer_by_layer(batch: Float[Tensor, "b c x y z"], moves: Moves) -> Float[Tensor, "b c x y z"]:
    out = batch.clone()
    rows = torch.stack([moves.axis, moves.layer, moves.turns], dim=2).tolist()
    for view, sequence in zip(out, rows, strict=True):
        for axis, layer, turns in sequence:
            slab = view.narrow(1 + axis, layer * moves.side, moves.side)
            plane = [1 + a for a in range(3) if a != axis]
            slab.copy_(torch.rot90(slab, turns, plane))
    return out


def at_once(batch: Float[Tensor, "b c x y z"], moves: Moves) -> Float[Tensor, "b c x y z"]:
    """The same by one gather."""
    b, c, x, y, z = batch.shape
    source = _sources(moves, (x, y, z))
    return batch.flatten(2).gather(2, source[:, None].expand(b, c, -1)).view_as(batch)


QUARTERS = tuple(
    tuple(tuple(map(tuple, np.linalg.matrix_power(quarter, k).tolist())) for k in range(4))
    for quarter in np.array(
        [
            [[1, 0, 0], [0, 0, 1], [0, -1, 0]],
            [[0, 0, 1], [0, 1, 0], [-1, 0, 0]],
            [[0, 1, 0], [-1, 0, 0], [0, 0, 1]],
        ]
    )
)
"""By axis and number of quarters: where a voxel comes from, in coordinates from the middle of the view."""


def _sources(moves: Moves, shape: tuple[int, int, int]) -> Int[Tensor, "b n"]:
    """From where each voxel is read, as flat indices.

    A sub-cube moves as a whole, so the moves are traced back for its middle, last move first, together with how it is
    turned: a few numbers a sub-cube. Coordinates are twice those from the middle of the view, so that they are whole.
    """
    device, side, b = moves.axis.device, moves.side, len(moves.axis)
    quarters, sizes, unit = constant(QUARTERS, device), constant(shape, device), torch.eye(3, device=device).long()
    middles = torch.cartesian_prod(*(side * (2 * torch.arange(n // side, device=device) + 1) - n for n in shape))
    at, how = middles.expand(b, -1, -1), unit.expand(b, len(middles), 3, 3)
    for axis, layer, turns in zip(*(m.unbind(1)[::-1] for m in (moves.axis, moves.layer, moves.turns)), strict=True):
        place = at.gather(2, axis[:, None, None].expand(b, len(middles), 1))[:, :, 0]
        turned = place == (side * (2 * layer + 1) - sizes[axis])[:, None]
        move = torch.where(turned[:, :, None, None], quarters[axis, turns][:, None], unit)  # b k 3 3
        at = (move * at[:, :, None]).sum(dim=3)
        how = (move[..., None] * how[:, :, None]).sum(dim=3)
    strides = (shape[1] * shape[2], shape[2], 1)
    along = (how * constant(strides, device)[:, None]).sum(dim=2)  # b k 3: of the flat index, a coordinate each
    cubes = along.view(b, *(size for n in shape for size in (n // side, 1)), 3)  # b kx 1 ky 1 kz 1 3
    index: int | Tensor = sum(step * (n - 1) for step, n in zip(strides, shape, strict=True))
    for i, n in enumerate(shape):
        place = (2 * torch.arange(n, device=device) + 1 - n).view(n // side, side, *[1] * (4 - 2 * i))
        index = index + cubes[..., i] * place
    return torch.div(index, 2, rounding_mode="floor").view(b, -1)
