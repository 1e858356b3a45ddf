"""A step that was not finite shows, when it is done again, which number was the first."""

import math

import pytest
import torch
from test_train_finite import BadGradient, PoisonedSource, at_step_7
from toys import Game, Source, Toy, same, trainer

from pcrl_cli.core.errors import NumericalError
from pcrl_cli.engine.replay import replay_step
from pcrl_cli.engine.run import unseal, unseal_capture


def captured(folder, learner, source=None):
    """The batch, the state and the weights of the step that failed."""
    with pytest.raises(NumericalError):
        trainer(folder, learner, source or Source()).fit()
    batch, state = unseal_capture(next((folder / "captures").iterdir()))
    return batch, state, unseal(folder / "checkpoints" / f"step_{state['step']:06d}").model


def again(learner, batch, state, weights):
    learner.load_state_dict(weights)
    return replay_step(learner, batch, state["seed"], state["step"], state["steps"], "fp32")


def kinds(done):
    return [f.kind for f in done.findings]


def test_a_nan_in_the_data_is_found_in_the_batch(tmp_path):
    done = again(Toy(), *captured(tmp_path, Toy(), PoisonedSource()))
    assert str(done.first) == "batch x (1 of 48 values)"
    assert kinds(done)[:4] == ["batch", "view", "view", "view"]
    assert math.isnan(done.terms["main"]["agree"])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_is_named_when_all_before_it_is_finite(tmp_path, value):
    batch, state, weights = captured(tmp_path, at_step_7(value))
    done = again(at_step_7(value), batch, state, weights)
    assert str(done.first) == "loss agree (1 of 1 values)"
    assert repr(done.terms["main"]["agree"]) == state["terms"]["agree"]
    assert done.terms["main"]["copy"] == pytest.approx(float(state["terms"]["copy"]))


def test_a_gradient_of_finite_losses_is_named(tmp_path):
    done = again(BadGradient(), *captured(tmp_path, BadGradient()))
    assert kinds(done) == ["gradient"]
    assert str(done.first) == "gradient linear.2.bias (3 of 3 values)"
    assert math.isnan(done.gradient_norm["main"])


def test_a_weight_is_named_before_all_that_follows_from_it(tmp_path):
    def broken():
        learner = Toy()
        learner.linear[0].weight.data[1, 2] = torch.nan
        return learner

    done = again(Toy(), *captured(tmp_path, broken()))
    assert str(done.first) == "weight linear.0.weight (1 of 24 values)"
    assert "module" in kinds(done)


def test_the_first_module_whose_output_overflows_is_named(tmp_path):
    def huge():
        learner = Toy(norm=False)
        learner.linear[0].weight.data.fill_(3e38)
        return learner

    done = again(Toy(norm=False), *captured(tmp_path, huge()))
    assert done.first.kind == "module"
    assert done.first.name == "linear.0"
    assert any(f.kind == "gradient" for f in done.findings)


def test_a_sound_step_shows_nothing_and_moves_nothing():
    learner = Toy()
    t = everything_of(learner)
    batch = {"x": torch.randn(4, 6), "positions": torch.arange(4)}
    done = replay_step(learner, batch, 0, 3, 10, "fp32")
    assert done.findings == []
    assert done.first is None
    assert same({k: v for k, v in everything_of(learner).items() if "num" not in k and "running" not in k},
                {k: v for k, v in t.items() if "num" not in k and "running" not in k})  # fmt: skip
    assert not any(m._forward_hooks for m in learner.modules())


def test_every_player_is_looked_at():
    learner = Game()
    learner.poison = lambda step, terms: {k: v * math.nan for k, v in terms.items()}
    done = replay_step(learner, {"x": torch.randn(4, 6), "positions": torch.arange(4)}, 0, 3, 10, "fp32")
    assert done.terms["first"]["game"] > 0
    assert math.isnan(done.terms["second"]["game"])
    assert str(done.first) == "loss game (1 of 1 values)"


def everything_of(learner):
    return {k: v.clone() for k, v in learner.state_dict().items()}
