"""Steps whose numbers are fetched later: the same training, and the same promise when a number is not finite."""

import math

import pytest
import torch
from safetensors.torch import load_file
from test_train_finite import CASES, BadGradient, at_step_7
from torch import nn
from toys import Game, Noise, Source, Toy, digests, everything, losses, rows, same, stop_at, trainer

from pcrl_cli.core.errors import NumericalError, Preempted
from pcrl_cli.engine import trainer as engine


def blind(folder, *args, n=4, **options):
    return trainer(folder, *args, log_every=n, **options)


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
@pytest.mark.parametrize("n", [2, 3, 50])
def test_looking_every_n_steps_trains_what_looking_at_each_does(tmp_path, n, optimiser):
    a, b = (blind(tmp_path / str(k), n=k, optimiser=optimiser, clip_norm=0.5) for k in (1, n))
    a.optimisers = engine.make_optimisers(a.learner, a.config, fused=True)  # the same kernel
    a.fit()
    b.fit()
    assert same(everything(a), everything(b))
    assert losses(tmp_path / "1") == losses(tmp_path / str(n))


def fails_at_7(t, message):
    """All of a trainer before step 7, and the steps whose batches were asked for, of a training that ends with this."""
    kept, asked = {}, []

    def hook(step):
        asked.append(step)
        if step == 7:
            kept.update(everything(t))

    t.source.hook = hook
    with pytest.raises(NumericalError, match=message):
        t.fit()
    return kept, asked


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_a_number_that_is_not_finite_changes_nothing_though_it_is_seen_later(tmp_path, case, optimiser):
    t = blind(tmp_path, *case(), optimiser=optimiser, clip_norm=1.0, n=5, epochs=9)
    t.source.steps_per_epoch = t.per_epoch = 20  # steps 5..9 are fetched together, after step 9
    t.steps = 20
    kept, asked = fails_at_7(t, "is not finite at step 7: no weight was changed and the batch is kept in")
    assert asked[-1] == 9
    assert kept
    assert same(everything(t), kept)
    assert t.run.newest(pytest.fail).state["step"] == 7
    assert [row["step"] for row in rows(tmp_path)] == list(range(7))
    captured = tmp_path / "captures/step_000007/batch.safetensors"
    assert captured.exists()


def test_the_run_goes_on_from_before_the_bad_step(tmp_path):
    learner = at_step_7(math.nan)
    with pytest.raises(NumericalError):
        blind(tmp_path / "a", learner).fit()
    blind(tmp_path / "a").fit()  # the cause is mended
    blind(tmp_path / "b").fit()
    assert digests(tmp_path / "a") == digests(tmp_path / "b")


def test_what_after_step_moves_is_put_back_too(tmp_path):
    class Momentum(Toy):
        def __init__(self):
            super().__init__()
            self.copy = nn.Parameter(torch.zeros(3), requires_grad=False)
            self.register_buffer("queue", torch.zeros(2))

        def losses(self, views, progress, player="main"):
            self.queue = self.queue + 1
            return super().losses(views, progress, player)

        def after_step(self, progress):
            super().after_step(progress)
            self.copy += 1

    learner = Momentum()
    learner.poison = at_step_7(math.nan).poison
    with pytest.raises(NumericalError):
        blind(tmp_path, learner, n=4).fit()
    assert learner.copy.tolist() == [7, 7, 7]
    assert learner.queue.tolist() == [7, 7]
    assert int(learner.seen) == 7


def test_a_large_loss_is_skipped_by_the_device(tmp_path):
    def make(folder, n):
        learner = Toy()
        learner.poison = lambda step, terms: {k: v * 0 + 1e4 if step in (20, 22) else v for k, v in terms.items()}
        t = blind(folder, learner, Source(per_epoch=2), epochs=14, skip_loss_above=100.0, n=n)
        t.optimisers = engine.make_optimisers(t.learner, t.config, fused=True)
        t.fit()
        return t

    a, b = make(tmp_path / "a", 1), make(tmp_path / "b", 2)
    assert same(everything(a), everything(b))
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    assert [row["step"] for row in rows(tmp_path / "b") if row.get("skipped")] == [20, 22]


class Rivals(Game):
    """A game in which `spoil(step, player, terms)` may change the terms of either; `seen` and a weight follow its steps."""

    def __init__(self, spoil=lambda step, player, terms: terms):
        super().__init__()
        self.spoil, self.follower = spoil, nn.Parameter(torch.zeros(3), requires_grad=False)

    def losses(self, views, progress, player="main"):
        return self.spoil(progress.step, player, super().losses(views, progress, player))

    def after_step(self, progress):
        super().after_step(progress)
        self.follower += self.linear[2].bias.detach()


