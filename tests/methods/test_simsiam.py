"""SimSiam: its head, its stop-gradient, and what a collapse looks like."""

import pytest
import torch
from small import NOW, batch, learner, views
from torch import nn
from torch.nn import functional as F

from pcrl_cli.engine.trainer import TrainConfig, make_optimisers
from pcrl_cli.methods.simsiam import projector
from pcrl_cli.pure.losses import comparison
from pcrl_cli.pure.spread import effective_rank


def test_the_head_is_the_released_one():
    with torch.device("meta"):
        head = learner("simsiam", width=32, outputs=2048, bottleneck=512)
    assert sum(p.numel() for p in head.projector.parameters()) == 1_576_960
    assert sum(p.numel() for p in head.predictor.parameters()) == 2_100_224
    assert not head.projector[6].bias.requires_grad
    assert not head.projector[7].affine


def test_the_loss_is_the_plain_formula_and_symmetric():
    simsiam = learner("simsiam")
    seen = views(simsiam, batch())
    (z1, p1), (z2, p2) = (simsiam.project(seen["g"][:, i]) for i in range(2))
    plain = (
        -0.5 * (F.normalize(p1) * F.normalize(z2)).sum(1).mean()
        - 0.5 * (F.normalize(p2) * F.normalize(z1)).sum(1).mean()
    )
    loss = simsiam(seen, NOW)["compare"]
    assert torch.allclose(loss, plain, atol=1e-6)
    assert -1 <= float(loss.detach()) <= 1
    swapped = simsiam({"g": seen["g"].flip(1)}, NOW)["compare"]
    assert torch.allclose(loss, swapped, atol=1e-6)


def test_no_gradient_goes_through_z_and_stopping_the_other_side_gives_another_one():
    simsiam = learner("simsiam")
    seen = views(simsiam, batch())

    def gradient(loss):
        simsiam.zero_grad()
        loss.backward()
        return torch.cat([p.grad.flatten() for p in simsiam.encoder.parameters() if p.grad is not None])

    ours = gradient(simsiam(seen, NOW)["compare"])
    (z1, p1), (z2, p2) = (simsiam.project(seen["g"][:, i]) for i in range(2))
    by_hand = gradient(
        -0.5 * (F.cosine_similarity(p1, z2.detach()).mean() + F.cosine_similarity(p2, z1.detach()).mean())
    )
    assert torch.allclose(ours, by_hand, atol=1e-7)
    (z1, p1), (z2, p2) = (simsiam.project(seen["g"][:, i]) for i in range(2))
    other = gradient(-0.5 * (F.cosine_similarity(p1.detach(), z2).mean() + F.cosine_similarity(p2.detach(), z1).mean()))
    assert not torch.allclose(ours, other, atol=1e-5)


def test_strangers_hardly_agree_before_training():
    torch.manual_seed(0)
    head, predictor = (
        projector(64, 256),
        nn.Sequential(nn.Linear(256, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 256)),
    )
    z1, z2 = head(torch.randn(512, 64)), head(torch.randn(512, 64))
    assert abs(float(comparison(z1, predictor(z1), z2, predictor(z2)).detach())) < 0.02


@pytest.mark.parametrize("stop", [True, False])
def test_without_the_stop_gradient_the_rank_falls_behind_a_norm_that_hides_it_from_the_spread(stop):
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(32, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 32))
    head = projector(32, 32)
    predictor = nn.Sequential(nn.Linear(32, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 32))
    modules = nn.ModuleList([encoder, head, predictor])
    optimiser = torch.optim.SGD([p for p in modules.parameters() if p.requires_grad], lr=0.2, momentum=0.9)
    points = torch.randn(256, 32)
    for _ in range(150):
        z1, z2 = (head(encoder(points + 0.5 * torch.randn_like(points))) for _ in range(2))
        loss = comparison(z1, predictor(z1), z2, predictor(z2), stop)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        z = head(encoder(points))
        same, strangers = (comparison(z, predictor(z), other, predictor(other)) for other in (z, z.roll(1, 0)))
    assert float(same) < float(strangers) - (0.3 if stop else 0.0)
    rank = float(effective_rank(z1.detach()))
    assert rank > 12 if stop else rank < 6
    assert F.normalize(z1).std(dim=0).mean() * 32**0.5 > 0.8, "the norm hides a collapse from the spread"


def test_the_predictors_learning_rate_stays_off_the_schedule():
    for fixed in (True, False):
        optimiser = make_optimisers(learner("simsiam", fixed_predictor_lr=fixed), TrainConfig(lr=0.5))["main"]
        assert [group["fixed"] for group in optimiser.param_groups] == [False, fixed]
        ids = {id(p) for p in optimiser.param_groups[1]["params"]}
        assert len(ids) == 5


def test_blocks_of_the_2d_encoder_may_begin_as_the_identity():
    simsiam = learner("simsiam", 2, zero_residual=True)
    assert float(simsiam.encoder.layer3[1].bn2.weight.detach().abs().max()) == 0
    assert float(learner("simsiam", 2).encoder.layer3[1].bn2.weight.detach().min()) == 1
