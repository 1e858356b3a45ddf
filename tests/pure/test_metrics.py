"""AUROC, ROC, DeLong and the patient bootstrap, against loops and scikit-learn."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score, roc_curve

from pcrl_cli.core.errors import NumericalError
from pcrl_cli.pure.metrics import auroc, bootstrap_mean, clustered_bootstrap, delong, roc_points


def counted(labels, scores):
    """AUROC pair by pair."""
    wins = [float(p > q) + 0.5 * (p == q) for p in scores[labels == 1] for q in scores[labels == 0]]
    return sum(wins) / len(wins)


def looped_error(labels, scores):
    """DeLong's standard error from its definition: structural components by loops, sample variances by loops."""
    x, y = scores[labels == 1], scores[labels == 0]

    def psi(a, b):
        return float(a > b) + 0.5 * (a == b)

    v10 = [sum(psi(a, b) for b in y) / len(y) for a in x]
    v01 = [sum(psi(a, b) for a in x) / len(x) for b in y]

    def variance(v):
        mean = sum(v) / len(v)
        return sum((e - mean) ** 2 for e in v) / (len(v) - 1)

    return (variance(v10) / len(x) + variance(v01) / len(y)) ** 0.5


def drawn(seed, n, levels=None):
    rng = np.random.default_rng(seed)
    labels = rng.integers(2, size=n)
    labels[:4] = (0, 1, 0, 1)
    scores = labels + rng.normal(0, 1.5, n)
    return labels, (np.round(scores * levels) / levels if levels else scores)


samples = st.lists(st.tuples(st.integers(0, 1), st.integers(-8, 8)), min_size=2, max_size=40).filter(
    lambda rows: len({label for label, _ in rows}) == 2
)


def split(rows):
    return np.array([r[0] for r in rows]), np.array([r[1] for r in rows], dtype=np.float64)


@pytest.mark.parametrize("levels", [None, 1, 3])
def test_auroc_equals_the_count_over_pairs_and_sklearn(levels):
    labels, scores = drawn(1, 83, levels)
    assert auroc(labels, scores) == pytest.approx(counted(labels, scores), abs=1e-12)
    assert auroc(labels, scores) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)


@given(samples)
@settings(max_examples=60, deadline=None)
def test_auroc_with_ties_equals_the_count_over_pairs(rows):
    labels, scores = split(rows)
    assert auroc(labels, scores) == pytest.approx(counted(labels, scores), abs=1e-12)


@given(samples)
@settings(max_examples=60, deadline=None)
def test_auroc_ignores_a_rising_transform_and_turns_round_with_the_labels(rows):
    labels, scores = split(rows)
    value = auroc(labels, scores)
    assert auroc(labels, np.exp(scores / 3) - 7) == pytest.approx(value, abs=1e-12)
    assert auroc(1 - labels, scores) == pytest.approx(1 - value, abs=1e-12)
    assert auroc(labels, -scores) == pytest.approx(1 - value, abs=1e-12)


def test_auroc_of_known_cases():
    labels = np.array([0, 0, 1, 1])
    assert auroc(labels, np.array([1.0, 2.0, 3.0, 4.0])) == 1.0
    assert auroc(labels, np.array([4.0, 3.0, 2.0, 1.0])) == 0.0
    assert auroc(labels, np.zeros(4)) == 0.5
    assert auroc(labels.astype(bool), np.array([1.0, 3.0, 2.0, 4.0], dtype=np.float32)) == 0.75


@pytest.mark.parametrize("labels", [[], [0, 0, 0], [1]])
def test_a_missing_class_gives_none_and_a_reason_instead_of_a_number(labels):
    labels = np.array(labels, dtype=np.int64)
    scores = np.arange(len(labels), dtype=np.float64)
    assert auroc(labels, scores) is None
    assert roc_points(labels, scores) is None
    for interval in (delong(labels, scores), clustered_bootstrap(labels, scores, labels)):
        assert (interval.value, interval.low, interval.high) == (None, None, None)
        assert interval.note


def test_scores_that_are_not_finite_and_labels_that_are_no_classes_are_refused():
    with pytest.raises(NumericalError, match="1 of 2 scores"):
        auroc(np.array([0, 1]), np.array([0.5, np.nan]))
    with pytest.raises(ValueError, match="0 or 1"):
        auroc(np.array([0, 2]), np.array([0.5, 0.1]))


@pytest.mark.parametrize("levels", [None, 2])
def test_roc_points_equal_sklearn_and_integrate_to_the_auroc(levels):
    labels, scores = drawn(2, 61, levels)
    fpr, tpr, threshold = roc_points(labels, scores)
    expected = roc_curve(labels, scores, drop_intermediate=False)
    for ours, theirs in zip((fpr, tpr, threshold), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-12)
    assert np.trapezoid(tpr, fpr) == pytest.approx(auroc(labels, scores), abs=1e-12)


@pytest.mark.parametrize("levels", [None, 2])
def test_delong_equals_its_definition_by_loops(levels):
    labels, scores = drawn(3, 57, levels)
    interval = delong(labels, scores, level=0.95)
    reach = 1.959963984540054 * looped_error(labels, scores)
    assert interval.value == auroc(labels, scores)
    assert interval.low == pytest.approx(interval.value - reach, abs=1e-12)
    assert interval.high == pytest.approx(min(1.0, interval.value + reach), abs=1e-12)
    assert delong(labels, scores, level=0.5).low > interval.low


