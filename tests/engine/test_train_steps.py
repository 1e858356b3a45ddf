"""What one step does to the weights, next to a step written by hand; and looking, which must do nothing."""

import itertools
import math

import pytest
import torch
from torch import nn
from toys import Source, Toy, everything, rows, same, trainer

from pcrl_cli.core.learner import Progress
from pcrl_cli.core.rng import Rng
from pcrl_cli.engine.trainer import TrainConfig


def by_hand(steps, lr, momentum=0.9, decay=1e-2, clip=None):
    """SGD with every formula written out; an untouched parameter has gradient 0."""
    learner = Toy()
    velocity = {name: torch.zeros_like(p) for name, p in learner.named_parameters()}
    batches = Source().batches(0)
    for step in range(steps):
        positions, batch = next(batches)
        learner.zero_grad()
        views = learner.views(batch, Rng.at(0, step, positions))
        sum(learner(views, Progress(step, steps)).values()).backward()
        gradients = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in learner.named_parameters()}
        norm = math.sqrt(sum(float(g.square().sum()) for g in gradients.values()))
        shrink = min(1.0, clip / norm) if clip else 1.0
        with torch.no_grad():
            for name, p in learner.named_parameters():
                g = shrink * gradients[name] + decay * p
                velocity[name] = g if step == 0 else momentum * velocity[name] + g
                p -= lr(step) * velocity[name]
    return learner, velocity


OPTIONS = {"weight_decay": 1e-2, "lr": 0.05, "epochs": 2}


@pytest.mark.parametrize("clip", [None, 0.5])
def test_training_is_sgd_as_written_by_hand(tmp_path, clip):
    t = trainer(tmp_path, clip_norm=clip, schedule="cosine", **OPTIONS)
    t.fit()
    expected, _ = by_hand(10, lambda s: 0.05 * 0.5 * (1 + math.cos(math.pi * s / 10)), clip=clip)
    for name, p in t.learner.named_parameters():
        torch.testing.assert_close(p, dict(expected.named_parameters())[name], rtol=1e-5, atol=1e-6)


def test_momentum_and_decay_of_an_untouched_parameter_go_on(tmp_path):
    t = trainer(tmp_path, schedule="constant", **OPTIONS)
    t.fit()
    _, velocity = by_hand(10, lambda s: 0.05)
    spare = t.learner.spare
    assert spare.grad is not None
    assert not spare.grad.any()
    assert float(spare.detach()[0]) < 1
    torch.testing.assert_close(t.optimisers["main"].state[spare]["momentum_buffer"], velocity["spare"])


def test_a_frozen_parameter_does_not_decay(tmp_path):
    learner = Toy()
    learner.spare.requires_grad_(False)
    trainer(tmp_path, learner, **OPTIONS).fit()
    assert learner.spare.tolist() == [1, 1]


def test_clipping_bounds_the_step_and_logs_the_norm_before_it(tmp_path):
    trainer(tmp_path / "clipped", clip_norm=1e-6, momentum=0.0, weight_decay=0.0, epochs=1).fit()
    t = trainer(tmp_path / "free", momentum=0.0, weight_decay=0.0, epochs=1)
    clipped, free = rows(tmp_path / "clipped"), (t.fit(), rows(tmp_path / "free"))[1]
    assert clipped[0]["gradient_norm"] == free[0]["gradient_norm"] > 0.1
    assert abs(clipped[-1]["loss/copy"] - clipped[0]["loss/copy"]) > 0  # other batches
    moved = trainer(tmp_path / "moved", clip_norm=1e-6, momentum=0.0, weight_decay=0.0, epochs=1)
    start = everything(moved)["model/linear.0.weight"]
    moved.fit()
    assert (everything(moved)["model/linear.0.weight"] - start).norm() <= 5 * 0.05 * 1e-6 * 1.01 + 1e-7


def test_a_group_may_bring_its_own_rate_and_stay_off_the_schedule(tmp_path):
    class Groups(Toy):
        def players(self):
            fixed = {"params": [self.spare], "lr": 0.5, "fixed": True}
            return {"main": [{"params": list(self.linear.parameters())}, fixed]}

    t = trainer(tmp_path, Groups(), momentum=0.0, weight_decay=0.1, epochs=1)
    t.fit()
    lr = [group["lr"] for group in t.optimisers["main"].param_groups]
    assert lr[1] == 0.5
    assert lr[0] == pytest.approx(0.05 * 0.5 * (1 + math.cos(math.pi * 4 / 5)))
    assert t.learner.spare.tolist() == pytest.approx([(1 - 0.05) ** 5] * 2)


def test_looking_at_the_features_changes_nothing(tmp_path):
    often, never = trainer(tmp_path / "often", check_every=1), trainer(tmp_path / "never", check_every=1000)
    often.fit()
    never.fit()
    assert same(everything(often), everything(never))
    assert [k for k in rows(tmp_path / "often")[0] if "encoder" in k]
    assert not [k for k in rows(tmp_path / "never")[0] if "encoder" in k]


def test_every_term_is_logged_at_every_step(tmp_path):
    trainer(tmp_path).fit()
    logged = rows(tmp_path)
    assert all({"loss/agree", "loss/copy", "lr", "gradient_norm", "epoch"} <= row.keys() for row in logged)
    assert [row["epoch"] for row in logged] == list(itertools.chain(*([e] * 5 for e in range(4))))
    assert logged[-1]["loss/copy"] < 0.5 * logged[0]["loss/copy"]  # it learns


def test_one_wait_for_the_device_a_step(tmp_path, monkeypatch):
    waits = []
    for name in ("item", "tolist", "__bool__", "__float__", "__int__"):
        was = getattr(torch.Tensor, name)
        monkeypatch.setattr(torch.Tensor, name, lambda self, *a, n=name, was=was: (waits.append(n), was(self, *a))[1])
    t = trainer(tmp_path, epochs=1)
    t._resume()
    batches = t.source.batches(0)
    step = next(batches)
    waits.clear()
    t._one_step(*step)
    assert waits.count("tolist") == 1
    assert not [name for name in waits if name not in ("tolist",)]


def test_a_learner_with_3d_convolutions_is_put_in_channels_last(tmp_path):
    class Convolution(Toy):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv3d(2, 3, 3)

    t = trainer(tmp_path, Convolution(), epochs=1)
    assert t.learner.conv.weight.is_contiguous(memory_format=torch.channels_last_3d)


def test_a_batch_of_one_is_refused():
    with pytest.raises(ValueError, match="greater than or equal to 2"):
        TrainConfig(batch=1)


def test_steps_override_epochs(tmp_path):
    assert trainer(tmp_path, steps=7).fit().steps == 7
    assert len(rows(tmp_path)) == 7
