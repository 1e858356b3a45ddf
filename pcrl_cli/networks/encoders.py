"""Encoders by name, built from an architecture."""

from pcrl_cli.core.contract import Architecture
from pcrl_cli.core.errors import ConfigError
from pcrl_cli.networks.encoder import Encoder
from pcrl_cli.networks.unet3d import UNet3dEncoder


def build_encoder(architecture: Architecture, channels: int) -> Encoder:
    """The encoder that weights of this architecture belong to.

    Raises:
        ConfigError: this version knows no such encoder.
    """
    if architecture.encoder == "unet3d" and architecture.norm == "batch":
        return UNet3dEncoder(channels, architecture.width, architecture.poolings)
    raise ConfigError(
        f"the weights are of an encoder {architecture.encoder!r} with {architecture.norm} norm, which this version of "
        "pcrl does not know; known: unet3d with batch norm"
    )
