"""FROC and CPM on scans small enough to judge by hand, and against a plain loop over thresholds."""

import numpy as np
import pytest

from pcrl_cli.core.errors import NumericalError
from pcrl_cli.pure.froc import RATES, ScanFindings, cpm, froc


def scan(candidates, nodules=(), excluded=()):
    """Rows of (x, y, z, probability); rows of (x, y, z, diameter)."""
    c = np.array(candidates, dtype=np.float64).reshape(-1, 4)
    n, e = (np.array(rows, dtype=np.float64).reshape(-1, 4) for rows in (nodules, excluded))
    return ScanFindings(c[:, :3], c[:, 3], n, e)


def test_a_hand_made_pair_of_scans():
    # Nodule a is found at 0.9 and nodule b at 0.4; false positives at 0.8, 0.5 and 0.2 in two scans.
    scans = [
        scan([(0, 0, 0, 0.9), (50, 0, 0, 0.8), (60, 0, 0, 0.2)], [(1, 0, 0, 10)]),
        scan([(0, 0, 0, 0.4), (50, 0, 0, 0.5)], [(0, 2, 0, 10)]),
    ]
    curve = froc(scans)
    np.testing.assert_allclose(curve.false_positives, [0, 0, 0.5, 1, 1, 1.5])
    np.testing.assert_allclose(curve.sensitivity, [0, 0.5, 0.5, 0.5, 1, 1])
    assert curve.at == {0.125: 0.5, 0.25: 0.5, 0.5: 0.5, 1.0: 1.0, 2.0: 1.0, 4.0: 1.0, 8.0: 1.0}
    assert curve.cpm == pytest.approx((3 * 0.5 + 4) / 7)
    assert cpm(scans) == curve.cpm
    assert (curve.scans, curve.nodules, curve.hit, curve.ignored) == (2, 2, 2, 0)


def test_ties_rise_along_a_slope_that_is_interpolated_linearly():
    curve = froc([scan([(0, 0, 0, 0.5), (50, 0, 0, 0.5)], [(0, 0, 0, 10)])])
    assert [curve.at[r] for r in (0.125, 0.25, 0.5, 1.0, 8.0)] == [0.125, 0.25, 0.5, 1.0, 1.0]


def test_a_hit_needs_less_than_half_the_diameter():
    nodule = [(0, 0, 0, 10)]
    assert froc([scan([(4.999, 0, 0, 1)], nodule)]).hit == 1
    assert froc([scan([(5, 0, 0, 1)], nodule)]).hit == 0
    assert froc([scan([(3, 3, 3, 1)], nodule)]).hit == 0  # 5.196 mm away, though under 5 mm along each axis


def test_an_unknown_diameter_is_read_as_ten_millimetres():
    assert froc([scan([(4.9, 0, 0, 1)], [(0, 0, 0, -1)])]).hit == 1
    assert froc([scan([(5.1, 0, 0, 1)], [(0, 0, 0, -1)])]).hit == 0


def test_several_candidates_on_a_nodule_count_once_at_the_highest_probability():
    scans = [scan([(0, 0, 0, 0.3), (1, 0, 0, 0.7), (0, 1, 0, 0.6), (50, 0, 0, 0.5)], [(0, 0, 0, 10)])]
    curve = froc(scans)
    np.testing.assert_allclose(curve.false_positives, [0, 0, 1])
    np.testing.assert_allclose(curve.sensitivity, [0, 1, 1])
    assert curve.hit == 1
    assert curve.ignored == 2
    assert curve.cpm == 1.0


def test_one_candidate_may_find_two_overlapping_nodules():
    curve = froc([scan([(0, 0, 0, 0.5)], [(1, 0, 0, 10), (-1, 0, 0, 10)])])
    assert (curve.hit, curve.ignored, curve.cpm) == (2, 0, 1.0)


