"""PCRLv1's transformations with an indicator: flips along every axis and quarter turns in the first two."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pcrl_cli.core.rng import Stream

QUARTERS = 4


@dataclass(frozen=True)
class Turn:
    """Flips first, then quarter turns in the plane of the first two axes."""

    flip: Bool[Tensor, "b d"]
    turns: Int[Tensor, " b"]


def draw_turn(stream: Stream, shape: tuple[int, ...]) -> Turn:
    """Flips with probability 1/2 an axis; turns uniform over 0 .. 3, over 0 and 2 where the plane is not square."""
    flip = stream.uniform(len(shape)) < 0.5
    quarters = stream.integers(QUARTERS)
    return Turn(flip, quarters if shape[0] == shape[1] else 2 * (quarters // 2))


def indicator(turn: Turn) -> Float[Tensor, "b d_4"]:
    """One bit a flip and the turns as one of four: 6 numbers for images, 7 for volumes."""
    return torch.cat([turn.flip.float(), F.one_hot(turn.turns, QUARTERS).float()], dim=1)


def of_indicator(code: Float[Tensor, "b d_4"]) -> Turn:
    """The transformation that an indicator names."""
    return Turn(code[:, :-QUARTERS] > 0.5, code[:, -QUARTERS:].argmax(dim=1))


def transform(batch: Float[Tensor, "b c *space"], turn: Turn) -> Float[Tensor, "b c *space"]:
    """Each view flipped and turned."""
    for i in range(turn.flip.shape[1]):
        batch = torch.where(_a_view(turn.flip[:, i], batch), batch.flip(2 + i), batch)
    return _turned(batch, turn.turns)


def invert(batch: Float[Tensor, "b c *space"], turn: Turn) -> Float[Tensor, "b c *space"]:
    """Undoes `transform`."""
    batch = _turned(batch, (QUARTERS - turn.turns) % QUARTERS)
    for i in range(turn.flip.shape[1]):
        batch = torch.where(_a_view(turn.flip[:, i], batch), batch.flip(2 + i), batch)
    return batch


def _turned(batch: Float[Tensor, "b c *space"], turns: Int[Tensor, " b"]) -> Float[Tensor, "b c *space"]:
    square = batch.shape[2] == batch.shape[3]
    out = batch
    for k in range(1, QUARTERS) if square else (2,):
        out = torch.where(_a_view(turns == k, batch), torch.rot90(batch, k, (2, 3)), out)
    return out


def _a_view(flag: Bool[Tensor, " b"], batch: Tensor) -> Tensor:
    return flag.view(-1, *[1] * (batch.dim() - 1))
