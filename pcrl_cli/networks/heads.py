"""The two self-supervised heads of a scale (Fig. 4); siblings share them, scales do not."""

from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

from pcrl_cli.networks.blocks import AXES, ConvBnReLU, gap
from pcrl_cli.pure.precision import at_least_float32

RestoreHead = Literal["paper", "released"]


class Restoration(nn.Module):
    """f_i^R(F_i) = Conv(Conv-BN-ReLU(F_i)), then linear up-sampling to the input's size                 (Eqs. 2, 3)

    Convolutions have stride 1, as in Fig. 4; the text's stride 2 contradicts it.

    Args:
        dim: 2 or 3.
        c: channels of F_i.
        channels: of the image to restore.
        head: `paper` as above; `released`, what the released code does: Conv3x3x3(C -> 1)-BN in 3D,
            Conv3x3(C -> C)-BN-ReLU, Conv1x1(C -> channels) in 2D.
        sigmoid: before the up-sampling. On in 3D, whose targets lie in [0, 1]: a linear head lets the features
            collapse within tens of steps (docs/stability.md). Off in 2D, whose targets are ImageNet-normalised.
    """

    def __init__(self, dim: int, c: int, channels: int, head: RestoreHead, sigmoid: bool) -> None:
        super().__init__()
        axes = self.axes = AXES[dim]
        if head == "paper":
            layers = [ConvBnReLU(axes, c, c, bias=False), axes.conv(c, channels, 3, padding=1)]
        elif dim == 2:
            layers = [ConvBnReLU(axes, c, c, bias=False), axes.conv(c, channels, 1)]
        else:
            layers = [axes.conv(c, channels, 3, padding=1), axes.norm(channels)]
        self.layers = nn.Sequential(*layers)
        self.sigmoid = sigmoid

    def forward(self, f: Float[Tensor, "b c *small"], size: tuple[int, ...]) -> Float[Tensor, "b channels *space"]:
        restored = at_least_float32(self.layers(f))  # before the sigmoid: bfloat16 has steps of 0.004 below 1
        return self.axes.up_linear(restored.sigmoid() if self.sigmoid else restored, size)


def full_resolution_head(dim: int, c: int, channels: int) -> nn.Sequential:
    """The released code's further restoration from F_N: Conv3x3(C -> 3) in 2D, Conv1x1x1(C -> 1)-sigmoid in 3D."""
    if dim == 2:
        return nn.Sequential(AXES[2].conv(c, channels, 3, padding=1))
    return nn.Sequential(AXES[3].conv(c, channels, 1), nn.Sigmoid())


class Comparison(nn.Module):
    """v_i = BN(GAP(F_i)) (Eq. 5) and the predictor f_P(v_i) = FC(FC-BN-ReLU(v_i)) (Eq. 6), hidden width 2C."""

    def __init__(self, c: int, c_v: int | None = None) -> None:
        super().__init__()
        self.bn = nn.BatchNorm1d(c)
        self.project = nn.Linear(c, c_v) if c_v else nn.Identity()  # crossed comparison: one width for all scales
        c = c_v or c
        self.predictor = nn.Sequential(
            nn.Linear(c, 2 * c), nn.BatchNorm1d(2 * c), nn.ReLU(inplace=True), nn.Linear(2 * c, c)
        )

    def forward(self, f: Float[Tensor, "b c *space"]) -> tuple[Float[Tensor, "b c_v"], Float[Tensor, "b c_v"]]:
        """v_i and f_P(v_i)."""
        v = self.project(self.bn(gap(f)))
        return v, self.predictor(v)
