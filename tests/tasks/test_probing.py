"""Frozen features: what k-NN and a linear probe make of separable, useless and one-sided ones."""

import numpy as np
import pytest

from pcrl_cli.core.errors import DataError
from pcrl_cli.tasks.probe import Config, probe, probe_findings


def features(n, gap, seed=0, width=6):
    rng = np.random.default_rng(seed)
    label = np.arange(n) % 2
    return (rng.normal(size=(n, width)) + gap * (2 * label[:, None] - 1)).astype(np.float32), label


def test_separable_features_give_an_auroc_of_1():
    found = probe(*features(60, 4.0), *features(40, 4.0, seed=1), Config())
    assert found == {"knn_auroc": 1.0, "linear_auroc": 1.0}


def test_useless_features_give_about_a_half():
    found = probe(*features(400, 0.0), *features(400, 0.0, seed=1), Config())
    assert all(abs(value - 0.5) < 0.12 for value in found.values())


def test_weakly_separated_features_lie_between():
    found = probe(*features(200, 0.3), *features(400, 0.3, seed=1), Config())
    assert all(0.6 < value < 0.99 for value in found.values())


def test_the_linear_probe_minds_no_scale_of_a_feature():
    (a, y), (b, z) = features(80, 0.4), features(80, 0.4, seed=1)
    scale = np.float32([1e-4, 1, 1e4, 1, 1, 1])
    plain, scaled = probe(a, y, b, z, Config()), probe(a * scale, y, b * scale, z, Config())
    assert scaled["linear_auroc"] == pytest.approx(plain["linear_auroc"], abs=1e-3)


def test_knn_minds_no_length_of_a_sample():
    (a, y), (b, z) = features(80, 0.4), features(80, 0.4, seed=1)
    lengths = np.random.default_rng(2).uniform(0.1, 10, (80, 1)).astype(np.float32)
    assert probe(a * lengths, y, b, z, Config())["knn_auroc"] == pytest.approx(probe(a, y, b, z, Config())["knn_auroc"])


@pytest.mark.parametrize("label", [0, 1])
def test_training_features_of_one_class_are_a_data_error(label):
    a, y = features(20, 1.0)
    with pytest.raises(DataError, match="one class only"):
        probe(a, np.full_like(y, label), a, y, Config())


@pytest.mark.parametrize("label", [0, 1])
def test_test_features_of_one_class_have_no_auroc(label):
    a, y = features(20, 1.0)
    assert probe(a, y, a, np.full_like(y, label), Config()) == {"knn_auroc": None, "linear_auroc": None}


def test_no_test_features_have_no_auroc():
    a, y = features(20, 1.0)
    assert probe(a, y, a[:0], y[:0], Config()) == {"knn_auroc": None, "linear_auroc": None}


def test_fewer_training_features_than_neighbours_are_enough():
    assert probe(*features(4, 4.0), *features(10, 4.0, seed=1), Config(k=20))["linear_auroc"] == 1.0


def test_probing_is_repeatable_and_leaves_the_global_generator_alone():
    np.random.seed(1)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    first = probe(*features(60, 0.2), *features(60, 0.2, seed=1), Config())
    assert first == probe(*features(60, 0.2), *features(60, 0.2, seed=1), Config())
    assert np.array_equal(before, np.random.get_state()[1])  # noqa: NPY002


def test_several_findings_give_the_mean_over_those_with_both_classes_known():
    (a, y), (b, z) = features(60, 4.0), features(60, 4.0, seed=1)
    nothing, unknown = np.zeros_like(y), np.where(np.arange(60) < 10, -1, y)
    one = probe(a, y, b, z, Config())
    labels = np.stack([y, nothing, unknown], axis=1), np.stack([z, nothing, z], axis=1)
    assert probe_findings(a, labels[0], b, labels[1], Config()) == one
    assert probe_findings(a, labels[0][:, 1:2], b, labels[1][:, 1:2], Config())["knn_auroc"] is None
