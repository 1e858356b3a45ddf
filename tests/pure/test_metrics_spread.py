"""Effective rank and the std of normalised features: known values, and what a collapse does to them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pcrl_cli.pure.spread import effective_rank, feature_std


def drawn(n, c, seed=0):
    return torch.randn(n, c, generator=torch.Generator().manual_seed(seed))


def test_effective_rank_equals_its_definition_in_numpy():
    x = drawn(20, 7) * torch.arange(1.0, 8.0) + 3
    s = np.linalg.svd(x.double().numpy() - x.double().numpy().mean(0), compute_uv=False)
    p = s / s.sum()
    assert float(effective_rank(x)) == pytest.approx(float(np.exp(-(p * np.log(p)).sum())), rel=1e-9)


@pytest.mark.parametrize("r", [1, 2, 5])
def test_r_equal_directions_have_effective_rank_r(r):
    basis = torch.eye(16)[:r]
    x = torch.cat([basis, -basis]).repeat(4, 1) + 2.0
    assert float(effective_rank(x)) == pytest.approx(r, rel=1e-6)


@given(st.integers(2, 12), st.integers(1, 12), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_effective_rank_lies_between_one_and_the_rank_that_is_possible(n, c, seed):
    x = drawn(n, c, seed)
    rank = float(effective_rank(x))
    assert 1 - 1e-9 <= rank <= min(n - 1, c) + 1e-9
    assert float(effective_rank(x * 7.5)) == pytest.approx(rank, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_features_that_are_all_equal_have_rank_zero_and_no_spread(dtype):
    x = torch.full((16, 64), 0.1, dtype=dtype) * torch.arange(1, 65).to(dtype)
    assert float(effective_rank(x)) == 0.0
    assert float(feature_std(x)) < 1e-7


def test_rounding_noise_of_collapsed_features_is_no_rank():
    x = torch.rand(64, generator=torch.Generator().manual_seed(0)) + 1
    noisy = x * (1 + 1e-8 * drawn(32, 64).double())
    assert float(effective_rank(noisy.float())) == 0.0
    assert float(effective_rank(noisy)) > 20  # the same in float64 is a signal


def test_a_collapse_onto_one_direction_is_seen_by_both():
    spread, line = drawn(64, 32), drawn(64, 1).abs() * torch.rand(32)
    assert float(effective_rank(spread)) > 20 > 1.1 > float(effective_rank(line))
    assert float(feature_std(spread)) > 0.9 / 32**0.5
    assert float(feature_std(line)) < 0.01 / 32**0.5


@pytest.mark.parametrize("c", [8, 128])
def test_directions_spread_over_the_sphere_have_std_one_over_root_c(c):
    assert float(feature_std(drawn(4000, c))) == pytest.approx(c**-0.5, rel=0.02)
    assert float(feature_std(drawn(50, c))) <= c**-0.5


def test_batch_norm_hides_a_collapse_from_the_std():
    collapsed = 5 + 1e-3 * drawn(64, 1) * torch.rand(32) + 1e-4 * drawn(64, 32, 1)
    normed = torch.nn.BatchNorm1d(32, eps=1e-12)(collapsed).detach()
    assert float(feature_std(collapsed)) < 0.01 * 32**-0.5
    assert float(feature_std(normed)) > 0.8 * 32**-0.5


def test_features_that_are_not_finite_give_nan_and_zero_vectors_do_not():
    x = drawn(8, 4)
    x[2, 1] = torch.inf
    assert bool(effective_rank(x).isnan())
    assert bool(feature_std(torch.zeros(8, 4)) == 0)
    assert float(effective_rank(torch.zeros(8, 4))) == 0


def test_results_are_scalars_without_a_gradient():
    x = drawn(8, 4).requires_grad_()
    for value in (effective_rank(x), feature_std(x)):
        assert value.shape == ()
        assert not value.requires_grad
