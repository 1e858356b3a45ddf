"""What decoders, heads and tasks may ask of an encoder."""

from jaxtyping import Float
from torch import Tensor, nn


class Encoder(nn.Module):
    """Images to maps, fine to coarse.

    dim: axes of an image. widths: channels of each level's map, fine to coarse. channels: of the image.
    """

    dim: int
    widths: tuple[int, ...]
    channels: int

    def forward(self, x: Float[Tensor, "b c *space"]) -> list[Float[Tensor, "b _ ..."]]:
        """The maps of all levels; the last is F_0, the bottleneck."""
        raise NotImplementedError
