"""nsUNet, the non-skip U-Net (section 3.1, Fig. 3): an encoder and a decoder that forms a pyramid F_0 .. F_N."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pcrl_cli.networks.blocks import AXES, Axes, ConvBnReLU
from pcrl_cli.networks.encoder import Encoder

Up = Literal["nearest", "deconv"]
PAYS_FROM = 1024
"""Voxels of a batch before up-sampling from which on the sub-pixel form is faster; below, composing the weights costs more."""


class DecoderStage(nn.Module):
    """F_i = Conv-BN-ReLU(Conv-BN-ReLU(Up(F_{i-1})))                                                      (Eq. 1)

    Up goes to the size of the encoder level that the stage mirrors (2D: F_5 to the image's), so odd sizes pass: voxel i
    gets what it was pooled into, i // 2. With `skip` (Table 1's ablation) the mirrored encoder map is concatenated after Up.

    subpixel: do Up and the first convolution in one, where Up is nearest and doubles the size: 8 products an output voxel
        in place of 27, equal up to the rounding of sums of weights. The weights stay those of the k3 convolution.
    """

    def __init__(
        self, axes: Axes, c_in: int, c_out: int, c_skip: int, up: Up, bias: bool = False, subpixel: bool | None = False
    ) -> None:
        super().__init__()
        self.axes, self.subpixel = axes, subpixel
        self.deconv = axes.deconv(c_in, c_in, 2, stride=2) if up == "deconv" else None
        self.convs = nn.Sequential(ConvBnReLU(axes, c_in + c_skip, c_out, bias), ConvBnReLU(axes, c_out, c_out, bias))

    def forward(self, x: Tensor, mirrored: Tensor, skip: bool) -> Tensor:
        size = mirrored.shape[2:]
        if self._in_one(x, size, skip):
            conv, norm, relu = self.convs[0].children()
            return self.convs[1](relu(norm(self.axes.up_conv(x, conv))))
        cut = (..., *(slice(n) for n in size))  # ceil-mode pooling leaves a deconvolution an odd surplus
        x = F.interpolate(x, size, mode="nearest") if self.deconv is None else self.deconv(x)[cut]
        if skip:
            x = torch.cat([x, mirrored], dim=1)
        return self.convs(x)

    def _in_one(self, x: Tensor, size: torch.Size, skip: bool) -> bool:
        """Whether the sub-pixel form applies here; None leaves it to the size, on a CPU (docs/performance.md)."""
        wanted = self.subpixel
        if wanted is None:
            wanted = x.device.type == "cpu" and x.numel() // x.shape[1] >= PAYS_FROM
        doubled = all(n == 2 * m for n, m in zip(size, x.shape[2:], strict=True))
        return wanted and doubled and not skip and self.deconv is None


class NsUNet(nn.Module):
    """An encoder (maps fine to coarse) and as many decoder stages as it has poolings.

    Args:
        encoder: has `dim`, `widths` and returns the maps of its levels.
        widths: of F_1 .. F_N; None takes the encoder's (3D, w = 32: 512, 512, 256, 128, 64; 2D, w = 64: 256 .. 16).
        up: `nearest` up-sampling (recipe paper) or a transposed convolution k2 s2 (recipe released, 3D).
        skip: concatenate encoder maps: an ordinary U-Net, an ablation.
        bias: of the decoder's 3x3(x3) convolutions, redundant before a batch norm (recipe released has them).
        subpixel: how many of the finest stages up-sample and convolve in one; None: those where it pays, on a CPU.
    """

    def __init__(
        self,
        encoder: Encoder,
        widths: tuple[int, ...] | None = None,
        up: Up = "nearest",
        skip: bool = False,
        bias: bool = False,
        subpixel: int | None = 0,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        mirrored = tuple(reversed(encoder.widths[:-1]))  # a stage beyond them goes to the image's size, without skip
        self.widths = (encoder.widths[-1], *(widths or encoder.decoder_widths))  # of F_0 .. F_N
        self.skips = tuple(skip and i <= len(mirrored) for i in range(1, len(self.widths)))
        axes, n = AXES[encoder.dim], len(self.skips)

        def stage(i: int) -> DecoderStage:
            in_one = None if subpixel is None else i >= n - subpixel
            c_skip = mirrored[i] if self.skips[i] else 0
            return DecoderStage(axes, self.widths[i], self.widths[i + 1], c_skip, up, bias, in_one)

        self.stages = nn.ModuleList(stage(i) for i in range(n))

    @property
    def scales(self) -> int:
        """N, the number of decoder scales."""
        return len(self.stages)

    def forward(self, x: Float[Tensor, "b c *space"], until: int | None = None) -> list[Tensor]:
        """F_0 .. F_until (all of them by default).

        Eqs. 4 and 9 use scale i alone, so what is finer than F_i may stay undecoded: no loss and no gradient changes.
        """
        maps = self.encoder(x)
        mirrored = [*reversed(maps[:-1]), x]  # only a stage beyond the encoder's finest map mirrors the image itself
        pyramid = [maps[-1]]
        for stage, level, skip in list(zip(self.stages, mirrored, self.skips, strict=False))[:until]:
            pyramid.append(stage(pyramid[-1], level, skip))
        return pyramid
