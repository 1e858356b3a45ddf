"""Overlays show the slices they claim to show, and are the same every time."""

import io

import numpy as np
import pytest
from matplotlib.image import imread

from pcrl_cli.report.overlays import dice_plot, most_and_least, overlay, slices_of, unit

MM = np.array([1.0, 1.0, 3.0])


def masks(shape=(12, 10, 6)):
    """Region 0 overlaps fully in slice 1, half in slice 2, not at all in 3 and 4 (larger there)."""
    truth, predicted = np.zeros((2, 2, *shape), dtype=bool)
    truth[0, 2:6, 2:6, 1:4] = True
    predicted[0, 2:6, 2:6, 1] = True
    predicted[0, 4:8, 2:6, 2] = True
    predicted[0, 8:10, 8:9, 3] = True
    predicted[0, 1:11, 1:9, 4] = True
    return truth, predicted


def image(shape=(12, 10, 6)):
    volume = np.random.default_rng(0).random(shape).astype(np.float32)
    return lambda k: volume[..., k]


def test_the_slices_are_those_with_most_and_least_overlap_and_among_equal_ones_the_largest():
    (best, of_best), (worst, of_worst) = most_and_least(*masks())
    assert (best, of_best) == (1, 1.0)
    assert (worst, of_worst) == (4, 0.0)


def test_a_region_that_is_not_in_a_slice_does_not_count_in_it():
    truth, predicted = masks()
    truth[1, 2:4, 2:4, 2], predicted[1, 2:4, 2:4, 2] = True, True
    (best, _), _ = most_and_least(truth, predicted)
    assert best == 1  # slice 2 has region 1 in full and region 0 by half


def test_nothing_anywhere_shows_nothing_and_says_so():
    nothing = np.zeros((1, 4, 4, 3), dtype=bool)
    assert most_and_least(nothing, nothing) is None
    assert slices_of(image((4, 4, 3)), nothing, nothing, MM) == []
    assert overlay([], ["liver"]).startswith(b"\x89PNG")


def test_one_slice_is_shown_once_and_two_with_the_best_first():
    truth, predicted = masks()
    rows = slices_of(image(), truth, predicted, MM)
    assert [row.says.split(" (")[0] for row in rows] == ["most overlap", "least overlap"]
    assert np.array_equal(rows[0].truth, truth[..., 1])
    assert np.array_equal(rows[1].predicted, predicted[..., 4])
    assert len(slices_of(image((12, 10, 1)), truth[..., 1:2], predicted[..., 1:2], MM)) == 1


def test_a_slice_does_not_keep_its_volume_alive():
    truth, predicted = masks()
    for row in slices_of(image(), truth, predicted, MM):
        for kept in (row.image, row.truth, row.predicted):
            assert kept.base is None or kept.base.size < truth[0].size


def colours(png):
    """How many pixels are nearest to vermilion (missed) and to blue (invented)."""
    pixels = imread(io.BytesIO(png))[..., :3].reshape(-1, 3)
    saturated = pixels[pixels.max(1) - pixels.min(1) > 0.25]
    red = (saturated[:, 0] > saturated[:, 2]).sum()
    return int(red), int(len(saturated) - red)


def test_what_is_missed_and_what_is_invented_have_colours_of_their_own():
    truth, predicted = np.zeros((2, 1, 20, 20, 1), dtype=bool)
    truth[0, 2:8, 2:18] = True

    def flat(k):
        return np.full((20, 20), 0.5, np.float32)

    missed = overlay(slices_of(flat, truth, predicted, MM), ["liver"])
    invented = overlay(slices_of(flat, predicted, truth, MM), ["liver"])
    assert colours(missed)[0] > 2 * colours(invented)[0]
    assert colours(invented)[1] > colours(missed)[1]


@pytest.mark.parametrize("n", [1, 7, 60])
def test_figures_are_900_pixels_wide_and_the_same_every_time(n):
    truth, predicted = masks()
    rows = slices_of(image(), truth, predicted, MM)
    made = [overlay(rows, ["WT", "TC"]), dice_plot({"WT": {f"case-{i}": i / 60 for i in range(n)}})]
    again = [overlay(rows, ["WT", "TC"]), dice_plot({"WT": {f"case-{i}": i / 60 for i in range(n)}})]
    assert made == again
    assert all(imread(io.BytesIO(png)).shape[1] >= 900 for png in made)


def test_a_slice_is_shown_from_its_own_black_to_its_own_white():
    shown = unit(np.linspace(-1000, 500, 400).reshape(20, 20))
    assert (shown.min(), shown.max()) == (0, 1)
    assert np.array_equal(unit(np.ones((3, 3))), np.zeros((3, 3)))
