"""The 3D encoder: the contracting path of Çiçek et al.'s 3D U-Net, without its decoder."""

from jaxtyping import Float
from torch import Tensor, nn

from pcrl_cli.networks.blocks import AXES, ConvBnReLU
from pcrl_cli.networks.encoder import Encoder


class UNet3dEncoder(Encoder):
    """Levels of two Conv(k3, p1, bias)-BN-ReLU with max-pooling by 2 between them.

    Level d = 0..3 has widths in -> w 2^d -> 2 w 2^d; further levels keep 16 w -> 16 w -> 16 w. With w = 32: 64, 128,
    256, 512 (and 512, 512) channels; 7,027,776 parameters with 4 levels, 35,345,472 with 6.

    Pooling uses `ceil_mode`, so any size passes: 16 -> 16, 8, 4, 2, 1, 1.

    Args:
        channels: of the input.
        width: w, the base number of filters (the paper: 32).
        poolings: levels - 1 (recipe paper: 5, stride 32; recipe released: 3, stride 8).
    """

    dim = 3

    def __init__(self, channels: int = 1, width: int = 32, poolings: int = 5) -> None:
        super().__init__()
        self.channels, self.width, self.poolings = channels, width, poolings
        self.widths = tuple(2 * width * 2 ** min(d, 3) for d in range(poolings + 1))
        c_in, levels = channels, []
        for d, c_out in enumerate(self.widths):
            middle = width * 2**d if d < 4 else c_out
            levels.append(
                nn.Sequential(ConvBnReLU(AXES[3], c_in, middle, True), ConvBnReLU(AXES[3], middle, c_out, True))
            )
            c_in = c_out
        self.levels = nn.ModuleList(levels)
        self.pool = nn.MaxPool3d(2, ceil_mode=True)

    def forward(self, x: Float[Tensor, "b c x y z"]) -> list[Float[Tensor, "b _ _ _ _"]]:
        """The maps of all levels, fine to coarse; the last is F_0, the bottleneck."""
        maps = [self.levels[0](x)]
        for level in self.levels[1:]:
            maps.append(level(self.pool(maps[-1])))
        return maps  # w 32, 64x64x32, 5 poolings: b 64 64 64 32 ... b 512 2 2 1
