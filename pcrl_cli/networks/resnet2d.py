"""The 2D encoder: ResNet-18 (He et al. 2016) without its classifier, its tensors named as torchvision names them."""

from jaxtyping import Float
from torch import Tensor, nn

from pcrl_cli.networks.blocks import Conv2d
from pcrl_cli.networks.encoder import Encoder


class Shortcut(nn.Conv2d):
    """A strided 1x1 convolution without bias; on a CPU, of the pixels that it looks at, taken first.

    The same sums. oneDNN's own strided backward pass (torch 2.13.0) writes beyond its memory where maps are channels-last
    and have 8 channels or fewer, and the process ends with a segmentation fault (docs/LOG.md).
    """

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__(c_in, c_out, 1, stride, bias=False)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b _ _ _"]:
        if x.device.type != "cpu":
            return super().forward(x)
        rows, columns = self.stride
        return nn.functional.conv2d(x[:, :, ::rows, ::columns], self.weight)


class BasicBlock(nn.Module):
    """relu(BN(Conv3x3(relu(BN(Conv3x3(x))))) + x), the shortcut a strided 1x1 convolution where the shape changes."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(c_out)
        self.conv2 = Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or c_in != c_out:
            self.downsample = nn.Sequential(Shortcut(c_in, c_out, stride), nn.BatchNorm2d(c_out))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b _ _ _"]:
        shortcut = x if self.downsample is None else self.downsample(x)
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(y + shortcut)


class ResNet18Encoder(Encoder):
    """Five maps at strides 2, 4, 8, 16, 32: relu(bn1(conv1)), layer1 .. layer4.

    With w = 64: 64, 64, 128, 256, 512 channels and 11,176,512 parameters, into which a torchvision `resnet18` state
    dict loads by name, but for its `fc`. Convolutions start from He's normal initialisation, fan out.

    Any size passes: every halving rounds up.

    Args:
        channels: of the input; 3, a grey image repeated, is what ImageNet's weights expect.
        width: w, channels of the first map (the paper: 64).
    """

    dim = 2
    stride = 2
    poolings = 5

    def __init__(self, channels: int = 3, width: int = 64) -> None:
        super().__init__()
        self.channels, self.width = channels, width
        self.widths = (width, width, 2 * width, 4 * width, 8 * width)
        self.conv1 = Conv2d(channels, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = _layer(width, width, 1)
        self.layer2 = _layer(width, 2 * width, 2)
        self.layer3 = _layer(2 * width, 4 * width, 2)
        self.layer4 = _layer(4 * width, 8 * width, 2)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @property
    def decoder_widths(self) -> tuple[int, ...]:
        """F_1 .. F_5: 256, 128, 64, 32, 16 with w = 64; the finest has no encoder level to mirror."""
        return tuple(max(1, 4 * self.width // 2**i) for i in range(self.poolings))

    def forward(self, x: Float[Tensor, "b c h w"]) -> list[Float[Tensor, "b _ _ _"]]:
        """The maps of all levels, fine to coarse; the last is F_0, the bottleneck."""
        maps = [self.relu(self.bn1(self.conv1(x)))]
        maps.append(self.layer1(self.maxpool(maps[0])))
        for layer in (self.layer2, self.layer3, self.layer4):
            maps.append(layer(maps[-1]))
        return maps  # w 64, 224x224: b 64 112 112, b 64 56 56, b 128 28 28, b 256 14 14, b 512 7 7


def _layer(c_in: int, c_out: int, stride: int) -> nn.Sequential:
    return nn.Sequential(BasicBlock(c_in, c_out, stride), BasicBlock(c_out, c_out, 1))