def times(factor, who, *steps):
    """A spoiler: all terms of one player times a factor in these steps."""

    def spoil(step, player, terms):
        return {k: v * factor for k, v in terms.items()} if player == who and step in steps else terms

    return spoil


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
@pytest.mark.parametrize("n", [2, 50])
def test_two_players_who_are_looked_at_every_n_steps_play_the_same_game(tmp_path, n, optimiser):
    a, b = (blind(tmp_path / str(k), Rivals(), n=k, optimiser=optimiser, clip_norm=0.5) for k in (1, n))
    a.optimisers = engine.make_optimisers(a.learner, a.config, fused=True)
    a.fit()
    assert not b._may_be_blind()  # their states are made by the first step
    b.fit()
    assert b._may_be_blind()
    assert same(everything(a), everything(b))
    assert losses(tmp_path / "1") == losses(tmp_path / str(n))
    assert {"loss/first/game", "loss/second/game", "second/gradient_norm"} <= rows(tmp_path / str(n))[-1].keys()


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
@pytest.mark.parametrize("who", ["first", "second"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_neither_player_moves_where_the_numbers_of_one_are_not_finite(tmp_path, who, value, optimiser):
    t = blind(tmp_path, Rivals(times(value, who, 7)), Source(per_epoch=20), optimiser=optimiser, n=5, steps=20)
    kept, asked = fails_at_7(t, r"^game is not finite at step 7: no weight was changed")
    assert asked[-1] == 9
    assert same(everything(t), kept)
    assert t.run.newest(pytest.fail).state["step"] == 7
    assert [row["step"] for row in rows(tmp_path)] == list(range(7))
    captured = load_file(tmp_path / "captures/step_000007/batch.safetensors")
    assert captured["positions"].tolist() == list(range(56, 64))


@pytest.mark.parametrize("who", ["first", "second"])
def test_a_large_loss_of_either_player_is_skipped_by_the_device(tmp_path, who):
    def make(folder, n):
        learner = Rivals(
            lambda step, player, terms: {k: v + 1e4 for k, v in terms.items()} if (step, player) in at else terms
        )
        t = blind(folder, learner, Source(per_epoch=2), epochs=14, skip_loss_above=100.0, n=n)
        t.optimisers = engine.make_optimisers(t.learner, t.config, fused=True)
        t.fit()
        return t

    at = {(20, who), (22, who)}
    a, b = make(tmp_path / "a", 1), make(tmp_path / "b", 2)
    assert same(everything(a), everything(b))
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    skipped = [row for row in rows(tmp_path / "b") if row.get("skipped")]
    assert [row["step"] for row in skipped] == [20, 22]
    assert all(("loss/second/game" in row) == (who == "second") for row in skipped)


@pytest.mark.parametrize("n", [1, 2])
def test_nobody_asks_the_second_player_in_a_step_that_the_first_one_skips(tmp_path, n):
    def spoil(step, player, terms):
        return {k: v + (1e4 if player == "first" else math.nan) for k, v in terms.items()} if step == 20 else terms

    t = blind(tmp_path, Rivals(spoil), Source(per_epoch=2), epochs=14, skip_loss_above=100.0, n=n)
    t.fit()
    assert [row["step"] for row in rows(tmp_path) if row.get("skipped")] == [20]
    assert all(v.isfinite().all() for v in everything(t).values())


@pytest.mark.parametrize("make", [BadGradient, Rivals])
def test_no_wait_for_the_device_between_two_looks(tmp_path, monkeypatch, make):
    waits = []
    for name in ("item", "tolist", "__bool__", "__float__", "__int__", "numpy"):
        was = getattr(torch.Tensor, name)
        monkeypatch.setattr(torch.Tensor, name, lambda self, *a, n=name, was=was: (waits.append(n), was(self, *a))[1])
    t = blind(tmp_path, make(), n=4)
    batches = t.source.batches(0)
    t._one_step(*next(batches))
    waits.clear()
    for _ in range(3):
        t._blind_step(*next(batches))
    assert waits == []
    assert len(t._known()) == 3
    assert waits == ["tolist"]


def test_a_signal_is_heard_at_once_and_the_steps_before_it_are_kept(tmp_path):
    t = blind(tmp_path / "a", n=50)

    def hook(step):
        t.stop.on = t.stop.on or step == 7

    t.source.hook = hook
    with pytest.raises(Preempted, match="at step 8"):
        t.fit()
    blind(tmp_path / "a", n=50).fit()
    blind(tmp_path / "b", n=50).fit()
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    assert losses(tmp_path / "a") == losses(tmp_path / "b")


def test_rows_of_one_look_share_their_rate_and_wait(tmp_path):
    blind(tmp_path, n=5).fit()
    logged = rows(tmp_path)
    assert [row["step"] for row in logged] == list(range(20))
    for first in (5, 10, 15):
        assert len({row["samples_per_second"] for row in logged[first : first + 5]}) == 1
    assert all(0 <= row["data_wait"] <= 1 for row in logged)


def test_a_broken_run_resumes_exactly(tmp_path):
    with pytest.raises(Noise):
        blind(tmp_path / "a", Toy(), Source(hook=stop_at(12)), n=3).fit()
    blind(tmp_path / "a", n=3).fit()
    blind(tmp_path / "b", n=3).fit()
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
