"""3D-CPC: patches, negatives, and losses whose values are known."""

import math

import pytest
import torch
from small import NOW, batch, learner, total, views

from pcrl_cli.methods.cpc3d import others


def test_bce_begins_at_the_logarithm_of_2():
    cpc = learner("cpc3d", criterion="bce", codes=64)
    assert float(cpc(views(cpc, batch()), NOW)["foretell"].detach()) == pytest.approx(0.6931, abs=0.002)


@pytest.mark.parametrize("scores", ["cosine", "dot"])
def test_infonce_of_predictors_that_say_nothing_is_the_logarithm_of_the_candidates(scores):
    cpc = learner("cpc3d", scores=scores)
    for foretell in cpc.foretell:
        torch.nn.init.zeros_(foretell.weight)
        torch.nn.init.zeros_(foretell.bias)
    assert float(cpc(views(cpc, batch()), NOW)["foretell"].detach()) == pytest.approx(math.log(4 * 16), abs=1e-5)


def test_a_negative_is_never_its_own_anchor_and_may_be_any_other():
    seen = torch.stack([others(torch.rand(3, 4, generator=torch.Generator().manual_seed(i))) for i in range(400)])
    own = torch.arange(12)
    assert not (seen == own).any()
    assert all(len(set(seen[:, i].tolist())) == 11 for i in range(12))
    assert torch.equal(others(torch.full((3, 4), 1 - 2**-24)), (own - 1) % 12)


def test_the_order_of_the_samples_does_not_matter():
    cpc = learner("cpc3d").eval()
    seen = views(cpc, batch())
    turned = {"p": seen["p"].flip(0)}
    assert torch.allclose(cpc(seen, NOW)["foretell"], cpc(turned, NOW)["foretell"], atol=1e-5)


def test_infonce_is_the_plain_formula():
    cpc = learner("cpc3d", temperature=0.5).eval()
    seen = views(cpc, batch(n=2))
    c, z = cpc.context(seen["p"])
    expected = 0.0
    for k, foretell in enumerate(cpc.foretell):
        guess = torch.nn.functional.normalize(foretell(c), dim=1)
        codes = torch.nn.functional.normalize(z[:, k], dim=1)
        for i in range(len(c)):
            scores = (codes @ guess[i] / 0.5).exp()
            expected -= float((scores[i] / scores.sum()).log().detach()) / (len(c) * len(cpc.foretell))
    assert float(cpc(seen, NOW)["foretell"].detach()) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("criterion", ["infonce", "bce"])
def test_the_encoder_learns_from_what_tells_and_from_what_is_foretold(criterion):
    cpc = learner("cpc3d", criterion=criterion)
    seen = views(cpc, batch())
    seen["p"].requires_grad_()
    total(cpc(seen, NOW)).backward()
    by_row = seen["p"].grad.unflatten(1, (4, 16)).abs().flatten(2).sum(dim=(0, 2))
    assert (by_row > 0).all()


def test_patches_keep_seven_eighths_and_are_flipped_half_the_time():
    cpc = learner("cpc3d", flip=0.5)
    given = {"globals": torch.arange(64 * 64 * 32).view(1, 1, 1, 64, 64, 32).remainder(1999).to(torch.int16)}
    p = views(cpc, given)["p"]
    assert p.shape == (1, 64, 1, 16, 16, 8)
    kept = (p != 0).any(dim=4).any(dim=4).float().sum(dim=3)
    assert (kept == 14).all()
    assert ((p != 0).any(dim=3).any(dim=3).float().sum(dim=3) == 7).all()
    whole = views(learner("cpc3d", keep=1.0, flip=0.0), given)["p"]
    assert not (whole == 0).all(dim=5).any()


def test_columns_that_can_be_told_apart_are_told_apart():
    cpc = learner("cpc3d", width=4, codes=32, context=32)
    column = torch.linspace(-900, 900, 16)[torch.randperm(16, generator=torch.Generator().manual_seed(1))]
    blocks = column.view(1, 1, 1, 1, 4, 4).repeat_interleave(8, dim=4).repeat_interleave(4, dim=5)
    given = {"globals": blocks.expand(1, 1, 1, 32, -1, -1).contiguous().to(torch.int16)}
    optimiser = torch.optim.Adam(cpc.parameters(), lr=3e-3)
    for step in range(60):
        optimiser.zero_grad()
        total(cpc(views(cpc, given, step), NOW)).backward()
        optimiser.step()
    assert float(cpc.figures(views(cpc, given, 99))["foretold"]) > 0.9


def test_a_grid_without_anything_to_foretell_is_refused():
    with pytest.raises(ValueError, match="nothing to foretell"):
        learner("cpc3d", grid=(1, 4, 4))
