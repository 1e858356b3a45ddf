"""ResNet-18 against its definition, and nsUNet around it."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pcrl_cli.core.contract import Architecture
from pcrl_cli.core.errors import ConfigError
from pcrl_cli.networks.encoders import build_encoder
from pcrl_cli.networks.heads import Restoration, full_resolution_head
from pcrl_cli.networks.initial import initialise
from pcrl_cli.networks.nsunet import NsUNet
from pcrl_cli.networks.resnet2d import ResNet18Encoder, Shortcut


def torchvision_shapes(w=64, c=3):
    """Names and shapes of torchvision's resnet18 without `fc`, written from the architecture alone."""
    shapes = {}

    def conv(name, c_out, c_in, k):
        shapes[f"{name}.weight"] = (c_out, c_in, k, k)

    def norm(name, c):
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.{part}"] = (c,)
        shapes[f"{name}.num_batches_tracked"] = ()

    conv("conv1", w, c, 7)
    norm("bn1", w)
    c_in = w
    for layer in range(1, 5):
        c_out = w * 2 ** (layer - 1)
        for block in range(2):
            at = f"layer{layer}.{block}"
            conv(f"{at}.conv1", c_out, c_in, 3)
            norm(f"{at}.bn1", c_out)
            conv(f"{at}.conv2", c_out, c_out, 3)
            norm(f"{at}.bn2", c_out)
            if layer > 1 and block == 0:
                conv(f"{at}.downsample.0", c_out, c_in, 1)
                norm(f"{at}.downsample.1", c_out)
            c_in = c_out
    return shapes


def plain(x, state):
    """ResNet-18's five maps in eval mode, by its definition."""

    def norm(y, name):
        s = {p: state[f"{name}.{p}"].view(1, -1, 1, 1) for p in ("weight", "bias", "running_mean", "running_var")}
        return (y - s["running_mean"]) / (s["running_var"] + 1e-5).sqrt() * s["weight"] + s["bias"]

    maps = [norm(F.conv2d(x, state["conv1.weight"], stride=2, padding=3), "bn1").clamp(min=0)]
    y = F.max_pool2d(maps[0], 3, 2, 1)
    for layer in range(1, 5):
        for block in range(2):
            at = f"layer{layer}.{block}"
            stride = 2 if layer > 1 and block == 0 else 1
            z = norm(F.conv2d(y, state[f"{at}.conv1.weight"], stride=stride, padding=1), f"{at}.bn1").clamp(min=0)
            z = norm(F.conv2d(z, state[f"{at}.conv2.weight"], padding=1), f"{at}.bn2")
            if f"{at}.downsample.0.weight" in state:
                y = norm(F.conv2d(y, state[f"{at}.downsample.0.weight"], stride=stride), f"{at}.downsample.1")
            y = (z + y).clamp(min=0)
        maps.append(y)
    return maps


def net(width=4, seed=0, **options):
    torch.manual_seed(seed)
    return NsUNet(ResNet18Encoder(3, width), **options)


def image(*size, b=2):
    return torch.randn(b, 3, *size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("width", "channels"), [(64, 3), (4, 1)])
def test_names_and_shapes_are_torchvisions(width, channels):
    with torch.device("meta"):
        state = ResNet18Encoder(channels, width).state_dict()
    assert {k: tuple(v.shape) for k, v in state.items()} == torchvision_shapes(width, channels)
    assert len(state) == 120


def test_it_has_11_176_512_parameters():
    with torch.device("meta"):
        assert sum(p.numel() for p in ResNet18Encoder().parameters()) == 11_176_512


def test_the_maps_are_those_of_the_definition():
    torch.manual_seed(0)
    encoder = ResNet18Encoder(3, 4)
    for _ in range(3):
        encoder(image(40, 33, b=4) * 2 + 1)  # running statistics that are not 0 and 1
    encoder.eval()
    maps, expected = encoder(image(40, 33)), plain(image(40, 33), encoder.state_dict())
    assert len(maps) == len(expected) == 5
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(maps, expected, strict=True))


