"""The only place, besides the encoders, that knows how many axes an image has."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pcrl_cli.core.constants import constant
from pcrl_cli.pure.precision import at_least_float32


class Conv2d(nn.Conv2d):
    """`nn.Conv2d`, whose small maps are convolved in float32 under bfloat16 autocast on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        return in_float32_if_small(super().forward, x, self.kernel_size[0])


class Conv3d(nn.Conv3d):
    """`nn.Conv3d`, and on a CPU two things besides, where it is faster and where it would be wrong.

    Maps come in the layout of the weights: deep layers, whose weights outweigh their maps, keep the contiguous one
    (`engine.layout`), and a mixture would copy 28 MB of weights at every call. Under bfloat16 autocast small maps are
    convolved in float32.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu":
            return super().forward(x)
        if self.weight.is_contiguous() and not self.weight.is_contiguous(memory_format=torch.channels_last_3d):
            x = x.contiguous()
        return in_float32_if_small(super().forward, x, self.kernel_size[0])


def in_float32_if_small(convolve: Callable[[Tensor], Tensor], x: Tensor, taps: int = 3) -> Tensor:
    """`convolve(x)`, without autocast where that would be wrong: see `is_small_in_bf16`."""
    if not is_small_in_bf16(x, taps):
        return convolve(x)
    with torch.autocast("cpu", enabled=False):
        return convolve(x.float())


def is_small_in_bf16(x: Tensor, taps: int = 3) -> bool:
    """Whether a convolution of this map may get a wrong gradient: bfloat16 on a CPU, an axis no longer than the kernel.

    There oneDNN (torch 2.13.0) leaves a part of the weights' gradient unwritten, at 2x2x2 voxels for one (docs/LOG.md).
    """
    return x.device.type == "cpu" and min(x.shape[2:]) <= taps and torch.is_autocast_enabled("cpu")


TAPS = ((0.0, 0.0, 1.0, 1.0), (0.0, 1.0, 1.0, 0.0), (1.0, 1.0, 0.0, 0.0))
"""Along an axis: which of the 4 taps of the composed kernel each of the 3 taps of a convolution after up-sampling goes to."""


def compose(weight: Tensor) -> Tensor:
    """The weights of the transposed convolution k4 s2 p1 that equals nearest up-sampling by 2 and a convolution k3 p1.

    (c_out, c_in, 3, ...) -> (c_in, c_out, 4, ...). Along an axis the taps w0, w1, w2 become w2, w1 + w2, w0 + w1, w0:
    of the three voxels that an output voxel saw, two were copies of one. Exact but for the rounding of these sums, which
    are made in float32 whatever autocast says.
    """
    axes = weight.dim() - 2
    one = taps = constant(TAPS, weight.device, weight.dtype)
    for _ in range(axes - 1):
        taps = torch.kron(taps, one)  # 9 16, 27 64
    kind = weight.device.type
    with torch.autocast(kind, enabled=False) if kind in ("cpu", "cuda") else nullcontext():  # not for meta tensors
        composed = weight.flatten(2) @ taps
    return composed.unflatten(2, (4,) * axes).transpose(0, 1)


@dataclass(frozen=True)
class Axes:
    """The layer classes of 2D or 3D images."""

    n: int
    conv: type[nn.Module]
    deconv: type[nn.Module]
    norm: type[nn.Module]
    linear: str

    def up_conv(self, x: Tensor, conv: nn.Module) -> Tensor:
        """`conv(interpolate(x, scale 2, nearest))` of a convolution k3 p1, in one transposed convolution k4 s2 p1."""
        up = F.conv_transpose3d if self.n == 3 else F.conv_transpose2d
        return in_float32_if_small(lambda x: up(x, compose(conv.weight), conv.bias, 2, 1), x)  # type: ignore[arg-type]

    def up_linear(self, x: Tensor, size: tuple[int, ...]) -> Tensor:
        """(Bi-, tri-)linear up-sampling at half-pixel centres (`align_corners=False`)."""
        return F.interpolate(x, size, mode=self.linear, align_corners=False)


AXES = {
    2: Axes(2, Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d, "bilinear"),
    3: Axes(3, Conv3d, nn.ConvTranspose3d, nn.BatchNorm3d, "trilinear"),
}


class ConvBnReLU(nn.Sequential):
    """Conv(k3, p1)-BN-ReLU: (b, c_in, *space) -> (b, c_out, *space)."""

    def __init__(self, axes: Axes, c_in: int, c_out: int, bias: bool) -> None:
        super().__init__(axes.conv(c_in, c_out, 3, padding=1, bias=bias), axes.norm(c_out), nn.ReLU(inplace=True))


def gap(x: Tensor) -> Tensor:
    """Global average pooling, in float32: (b, c, *space) -> (b, c).

    Summed along the memory's order, so that the gradient comes back in the layout of x.
    """
    x = at_least_float32(x)
    return x.flatten(2).mean(2) if x.is_contiguous() else x.movedim(1, -1).flatten(1, -2).mean(1)
