"""The downstream classifier: an encoder, global average pooling, one linear layer."""

from jaxtyping import Float
from torch import Tensor, nn

from pcrl_cli.networks.blocks import gap
from pcrl_cli.networks.encoder import Encoder


class Classifier(nn.Module):
    """(b, c, *space) -> (b, outputs) logits from GAP(F_0)."""

    def __init__(self, encoder: Encoder, outputs: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.linear = nn.Linear(encoder.widths[-1], outputs)

    def forward(self, x: Float[Tensor, "b c *space"]) -> Float[Tensor, "b outputs"]:
        return self.linear(gap(self.encoder(x)[-1]))
