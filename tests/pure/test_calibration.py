"""The numbers of a reliability diagram, against loops."""

import numpy as np
import pytest

from pcrl_cli.pure.calibration import calibration


def test_bins_and_the_expected_error_are_those_of_plain_loops():
    rng = np.random.default_rng(0)
    p = rng.random(500)
    y = (rng.random(500) < p**2).astype(np.int8)
    ours, ece = calibration(y, p, bins=5), 0.0
    for b in range(5):
        rows = [i for i in range(500) if b / 5 <= p[i] < (b + 1) / 5]
        assert ours.count[b] == len(rows)
        assert ours.predicted[b] == pytest.approx(p[rows].mean())
        assert ours.observed[b] == pytest.approx(y[rows].mean())
        ece += len(rows) / 500 * abs(p[rows].mean() - y[rows].mean())
    assert ours.ece == pytest.approx(ece)
    assert ours.brier == pytest.approx(np.mean((p - y) ** 2))


def test_probabilities_that_mean_what_they_say_have_a_small_error_and_sure_mistakes_an_error_of_1():
    rng = np.random.default_rng(1)
    p = rng.random(20_000)
    assert calibration((rng.random(20_000) < p).astype(np.int8), p).ece < 0.02
    assert calibration(np.array([1, 0]), np.array([0.0, 1.0])).ece == 1.0


def test_a_probability_of_1_is_in_the_last_bin_and_empty_bins_are_nan():
    ours = calibration(np.array([1, 1]), np.array([1.0, 0.95]))
    assert ours.count.tolist() == [0] * 9 + [2]
    assert np.isnan(ours.predicted[:9]).all()
    assert ours.ece == pytest.approx(0.025)


def test_labels_that_are_not_known_are_left_out():
    labels, p = np.array([-1, 1, 0, -1]), np.array([0.9, 0.8, 0.3, 0.1])
    assert calibration(labels, p).ece == calibration(labels[1:3], p[1:3]).ece
    assert calibration(labels[:1], p[:1]).ece is None


def test_what_is_no_probability_is_refused():
    for wrong in (1.5, -0.1, np.nan):
        with pytest.raises(ValueError, match="probabilities"):
            calibration(np.array([1]), np.array([wrong]))