@pytest.mark.parametrize("size", [(224, 224), (96, 96), (32, 48), (37, 21), (1, 1)])
def test_strides_are_2_to_32_and_halvings_round_up(size):
    with torch.device("meta"):
        maps = ResNet18Encoder(3, 2)(torch.empty(2, 3, *size))
    assert [tuple(m.shape[2:]) for m in maps] == [tuple(-(-n // 2**d) for n in size) for d in range(1, 6)]
    assert [m.shape[1] for m in maps] == [2, 2, 4, 8, 16]


def test_convolutions_start_from_hes_normal():
    torch.manual_seed(0)
    encoder = ResNet18Encoder(3, 16)
    for name, p in encoder.named_parameters():
        if p.dim() == 4 and p.numel() > 2000:
            assert p.std().item() == pytest.approx((2 / (p.shape[0] * p.shape[2] * p.shape[3])) ** 0.5, rel=0.1), name


def test_an_encoder_is_built_from_its_architecture_of_five_poolings():
    made = build_encoder(Architecture(dim=2, encoder="resnet18", width=4, poolings=5), 3)
    assert (made.width, made.poolings, made.channels, made.dim) == (4, 5, 3, 2)
    with pytest.raises(ConfigError, match="does not know"):
        build_encoder(Architecture(dim=2, encoder="resnet18", width=4, poolings=3), 3)


# ---- nsUNet ----------------------------------------------------------------------------------------------------------


def test_decoder_widths_are_256_to_16_and_scale_with_the_width():
    with torch.device("meta"):
        assert net(64).widths == (512, 256, 128, 64, 32, 16)
        assert net(8).widths == (64, 32, 16, 8, 4, 2)
        assert net(2).widths == (16, 8, 4, 2, 1, 1)


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("up", ["nearest", "deconv"])
@pytest.mark.parametrize("size", [(224, 224), (96, 96), (37, 21), (1, 1)])
def test_decoder_maps_mirror_the_encoder_and_f5_has_the_images_size(size, up, skip):
    with torch.device("meta"):
        made = net(skip=skip, up=up)
        levels = [tuple(m.shape[2:]) for m in made.encoder(torch.empty(2, 3, *size))]
        pyramid = made(torch.empty(2, 3, *size))
    assert [tuple(f.shape[2:]) for f in pyramid] == [*levels[::-1], size]
    assert [f.shape[1] for f in pyramid] == list(made.widths)


def test_f5_has_no_skip_even_in_the_ablation():
    made = net(skip=True)
    assert made.skips == (True, True, True, True, False)
    assert [stage.convs[0][0].in_channels for stage in made.stages] == [32 + 16, 16 + 8, 8 + 4, 4 + 4, 2]


def test_convolutions_of_the_decoder_have_no_bias():
    convolutions = [m for m in net().stages.modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == 10
    assert all(c.bias is None for c in convolutions)


def test_without_skips_the_decoder_sees_the_bottleneck_alone_and_with_them_it_does_not():
    for skip in (False, True):
        made = net(skip=skip).eval()
        x, other = image(64, 64), image(64, 64) * 2
        plain_ = made(x)
        mixed = [*made.encoder(other)[:-1], made.encoder(x)[-1]]
        made.encoder.forward = lambda _, mixed=mixed: mixed
        changed = made(x)
        same = [torch.equal(a, b) for a, b in zip(plain_, changed, strict=True)]
        assert same == [True] + [not skip] * 5


@pytest.mark.parametrize("until", [0, 2, 5])
def test_an_early_exit_gives_the_same_map_and_the_same_gradients_exactly(until):
    whole, early = net(), net()
    pyramids = whole(image(40, 40)), early(image(40, 40), until)
    assert len(pyramids[1]) == until + 1
    for pyramid in pyramids:
        pyramid[until].square().sum().backward()
    for (name, p), q in zip(whole.named_parameters(), early.parameters(), strict=True):
        a, b = (torch.zeros_like(p) if t.grad is None else t.grad for t in (p, q))
        assert torch.equal(a, b), name


# ---- heads -----------------------------------------------------------------------------------------------------------


def test_the_released_restoration_is_conv_norm_relu_a_1x1_convolution_and_then_bilinear_up_sampling():
    torch.manual_seed(0)
    head = Restoration(2, 4, 3, "released", False).eval()
    f = torch.randn(2, 4, 5, 6)
    conv, norm = head.layers[0][0], head.layers[0][1]
    y = (F.conv2d(f, conv.weight, padding=1) / (1 + norm.eps) ** 0.5).clamp(min=0)
    y = F.conv2d(y, head.layers[1].weight, head.layers[1].bias)
    assert head.layers[1].weight.shape == (3, 4, 1, 1)
    assert torch.allclose(
        head(f, (20, 19)), F.interpolate(y, (20, 19), mode="bilinear", align_corners=False), atol=1e-6
    )


def test_the_full_resolution_head_is_one_linear_3x3_convolution():
    head, f = full_resolution_head(2, 16, 3), torch.randn(2, 16, 9, 8)
    assert {k: tuple(v.shape) for k, v in head.state_dict().items()} == {"0.weight": (3, 16, 3, 3), "0.bias": (3,)}
    assert torch.equal(head(f), F.conv2d(f, head[0].weight, head[0].bias, padding=1))


# ---- how they start --------------------------------------------------------------------------------------------------


def made_layers():
    torch.manual_seed(0)
    return nn.ModuleList([nn.Conv2d(16, 32, 3), nn.Conv3d(16, 16, 3, bias=False), nn.Linear(48, 24)])


def test_he_is_normal_with_fan_in_and_leaves_linear_layers_alone():
    layers, untouched = made_layers(), made_layers()
    initialise(layers, "he")
    assert layers[0].weight.std().item() == pytest.approx((2 / 144) ** 0.5, rel=0.05)
    assert layers[1].weight.std().item() == pytest.approx((2 / 432) ** 0.5, rel=0.05)
    assert not layers[0].bias.any()
    assert torch.equal(layers[2].weight, untouched[2].weight)


def test_released_is_uniform_for_convolutions_and_xavier_for_linear_layers():
    layers = made_layers()
    initialise(layers, "released")
    bound = (6 / 144) ** 0.5
    assert 0.99 * bound < layers[0].weight.abs().max().item() <= bound
    xavier = (6 / (48 + 24)) ** 0.5
    assert 0.98 * xavier < layers[2].weight.abs().max().item() <= xavier


def test_torch_changes_nothing():
    layers, untouched = made_layers(), made_layers()
    initialise(layers, "torch")
    assert all(torch.equal(a, b) for a, b in zip(layers.parameters(), untouched.parameters(), strict=True))


@pytest.mark.parametrize("width", [2, 8])
def test_a_narrow_shortcut_has_the_right_gradients_on_a_cpu_and_the_process_lives(width):
    """With oneDNN's own strided backward pass the process died of a segmentation fault here, or later."""
    shortcut = Shortcut(width, 2 * width, 2).to(memory_format=torch.channels_last)
    for seed in range(8):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(8, width, 56, 56, generator=generator).to(memory_format=torch.channels_last).requires_grad_()
        y = shortcut(x)
        up = torch.randn(y.shape, generator=generator).to(memory_format=torch.channels_last)
        ours = torch.autograd.grad(y, (x, shortcut.weight), up)
        exact = x.detach().double().contiguous().requires_grad_()
        weight = shortcut.weight.detach().double().contiguous().requires_grad_()
        theirs = torch.autograd.grad(F.conv2d(exact, weight, stride=2), (exact, weight), up.double())
        assert all(torch.allclose(a.double(), b, rtol=1e-4, atol=1e-3) for a, b in zip(ours, theirs, strict=True))
