"""Cubes cut from larger blocks, turned by the symmetries of the cube: flips and rotations by 90 degrees, 48 together."""

from itertools import permutations

import torch
from torch import Tensor

from pcrl_cli.core.constants import constant
from pcrl_cli.core.rng import Stream


def rotated_crop(blocks: Tensor, side: int, stream: Stream, turn: bool = True, mirror: bool = True) -> Tensor:
    """One gather: (b, c, x, y, z) -> (b, c, side, side, side), a start corner and a cube symmetry a sample.

    turn: axes change places. mirror: axes are reversed. Without either the crop stays upright.
    """
    b, c, *shape = blocks.shape
    device = blocks.device
    room = constant(tuple(n - side + 1 for n in shape), device)
    start = torch.minimum((stream.uniform(3) * room).long(), room - 1)  # b 3
    order = constant(tuple(permutations(range(3))), device)[stream.integers(6) * turn]  # b 3
    flip = (stream.integers(2, 3) * mirror).bool()  # b 3
    i = torch.arange(side, device=device)
    along = start[:, :, None] + torch.where(flip[:, :, None], side - 1 - i, i)  # b 3 side: index along each block axis
    stride = constant((shape[1] * shape[2], shape[2], 1), device)
    steps = (along * stride[:, None]).gather(
        1, order[:, :, None].expand(-1, -1, side)
    )  # output axis k runs along order[k]
    index = steps[:, 0, :, None, None] + steps[:, 1, None, :, None] + steps[:, 2, None, None, :]
    taken = blocks.flatten(2).gather(2, index.reshape(b, 1, -1).expand(-1, c, -1))
    return taken.view(b, c, side, side, side)
