import json
import math

import pytest
import torch
from safetensors.torch import load_file
from toys import Game, Source, Toy, everything, rows, same, trainer

from pcrl_cli.core.errors import NumericalError
from pcrl_cli.core.files import read_json


class Root(torch.autograd.Function):
    """1 in the forward pass, and a gradient that is not finite."""

    @staticmethod
    def forward(ctx, x):
        return x.sum() * 0 + 1

    @staticmethod
    def backward(ctx, g):
        return torch.full((3,), torch.nan)


class BadGradient(Toy):
    def losses(self, views, progress, player="main"):
        terms = super().losses(views, progress, player)
        if progress.step == 7:
            terms["odd"] = Root.apply(self.linear[2].bias)
        return terms


def at_step_7(value):
    def poison(step, terms):
        return terms | {"agree": terms["agree"] * value} if step == 7 else terms

    learner = Toy()
    learner.poison = poison
    return learner


class PoisonedSource(Source):
    """One NaN in one number of one sample."""

    def batches(self, step):
        for positions, batch in super().batches(step):
            if int(positions[0]) // self.batch_size == 7:
                batch["x"][3, 2] = torch.nan
            yield positions, batch


CASES = {
    "NaN loss": lambda: (at_step_7(math.nan), Source()),
    "infinite loss": lambda: (at_step_7(math.inf), Source()),
    "NaN gradient of a finite loss": lambda: (BadGradient(), Source()),
    "NaN in the data": lambda: (Toy(), PoisonedSource()),
}


def before_step(t, at):
    """Everything as it was when the batch of that step was asked for."""
    kept = {}
    t.source.hook = lambda step: kept.update(everything(t)) if step == at else None
    return kept


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_a_number_that_is_not_finite_changes_nothing_and_stops(tmp_path, case, optimiser):
    t = trainer(tmp_path, *case(), optimiser=optimiser, clip_norm=1.0)
    kept = before_step(t, 7)
    with pytest.raises(NumericalError, match="is not finite at step 7: no weight was changed and the batch is kept in"):
        t.fit()
    assert kept
    assert same(everything(t), kept)
    assert t.run.newest(pytest.fail).state["step"] == 7
    assert [row["step"] for row in rows(tmp_path)] == list(range(7))  # all valid JSON


def test_the_message_names_the_term(tmp_path):
    with pytest.raises(NumericalError, match=r"^agree is not finite"):
        trainer(tmp_path / "a", at_step_7(math.nan)).fit()
    with pytest.raises(NumericalError, match=r"^the gradient is not finite"):
        trainer(tmp_path / "b", BadGradient()).fit()


def test_the_batch_of_the_step_is_kept_with_its_positions_and_terms(tmp_path):
    with pytest.raises(NumericalError):
        trainer(tmp_path, Toy(), PoisonedSource()).fit()
    folder = tmp_path / "captures" / "step_000007"
    batch = load_file(folder / "batch.safetensors")
    assert batch["positions"].tolist() == list(range(56, 64))
    assert torch.isnan(batch["x"]).nonzero().tolist() == [[3, 2]]
    state = read_json(folder / "state.json")
    assert state["step"] == 7
    assert state["terms"]["agree"] == "nan"


def test_the_first_step_can_fail_too(tmp_path):
    learner = Toy()
    learner.poison = lambda step, terms: {k: v * math.nan for k, v in terms.items()}
    t = trainer(tmp_path, learner)
    kept = everything(t)
    with pytest.raises(NumericalError):
        t.fit()
    assert same(everything(t), kept)


def test_the_same_command_again_fails_again_at_the_same_step(tmp_path):
    for _ in range(2):
        with pytest.raises(NumericalError, match="at step 7"):
            trainer(tmp_path, at_step_7(math.nan)).fit()


def test_a_buffer_that_the_step_replaces_is_put_back(tmp_path):
    class Queue(Toy):
        def __init__(self):
            super().__init__()
            self.register_buffer("queue", torch.zeros(2))

        def losses(self, views, progress, player="main"):
            self.queue = self.queue + 1
            return super().losses(views, progress, player)

    learner = Queue()
    learner.poison = lambda step, terms: {k: v * (math.nan if step == 2 else 1) for k, v in terms.items()}
    with pytest.raises(NumericalError):
        trainer(tmp_path, learner).fit()
    assert learner.queue.tolist() == [2, 2]


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
@pytest.mark.parametrize("at", [0, 7])
def test_when_the_second_player_fails_the_first_one_has_not_moved(tmp_path, optimiser, at):
    learner = Game()
    learner.poison = lambda step, terms: {k: v * (math.nan if step == at else 1) for k, v in terms.items()}
    t = trainer(tmp_path, learner, optimiser=optimiser)
    kept = before_step(t, at)
    with pytest.raises(NumericalError):
        t.fit()
    assert same(everything(t), kept)


def test_two_players_have_optimisers_of_their_own_and_move_only_their_weights(tmp_path):
    t = trainer(tmp_path, Game(), epochs=1)
    assert set(t.optimisers) == {"first", "second"}
    before = everything(t)
    t.fit()
    after = everything(t)
    assert not torch.equal(before["model/critic.weight"], after["model/critic.weight"])
    assert not torch.equal(before["model/linear.0.weight"], after["model/linear.0.weight"])
    assert torch.equal(before["model/spare"], after["model/spare"])  # nobody's
    assert {"loss/first/game", "loss/second/game"} <= rows(tmp_path)[0].keys()


def skipping(tmp_path, learner, **options):
    return trainer(tmp_path, learner, Source(per_epoch=2), epochs=14, skip_loss_above=100.0, **options)


@pytest.mark.parametrize("make", [Toy, Game])
def test_a_large_loss_is_skipped_after_epoch_10_and_changes_nothing(tmp_path, make):
    learner = make()
    learner.poison = lambda step, terms: {k: v * 0 + 1e4 if step == 20 else v for k, v in terms.items()}
    t = skipping(tmp_path, learner)
    states = {}
    t.source.hook = lambda step: states.update({step: everything(t)})
    t.fit()
    assert same(states[20], states[21])
    assert not same(states[19], states[20])
    assert [row["step"] for row in rows(tmp_path) if row.get("skipped")] == [20]


def test_a_large_loss_before_epoch_10_is_an_ordinary_step(tmp_path):
    learner = Toy()
    learner.poison = lambda step, terms: {k: v + 1e4 if step == 19 else v for k, v in terms.items()}
    t = skipping(tmp_path, learner)
    states = {}
    t.source.hook = lambda step: states.update({step: everything(t)})
    t.fit()
    assert not same(states[19], states[20])
    assert not any(row.get("skipped") for row in rows(tmp_path))


def test_nan_does_not_pass_as_a_large_loss(tmp_path):
    learner = Toy()
    learner.poison = lambda step, terms: {k: v * (math.nan if step == 25 else 1) for k, v in terms.items()}
    with pytest.raises(NumericalError, match="at step 25"):
        skipping(tmp_path, learner).fit()


def test_figures_without_a_value_are_null_in_the_metrics(tmp_path):
    trainer(tmp_path, validate=lambda learner, step: {"auroc": None, "other": math.nan}, epochs=1).fit()
    text = (tmp_path / "metrics.jsonl").read_text("utf-8")
    assert "NaN" not in text
    last = json.loads(text.splitlines()[-1])
    assert last["auroc"] is None
    assert last["other"] is None
