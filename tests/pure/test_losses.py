"""The losses against plain loops, and where their gradients go."""

import math

import pytest
import torch

from pcrl_cli.pure.losses import comparison, cosine, mse, soft_dice, voxel_bce


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


def masks(seed=0, shape=(2, 3, 4, 3, 2)):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(shape, generator=generator)
    valid = torch.rand(shape[0], *shape[2:], generator=generator) < 0.7
    return logits, torch.rand(shape, generator=generator) < 0.4, valid


def plain_dice(logits, target, valid, smooth=1e-5):
    scores = []
    for case in range(len(logits)):
        for region in range(logits.shape[1]):
            both = one = other = 0.0
            rows = zip(
                *(x.flatten().tolist() for x in (logits[case, region], target[case, region], valid[case])), strict=True
            )
            for z, t, v in rows:
                if v:
                    p = 1 / (1 + math.exp(-z))
                    both, one, other = both + p * t, one + p, other + t
            scores.append((2 * both + smooth) / (one + other + smooth))
    return 1 - sum(scores) / len(scores)


def test_soft_dice_equals_a_plain_loop_with_and_without_padding():
    logits, target, valid = masks()
    assert soft_dice(logits, target).item() == pytest.approx(
        plain_dice(logits, target, torch.ones_like(valid)), abs=1e-6
    )
    assert soft_dice(logits, target, valid).item() == pytest.approx(plain_dice(logits, target, valid), abs=1e-6)


def test_soft_dice_is_0_for_the_truth_and_for_nothing_where_nothing_is_and_1_for_a_miss():
    target = masks()[1]
    sure = torch.where(target, 50.0, -50.0)
    assert soft_dice(sure, target).item() == pytest.approx(0, abs=1e-5)
    assert soft_dice(torch.full_like(sure, -50), torch.zeros_like(target)).item() == pytest.approx(0, abs=1e-5)
    assert soft_dice(-sure, target).item() == pytest.approx(1, abs=1e-5)


def test_every_case_and_region_weighs_alike_however_small():
    target = torch.zeros(2, 2, 10, 10, dtype=torch.bool)
    target[0, 0, :9], target[0, 1, 0, 0], target[1, :, 5] = True, True, True
    right = torch.where(target, 60.0, -60.0)
    for case, region in ((0, 0), (0, 1), (1, 1)):
        wrong = right.clone()
        wrong[case, region] *= -1
        assert soft_dice(wrong, target).item() == pytest.approx(0.25, abs=1e-5)


def test_voxel_cross_entropy_equals_a_plain_loop_with_and_without_padding():
    logits, target, valid = masks(1)
    wide = valid[:, None].expand_as(target)
    terms = [
        (math.log1p(math.exp(-z if t else z)), v)
        for z, t, v in zip(*(x.flatten().tolist() for x in (logits, target, wide)), strict=True)
    ]
    every, counted = [t for t, _ in terms], [t for t, v in terms if v]
    assert voxel_bce(logits, target).item() == pytest.approx(sum(every) / len(every), rel=1e-5)
    assert voxel_bce(logits, target, valid).item() == pytest.approx(sum(counted) / len(counted), rel=1e-5)


@pytest.mark.parametrize("loss", [soft_dice, voxel_bce])
def test_padding_has_no_gradient_and_a_crop_of_padding_alone_is_finite(loss):
    logits, target, valid = masks()
    logits.requires_grad_()
    loss(logits, target, valid).backward()
    hidden = ~valid[:, None].expand_as(target)
    assert (logits.grad[hidden] == 0).all()
    assert (logits.grad[~hidden] != 0).any()
    assert torch.isfinite(loss(logits, target, torch.zeros_like(valid)))


def test_soft_dice_of_bfloat16_logits_is_summed_in_float32():
    logits = torch.full((1, 1, 64, 64, 64), -8.0, dtype=torch.bfloat16)
    target = torch.ones_like(logits, dtype=torch.bool)
    p = torch.sigmoid(torch.tensor(-8.0)).item()
    assert 1 - soft_dice(logits, target).item() == pytest.approx(2 * p / (1 + p), rel=1e-3)
