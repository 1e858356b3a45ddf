import math

import pytest
import torch
from siamese import Siamese
from toys import CPU, Noise, Source, Toy, new_run, rows, stop_at, trainer

from pcrl_cli.core.errors import NumericalError
from pcrl_cli.core.learner import Stored, Watched
from pcrl_cli.engine.collapse import CHECKS, CollapseWatch, measure, thresholds
from pcrl_cli.engine.trainer import TrainConfig, Trainer


def spread(n=32, c=16, seed=0):
    return torch.randn(n, c, generator=torch.Generator().manual_seed(seed))


def line(n=32, c=16):
    return torch.linspace(-1, 1, n)[:, None] * spread(1, c)


def point(n=32, c=16):
    return 5 + 1e-3 * spread(n, c)


def judged(watch, before, after=None):
    features = Watched(before, before if after is None else after)
    return watch.judge(measure({"f": features}))


# ---- thresholds


def test_the_rank_threshold_is_5_percent_of_what_the_batch_can_show_and_the_std_a_tenth_of_spread():
    assert thresholds(1000, 512) == (pytest.approx(0.05 * 512), pytest.approx(0.1 / math.sqrt(512)))
    assert thresholds(101, 512)[0] == pytest.approx(5.0)
    assert thresholds(32, 16)[0] == 2.0


@pytest.mark.parametrize("batch", [2, 3, 4, 8])
def test_two_agreeing_views_of_a_small_batch_are_no_alarm(batch):
    for seed in range(20):
        once = spread(batch, 64, seed)
        both = torch.cat([once, once + 0.01 * spread(batch, 64, seed + 100)])
        figures = measure({"f": Watched(both, both)})
        assert figures["rank/f"] >= figures["rank_min/f"]


@pytest.mark.parametrize("batch", [4, 8, 32])
def test_features_along_a_line_are_low_from_batch_4_on(batch):
    features = line(2 * batch)
    figures = measure({"f": Watched(features, features), "head": Watched(line(2 * batch), line(2 * batch))})
    assert figures["rank/f"] < figures["rank_min/f"]
    assert figures["rank_min/head"] < figures["rank_min/f"]  # a head's own features may vary along one line


# ---- counting


LOW = {
    "along a line": (line(), None),
    "at a point": (point(), None),
    "a point that a norm hides": (point(), spread()),
    "spread, but the norm's bias outgrew its scale": (spread(), 100 + spread()),
    "not a number": (spread() * math.nan, None),
}


@pytest.mark.parametrize("features", LOW.values(), ids=LOW.keys())
def test_three_low_checks_on_end_are_one_alarm(features):
    watch = CollapseWatch()
    said = [judged(watch, *features) for _ in range(CHECKS + 2)]
    assert [len(s) for s in said] == [0, 0, 1, 0, 0]
    assert "the features f have collapsed: effective rank" in said[2][0]
    assert watch.collapsed == ["f"]


def test_a_sound_check_in_between_starts_the_count_again():
    watch = CollapseWatch()
    for before in (point(), point(), spread(), point(), point()):
        assert judged(watch, before) == []
    assert judged(watch, point())
    judged(watch, spread())
    assert watch.collapsed == []


def test_features_are_counted_by_name():
    watch = CollapseWatch()
    for _ in range(CHECKS):
        alarms = watch.judge(measure({"a": Watched(spread(), spread()), "b": Watched(point(), point())}))
    assert len(alarms) == 1
    assert "features b have" in alarms[0]


# ---- training


def siamese(folder, stop_gradient, seed=0, **options):
    learner = Siamese(stop_gradient, seed)
    changes = {"epochs": 40, "lr": 0.2, "check_every": 20, "seed": seed} | options
    source = changes.pop("source", None) or Source(batch=32)
    return trainer(folder, learner, source, **changes)


@pytest.mark.parametrize("seed", [0, 1])
def test_without_stop_gradient_training_collapses_and_the_alarm_sounds(tmp_path, seed):
    outcome = siamese(tmp_path, False, seed).fit()
    assert any("the features v have collapsed" in alarm for alarm in outcome.alarms)
    assert rows(tmp_path)[-1]["loss/compare"] < -0.999  # the loss alone looks splendid


