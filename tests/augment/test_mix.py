"""Shares of mixup and orders by name."""

import torch

from pcrl_cli.augment.mix import draw_name, draw_share, mix, order
from pcrl_cli.core.rng import Stream


def test_the_share_of_a_sample_itself_is_a_half_or_more_and_uniform_there():
    shares = torch.tensor([draw_share(Stream.of("share", i)) for i in range(2000)])
    assert shares.min() >= 0.5
    assert shares.max() <= 1.0
    assert abs(shares.mean() - 0.75) < 0.01


def test_an_order_is_a_permutation_and_a_function_of_its_name():
    names = [draw_name(Stream.of("name", i)) for i in range(300)]
    assert len(set(names)) > 295
    orders = torch.stack([order(name, 6) for name in names])
    assert torch.equal(orders.sort(dim=1).values, torch.arange(6).expand(300, 6))
    assert torch.equal(order(names[0], 6), orders[0])
    first = torch.bincount(orders[:, 0], minlength=6)
    assert first.min() > 25, "some sample is never first"


def test_mixing_alone_changes_nothing_and_halves_are_symmetric():
    x, partner = torch.rand(4, 1, 3, 3), torch.tensor([1, 0, 3, 2])
    assert torch.equal(mix(x, 1.0, partner), x)
    assert torch.allclose(mix(x, 0.5, partner)[0], mix(x, 0.5, partner)[1])
    assert torch.allclose(mix(x, 0.7, partner)[2], 0.7 * x[2] + 0.3 * x[3])
