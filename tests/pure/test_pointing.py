"""The pointing game on maps whose peak is known."""

import numpy as np
import pytest

from pcrl_cli.pure.pointing import Pointing, covered, hits, peak, point


def map_at(row, column, h=10, w=20):
    made = np.zeros((h, w))
    made[row, column] = 1
    return made


@pytest.mark.parametrize(
    ("row", "column", "hit"), [(2, 5, True), (4, 8, True), (1, 5, False), (5, 5, False), (2, 4, False), (2, 9, False)]
)
def test_a_peak_hits_where_its_pixel_lies_in_the_box(row, column, hit):
    made, box = map_at(row, column), (5.0, 2.0, 4.0, 3.0)  # columns 5..8, rows 2..4
    assert peak(made) == (row, column)
    assert hits(made, [box]) == hit
    assert point(made, [box]) == Pointing(int(hit), 1, 4 * 3 / 200)


def test_the_peak_of_a_flat_rim_is_its_middle():
    made = np.zeros((12, 12), dtype=np.float32)
    made[:5, :3] = 2.5
    assert peak(made) == (2, 1)
    two = map_at(2, 3) + map_at(2, 9)
    assert peak(two) in ((2, 3), (2, 9))


def test_any_of_several_boxes_counts_and_their_overlap_counts_once_for_chance():
    made = map_at(2, 15)
    boxes = [(0.0, 0.0, 4.0, 10.0), (2.0, 0.0, 4.0, 10.0), (14.0, 0.0, 40.0, 5.0)]
    assert point(made, boxes) == Pointing(1, 1, 0.45)
    assert point(made, []) == Pointing(0, 1, 0.0)


def test_random_peaks_hit_as_often_as_chance_says():
    rng = np.random.default_rng(0)
    total = Pointing(0, 0, 0.0)
    for _ in range(400):
        total = total.joined(point(rng.random((12, 12)), [(2.0, 3.0, 6.0, 4.0)]))
    assert total.n == 400
    assert total.by_chance / total.n == pytest.approx(1 / 6)
    assert total.share == pytest.approx(1 / 6, abs=0.06)
    assert Pointing(0, 0, 0.0).share is None


def test_only_pixels_whose_centre_lies_in_a_box_are_covered():
    assert np.argwhere(covered((4, 6), [(1.0, 2.0, 2.0, 1.0)])).tolist() == [[2, 1], [2, 2]]
    assert not covered((4, 6), [(-3.0, 0.0, 3.4, 4.0), (6.0, 0.0, 9.0, 9.0), (1.6, 1.6, 0.3, 0.3)]).any()
