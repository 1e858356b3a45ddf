"""Heads against Eqs. 2, 5 and 6 written out."""

import pytest
import torch
from torch.nn import functional as F

from pcrl_cli.networks.blocks import gap
from pcrl_cli.networks.heads import Comparison, Restoration


def features(*shape, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("head", ["paper", "released"])
@pytest.mark.parametrize(("dim", "small", "size"), [(3, (2, 2, 1), (64, 64, 32)), (2, (7, 7), (20, 21))])
def test_a_restoration_has_the_images_channels_and_size_and_a_sigmoids_range(head, dim, small, size):
    torch.manual_seed(0)
    restored = Restoration(dim, 5, 2, head, True)(features(3, 5, *small, scale=30), size)
    assert restored.shape == (3, 2, *size)
    assert restored.min() >= 0
    assert restored.max() <= 1
    assert restored.std() > 0.01


def test_a_linear_restoration_leaves_the_unit_range():
    torch.manual_seed(0)
    restored = Restoration(3, 5, 1, "released", False)(features(3, 5, 2, 2, 2), (8, 8, 8))
    assert restored.min() < 0


def test_the_papers_restoration_is_two_convolutions_of_stride_1_a_sigmoid_and_then_up_sampling():
    torch.manual_seed(0)
    head, f = Restoration(3, 4, 1, "paper", True).eval(), features(2, 4, 3, 3, 2)
    conv, norm = head.layers[0][0], head.layers[0][1]
    y = F.conv3d(f, conv.weight, padding=1) / (1 + norm.eps) ** 0.5
    y = F.conv3d(y.clamp(min=0), head.layers[1].weight, head.layers[1].bias, padding=1)
    expected = F.interpolate(torch.sigmoid(y), (9, 6, 5), mode="trilinear", align_corners=False)
    assert torch.allclose(head(f, (9, 6, 5)), expected, atol=1e-6)


def test_the_released_restoration_is_one_convolution_a_norm_and_a_sigmoid():
    head = Restoration(3, 64, 1, "released", True)
    assert {k: tuple(v.shape) for k, v in head.state_dict().items() if v.dim()} == {
        "layers.0.weight": (1, 64, 3, 3, 3),
        "layers.0.bias": (1,),
        "layers.1.weight": (1,),
        "layers.1.bias": (1,),
        "layers.1.running_mean": (1,),
        "layers.1.running_var": (1,),
    }


def test_a_restoration_is_float32_and_finely_graded_under_bfloat16():
    torch.manual_seed(0)
    head, f = Restoration(3, 4, 1, "paper", True).eval(), features(2, 4, 8, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        restored = head(f, (8, 8, 8))
    assert restored.dtype == torch.float32
    assert (restored != restored.bfloat16().float()).any()


def test_v_is_the_batch_norm_of_the_global_average():
    torch.manual_seed(0)
    head, f = Comparison(6), features(5, 6, 3, 2, 2)
    torch.nn.init.uniform_(head.bn.weight)
    torch.nn.init.uniform_(head.bn.bias)
    pooled = f.double().mean(dim=(2, 3, 4))
    z = (pooled - pooled.mean(0)) / (pooled.var(0, unbiased=False) + head.bn.eps).sqrt()
    v, _ = head(f)
    assert torch.allclose(v.double(), z * head.bn.weight + head.bn.bias, atol=1e-5)


def test_the_predictor_is_fc_norm_relu_fc_with_a_hidden_width_of_2_c():
    torch.manual_seed(0)
    head, f = Comparison(6), features(5, 6, 2, 2, 2)
    v, p = head(f)
    first, norm, _, last = head.predictor
    h = v @ first.weight.T + first.bias
    h = (h - h.mean(0)) / (h.var(0, unbiased=False) + norm.eps).sqrt()
    assert torch.allclose(p, h.clamp(min=0) @ last.weight.T + last.bias, atol=1e-5)
    assert (first.in_features, first.out_features, last.out_features) == (6, 12, 6)


def test_crossed_comparison_brings_every_scale_to_one_width():
    torch.manual_seed(0)
    for c in (3, 8):
        v, p = Comparison(c, 16)(features(4, c, 2, 2, 2))
        assert v.shape == p.shape == (4, 16)


def test_the_global_average_is_taken_in_float32():
    x = torch.full((1, 2, 40, 40, 40), 1.0, dtype=torch.bfloat16)
    assert gap(x).dtype == torch.float32
    assert torch.equal(gap(x), torch.ones(1, 2))
