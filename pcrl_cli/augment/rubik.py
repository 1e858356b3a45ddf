"""The moves of a Rubik's cube on a volume: layers one sub-cube thick turn in their own plane (Rubik's cube++)."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

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
    layers = torch.tensor([n // side for n in shape], device=device)[axis]
    layer = torch.minimum((stream.uniform(count) * layers).long(), layers - 1)
    square = [shape[(a + 1) % 3] == shape[(a + 2) % 3] for a in range(3)]
    quarters = 1 + stream.integers(3, count)
    return Moves(axis, layer, torch.where(torch.tensor(square, device=device)[axis], quarters, 2), side)


def inverse(moves: Moves) -> Moves:
    """The moves that undo these."""
    return Moves(moves.axis.flip(1), moves.layer.flip(1), 4 - moves.turns.flip(1), moves.side)


def turn(batch: Float[Tensor, "b c x y z"], moves: Moves) -> Float[Tensor, "b c x y z"]:
    """Every view after its moves; voxels are moved, none is changed."""
    out = batch.clone()
    rows = torch.stack([moves.axis, moves.layer, moves.turns], dim=2).tolist()
    for view, sequence in zip(out, rows, strict=True):
        for axis, layer, turns in sequence:
            slab = view.narrow(1 + axis, layer * moves.side, moves.side)
            plane = [1 + a for a in range(3) if a != axis]
            slab.copy_(torch.rot90(slab, turns, plane))
    return out
