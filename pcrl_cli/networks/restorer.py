"""The backbone by dimension, and the U-Net that restores: what the compared methods are built of."""

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from pcrl_cli.core.config import Settings
from pcrl_cli.core.contract import Architecture
from pcrl_cli.core.learner import Stored
from pcrl_cli.networks.blocks import AXES
from pcrl_cli.networks.encoder import Encoder
from pcrl_cli.networks.encoders import build_encoder
from pcrl_cli.networks.nsunet import NsUNet, Up

RGB = 3


def architecture_of(dim: int, width: int, poolings: int) -> Architecture:
    """The paper's encoders: ResNet-18 for images (it has its own depth), the 3D U-Net's for volumes."""
    if dim == 2:
        return Architecture(dim=2, encoder="resnet18", width=width, poolings=5)
    return Architecture(dim=3, encoder="unet3d", width=width, poolings=poolings)


def backbone(dim: int, channels: int, width: int, poolings: int) -> Encoder:
    """With random weights. Images enter with three channels."""
    return build_encoder(architecture_of(dim, width, poolings), RGB if dim == 2 else channels)


class Restorer(nn.Module):
    """A U-Net whose finest map is restored by a 1x1(x1) convolution and a sigmoid to images in [0, 1].

    Args:
        channels: of the restored images.
        skip: concatenate encoder maps, as Models Genesis and its kin do; without it is PCRLv2's nsUNet.
    """

    def __init__(
        self, encoder: Encoder, channels: int, skip: bool = True, up: Up = "nearest", bias: bool = False
    ) -> None:
        super().__init__()
        self.net = NsUNet(encoder, None, up, skip, bias)
        self.head = AXES[encoder.dim].conv(self.net.widths[-1], channels, 1)

    def forward(self, x: Float[Tensor, "b c *space"]) -> Float[Tensor, "b channels *space"]:
        return self.decode(self.net.encoder(x), x)

    def decode(self, maps: list[Tensor], x: Tensor) -> Float[Tensor, "b channels *space"]:
        """From the encoder's maps, fine to coarse, which need not be those of x; x gives the size."""
        f = maps[-1]
        for stage, level, skip in zip(self.net.stages, [*reversed(maps[:-1]), x], self.net.skips, strict=False):
            f = stage(f, level, skip)
        return torch.sigmoid(self.head(f).float())


class RestorerConfig(Settings):
    """The part of a method's Config that its U-Net is built from; skips are on, as in Models Genesis and its kin."""

    width: int = Field(32, ge=1, description="base number of filters; 2D: 64")
    poolings: int = Field(5, ge=1, description="3D; native: 3")
    decoder_skip: bool = True
    up: Up = Field("nearest", description="native: deconv")

    def restorer(self, stored: Stored) -> Restorer:
        """With random weights, for what the cache holds."""
        encoder = backbone(stored.dim, stored.channels, self.width, self.poolings)
        return Restorer(encoder, stored.channels, self.decoder_skip, self.up)

    def architecture(self, dim: int) -> Architecture:
        """Of its encoder."""
        return architecture_of(dim, self.width, self.poolings)
