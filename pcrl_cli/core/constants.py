"""Small tensors of known numbers, each made once a device."""

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor


def constant(values: Any, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """`torch.tensor(values)` on the device, the same tensor at every call; nobody may write to it.

    Numbers that are copied to a GPU make the host wait for all that the GPU still has to do, so no step may copy any
    after the first.

    Args:
        values: numbers or nested tuples of them.
    """
    if torch.compiler.is_compiling():  # becomes part of the graph
        return torch.tensor(values, device=device, dtype=dtype)
    return _made(values, device, dtype, repr(values))


@lru_cache(maxsize=256)
def _made(values: Any, device: torch.device, dtype: torch.dtype | None, written: str) -> Tensor:
    """written: the values in words, since True, 1 and 1.0 are one key and three kinds of tensor."""
    return torch.tensor(values, device=device, dtype=dtype)
