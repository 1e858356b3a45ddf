"""Paired comparisons: scorers with weights, the bootstrap, Holm."""

import numpy as np
import pytest

from pcrl_cli.pure import compare
from pcrl_cli.pure.metrics import auroc


def made(n=200, seed=0, strength=1.0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    return labels, np.round(strength * labels + rng.normal(size=n), 1)


def test_the_weighted_auroc_is_the_auroc_of_the_samples_drawn_that_often():
    labels, scores = made()
    scorer = compare.auroc_scorer(labels, scores)
    assert compare.value_of(scorer, 200) == pytest.approx(auroc(labels, scores))
    counts = np.random.default_rng(1).integers(0, 4, 200)
    repeated = np.repeat(np.arange(200), counts)
    assert scorer(counts[None].astype(float))[0] == pytest.approx(auroc(labels[repeated], scores[repeated]))


def test_a_replicate_of_one_class_has_no_auroc():
    scorer = compare.auroc_scorer(np.array([1, 0]), np.array([0.2, 0.1]))
    assert np.isnan(scorer(np.array([[1.0, 0.0]]))[0])
    assert scorer(np.array([[1.0, 2.0]]))[0] == 1.0


def test_unknown_labels_take_no_part():
    labels = np.array([1.0, 0.0, np.nan, 0.0])
    scorer = compare.known_only(labels, np.array([0.5, 0.1, 0.9, 0.7]))
    assert scorer(np.ones((1, 4)))[0] == 0.5


def test_the_mean_over_findings_is_of_those_that_exist():
    one, other = (compare.mean_scorer(np.array(v, float)) for v in ([1, 2], [3, 4]))
    assert compare.average([one, other])(np.ones((1, 2)))[0] == 2.5
    nothing = compare.auroc_scorer(np.array([1, 1]), np.array([0.0, 1.0]))
    assert compare.average([one, nothing])(np.ones((1, 2)))[0] == 1.5
    assert np.isnan(compare.average([nothing])(np.ones((1, 2)))[0])


def test_patients_are_drawn_whole_and_as_many_as_there_are():
    drawn = compare.draws(7, 500, seed=0)
    assert (drawn.sum(axis=1) == 7).all()
    assert abs(drawn.mean() - 1) < 1e-12
    member = np.array([0, 0, 1, 2, 3, 4, 5, 6])
    seen = []
    compare.replicates(lambda w: seen.append(w) or np.zeros(len(w)), member, drawn)
    assert (np.concatenate(seen)[:, 0] == np.concatenate(seen)[:, 1]).all()


def test_equal_methods_do_not_differ_and_a_better_one_does():
    labels, scores = made(400, strength=1.5)
    noise = np.random.default_rng(9).normal(size=400)
    member, drawn = np.arange(400), compare.draws(400, 400, 0)
    a = compare.replicates(compare.auroc_scorer(labels, scores), member, drawn)
    b = compare.replicates(compare.auroc_scorer(labels, noise), member, drawn)
    same = compare.between(0.0, a, a)
    assert (same.low, same.high, same.p) == (0.0, 0.0, 1.0)
    better = compare.between(0.3, a, b)
    assert better.low > 0
    assert better.p == pytest.approx(2 / 401)
    worse = compare.between(-0.3, b, a)
    assert (worse.low, worse.high) == pytest.approx((-better.high, -better.low))
    assert worse.p == better.p


def test_pairing_makes_the_interval_of_a_difference_narrower():
    labels, scores = made(300)
    close = scores + 0.05 * np.random.default_rng(3).normal(size=300)
    member = np.arange(300)
    one, other = compare.draws(300, 300, 0), compare.draws(300, 300, 1)
    a, b = (compare.replicates(compare.auroc_scorer(labels, s), member, one) for s in (scores, close))
    unpaired = compare.replicates(compare.auroc_scorer(labels, close), member, other)
    paired, loose = compare.between(0, a, b), compare.between(0, a, unpaired)
    assert paired.high - paired.low < 0.3 * (loose.high - loose.low)


def test_under_no_difference_p_is_rarely_small():
    small = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        values = rng.normal(size=(2, 40))
        drawn = compare.draws(40, 200, seed)
        a, b = (compare.replicates(compare.mean_scorer(v), np.arange(40), drawn) for v in values)
        small += compare.between(0, a, b).p < 0.05
    assert small <= 9


def test_holm_is_the_step_down_rule():
    assert compare.holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06})
    assert compare.holm({"a": 0.9, "b": 0.6}) == {"a": 1.0, "b": 1.0}
    assert compare.holm({}) == {}


def test_too_few_replicates_give_no_interval():
    found = compare.between(0.1, np.array([np.nan, 0.2]), np.array([0.1, 0.1]))
    assert (found.low, found.high, found.p) == (None, None, None)
