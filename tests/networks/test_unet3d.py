"""The 3D encoder: its published size, and which image sizes pass."""

import pytest
import torch

from pcrl_cli.core.contract import Architecture
from pcrl_cli.core.errors import ConfigError
from pcrl_cli.networks.classify import Classifier
from pcrl_cli.networks.encoders import build_encoder
from pcrl_cli.networks.unet3d import UNet3dEncoder


def sizes(image, poolings=5, width=1):
    with torch.device("meta"):
        maps = UNet3dEncoder(1, width, poolings)(torch.empty(2, 1, *image))
    return [tuple(m.shape[2:]) for m in maps]


@pytest.mark.parametrize(("poolings", "parameters"), [(3, 7_027_776), (5, 35_345_472)])
def test_the_number_of_parameters_is_that_of_the_3d_u_net(poolings, parameters):
    with torch.device("meta"):
        encoder = UNet3dEncoder(1, 32, poolings)
    assert sum(p.numel() for p in encoder.parameters()) == parameters


def test_widths_double_to_16_w_and_stay_there():
    assert UNet3dEncoder(1, 2, 5).widths == (4, 8, 16, 32, 32, 32)
    with torch.device("meta"):
        assert UNet3dEncoder(1, 32, 5).widths == (64, 128, 256, 512, 512, 512)
        assert [m.shape[1] for m in UNet3dEncoder(1, 32, 3)(torch.empty(2, 1, 8, 8, 8))] == [64, 128, 256, 512]


@pytest.mark.parametrize(
    ("image", "bottleneck"),
    [((64, 64, 32), (2, 2, 1)), ((16, 16, 16), (1, 1, 1)), ((48, 48, 48), (2, 2, 2)), ((112, 112, 112), (4, 4, 4))],
)
def test_five_poolings_reach_stride_32(image, bottleneck):
    assert sizes(image)[-1] == bottleneck


@pytest.mark.parametrize(
    ("side", "along"),
    [
        (16, [16, 8, 4, 2, 1, 1]),
        (48, [48, 24, 12, 6, 3, 2]),
        (112, [112, 56, 28, 14, 7, 4]),
        (21, [21, 11, 6, 3, 2, 1]),
    ],
)
def test_pooling_rounds_up(side, along):
    assert [s[0] for s in sizes((side,) * 3)] == along


def test_the_last_odd_voxel_of_an_axis_reaches_the_bottleneck():
    torch.manual_seed(0)
    encoder = UNet3dEncoder(1, 2, 2).eval()
    x = torch.zeros(1, 1, 5, 5, 5)
    other = x.clone()
    other[..., -1] = 5
    assert not torch.equal(encoder(x)[-1], encoder(other)[-1])


def test_every_level_is_two_convolutions_with_bias_norm_and_relu():
    level = UNet3dEncoder(1, 2, 1).levels[0]
    kinds = [type(m).__name__ for m in level.modules() if not list(m.children())]
    assert kinds == ["Conv3d", "BatchNorm3d", "ReLU"] * 2
    convolutions = [m for m in level.modules() if isinstance(m, torch.nn.Conv3d)]
    assert all(c.bias is not None and c.kernel_size == (3, 3, 3) and c.padding == (1, 1, 1) for c in convolutions)
    assert [(c.in_channels, c.out_channels) for c in convolutions] == [(1, 2), (2, 4)]


def test_an_encoder_is_built_from_its_architecture_and_an_unknown_one_is_refused():
    encoder = build_encoder(Architecture(dim=3, encoder="unet3d", width=3, poolings=2), 4)
    assert (encoder.width, encoder.poolings, encoder.channels, encoder.dim) == (3, 2, 4, 3)
    for wrong in ({"encoder": "vit"}, {"norm": "group"}):
        architecture = Architecture(**{"dim": 3, "encoder": "unet3d", "width": 3, "poolings": 2} | wrong)
        with pytest.raises(ConfigError, match="does not know"):
            build_encoder(architecture, 1)


def test_the_classifier_is_linear_in_the_pooled_bottleneck():
    torch.manual_seed(0)
    model = Classifier(UNet3dEncoder(1, 2, 2), 3).eval()
    x = torch.randn(2, 1, 8, 8, 8)
    pooled = model.encoder(x)[-1].mean(dim=(2, 3, 4))
    assert torch.allclose(model(x), pooled @ model.linear.weight.T + model.linear.bias, atol=1e-6)
