"""Convolutions of small maps under bfloat16 autocast on a CPU, where oneDNN leaves a part of the gradient unwritten."""

import pytest
import torch
from torch import nn

from pcrl_cli.networks.blocks import AXES, is_small_in_bf16


def poison() -> None:
    """Memory that the next tensors are likely to take, full of NaN."""
    junk = [torch.full((n,), torch.nan) for n in (64, 256, 1024, 4096, 16384, 65536) for _ in range(8)]
    del junk


def gradients(work, weight, x, bf16):
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        y = work(x)
    (g,) = torch.autograd.grad(y.float().square().mean(), weight)
    return g


CASES = [
    (3, (2, 2, 2), 1, 3), (3, (2, 2, 1), 1, 3), (3, (2, 1, 1), 1, 3), (3, (3, 3, 2), 1, 3), (3, (4, 4, 4), 1, 3),
    (2, (1, 1), 2, 3), (2, (2, 1), 2, 3), (2, (2, 2), 1, 3), (2, (4, 4), 2, 3), (3, (1, 1, 1), 1, 1), (2, (2, 2), 1, 1),
]  # fmt: skip


@pytest.mark.parametrize(("axes", "size", "stride", "kernel"), CASES)
def test_weight_gradients_are_those_of_float32_but_for_rounding(axes, size, stride, kernel):
    torch.manual_seed(0)
    conv = AXES[axes].conv(16, 24, kernel, stride=stride, padding=kernel // 2)
    x = torch.randn(4, 16, *size)
    exact = gradients(conv, conv.weight, x, bf16=False)
    for _ in range(4):
        poison()
        low = gradients(conv, conv.weight, x, bf16=True)
        assert float((low - exact).abs().max()) < 0.03 * float(exact.abs().max())


@pytest.mark.parametrize(("axes", "size"), [(3, (2, 2, 1)), (3, (2, 2, 2)), (3, (4, 4, 4)), (2, (1, 1)), (2, (4, 2))])
def test_so_are_those_of_the_sub_pixel_form(axes, size):
    torch.manual_seed(0)
    conv = AXES[axes].conv(16, 24, 3, padding=1)
    x = torch.randn(4, 16, *size)
    exact = gradients(lambda x: AXES[axes].up_conv(x, conv), conv.weight, x, bf16=False)
    for _ in range(4):
        poison()
        low = gradients(lambda x: AXES[axes].up_conv(x, conv), conv.weight, x, bf16=True)
        assert float((low - exact).abs().max()) < 0.03 * float(exact.abs().max())


def test_only_maps_no_longer_than_the_kernel_stay_in_float32():
    kinds = {}
    for n in (3, 4):
        with torch.autocast("cpu", torch.bfloat16):
            kinds[n] = AXES[3].conv(2, 2, 3, padding=1)(torch.randn(1, 2, 8, 8, n)).dtype
            assert is_small_in_bf16(torch.randn(1, 2, 8, 8, n)) == (n == 3)
    assert kinds == {3: torch.float32, 4: torch.bfloat16}
    assert not is_small_in_bf16(torch.randn(1, 2, 1, 1))  # no autocast
    assert isinstance(AXES[2].conv(1, 1, 1), nn.Conv2d)