def test_a_candidate_on_an_excluded_finding_is_neither_right_nor_wrong():
    nodule, other = [(0, 0, 0, 10)], [(50, 0, 0, 10)]
    candidates = [(0, 0, 0, 0.5), (50, 0, 0, 0.9)]
    assert froc([scan(candidates, nodule)]).cpm < 1.0
    with_excluded = froc([scan(candidates, nodule, other)])
    assert with_excluded.cpm == 1.0
    assert with_excluded.ignored == 1
    assert froc([scan(candidates, nodule, other + nodule)]).hit == 1  # a nodule wins over an excluded finding


def test_missed_nodules_and_empty_scans_stay_in_the_denominators():
    missed = froc([scan([(0, 0, 0, 0.9)], [(0, 0, 0, 10), (90, 0, 0, 10)])])
    assert missed.cpm == 0.5
    assert missed.hit == 1
    noisy = [scan([(0, 0, 0, 0.5), (50, 0, 0, 0.9)], [(0, 0, 0, 10)])]
    assert froc(noisy).at[0.25] == 0.0
    assert froc(noisy + [scan([])] * 3).at[0.25] == 1.0
    assert froc([scan([], [(0, 0, 0, 10)])]).cpm == 0.0


def test_nothing_to_find_gives_null_and_the_reason():
    assert froc([]).cpm is None
    assert "no scan" in froc([]).reason
    empty = froc([scan([(0, 0, 0, 0.5)])])
    assert empty.cpm is None
    assert empty.at is None
    assert "no nodule" in empty.reason
    assert cpm([]) is None


def test_only_the_most_probable_marks_of_a_scan_are_read():
    candidates = [(50 + i, 0, 0, 0.9 - 0.01 * i) for i in range(20)] + [(0, 0, 0, 0.1)]
    scans = [scan(candidates, [(0, 0, 0, 10)])]
    assert froc(scans, max_marks=20).hit == 0
    assert froc(scans, max_marks=21).hit == 1
    assert froc(scans, max_marks=None).hit == 1
    tied = [scan([(50, 0, 0, 0.9), (60, 0, 0, 0.5), (0, 0, 0, 0.5)], [(0, 0, 0, 10)])]
    assert froc(tied, max_marks=2).hit == 0  # the two that tie at the limit are both dropped


def test_a_probability_that_is_not_finite_is_refused():
    with pytest.raises(NumericalError, match="not finite"):
        froc([scan([(0, 0, 0, np.nan)], [(0, 0, 0, 10)])])


@pytest.mark.parametrize("seed", range(4))
def test_random_scans_equal_a_loop_over_thresholds(seed):
    rng = np.random.default_rng(seed)
    scans = []
    for _ in range(5):
        c = np.column_stack([rng.uniform(0, 40, (30, 3)), np.round(rng.uniform(size=30), 1 + seed % 2)])
        n = np.column_stack([rng.uniform(0, 40, (3, 3)), rng.uniform(8, 20, 3)])
        scans.append(scan(c, n[: rng.integers(4)], n[2:] + 5))
    points = [(0.0, 0.0)]
    total = sum(len(s.nodules) for s in scans)
    for t in sorted({p for s in scans for p in s.probability}, reverse=True):
        right = wrong = 0
        for s in scans:
            near = [[np.linalg.norm(c - f[:3]) < f[3] / 2 for f in s.nodules] for c in s.candidates]
            void = [any(np.linalg.norm(c - f[:3]) < f[3] / 2 for f in s.excluded) for c in s.candidates]
            on = s.probability >= t
            right += sum(any(on[i] and near[i][k] for i in range(30)) for k in range(len(s.nodules)))
            wrong += sum(on[i] and not any(near[i]) and not void[i] for i in range(30))
        points.append((wrong / 5, right / total))
    x, y = np.array(points).T
    expected = [np.interp(r, x, y) for r in RATES]
    assert list(froc(scans).at.values()) == pytest.approx(expected, abs=1e-12)
