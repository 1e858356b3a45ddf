"""InfoNCE and NCE: values that are known, on random directions rather than on features, which nearly coincide."""

import math

import pytest
import torch
from torch.nn import functional as F

from pcrl_cli.pure.contrast import info_nce, nce, nce_constant, similarities

LENGTH, CHANNELS = 16384, 128


def directions(n, seed):
    return F.normalize(torch.randn(n, CHANNELS, generator=torch.Generator().manual_seed(seed)), dim=1)


@pytest.fixture(scope="module")
def three():
    return directions(64, 0), directions(64, 1), directions(LENGTH, 2)


@pytest.mark.parametrize(("temperature", "value"), [(1.0, 9.71), (0.2, 9.80), (0.07, 10.5)])
def test_info_nce_of_independent_directions_exceeds_ln_by_half_the_variance_of_its_logits(three, temperature, value):
    loss = float(info_nce(similarities(*three, temperature)))
    theory = math.log(LENGTH + 1) + 1 / (2 * CHANNELS * temperature**2)
    spread = 1 / (CHANNELS**0.5 * temperature * 8)  # of the mean of 64 positive logits
    assert abs(loss - theory) < 2.5 * spread
    assert abs(loss - value) < 2.5 * spread


def test_info_nce_of_equal_logits_is_the_logarithm_of_their_number():
    assert float(info_nce(torch.zeros(5, 17))) == pytest.approx(math.log(17), abs=1e-6)


def test_info_nce_is_the_plain_formula(three):
    q, k, negatives = (t[:8] for t in three)
    loss = 0.0
    for i in range(8):
        positive = math.exp(float(q[i] @ k[i]) / 0.2)
        loss -= math.log(positive / (positive + sum(math.exp(float(q[i] @ n) / 0.2) for n in negatives))) / 8
    assert float(info_nce(similarities(3 * q, 0.5 * k, negatives, 0.2))) == pytest.approx(loss, abs=1e-5)


@pytest.mark.parametrize(("samples", "value"), [(112_120, 12.66), (1752, 11.51)])
def test_nce_of_independent_directions(three, samples, value):
    logits = similarities(*three, 0.07)
    loss = float(nce(logits, nce_constant(logits, samples), samples))
    assert abs(loss - value) < 0.4
    theory = math.log(LENGTH + 1) + 1 + 1 / (2 * CHANNELS * 0.07**2) + 1e-5 * samples
    assert abs(loss - theory) < 0.4


def test_nce_is_the_plain_formula():
    logits = torch.randn(3, 6, generator=torch.Generator().manual_seed(3))
    z, n, eps = 40.0, 50, 1e-5
    loss = 0.0
    for row in logits.exp() / z:
        noise = 5 / n
        loss -= math.log(row[0] / (row[0] + noise + eps)) / 3
        loss -= sum(math.log(noise / (p + noise + eps)) for p in row[1:]) / 3
    assert float(nce(logits, torch.tensor(z), n)) == pytest.approx(loss, rel=1e-5)


def test_the_constant_is_the_mean_score_times_the_samples_and_has_no_gradient():
    logits = torch.zeros(2, 3, requires_grad=True)
    z = nce_constant(logits, 10)
    assert float(z) == 10.0
    assert not z.requires_grad
