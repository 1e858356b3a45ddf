"""No step waits for the GPU, mixes devices or copies numbers to it: every Learner on a device that is not there."""

from contextlib import nullcontext
from importlib import import_module

import pytest
import torch
from device import DEVICE, Wait, no_waiting
from test_learners import CASES, batch_of, build, views_at
from toys import Source, config, new_run

from pcrl_cli.core.constants import constant
from pcrl_cli.core.learner import Progress
from pcrl_cli.engine.layout import arrange
from pcrl_cli.engine.trainer import Trainer, fill_gradients

every = pytest.mark.parametrize("case", CASES, ids=lambda c: "-".join(filter(None, c[1:])))

STEPS = {
    "asks for a number": lambda x: x.sum().item(),
    "asks whether": lambda x: bool(x.sum() > 0),
    "hears numbers": lambda x: x.tolist(),
    "goes to the host": lambda x: x.cpu(),
    "looks up where": lambda x: x.nonzero(),
    "takes by a mask": lambda x: x[x > 0],
    "writes by a mask": lambda x: x.__setitem__(x > 0, torch.ones(2)),
    "copies a tensor": lambda x: torch.ones(2).to(x.device),
    "copies into": lambda x: x.copy_(torch.ones(2)),
    "copies numbers": lambda x: torch.tensor([1.0], device=x.device),
    "copies new numbers": lambda x: x.new_tensor([1.0]),
    "takes by an index of the host": lambda x: x[torch.tensor([0])],
    "mixes devices": lambda x: x + torch.ones(2),
    "repeats as often as the device says": lambda x: x.repeat_interleave(torch.ones(2, device=x.device).long()),
}


@pytest.fixture
def device(monkeypatch):
    """The device, with autocast that does nothing and the optimisers' fused kernels, as CUDA has them."""
    was = torch.autocast
    monkeypatch.setattr(
        torch, "autocast", lambda kind, *a, **k: nullcontext() if kind == "meta" else was(kind, *a, **k)
    )
    monkeypatch.setattr(
        import_module("torch.optim.optimizer"), "_get_fused_kernels_supported_devices", lambda: ["meta", "cpu"]
    )
    return DEVICE


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_every_way_to_wait_is_noticed(step, device):
    with no_waiting(), pytest.raises((Wait, RuntimeError, NotImplementedError)):
        step(torch.ones(2, device=device))


def test_what_does_not_wait_is_let_through(device):
    with no_waiting():
        x = torch.rand(3, 2, device=device, requires_grad=True)
        y = x[:, 0][torch.arange(3, device=device)] * 2 + torch.ones(())
        y.where(y > 0, 0.0).sum().backward()
        assert constant((1, 2), torch.device("cpu")).tolist() == [1, 2]
        assert torch.rand(2).sum().item() >= 0  # the host's own numbers


def on_device(case, folder, device):
    """A trainer of the learner on the device, and the positions and the batch of a step."""
    t = Trainer(build(case), Source(), config(log_every=10), new_run(folder), device=device, metadata=lambda step: {})
    return t, torch.empty(4, dtype=torch.int64, device=device), {k: v.to(device) for k, v in batch_of(case).items()}


@every
def test_a_step_never_waits_for_the_device(case, tmp_path, device):
    t, positions, batch = on_device(case, tmp_path, device)
    t._begin(positions, batch)  # constants are copied once
    with no_waiting():
        for _ in range(2):  # the first makes the optimisers' states
            t._blind_step(positions, batch)
        with pytest.raises(NotImplementedError, match="meta"):
            t._known()  # the wait
    assert t._may_be_blind()


@every
def test_gradients_lie_in_memory_as_their_parameters(case):
    """The fused optimisers go through both by address, and say nothing where the layouts differ."""
    learner = arrange(build(case), torch.device("cpu")).train()
    views = views_at(learner, batch_of(case))
    for player in learner.players():
        torch.stack([*learner.losses(views, Progress(0, 10), player).values()]).sum().backward()
    fill_gradients(list(learner.parameters()))
    for name, p in learner.named_parameters():
        axes = [axis for axis, n in enumerate(p.shape) if n > 1]  # the others' strides say nothing
        assert [p.grad.stride(axis) for axis in axes] == [p.stride(axis) for axis in axes], name
