"""Encoders by name, built from an architecture."""

import torch

from pcrl_cli.core.contract import Architecture
from pcrl_cli.core.errors import ConfigError
from pcrl_cli.networks.encoder import Encoder
from pcrl_cli.networks.resnet2d import ResNet18Encoder
from pcrl_cli.networks.unet3d import UNet3dEncoder


def build_encoder(architecture: Architecture, channels: int) -> Encoder:
    """The encoder that weights of this architecture belong to.

    channels: of the images. In 2D the encoder has three at least, as ImageNet's: grey images are repeated.

    Raises:
        ConfigError: this version knows no such encoder.
    """
    if architecture.encoder == "unet3d" and architecture.norm == "batch":
        return UNet3dEncoder(channels, architecture.width, architecture.poolings)
    if architecture.encoder == "resnet18" and architecture.norm == "batch" and architecture.poolings == 5:
        return ResNet18Encoder(max(channels, 3), architecture.width)
    raise ConfigError(
        f"the weights are of an encoder {architecture.encoder!r} with {architecture.norm} norm and {architecture.poolings} "
        "poolings, which this version of pcrl does not know; known: unet3d and resnet18 (5 poolings) with batch norm"
    )


def planned_encoder(architecture: Architecture, channels: int) -> Encoder:
    """The same on `meta`, for names, shapes and counts: a file may ask for any width, and nothing is allocated.

    Raises:
        ConfigError: this version knows no such encoder.
    """
    with torch.device("meta"):
        return build_encoder(architecture, channels)
