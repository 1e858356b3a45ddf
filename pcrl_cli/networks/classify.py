"""The downstream classifier: an encoder, global average pooling, one linear layer."""

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

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

    def activation(self, x: Float[Tensor, "b c *space"]) -> Float[Tensor, "b outputs *small"]:
        """Class activation maps (Zhou et al. 2016): the linear layer at every place of F_0; a map's mean is its logit."""
        maps = self.encoder(x)[-1].float()
        return F.linear(maps.movedim(1, -1), self.linear.weight.float(), self.linear.bias.float()).movedim(-1, 1)
