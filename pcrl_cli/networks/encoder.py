"""What decoders, heads and tasks may ask of an encoder."""

from jaxtyping import Float
from torch import Tensor, nn


class Encoder(nn.Module):
    """Images to maps, fine to coarse.

    dim: axes of an image. widths: channels of each level's map, fine to coarse. channels: of the image.
    stride: of the finest map; where it is 2 a decoder has one scale more than the encoder has levels to mirror.
    """

    dim: int
    widths: tuple[int, ...]
    channels: int
    stride: int = 1

    @property
    def decoder_widths(self) -> tuple[int, ...]:
        """Channels of F_1 .. F_N, coarse to fine: by default those of the levels that they mirror."""
        return tuple(reversed(self.widths[:-1]))

    def forward(self, x: Float[Tensor, "b c *space"]) -> list[Float[Tensor, "b _ ..."]]:
        """The maps of all levels; the last is F_0, the bottleneck."""
        raise NotImplementedError
