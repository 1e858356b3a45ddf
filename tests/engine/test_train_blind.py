"""Steps whose numbers are fetched later: the same training, and the same promise when a number is not finite."""

import math

import pytest
import torch
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


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_a_number_that_is_not_finite_changes_nothing_though_it_is_seen_later(tmp_path, case, optimiser):
    t = blind(tmp_path, *case(), optimiser=optimiser, clip_norm=1.0, n=5, epochs=9)
    t.source.steps_per_epoch = t.per_epoch = 20  # steps 5..9 are fetched together, after step 9
    t.steps = 20
    kept, asked = {}, []

    def hook(step):
        asked.append(step)
        if step == 7:
            kept.update(everything(t))

    t.source.hook = hook
    with pytest.raises(NumericalError, match="is not finite at step 7: no weight was changed and the batch is kept in"):
        t.fit()
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


def test_several_players_are_looked_at_every_step(tmp_path):
    t = blind(tmp_path, Game(), n=5)
    assert not t._may_be_blind()
    t.fit()
    assert not t._may_be_blind()


def test_no_wait_for_the_device_between_two_looks(tmp_path, monkeypatch):
    waits = []
    for name in ("item", "tolist", "__bool__", "__float__", "__int__", "numpy"):
        was = getattr(torch.Tensor, name)
        monkeypatch.setattr(torch.Tensor, name, lambda self, *a, n=name, was=was: (waits.append(n), was(self, *a))[1])
    t = blind(tmp_path, BadGradient(), n=4)
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
