"""A device that is not there: what a step does on a GPU, as far as a machine without one can tell.

Tensors on torch's `meta` device have shapes and no numbers, so whatever asks for a number fails there, and the CPU's own
tensors stay what they are. Kernels, their speed and their rounding are not tried.
"""

from contextlib import contextmanager

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

DEVICE = torch.device("meta")
MAKERS = (torch.tensor, torch.as_tensor, torch.from_numpy, Tensor.new_tensor)
NUMBERS = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_consecutive", "bincount"}
"""Kernels whose results the host must know before it can go on."""


class Wait(AssertionError):
    """On a GPU the host would wait for it here, or the step would fail."""


class _Copies(TorchFunctionMode):
    """Numbers of the host's that become a tensor on the device: a copy from memory that is not pinned."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **kwargs or {})
        if func in MAKERS and out.device.type == DEVICE.type:
            raise Wait(f"{func.__name__} copies numbers to the device")
        return out


class _Kernels(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name, kwargs = func.overloadpacket.__name__, kwargs or {}
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        there = [t for t in given if t.device.type == DEVICE.type]
        if there and name in NUMBERS:
            raise Wait(f"{name} asks the device for numbers")
        here = [t for t in given if t.device.type == "cpu"]
        if there and any(t.dim() > 0 or name in ("copy_", "index_put_", "_index_put_impl_") for t in here):
            raise Wait(f"{name} takes tensors of the CPU and of the device")
        if name.startswith("_fused_"):  # writes in place, and has no kernel there
            return None
        out = func(*args, **kwargs)
        crossed = {t.device.type for t in tree_leaves(out) if isinstance(t, Tensor)} - {t.device.type for t in given}
        if given and crossed:
            raise Wait(f"{name} copies a tensor between the CPU and the device")
        return out


@contextmanager
def no_waiting():
    """Inside, a wait for the device, a copy to it and a mixture of devices raise `Wait`, or what torch has to say."""
    with _Copies(), _Kernels():
        yield
