"""The engine with the real method, at width 2 on a few voxels."""

import os
import signal

import pytest
import torch
from toys import CPU, Source, digests, everything, losses, new_run, rows, same

from pcrl_cli.core.errors import NumericalError, Preempted
from pcrl_cli.core.learner import Stored
from pcrl_cli.engine.trainer import TrainConfig, Trainer
from pcrl_cli.methods.pcrlv2 import Config, PCRLv2


class Crops(Source):
    """Pairs of 16x16x8 and four locals of 8x8x8, as the cache stores them; one voxel of one step may be NaN."""

    nan_at: int | None = None

    def batches(self, step):
        for positions, _ in super().batches(step):
            now = int(positions[0]) // self.batch_size
            generator = torch.Generator().manual_seed(now)
            shapes = {"globals": (2, 1, 16, 16, 8), "locals_sub": (4, 1, 8, 8, 8)}
            batch = {k: torch.randn(self.batch_size, *s, generator=generator) * 300 for k, s in shapes.items()}
            if now == self.nan_at:
                batch["globals"][1, 0, 0, 3, 4, 5] = torch.nan
            yield positions, batch


def train(folder, hook=None, nan_at=None, precision="auto"):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        learner = PCRLv2(Config(width=2, poolings=2, augment={"swap_count": 4}), Stored(3, 1, (1 / 2000, 0.5)))
    source = Crops(3, 4, hook)
    source.nan_at = nan_at
    config = TrainConfig(epochs=2, batch=4, lr=0.01, check_every=2, precision=precision)
    return Trainer(learner, source, config, new_run(folder), device=CPU, metadata=lambda step: {})


def test_pcrlv2_resumes_exactly_twice_in_one_epoch(tmp_path):
    train(tmp_path / "whole").fit()
    for at in (0, 1):
        with pytest.raises(Preempted):
            train(
                tmp_path / "parts", lambda step, at=at: os.kill(os.getpid(), signal.SIGTERM) if step == at else None
            ).fit()
    train(tmp_path / "parts").fit()
    assert digests(tmp_path / "parts") == digests(tmp_path / "whole")
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    assert {"loss/restore", "loss/compare", "loss/local"} <= rows(tmp_path / "whole")[0].keys()


def test_nan_in_one_voxel_leaves_pcrlv2_as_it_was(tmp_path):
    kept = {}
    t = train(tmp_path, lambda step: kept.update(everything(t)) if step == 4 else None, nan_at=4)
    with pytest.raises(NumericalError, match="at step 4: no weight was changed"):
        t.fit()
    assert any("running_var" in name for name in kept)
    assert same(everything(t), kept)


def test_bf16_on_a_cpu_is_asked_for_and_resumes_exactly(tmp_path):
    assert train(tmp_path / "auto").precision == "fp32"
    train(tmp_path / "fp32").fit()
    train(tmp_path / "whole", precision="bf16").fit()
    with pytest.raises(Preempted):
        train(
            tmp_path / "parts",
            lambda step: os.kill(os.getpid(), signal.SIGTERM) if step == 3 else None,
            precision="bf16",
        ).fit()
    train(tmp_path / "parts", precision="bf16").fit()
    assert digests(tmp_path / "parts") == digests(tmp_path / "whole")
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    first, exact = rows(tmp_path / "whole")[0]["loss/restore"], rows(tmp_path / "fp32")[0]["loss/restore"]
    assert first != exact
    assert first == pytest.approx(exact, rel=0.05)


@pytest.mark.parametrize("size", [(4, 4, 2), (2, 2, 2), (2, 2, 1), (1, 1, 1)])
def test_float32_gradients_of_small_convolutions_are_right_whatever_lay_in_memory(size):
    """What fails in bfloat16 on a CPU (torch 2.13), at the sizes of F_0."""
    torch.manual_seed(0)
    conv = torch.nn.Conv3d(16, 32, 3, padding=1)
    exact = torch.nn.Conv3d(16, 32, 3, padding=1).double()
    exact.load_state_dict(conv.state_dict())
    for _ in range(5):
        x = torch.randn(8, 16, *size)
        junk = [torch.full((n,), torch.nan) for n in (64, 1000, 13824, 30000) for _ in range(10)]
        del junk
        conv.zero_grad()
        exact.zero_grad()
        y = conv(x)
        g = torch.randn_like(y)
        y.backward(g)
        exact(x.double()).backward(g.double())
        torch.testing.assert_close(conv.weight.grad.double(), exact.weight.grad, rtol=1e-4, atol=1e-4)
