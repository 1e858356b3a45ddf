"""The only place, besides the encoders, that knows how many axes an image has."""

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Axes:
    """The layer classes of 2D or 3D images."""

    n: int
    conv: type[nn.Module]
    deconv: type[nn.Module]
    norm: type[nn.Module]
    linear: str

    def up_linear(self, x: Tensor, size: tuple[int, ...]) -> Tensor:
        """(Bi-, tri-)linear up-sampling at half-pixel centres (`align_corners=False`)."""
        return F.interpolate(x, size, mode=self.linear, align_corners=False)


AXES = {
    2: Axes(2, nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d, "bilinear"),
    3: Axes(3, nn.Conv3d, nn.ConvTranspose3d, nn.BatchNorm3d, "trilinear"),
}


class ConvBnReLU(nn.Sequential):
    """Conv(k3, p1)-BN-ReLU: (b, c_in, *space) -> (b, c_out, *space)."""

    def __init__(self, axes: Axes, c_in: int, c_out: int, bias: bool) -> None:
        super().__init__(axes.conv(c_in, c_out, 3, padding=1, bias=bias), axes.norm(c_out), nn.ReLU(inplace=True))


def gap(x: Tensor) -> Tensor:
    """Global average pooling, in float32: (b, c, *space) -> (b, c)."""
    return x.float().flatten(2).mean(2)
