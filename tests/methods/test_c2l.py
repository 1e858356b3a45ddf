"""C2L: what is contrasted with what, and what the queue remembers."""

import pytest
import torch
from small import NOW, batch, learner, total, views
from torch.nn import functional as F

from pcrl_cli.augment.mix import order
from pcrl_cli.pure.contrast import info_nce, similarities


@pytest.mark.parametrize("dim", [2, 3])
def test_unmixed_all_three_terms_are_the_first(dim):
    c2l = learner("c2l", dim)
    terms = c2l(views(c2l, batch(dim)) | {"share": 1.0}, NOW)
    assert torch.allclose(terms["contrast"], terms["mixed_inputs"], atol=1e-6)
    assert torch.allclose(terms["contrast"], terms["mixed_features"], atol=1e-6)


def test_the_terms_are_the_plain_formulas():
    c2l = learner("c2l").eval()
    seen = views(c2l, batch()) | {"share": 0.7}
    partner = order(seen["partners"], 4)
    x1, x2 = seen["g"].unbind(1)
    x1m, x2m = 0.7 * x1 + 0.3 * x1[partner], 0.7 * x2 + 0.3 * x2[partner]
    q, qm, k, km = c2l.student(x1), c2l.student(x1m), c2l.teacher(x2), c2l.teacher(x2m)
    pairs = {"contrast": (q, k), "mixed_inputs": (qm, km), "mixed_features": (qm, 0.7 * k + 0.3 * k[partner])}
    terms = c2l(seen, NOW)
    for name, (a, b) in pairs.items():
        expected = info_nce(similarities(a, b, c2l.contrast.queue.keys, 0.07)) / 3
        assert torch.allclose(terms[name], expected, atol=1e-5), name


def test_the_teacher_begins_as_the_student_gets_no_gradient_and_follows():
    c2l = learner("c2l", momentum=0.9)
    pairs = list(zip(c2l.teacher.parameters(), c2l.student.parameters(), strict=True))
    assert all(torch.equal(t, s) for t, s in pairs)
    total(c2l(views(c2l, batch()), NOW)).backward()
    assert all(t.grad is None and not t.requires_grad for t, _ in pairs)
    with torch.no_grad():
        for _, s in pairs:
            s += 1.0
    before = [t.clone() for t, _ in pairs]
    c2l.after_step(NOW)
    assert all(
        torch.allclose(t - b, torch.full_like(t, 0.1), atol=1e-5) for (t, _), b in zip(pairs, before, strict=True)
    )


def test_only_the_unmixed_keys_enter_the_queue_after_the_step():
    c2l = learner("c2l")
    seen, before = views(c2l, batch()), c2l.contrast.queue.keys.clone()
    c2l(seen, NOW)
    assert torch.equal(c2l.contrast.queue.keys, before)
    keys = F.normalize(c2l.keys(seen["g"][:, 1], seen).detach(), dim=1)
    c2l.after_step(NOW)
    assert torch.allclose(c2l.contrast.queue.keys[:4], keys, atol=1e-6)
    assert torch.equal(c2l.contrast.queue.keys[4:], before[4:])
    assert int(c2l.contrast.queue.pointer) == 4
    c2l.after_step(NOW)
    assert int(c2l.contrast.queue.pointer) == 4, "a step that was not made adds no keys"


def test_the_constant_of_nce_is_the_first_batchs_and_stays():
    c2l = learner("c2l", criterion="nce", samples=50)
    assert float(c2l.contrast.z) == 0
    one = c2l(views(c2l, batch()), NOW)
    c2l.after_step(NOW)
    z = float(c2l.contrast.z)
    assert z > 0
    c2l(views(c2l, batch(), step=1), NOW)
    c2l.after_step(NOW)
    assert float(c2l.contrast.z) == z
    assert "contrast.z" in c2l.state_dict()
    assert all(torch.isfinite(t) for t in one.values())


def test_partners_and_share_are_the_whole_batchs_and_change_with_the_step():
    c2l = learner("c2l")
    one, other = views(c2l, batch()), views(c2l, batch(), step=1)
    assert 0.5 <= one["share"] <= 1
    assert (one["share"], one["partners"]) != (other["share"], other["partners"])
