"""The losses against plain loops, and where their gradients go."""

import math

import pytest
import torch

from pcrl_cli.pure.losses import comparison, cosine, mse


def vectors(n=4, b=7, c=5):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(b, c, generator=generator, requires_grad=True) for _ in range(n)]


def cos(a, b):
    """Mean over the batch of a . b / (|a| |b|), in Python's floats."""
    total = 0.0
    for x, y in zip(a.tolist(), b.tolist(), strict=True):
        dot = sum(p * q for p, q in zip(x, y, strict=True))
        total += dot / math.sqrt(sum(p * p for p in x) * sum(q * q for q in y))
    return total / len(a)


def test_the_mean_squared_error_equals_a_plain_loop():
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.rand(2, 3, 4, 2, 3, generator=generator) for _ in range(2))
    plain = [(p - q) ** 2 for p, q in zip(a.flatten().tolist(), b.flatten().tolist(), strict=True)]
    assert mse(a, b).item() == pytest.approx(sum(plain) / len(plain), rel=1e-6)


def test_the_comparison_equals_a_plain_loop():
    v_a, p_a, v_b, p_b = vectors()
    expected = -0.5 * (cos(v_a, p_b) + cos(p_a, v_b))
    assert comparison(v_a, p_a, v_b, p_b).item() == pytest.approx(expected, rel=1e-5)
    assert cosine(v_a, p_b).item() == pytest.approx(cos(v_a, p_b), rel=1e-5)


def test_swapping_the_views_changes_nothing():
    v_a, p_a, v_b, p_b = vectors()
    assert comparison(v_a, p_a, v_b, p_b).item() == pytest.approx(comparison(v_b, p_b, v_a, p_a).item(), abs=1e-7)


def test_the_comparison_lies_in_minus_one_to_one_and_reaches_both_ends():
    for seed in range(20):
        values = torch.randn(4, 3, 6, generator=torch.Generator().manual_seed(seed))
        assert -1 <= comparison(*values).item() <= 1
    v = vectors(1)[0].detach()
    assert comparison(v, 3 * v, 2 * v, v).item() == pytest.approx(-1)
    assert comparison(v, -v, v, -2 * v).item() == pytest.approx(1)


def test_identical_views_score_better_than_independent_ones():
    v_a, p_a, v_b, p_b = vectors(b=200)
    assert comparison(v_a, v_a, v_a, v_a) < comparison(v_a, p_a, v_b, p_b) - 0.9


def test_no_gradient_passes_the_stop_gradient_and_all_passes_without_it():
    v_a, p_a, v_b, p_b = vectors()
    comparison(v_a, p_a, v_b, p_b).backward()
    assert v_a.grad is None
    assert v_b.grad is None
    assert p_a.grad.abs().sum() > 0
    assert p_b.grad.abs().sum() > 0
    v_a, p_a, v_b, p_b = vectors()
    comparison(v_a, p_a, v_b, p_b, stop_gradient=False).backward()
    assert all(t.grad.abs().sum() > 0 for t in (v_a, p_a, v_b, p_b))


def test_the_stop_gradient_changes_no_value():
    values = vectors()
    assert torch.equal(comparison(*values), comparison(*values, stop_gradient=False))


def test_the_gradient_of_the_predictions_equals_a_finite_difference():
    v_a, p_a, v_b, p_b = (t.detach().clone() for t in vectors(b=3, c=4))
    p_a.requires_grad_()
    comparison(v_a, p_a, v_b, p_b).backward()
    step = torch.zeros_like(p_a)
    step[1, 2] = 1e-2
    with torch.no_grad():
        slope = (comparison(v_a, p_a + step, v_b, p_b) - comparison(v_a, p_a - step, v_b, p_b)) / 2e-2
    assert slope.item() == pytest.approx(p_a.grad[1, 2].item(), rel=1e-2)


def test_losses_are_float32_whatever_they_are_given():
    half = [t.detach().bfloat16() for t in vectors()]
    assert comparison(*half).dtype == torch.float32
    assert mse(half[0], half[1]).dtype == torch.float32
