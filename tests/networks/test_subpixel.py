"""Nearest up-sampling by 2 and a k3 convolution as one transposed convolution: equal numbers, equal gradients."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pcrl_cli.core.learner import Progress, Stored
from pcrl_cli.methods.pcrlv2 import Config, PCRLv2, Scales
from pcrl_cli.networks.blocks import AXES, compose
from pcrl_cli.networks.nsunet import DecoderStage, NsUNet
from pcrl_cli.networks.unet3d import UNet3dEncoder


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("size", [(4, 3, 2), (1, 1, 1), (5, 4), (1, 1)])
def test_one_transposed_convolution_is_up_sampling_and_convolution(size, bias):
    torch.manual_seed(0)
    axes = AXES[len(size)]
    conv = axes.conv(3, 2, 3, padding=1, bias=bias).double()
    x = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    plain = conv(F.interpolate(x, tuple(2 * n for n in size), mode="nearest"))
    composed = axes.up_conv(x, conv)
    torch.testing.assert_close(composed, plain, rtol=1e-12, atol=1e-12)
    g = torch.randn_like(plain)
    inputs = [x, *conv.parameters()]
    for a, b in zip(torch.autograd.grad(plain, inputs, g), torch.autograd.grad(composed, inputs, g), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_along_one_axis_the_taps_are_summed_in_pairs():
    w = torch.tensor([1.0, 10, 100]).view(1, 1, 3)
    assert compose(w).flatten().tolist() == [100, 110, 11, 1]


def pcrlv2(**choices):
    torch.manual_seed(0)
    learner = PCRLv2(Config(width=2, poolings=3, augment={"swap_count": 2}, **choices), Stored(3, 1, (1.0, 0.0)))
    return learner.double().train()


def views(scale, size=(16, 16, 8)):
    draw = torch.Generator().manual_seed(1)
    made = {n: torch.randn(4, 2, 1, *size, generator=draw, dtype=torch.float64) for n in ("x", "g")}
    made["l"] = torch.randn(4, 2, 1, 8, 8, 8, generator=draw, dtype=torch.float64)
    return {**made, "scales": Scales(scale, scale, ((scale,) * 2,) * 2)}


def loss_and_gradients(learner, scale, size=(16, 16, 8)):
    terms = learner.losses(views(scale, size), Progress(0, 1))
    learner.zero_grad()
    torch.stack(list(terms.values())).sum().backward()
    gradients = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in learner.named_parameters()}
    return {k: v.detach() for k, v in terms.items()}, gradients


@pytest.mark.parametrize("size", [(16, 16, 8), (13, 16, 9)])  # odd sizes are not doubled, and take the plain way
@pytest.mark.parametrize("scale", [1, 2, 3])
@pytest.mark.parametrize(
    "other", [{"subpixel": 1}, {"subpixel": 3}, {"subpixel": None}, {"decode": "all", "subpixel": 2}]
)
def test_pcrlv2_has_equal_losses_and_gradients_with_and_without(scale, other, size):
    plain, composed = pcrlv2(subpixel=0), pcrlv2(**other)
    assert plain.state_dict().keys() == composed.state_dict().keys()
    a, b = loss_and_gradients(plain, scale, size), loss_and_gradients(composed, scale, size)
    torch.testing.assert_close(b, a, rtol=1e-9, atol=1e-11)


def calls_of(net, monkeypatch):
    """How many convolutions of a pass are composed."""
    calls = []
    was = F.conv_transpose3d
    monkeypatch.setattr(F, "conv_transpose3d", lambda *a, **k: (calls.append(1), was(*a, **k))[1])
    net(torch.zeros(2, 1, 16, 16, 16))
    return len(calls)


@pytest.mark.parametrize(
    ("options", "times"), [({}, 0), ({"subpixel": 2}, 2), ({"subpixel": 9}, 3), ({"subpixel": None}, 1)]
)
def test_only_the_finest_stages_are_composed(options, times, monkeypatch):
    assert calls_of(NsUNet(UNet3dEncoder(1, 2, 3), **options), monkeypatch) == times


def test_with_encoder_maps_concatenated_or_a_deconvolution_nothing_is_composed(monkeypatch):
    assert calls_of(NsUNet(UNet3dEncoder(1, 2, 3), skip=True, subpixel=3), monkeypatch) == 0
    stage = DecoderStage(AXES[3], 2, 2, 0, "deconv", subpixel=True)
    assert not stage._in_one(torch.zeros(1, 2, 2, 2, 2), torch.Size((4, 4, 4)), False)


def test_a_bfloat16_convolution_of_a_small_map_is_done_in_float32_on_a_cpu():
    conv = AXES[3].conv(2, 2, 3, padding=1)
    assert isinstance(conv, nn.Conv3d)
    with torch.autocast("cpu", torch.bfloat16):
        assert conv(torch.zeros(1, 2, 2, 8, 8)).dtype == torch.float32
        assert conv(torch.zeros(1, 2, 4, 8, 8)).dtype == torch.bfloat16
        assert AXES[3].up_conv(torch.zeros(1, 2, 2, 8, 8), conv).dtype == torch.float32