@pytest.mark.parametrize("seed", [0, 1])
def test_with_stop_gradient_it_learns_and_no_alarm_sounds(tmp_path, seed):
    outcome = siamese(tmp_path, True, seed, stop_on_collapse=True).fit()
    assert outcome.alarms == []
    assert -0.9 < rows(tmp_path)[-1]["loss/compare"] < -0.2


def test_stop_on_collapse_saves_logs_the_step_and_stops(tmp_path):
    t = siamese(tmp_path, False, stop_on_collapse=True)
    with pytest.raises(NumericalError, match=r"the features v have collapsed by step \d+: .*lower train.lr"):
        t.fit()
    assert 60 <= t.step < 200
    assert t.run.newest(pytest.fail).state["step"] == t.step
    assert rows(tmp_path)[-1]["step"] == t.step - 1
    assert "rank/v" in rows(tmp_path)[-1]


def test_the_same_command_again_does_not_train_past_a_collapse(tmp_path):
    with pytest.raises(NumericalError):
        siamese(tmp_path, False, stop_on_collapse=True).fit()
    first = rows(tmp_path)[-1]["step"]
    with pytest.raises(NumericalError):
        siamese(tmp_path, False, stop_on_collapse=True).fit()
    assert rows(tmp_path)[-1]["step"] <= first + 20


def test_a_collapse_at_the_very_end_is_still_one_when_the_command_is_repeated(tmp_path):
    class Point(Toy):
        def diagnostics(self, views):
            return {"f": Watched(point(), point())}

    for _ in range(2):
        with pytest.raises(NumericalError, match="have collapsed by step 15"):
            trainer(tmp_path, Point(), epochs=3, check_every=5, stop_on_collapse=True).fit()


def test_the_count_goes_on_in_a_resumed_run(tmp_path):
    class Point(Toy):
        def diagnostics(self, views):
            return {"f": Watched(point(), point())}

    with pytest.raises(Noise):
        trainer(tmp_path, Point(), Source(hook=stop_at(12)), check_every=5).fit()  # two low checks, saved at step 10
    outcome = trainer(tmp_path, Point(), check_every=5).fit()
    assert [alarm.split(":")[0] for alarm in outcome.alarms] == ["step 15"]


# ---- the method itself


def pcrlv2(folder, stop_gradient, steps, lr=0.05, batch=4):
    """A width-4 PCRLv2 on smooth random images, two noisy views of each, compared at both scales, nothing restored."""
    from pcrl_cli.methods.pcrlv2 import Config, PCRLv2

    config = Config(
        width=4, poolings=2, crop="none", restore_scales=(), stop_gradient=stop_gradient, augment={"swap_count": 4}
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        learner = PCRLv2(config, Stored(3, 1, (1 / 2000, 0.5)))

    class Blobs(Source):
        def batches(self, step):
            while True:
                generator = torch.Generator().manual_seed(step % 8)
                coarse = torch.randn(self.batch_size, 1, 4, 4, 2, generator=generator)
                smooth = torch.nn.functional.interpolate(coarse, size=(16, 16, 8), mode="trilinear")[:, None]
                x = (smooth + 0.5 * torch.randn(self.batch_size, 2, 1, 16, 16, 8, generator=generator)) * 300
                yield step * self.batch_size + torch.arange(self.batch_size), {"globals": x.to(torch.int16)}
                step += 1

    settings = TrainConfig(steps=steps, batch=batch, lr=lr, check_every=10, schedule="constant")
    return Trainer(learner, Blobs(8, batch), settings, new_run(folder), device=CPU, metadata=lambda step: {})


def test_pcrlv2_is_watched_at_the_encoder_and_every_compared_scale(tmp_path):
    pcrlv2(tmp_path, True, 2).fit()
    last = rows(tmp_path)[-1]
    for name in ("encoder", "v1", "v2"):
        assert {f"rank/{name}", f"std/{name}", f"rank_min/{name}", f"std_min/{name}"} <= last.keys()


@pytest.mark.slow
def test_pcrlv2_without_stop_gradient_collapses_and_with_it_does_not(tmp_path):
    collapsed = pcrlv2(tmp_path / "off", False, 400, batch=8).fit()
    healthy = pcrlv2(tmp_path / "on", True, 400, batch=8).fit()
    assert any("v1" in alarm or "v2" in alarm for alarm in collapsed.alarms)
    assert healthy.alarms == []
