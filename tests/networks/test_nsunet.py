"""nsUNet: Eq. 1, the sizes of the pyramid, the early exit, and the two ways up."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pcrl_cli.networks.blocks import AXES
from pcrl_cli.networks.nsunet import DecoderStage, NsUNet
from pcrl_cli.networks.unet3d import UNet3dEncoder


def net(seed=0, poolings=3, width=2, **options):
    torch.manual_seed(seed)
    return NsUNet(UNet3dEncoder(1, width, poolings), **options)


def image(*size, b=2):
    return torch.randn(b, 1, *size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("up", ["nearest", "deconv"])
@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("size", [(64, 64, 32), (16, 16, 16), (48, 48, 48), (112, 112, 112), (21, 13, 9), (1, 1, 1)])
def test_every_decoder_map_has_the_size_of_the_encoder_level_it_mirrors(size, skip, up):
    with torch.device("meta"):
        made = net(poolings=5, width=1, up=up, skip=skip)
        x = torch.empty(2, 1, *size)
        levels = [tuple(m.shape[2:]) for m in made.encoder(x)]
        pyramid = made(x)
    assert [tuple(f.shape[2:]) for f in pyramid] == levels[::-1]
    assert tuple(pyramid[-1].shape[2:]) == size
    assert [f.shape[1] for f in pyramid] == list(made.widths)


def test_decoder_widths_mirror_the_encoder_or_are_given():
    with torch.device("meta"):
        assert NsUNet(UNet3dEncoder(1, 32, 5)).widths == (512, 512, 512, 256, 128, 64)
        assert NsUNet(UNet3dEncoder(1, 32, 3)).widths == (512, 256, 128, 64)
        assert NsUNet(UNet3dEncoder(1, 4, 2), (7, 5)).widths == (32, 7, 5)


def test_a_stage_is_two_convolutions_with_norm_and_relu_after_up_sampling():
    torch.manual_seed(0)
    stage = DecoderStage(AXES[3], 4, 3, 0, "nearest").eval()
    x, mirrored = torch.randn(2, 4, 2, 3, 1), torch.zeros(2, 1, 4, 6, 2)
    expected = x.repeat_interleave(2, 2).repeat_interleave(2, 3).repeat_interleave(2, 4)
    for block in stage.convs:
        conv, norm = block[0], block[1]
        assert conv.bias is None
        y = F.conv3d(expected, conv.weight, padding=1)
        shape = (1, -1, 1, 1, 1)
        y = (y - norm.running_mean.view(shape)) / (norm.running_var.view(shape) + norm.eps).sqrt()
        expected = (y * norm.weight.view(shape) + norm.bias.view(shape)).clamp(min=0)
    assert torch.allclose(stage(x, mirrored, False), expected, atol=1e-6)


@pytest.mark.parametrize("n", range(1, 40))
def test_up_sampling_gives_every_voxel_what_it_was_pooled_into(n):
    pooled = F.max_pool3d(torch.arange(n).float().view(1, 1, n, 1, 1), (2, 1, 1), ceil_mode=True)
    stage = DecoderStage(AXES[3], 1, 1, 0, "nearest")
    stage.convs = nn.Identity()
    cells = torch.arange(pooled.shape[2]).float().view(1, 1, -1, 1, 1)
    assert stage(cells, torch.zeros(1, 1, n, 1, 1), False).flatten().tolist() == [i // 2 for i in range(n)]


def test_a_deconvolution_doubles_keeps_the_width_and_the_odd_surplus_is_cut():
    stage = DecoderStage(AXES[3], 4, 2, 0, "deconv", bias=True)
    deconv = stage.deconv
    assert (deconv.in_channels, deconv.out_channels, deconv.kernel_size, deconv.stride) == (4, 4, (2,) * 3, (2,) * 3)
    assert all(block[0].bias is not None for block in stage.convs)
    stage.convs = nn.Identity()
    x = torch.randn(1, 4, 2, 2, 2)
    assert torch.equal(stage(x, torch.zeros(1, 1, 3, 4, 3), False), deconv(x)[:, :, :3, :, :3])


@pytest.mark.parametrize("size", [(16, 16, 8), (9, 7, 5)])
@pytest.mark.parametrize("options", [{}, {"up": "deconv"}, {"skip": True}], ids=str)
@pytest.mark.parametrize("until", [0, 1, 2, 3])
def test_an_early_exit_gives_the_same_map_and_the_same_gradients_exactly(until, options, size):
    whole, early = net(**options), net(**options)
    x = image(*size)
    f_whole, f_early = whole(x), early(x, until)
    assert len(f_early) == until + 1
    assert all(torch.equal(a, b) for a, b in zip(f_whole, f_early, strict=False))
    for pyramid in (f_whole, f_early):
        pyramid[until].square().sum().backward()
    for (name, p), q in zip(whole.named_parameters(), early.parameters(), strict=True):
        a, b = (torch.zeros_like(p) if t.grad is None else t.grad for t in (p, q))
        assert torch.equal(a, b), name
        if name.startswith("stages.") and int(name.split(".")[1]) >= until:
            assert not a.any(), name


def test_without_skips_the_decoder_sees_the_bottleneck_alone():
    made = net().eval()
    x, other = image(16, 16, 8), image(16, 16, 8) * 2
    mixed = [*made.encoder(other)[:-1], made.encoder(x)[-1]]  # other's fine maps, x's bottleneck
    made.encoder.forward = lambda _: mixed
    changed = made(other)
    del made.encoder.forward
    assert all(torch.equal(a, b) for a, b in zip(made(x), changed, strict=True))


def test_with_skips_it_does_not():
    made = net(skip=True).eval()
    x, other = image(16, 16, 8), image(16, 16, 8) * 2
    mixed = [*made.encoder(other)[:-1], made.encoder(x)[-1]]  # other's fine maps, x's bottleneck
    made.encoder.forward = lambda _: mixed
    changed = made(other)
    del made.encoder.forward
    assert not any(torch.equal(a, b) for a, b in zip(made(x)[1:], changed[1:], strict=True))


def test_all_scales_reach_every_parameter_of_encoder_and_decoder():
    made = net()
    made(image(16, 16, 8))[-1].square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in made.parameters())
