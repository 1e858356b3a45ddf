"""Rubik's cube++: two players that leave each other's parameters alone."""

import pytest
import torch
from small import NOW, batch, learner, total, views
from torch import nn

from pcrl_cli.methods.rubik import gradient_penalty
from pcrl_cli.stages.pretrain import pretrain_settings


def test_neither_player_gives_the_others_parameters_a_gradient():
    rubik = learner("rubik")
    seen = views(rubik, batch())
    total(rubik.losses(seen, NOW, "main")).backward()
    assert all(p.grad is None for p in rubik.critic.parameters())
    assert any(p.grad.abs().max() > 0 for p in rubik.restorer.parameters() if p.grad is not None)
    rubik.zero_grad(set_to_none=True)
    total(rubik.losses(seen, NOW, "critic")).backward()
    assert all(p.grad is None for p in rubik.restorer.parameters())
    assert all(p.grad is not None for p in rubik.critic.parameters())


def test_the_terms_are_the_plain_formulas():
    rubik = learner("rubik", restore_weight=7.0, deceive_weight=0.5, penalty_weight=3.0).eval()
    seen = views(rubik, batch())
    restored = rubik.restorer(seen["g"])
    main, critic = rubik.losses(seen, NOW, "main"), rubik.losses(seen, NOW, "critic")
    assert torch.allclose(main["restore"], 7 * (restored - seen["x"]).square().mean())
    assert torch.allclose(main["deceive"], -0.5 * rubik.critic(restored, seen["g"]).mean())
    tell = rubik.critic(restored, seen["g"]).mean() - rubik.critic(seen["x"], seen["g"]).mean()
    assert torch.allclose(critic["tell"], tell, atol=1e-6)
    u = seen["u"].view(-1, 1, 1, 1, 1)
    between = (u * seen["x"] + (1 - u) * restored).detach()
    assert torch.allclose(critic["penalty"], 3 * gradient_penalty(rubik.critic, between, seen["g"]))


def test_the_penalty_is_1_without_a_gradient_and_0_with_one_of_length_1():
    class Flat(nn.Module):
        def forward(self, candidate, g):
            return 0 * candidate.flatten(1).sum(dim=1) + g.flatten(1).sum(dim=1)

    class Along(nn.Module):
        def forward(self, candidate, g):
            u = torch.ones_like(candidate[0].flatten())
            return candidate.flatten(1) @ (u / u.norm())

    x = torch.rand(3, 1, 4, 4, 4)
    assert float(gradient_penalty(Flat(), x, x).detach()) == pytest.approx(1.0, abs=1e-5)
    assert float(gradient_penalty(Along(), x, x).detach()) == pytest.approx(0.0, abs=1e-6)


def test_the_penalty_moves_the_critic_only_and_a_sample_does_not_know_the_others():
    rubik = learner("rubik")
    x = torch.rand(3, 1, 16, 16, 8)
    together = gradient_penalty(rubik.critic, x, x)
    alone = torch.stack([gradient_penalty(rubik.critic, x[i : i + 1], x[i : i + 1]) for i in range(3)])
    assert torch.allclose(together, alone.mean(), atol=1e-6)


def test_without_an_adversary_it_restores_and_nothing_else():
    rubik = learner("rubik", adversary="none")
    assert list(rubik.players()) == ["main"]
    seen = views(rubik, batch())
    assert seen.keys() == {"x", "g"}
    assert list(rubik(seen, NOW)) == ["restore"]


def test_the_input_is_the_crop_with_its_voxels_in_other_places():
    rubik = learner("rubik", adversary="none", moves=6)
    seen = views(rubik, batch())
    x, g = seen["x"].flatten(1), seen["g"].flatten(1)
    z = (x - x.mean(dim=1, keepdim=True)) / x.std(dim=1, keepdim=True)
    assert torch.allclose(z.sort(dim=1).values, g.sort(dim=1).values, atol=1e-4)
    assert (z - g).abs().max() > 0.1
    still = views(learner("rubik", adversary="none", moves=0), batch())
    z = (still["x"] - still["x"].mean(dim=(1, 2, 3, 4), keepdim=True)).flatten(1)
    assert torch.allclose(z / z.std(dim=1, keepdim=True), still["g"].flatten(1), atol=1e-4)


def test_matched_weighs_the_adversary_as_native_does_and_the_restoration_as_the_other_methods_do():
    matched, native = (pretrain_settings("rubik", preset=name, dim="3d")[0].learner for name in ("matched", "native"))
    assert matched.restore_weight == 1
    assert matched.restore_weight / matched.deceive_weight == native.restore_weight / native.deceive_weight == 100
