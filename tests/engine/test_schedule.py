import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pcrl_cli.engine.schedule import factor
from pcrl_cli.engine.trainer import TrainConfig

SCHEDULES = ("cosine", "cosine_epoch", "halving", "steps", "constant")


def test_cosine_starts_at_1_is_half_in_the_middle_and_ends_at_0():
    assert factor("cosine", 0, 100, 0, 10) == 1
    assert factor("cosine", 50, 100, 0, 10) == pytest.approx(0.5)
    assert factor("cosine", 99, 100, 0, 10) == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.99)))
    assert factor("cosine", 100, 100, 0, 10) == 0


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_warm_up_is_linear_to_1_and_the_schedule_fills_the_rest(schedule):
    f = [factor(schedule, s, 100, 4, 10, halve_every=5) for s in range(100)]
    assert f[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    if schedule == "cosine":
        assert f[52] == pytest.approx(0.5)
        assert factor(schedule, 100, 100, 4, 10) == pytest.approx(0, abs=1e-12)


def test_cosine_epoch_changes_at_epochs_and_only_there():
    for warmup in (0, 4):
        f = [factor("cosine_epoch", s, 100, warmup, 10) for s in range(warmup, 100)]
        changes = [s for s in range(warmup + 1, 100) if f[s - warmup] != f[s - warmup - 1]]
        assert changes == list(range(10, 100, 10))
    assert factor("cosine_epoch", 35, 100, 0, 10) == factor("cosine", 30, 100, 0, 10)


def test_halving_is_the_released_fine_tuning():
    f = [factor("halving", s, 1000, 0, 10, halve_every=50) for s in range(1000)]
    assert (f[0], f[499], f[500], f[999]) == (1, 1, 0.5, 0.5)
    assert factor("halving", 1000, 2000, 0, 10, halve_every=50) == 0.25


def test_steps_divide_by_ten_from_each_named_epoch_on():
    f = [factor("steps", s, 120, 0, 1, step_epochs=(60, 80, 100)) for s in range(120)]
    assert [f[s] for s in (0, 59, 60, 79, 80, 100, 119)] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.001, 0.001])
    assert factor("steps", 119, 240, 0, 2, step_epochs=(60,)) == 1


def test_constant_is_1():
    assert {factor("constant", s, 100, 0, 10) for s in range(100)} == {1.0}


@given(st.sampled_from(SCHEDULES), st.integers(1, 500), st.integers(0, 60), st.integers(1, 50), st.data())
def test_no_schedule_leaves_0_to_1(schedule, steps, warmup, per_epoch, data):
    step = data.draw(st.integers(0, steps - 1))
    assert 0 <= factor(schedule, step, steps, min(warmup, steps // 10), per_epoch) <= 1


def test_warm_up_is_at_most_a_tenth_of_the_run():
    config = TrainConfig(warmup_steps=100)
    assert (config.warmup(10_000), config.warmup(200), config.warmup(5)) == (100, 20, 0)
