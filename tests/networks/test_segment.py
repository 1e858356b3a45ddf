"""The segmentation network: its size, which images pass, what skip connections carry."""

from itertools import pairwise

import pytest
import torch

from pcrl_cli.core.contract import Architecture
from pcrl_cli.networks.encoder import Encoder
from pcrl_cli.networks.encoders import build_encoder
from pcrl_cli.networks.nsunet import NsUNet
from pcrl_cli.networks.segment import Decoder, Segmenter, WholeSegmenter, decoder_in
from pcrl_cli.networks.unet3d import UNet3dEncoder


def network(width=2, poolings=3, regions=1, channels=1, skip=True):
    torch.manual_seed(0)
    return Segmenter(UNet3dEncoder(channels, width, poolings), regions, skip)


class Flat(Encoder):
    """A two-dimensional encoder whose finest level has half the image's size, as a ResNet's."""

    dim, widths, channels = 2, (3, 5), 1

    def __init__(self):
        super().__init__()
        self.stem = torch.nn.Conv2d(1, 3, 3, stride=2, padding=1)
        self.deep = torch.nn.Conv2d(3, 5, 3, stride=2, padding=1)

    def forward(self, x):
        fine = self.stem(x)
        return [fine, self.deep(fine)]


def decoder_size(widths, skip, regions):
    """Deconvolution with bias, two 3^3 convolutions without, two batch norms, a stage; the output layer."""
    total = widths[0] * regions + regions
    for c_out, c_in in pairwise(widths):
        together = 2 * c_out if skip else c_out
        total += c_in * c_out * 8 + c_out + (together * c_out + c_out * c_out) * 27 + 4 * c_out
    return total


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize(("poolings", "encoder"), [(3, 7_027_776), (5, 35_345_472)])
def test_the_number_of_parameters_is_the_encoders_and_what_the_formula_says(poolings, encoder, skip):
    with torch.device("meta"):
        net = Segmenter(UNet3dEncoder(1, 32, poolings), 3, skip)
    widths = net.encoder.widths
    assert sum(p.numel() for p in net.parameters()) == encoder + decoder_size(widths, skip, 3)


@pytest.mark.parametrize("size", [(16, 16, 16), (17, 9, 5), (3, 1, 2), (30, 20, 11)])
@pytest.mark.parametrize("skip", [True, False])
def test_any_size_passes_and_comes_back(size, skip):
    assert network(skip=skip).eval()(torch.zeros(1, 1, *size)).shape == (1, 1, *size)


def test_channels_and_regions_are_free():
    assert network(regions=3, channels=4).eval()(torch.zeros(2, 4, 8, 8, 8)).shape == (2, 3, 8, 8, 8)


def test_two_dimensions_with_a_strided_stem_come_back_at_the_images_size():
    assert Segmenter(Flat(), 2).eval()(torch.zeros(2, 1, 18, 22)).shape == (2, 2, 18, 22)


def reaches(net, size=(32, 32, 32)):
    """How many voxels of the output change when every weight below the finest level is of no use."""
    net = net.eval()
    x = torch.randn(1, 1, *size, generator=torch.Generator().manual_seed(1))
    before = net(x)
    with torch.no_grad():
        for stage in net.stages:
            torch.nn.init.zeros_(stage.up.weight)
            torch.nn.init.zeros_(stage.up.bias)
        one, other = net(x), net(x.flip(2))
    return not torch.equal(before, one), not torch.equal(one, other)


def test_skip_connections_carry_the_image_past_the_bottleneck_and_without_them_nothing_does():
    assert reaches(network(skip=True)) == (True, True)
    assert reaches(network(skip=False)) == (True, False)


def test_every_parameter_gets_a_gradient():
    net = network(regions=2)
    net(torch.randn(2, 1, 16, 16, 8)).square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in net.parameters())


def test_the_encoders_maps_are_left_alone():
    encoder = UNet3dEncoder(1, 2, 2).eval()
    x = torch.randn(1, 1, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    before = [m.clone() for m in encoder(x)]
    Segmenter(encoder, 1).eval()(x)
    assert all(torch.equal(a, b) for a, b in zip(before, encoder(x), strict=True))


def pretrained(dim, up, skip, bias):
    """A pre-training's U-Net and its decoder's tensors."""
    architecture = Architecture(
        dim=dim, encoder="unet3d" if dim == 3 else "resnet18", width=4, poolings=3 if dim == 3 else 5
    )
    torch.manual_seed(1)
    net = NsUNet(build_encoder(architecture, 1), None, up, skip, bias)
    return architecture, net, {key: value for key, value in net.state_dict().items() if key.startswith("stages.")}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("up", ["nearest", "deconv"])
@pytest.mark.parametrize("dim", [2, 3])
def test_a_pretrainings_decoder_is_known_by_its_tensors_and_decodes_the_same_maps(dim, up, skip, bias):
    architecture, net, tensors = pretrained(dim, up, skip, bias)
    decoder = decoder_in(tensors, architecture, 1)
    assert decoder == Decoder(widths=net.widths[1:], up=up, skip=skip, bias=bias)
    whole = WholeSegmenter(build_encoder(architecture, 1), 2, decoder)
    whole.load_state_dict(whole.state_dict() | net.state_dict())
    x = torch.rand(2, net.encoder.channels, *((36, 32, 16)[:dim]))
    net.eval()
    whole.eval()
    logits = whole(x)
    assert logits.shape == (2, 2, *x.shape[2:])
    assert torch.equal(logits, whole.out(net(x)[-1]))


def test_tensors_that_are_no_pretrainings_decoder_are_none():
    architecture, _, tensors = pretrained(3, "nearest", True, False)
    own = {k: v for k, v in network(width=4).state_dict().items() if k.startswith("stages.")}
    short = {k: v for k, v in tensors.items() if not k.startswith("stages.2.")}
    wide = tensors | {"stages.1.convs.0.0.weight": torch.zeros(1, 1, 3, 3, 3).expand(4000, 3000, 3, 3, 3)}
    for others in ({}, own, short, wide, tensors | {"stages.9.extra": torch.zeros(1)}):
        assert decoder_in(others, architecture, 1) is None
