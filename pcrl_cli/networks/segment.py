"""The downstream segmentation networks: a U-Net round a pre-trained encoder, with skip connections unless switched off;
and the whole pre-trained U-Net with another last layer.
"""

from collections.abc import Mapping
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pcrl_cli.core.config import Settings
from pcrl_cli.core.contract import Architecture
from pcrl_cli.networks.blocks import AXES, Axes, ConvBnReLU
from pcrl_cli.networks.encoder import Encoder
from pcrl_cli.networks.encoders import planned_encoder
from pcrl_cli.networks.nsunet import NsUNet, Up


class UpStage(nn.Module):
    """Transposed convolution (k2 s2, to the width of the level it mirrors), the level's own map beside it, two CBR.

    Pooling is in ceil mode, so the transposed convolution may come out one voxel too long; it is cut to the level's size.
    """

    def __init__(self, axes: Axes, c_in: int, c_out: int, skip: bool) -> None:
        super().__init__()
        self.skip = skip
        self.up = axes.deconv(c_in, c_out, 2, stride=2)
        together = 2 * c_out if skip else c_out
        self.convs = nn.ModuleList(
            [ConvBnReLU(axes, together, c_out, bias=False), ConvBnReLU(axes, c_out, c_out, bias=False)]
        )

    def forward(self, x: Tensor, maps: list[Tensor]) -> Tensor:
        """Takes the level that it mirrors off the end of `maps`, so that nothing outlives its use: at inference the
        finest level's maps are what the memory goes to."""
        mirrored = maps.pop()
        x = self.up(x)[(..., *(slice(n) for n in mirrored.shape[2:]))]
        if self.skip:
            x = torch.cat([x, mirrored], dim=1)
        del mirrored
        for conv in self.convs:
            x = conv(x)
        return x


class Segmenter(nn.Module):
    """(b, c, *space) -> (b, regions, *space) logits, any size.

    One up-stage a pooling, widths those of the encoder's levels; 1x1 convolution to the regions. Where the encoder's
    finest level is coarser than its input (a strided stem), the logits are up-sampled linearly.

    Args:
        encoder: its norm is batch norm, and so is the decoder's.
        regions: masks, each a sigmoid of its own, so that they may overlap.
        skip: concatenate the mirrored encoder level after every transposed convolution.
    """

    def __init__(self, encoder: Encoder, regions: int, skip: bool = True) -> None:
        super().__init__()
        axes, widths = AXES[encoder.dim], tuple(reversed(encoder.widths))
        self.encoder, self.axes = encoder, axes
        self.stages = nn.ModuleList(UpStage(axes, c_in, c_out, skip) for c_in, c_out in pairwise(widths))
        self.out = axes.conv(widths[-1], regions, 1)

    def forward(self, x: Float[Tensor, "b c *space"]) -> Float[Tensor, "b regions *space"]:
        size, maps = x.shape[2:], self.encoder(x)
        x = maps.pop()
        for stage in self.stages:
            x = stage(x, maps)
        logits = self.out(x)
        return logits if logits.shape[2:] == size else self.axes.up_linear(logits, size)


STAGES = "stages."
"""Prefix of a decoder's tensors beside those of its encoder, in a pre-training's U-Net and here."""


class Decoder(Settings):
    """Of a pre-training's U-Net (`nsunet.NsUNet`). widths: of F_1 .. F_N."""

    widths: tuple[int, ...]
    up: Up
    skip: bool
    bias: bool


class WholeSegmenter(nn.Module):
    """(b, c, *space) -> (b, regions, *space) logits: the U-Net of a pre-training, and a 1x1 convolution to the regions.

    Its skip connections are those that it was pre-trained with.
    """

    def __init__(self, encoder: Encoder, regions: int, decoder: Decoder) -> None:
        super().__init__()
        net = NsUNet(encoder, decoder.widths, decoder.up, decoder.skip, decoder.bias)
        self.encoder, self.stages, self.skips = net.encoder, net.stages, net.skips
        self.out = AXES[encoder.dim].conv(net.widths[-1], regions, 1)

    def forward(self, x: Float[Tensor, "b c *space"]) -> Float[Tensor, "b regions *space"]:
        *levels, f = self.encoder(x)
        for stage, level, skip in zip(self.stages, [*reversed(levels), x], self.skips, strict=False):
            f = stage(f, level, skip)
        return self.out(f)


def decoder_in(tensors: Mapping[str, Tensor], architecture: Architecture, channels: int) -> Decoder | None:
    """The decoder that these tensors (`stages.0. ...`) are, or None where they are none of a pre-training's U-Net.

    Nothing is allocated for what the tensors do not back.
    """
    first = [tensors.get(f"{STAGES}{i}.convs.0.0.weight") for i in range(architecture.poolings + 1)]
    there = [weight for weight in first if weight is not None and weight.dim() == architecture.dim + 2]
    if not there:
        return None
    encoder = planned_encoder(architecture, channels)
    decoder = Decoder(
        widths=tuple(len(weight) for weight in there),
        up="deconv" if f"{STAGES}0.deconv.weight" in tensors else "nearest",
        skip=there[0].shape[1] > encoder.widths[-1],
        bias=f"{STAGES}0.convs.0.0.bias" in tensors,
    )
    if len(there) != len(encoder.decoder_widths):
        return None
    with torch.device("meta"):
        planned = WholeSegmenter(encoder, 1, decoder).state_dict()
    wanted = {name: value.shape for name, value in planned.items() if name.startswith(STAGES)}
    return decoder if wanted == {name: value.shape for name, value in tensors.items()} else None
