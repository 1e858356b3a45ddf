"""Mixing the samples of a batch in pairs (mixup), and orders of a batch that a number names."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pcrl_cli.core.rng import Stream

NAMES = 2**24


def draw_share(stream: Stream) -> float:
    """max(s, 1 - s) with s ~ Beta(1, 1), of a single stream: the share of a sample itself, 1/2 or more."""
    s = stream.uniform().item()
    return max(s, 1.0 - s)


def draw_name(stream: Stream) -> int:
    """A number that names an order, of a single stream."""
    return int(stream.integers(NAMES).item())


def order(name: int, n: int, device: torch.device | str = "cpu") -> Int[Tensor, " n"]:
    """The permutation of n samples that a number names: the whole batch shares it, and it draws nothing."""
    return Stream.of("order", name, device=device).uniform(n)[0].argsort()


def mix(x: Float[Tensor, "b *rest"], share: float, partner: Int[Tensor, " b"]) -> Float[Tensor, "b *rest"]:
    """share x + (1 - share) x of the partner."""
    return share * x + (1.0 - share) * x[partner]
