"""Several findings at once: against sklearn and the bootstrap that sorts again, and at full size."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from pcrl_cli.pure.findings import Ranked, mean_auroc, mean_auroc_interval, per_finding
from pcrl_cli.pure.metrics import auroc, clustered_bootstrap, delong


def drawn(seed, n, k=3, levels=None, unknown=0.0):
    rng = np.random.default_rng(seed)
    labels = (rng.random((n, k)) < 0.3).astype(np.int8)
    scores = 0.5 * labels + rng.normal(size=(n, k))
    if levels:
        scores = np.round(scores * levels) / levels
    labels[rng.random((n, k)) < unknown] = -1
    return labels, scores


@pytest.mark.parametrize("levels", [None, 2])
def test_every_finding_is_scored_over_its_known_labels(levels):
    labels, scores = drawn(0, 80, levels=levels, unknown=0.2)
    for k, f in enumerate(per_finding(labels, scores, ["a", "b", "c"])):
        known = labels[:, k] >= 0
        assert f.auroc == delong(labels[known, k], scores[known, k])
        assert f.auroc.value == pytest.approx(roc_auc_score(labels[known, k], scores[known, k]), abs=1e-12)
        assert f.positive + f.negative + f.unknown == 80
        assert f.unknown == (~known).sum() > 0


def test_a_finding_of_one_class_has_a_reason_and_is_left_out_of_the_mean():
    labels, scores = drawn(1, 60)
    labels[:, 1] = 0
    labels[:, 2] = -1
    found = per_finding(labels, scores, ["a", "b", "c"])
    assert [f.auroc.value is None for f in found] == [False, True, True]
    assert "class 0" in found[1].auroc.note
    assert "no sample" in found[2].auroc.note
    assert mean_auroc(labels, scores) == found[0].auroc.value
    assert mean_auroc(labels[:, 1:], scores[:, 1:]) is None
    assert mean_auroc_interval(labels[:, 1:], scores[:, 1:], np.arange(60)).value is None


@pytest.mark.parametrize("levels", [None, 1])
def test_a_weight_is_so_many_copies(levels):
    labels, scores = drawn(2, 50, 1, levels, unknown=0.1)
    weight = np.random.default_rng(3).integers(0, 4, 50)
    rows = np.repeat(np.arange(50), weight)
    rows = rows[labels[rows, 0] >= 0]
    ranked = Ranked.of(labels[:, 0], scores[:, 0])
    assert ranked.auroc(weight.astype(float)) == pytest.approx(auroc(labels[rows, 0], scores[rows, 0]), abs=1e-12)
    assert ranked.auroc(np.zeros(50)) is None
    assert Ranked.of(np.zeros(4, dtype=np.int8), np.arange(4.0)) is None


@pytest.mark.parametrize("levels", [None, 1])
def test_the_interval_of_one_finding_is_the_clustered_bootstraps(levels):
    labels, scores = drawn(4, 90, 1, levels)
    patients = np.array([f"p{i // 3}" for i in range(90)])
    ours = mean_auroc_interval(labels, scores, patients, n=60, seed=5)
    plain = clustered_bootstrap(labels[:, 0], scores[:, 0], patients, n=60, seed=5)
    assert (ours.value, ours.low, ours.high) == pytest.approx((plain.value, plain.low, plain.high), abs=1e-12)


def test_findings_of_one_patient_are_resampled_together():
    labels, scores = drawn(6, 60, 1)
    same = np.repeat(labels, 5, axis=1), np.repeat(scores, 5, axis=1)  # five equal findings add no certainty
    one = mean_auroc_interval(labels, scores, np.arange(60), n=100)
    five = mean_auroc_interval(*same, np.arange(60), n=100)
    assert (five.low, five.high) == pytest.approx((one.low, one.high), abs=1e-12)
    copies = np.repeat(labels, 20, axis=0), np.repeat(scores, 20, axis=0), np.repeat(np.arange(60), 20)
    by_patient = mean_auroc_interval(*copies, n=100)
    assert (by_patient.low, by_patient.high) == pytest.approx((one.low, one.high), abs=1e-12)


def test_a_replicate_without_a_rare_finding_is_the_mean_of_the_others_and_counted():
    labels, scores = drawn(7, 40, 2)
    labels[:, 1] = 0
    labels[0, 1] = 1
    result = mean_auroc_interval(labels, scores, np.arange(40), n=300)
    lacked = int(result.note.split()[0])
    assert lacked / 300 == pytest.approx((1 - 1 / 40) ** 40, abs=0.1)
    assert result.used == 300
    assert mean_auroc_interval(labels, scores, np.zeros(40)).low is None


def test_full_size_needs_no_pairs_and_no_sorting_a_replicate():
    labels, scores = drawn(8, 25_000, 14)
    result = mean_auroc_interval(labels, scores, np.arange(25_000) // 4, n=10)
    assert result.low < result.value < result.high
    assert result.high - result.low < 0.01


@pytest.mark.parametrize("levels", [None, 10])
def test_delong_of_150_000_samples_with_ties_equals_its_definition_by_sorted_counts(levels):
    labels, scores = (a[:, 0] for a in drawn(9, 150_000, 1, levels))
    interval = delong(labels, scores)  # 5e9 pairs would need minutes or 40 GB
    if levels:
        assert len(np.unique(scores)) < 200
    positive, negative = np.sort(scores[labels == 1]), np.sort(scores[labels == 0])

    def share(of, among):  # of `among` that lie below each, ties one half
        return (np.searchsorted(among, of, "left") + np.searchsorted(among, of, "right")) / (2 * len(among))

    v10, v01 = share(positive, negative), 1 - share(negative, positive)
    error = np.sqrt(v10.var(ddof=1) / len(positive) + v01.var(ddof=1) / len(negative))
    assert interval.value == pytest.approx(v10.mean(), abs=1e-12)
    assert interval.value == pytest.approx(roc_auc_score(labels, scores), abs=1e-9)
    assert interval.high - interval.value == pytest.approx(1.959963984540054 * error, rel=1e-9)
