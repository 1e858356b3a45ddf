"""How decoders and heads start; encoders see to themselves."""

from typing import Literal

from torch import nn

Init = Literal["torch", "he", "released"]
CONVOLUTIONS = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def initialise(module: nn.Module, how: Init) -> None:
    """`torch`: as the layers start by themselves. `he`: He's normal for convolutions, biases 0.

    `released`, what the released 2D code does: He's uniform (Kaiming) for convolutions and Xavier's for linear layers.
    """
    for layer in module.modules() if how != "torch" else ():
        if isinstance(layer, CONVOLUTIONS):
            start = nn.init.kaiming_normal_ if how == "he" else nn.init.kaiming_uniform_
            start(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.Linear) and how == "released":
            nn.init.xavier_uniform_(layer.weight)
