"""How weights lie in memory, which the maps then follow: it changes how fast a convolution is, and no number."""

from typing import TypeVar

import torch
from torch import nn

AnyModule = TypeVar("AnyModule", bound=nn.Module)
DEEP = 512 * 256
"""Pairs of channels from which on a 3D convolution's weights stay contiguous on a CPU: there oneDNN's channels-last
kernels take 4 to 8 times as long over maps of a few voxels, and every gradient of the weights is copied (docs/performance.md)."""


def memory_format(module: nn.Module) -> torch.memory_format:
    """Channels last: faster for convolutions on GPUs, and on a CPU too."""
    axes = {p.dim() for p in module.parameters()}
    return torch.channels_last_3d if 5 in axes else torch.channels_last if 4 in axes else torch.preserve_format


def arrange(module: AnyModule, device: torch.device) -> AnyModule:
    """The module on the device, channels last; on a CPU without the deep 3D convolutions."""
    module = module.to(device).to(memory_format=memory_format(module))  # type: ignore[call-overload]
    if device.type == "cpu":
        for p in module.parameters():
            if p.dim() == 5 and p.shape[0] * p.shape[1] >= DEEP:
                p.data = p.data.contiguous()
    return module