def test_delong_covers_the_true_auroc_in_about_95_of_100_trials():
    rng = np.random.default_rng(0)
    truth, trials, covered = 0.7602499389065233, 400, 0  # Phi(1 / sqrt 2) for N(1, 1) against N(0, 1)
    for _ in range(trials):
        labels = np.repeat([0, 1], 60)
        interval = delong(labels, labels + rng.normal(size=120))
        covered += interval.low <= truth <= interval.high
    assert 0.91 < covered / trials < 0.98


def test_delong_stays_in_the_unit_interval_and_marks_degenerate_variances():
    labels = np.array([0, 0, 0, 1, 1, 1])
    apart = delong(labels, np.arange(6.0))
    assert (apart.low, apart.value, apart.high) == (1.0, 1.0, 1.0)
    assert "variance is 0" in apart.note
    assert delong(labels, np.zeros(6)).low == 0.5
    close = delong(labels, np.array([0.0, 1, 3, 2, 4, 5]))
    assert close.high == 1.0
    assert 0 <= close.low < close.value
    assert close.note is None
    single = delong(np.array([0, 0, 1]), np.array([0.1, 0.5, 0.3]))
    assert single.value == 0.5
    assert single.low is None
    assert "two samples of each class" in single.note


def test_delong_of_a_hundred_thousand_samples_needs_no_table_of_pairs():
    labels, scores = drawn(4, 100_000)
    interval = delong(labels, scores)  # 2.5e9 pairs would need minutes or 20 GB
    assert interval.high - interval.low < 0.02


def test_bootstrap_is_a_function_of_its_seed_and_brackets_the_value():
    labels, scores = drawn(5, 90)
    clusters = np.arange(90) // 3
    first = clustered_bootstrap(labels, scores, clusters, auroc, n=200, seed=7)
    assert first == clustered_bootstrap(labels, scores, clusters, auroc, n=200, seed=7)
    assert first != clustered_bootstrap(labels, scores, clusters, auroc, n=200, seed=8)
    assert first.low < first.value < first.high
    assert first.used == 200


def test_bootstrap_of_single_samples_agrees_with_delong():
    labels, scores = drawn(6, 300)
    ours, exact = clustered_bootstrap(labels, scores, np.arange(300), n=800, seed=1), delong(labels, scores)
    assert ours.low == pytest.approx(exact.low, abs=0.012)
    assert ours.high == pytest.approx(exact.high, abs=0.012)


def test_bootstrap_resamples_whole_patients():
    """Twenty copies of every sample add nothing: by patient the interval keeps its width, by sample it shrinks."""
    labels, scores = drawn(7, 60)
    copies = (np.repeat(labels, 20), np.repeat(scores, 20))
    one = clustered_bootstrap(labels, scores, np.arange(60), n=300, seed=1)
    patients = clustered_bootstrap(*copies, np.repeat(np.arange(60), 20), n=300, seed=1)
    mistaken = clustered_bootstrap(*copies, np.arange(1200), n=300, seed=1)
    assert (patients.low, patients.high) == pytest.approx((one.low, one.high), abs=1e-9)
    assert (mistaken.high - mistaken.low) < 0.4 * (patients.high - patients.low)


def test_bootstrap_counts_the_replicates_it_left_out():
    labels, scores = np.array([0, 0, 0, 1]), np.array([0.1, 0.4, 0.2, 0.3])
    result = clustered_bootstrap(labels, scores, np.array(["a", "b", "c", "d"]), n=400, seed=0)
    assert result.used + result.left_out == 400
    assert result.left_out / 400 == pytest.approx(0.75**4 + 0.25**4, abs=0.06)
    assert str(result.left_out) in result.note
    alone = clustered_bootstrap(labels, scores, np.zeros(4, dtype=np.int64), n=50, seed=0)
    assert alone.value == pytest.approx(2 / 3)
    assert alone.low is None
    assert "two clusters" in alone.note


def test_a_mean_over_cases_is_their_mean_and_its_interval_is_that_of_the_resampled_patients():
    rng = np.random.default_rng(4)
    values, patients = rng.random(30), np.repeat(np.arange(10), 3)
    found = bootstrap_mean(values, patients, n=4000)
    assert found.value == pytest.approx(values.mean())
    error = values.reshape(10, 3).mean(axis=1).std() / 10**0.5
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.1)
    assert found == bootstrap_mean(values, patients, n=4000)


def test_cases_of_one_patient_are_resampled_together():
    values = np.array([0.0, 1.0] * 10)
    apart = bootstrap_mean(values, np.arange(20))
    together = bootstrap_mean(values, np.arange(20) // 2)  # each patient has a 0 and a 1
    assert apart.low < 0.4 < 0.6 < apart.high
    assert (together.low, together.high) == (0.5, 0.5)


def test_patients_with_several_cases_weigh_by_their_cases():
    assert bootstrap_mean(np.array([1.0, 1.0, 1.0, 0.0]), np.array(["a", "a", "a", "b"])).value == 0.75


def test_a_mean_of_one_patient_has_no_interval_and_one_of_nobody_no_value():
    one = bootstrap_mean(np.array([0.2, 0.4]), np.array(["a", "a"]))
    assert (round(one.value, 6), one.low, one.high) == (0.3, None, None)
    assert "two clusters" in one.note
    assert bootstrap_mean(np.zeros(0), np.zeros(0)).value is None
