"""Float32 is float32: no TF32 behind it, and no autocast round what chooses the epoch."""

from contextlib import suppress

import pytest
import torch
from toys import Toy, trainer

from pcrl_cli.engine.tf32 import tf32


def flags() -> tuple[bool, bool]:
    return torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32


@pytest.fixture
def _on():
    with tf32(True):
        yield


@pytest.mark.usefixtures("_on")
def test_training_turns_tf32_off_and_puts_the_flags_back(tmp_path):
    learner, seen = Toy(), []
    learner.poison = lambda step, terms: (seen.append(flags()), terms)[1]
    trainer(tmp_path, learner, epochs=1, validate=lambda learner, step: seen.append(flags()) or {}).fit()
    assert set(seen) == {(False, False)}
    assert len(seen) == 6
    assert flags() == (True, True)


@pytest.mark.usefixtures("_on")
def test_the_flags_come_back_after_an_error():
    with suppress(ZeroDivisionError), tf32(False):
        assert flags() == (False, False)
        raise ZeroDivisionError
    assert flags() == (True, True)


def test_validation_runs_without_autocast(tmp_path):
    learner, cast, kinds = Toy(), [], []
    learner.poison = lambda step, terms: (cast.append(torch.is_autocast_enabled("cpu")), terms)[1]

    def validate(learner, step):
        kinds.append((torch.is_autocast_enabled("cpu"), learner.linear(torch.ones(2, 6)).dtype, learner.training))
        return {"auroc": 0.5}

    t = trainer(tmp_path, learner, epochs=2, validate=validate)
    t.precision = "bf16"  # refused from outside on a CPU
    t.fit()
    assert cast == [True] * 10
    assert kinds == [(False, torch.float32, False)] * 2
