"""PCRLv1: what is restored, what the indicators move, and where it is C2L."""

import pytest
import torch
from small import NOW, batch, learner, smooth, total, views

from pcrl_cli.augment.indicate import of_indicator, transform

CONTRAST = ("contrast", "mixed_inputs", "mixed_features")


@pytest.mark.parametrize("dim", [2, 3])
def test_clean_targets_are_the_aligned_views_transformed_as_told(dim):
    v1 = learner("pcrlv1", dim)
    seen = views(v1, batch(dim))
    told = of_indicator(seen["a"].flatten(0, 1))
    assert torch.equal(transform(seen["y"].flatten(0, 1), told), seen["t"].flatten(0, 1))
    assert seen["a"].shape == (4, 2, dim + 4)


def test_released_targets_hold_the_corruption_and_mixed_ones_the_stored_crops():
    v1 = learner("pcrlv1", targets="as_released", network_input="unit", paint=1.0)
    seen = views(v1, batch())
    told = of_indicator(seen["a"].flatten(0, 1))
    assert torch.equal(transform(seen["g"].flatten(0, 1), told), seen["t"].flatten(0, 1))
    assert torch.allclose(seen["y"], batch()["globals"].float() * (1 / 2000) + 0.5)


def test_with_the_students_maps_alone_both_restorations_are_one():
    v1 = learner("pcrlv1").eval()
    seen = views(v1, batch()) | {"alpha": 1.0}
    terms = v1(seen, NOW)
    g1, a1 = seen["g"][:, 0], seen["a"][:, 0]
    restored = v1.student.restorer.decode(v1.gate(v1.student.maps(g1), a1), g1)
    assert torch.allclose(terms["restore"], 2 * (restored - seen["t"][:, 0]).square().mean() / 4, atol=1e-6)


def test_the_gate_learns_from_both_indicators_and_the_teacher_from_neither():
    v1 = learner("pcrlv1")
    seen = views(v1, batch()) | {"alpha": 0.6}
    seen["a"].requires_grad_()
    total(v1(seen, NOW)).backward()
    assert all(seen["a"].grad[:, i].abs().sum() > 0 for i in range(2))
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in v1.gate.parameters())
    assert all(p.grad is None for p in v1.teacher.parameters())


def test_a_gate_without_weights_halves_every_channel():
    v1 = learner("pcrlv1")
    for p in v1.gate.parameters():
        torch.nn.init.zeros_(p)
    maps = v1.student.maps(views(v1, batch())["g"][:, 0])
    gated = v1.gate(maps, torch.eye(7)[:4])
    assert torch.equal(gated[-1], maps[-1] * 0.5)
    assert all(a is b for a, b in zip(gated[:-1], maps[:-1], strict=True))


def test_without_restoration_it_is_c2l_on_the_same_tensors():
    v1, c2l = learner("pcrlv1", restore_weight=0.0).eval(), learner("c2l", temperature=0.2).eval()
    seen = views(v1, batch())
    for mine, theirs in ((v1.student, c2l.student), (v1.teacher, c2l.teacher)):
        theirs.encoder.load_state_dict(mine.restorer.net.encoder.state_dict())
        theirs.head = mine.head
    c2l.contrast.load_state_dict(v1.contrast.state_dict())
    ours, theirs = v1(seen, NOW), c2l({k: seen[k] for k in ("g", "share", "partners", "shuffle")}, NOW)
    assert tuple(ours) == CONTRAST
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-6) for name in CONTRAST)


def test_heads_and_gate_have_the_released_number_of_parameters():
    with torch.device("meta"):
        v1 = learner("pcrlv1", width=32, features=128)
    extra = [*v1.student.head.parameters(), *v1.gate.parameters()]
    assert sum(p.numel() for p in extra) == 215_808


def test_views_of_a_pair_are_painted_alike_and_as_often_as_asked():
    v1 = learner("pcrlv1", network_input="unit", shuffle=0.0, augment={"blur_sigma_voxel": (0.0, 0.0)})
    seen = views(v1, {"globals": smooth(200, 2, 1, 16, 16, 8)})
    changed = (seen["g"] != seen["y"]).flatten(3).float().mean(dim=3)[:, :, 0]
    frame = (seen["g"] != seen["y"])[:, :, 0, 0].flatten(2).float().mean(dim=2)
    outside = frame > 0.9
    assert torch.equal(outside[:, 0], outside[:, 1])
    painted = changed > 0
    assert torch.equal(painted[:, 0], painted[:, 1]) or (painted[:, 0] != painted[:, 1]).float().mean() < 0.1
    assert abs(outside[:, 0].float().mean() - 0.9 * 0.8) < 0.08


def test_restoring_can_be_learnt():
    v1 = learner("pcrlv1", width=4, paint=0.0, shuffle=0.0, network_input="unit")
    given = {"globals": smooth(4, 2, 1, 16, 16, 8)}
    seen = views(v1, given)
    optimiser = torch.optim.SGD([p for p in v1.parameters() if p.requires_grad], lr=0.1, momentum=0.9)
    first = None
    for _ in range(40):
        terms = v1(seen, NOW)
        loss = terms["restore"] + terms["restore_mixed"]
        first = first or float(loss.detach())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert float(loss.detach()) < first / 2
