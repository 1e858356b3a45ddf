"""Agreement of masks: identities, the policy for empty masks, a published score."""

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st

from pcrl_cli.pure.regions import agreement, decided, dice, largest_component, masks_of, rivals, settled

SPACING = np.array([0.8, 1.0, 2.0])


def ball(radius, centre=(10, 10, 5), shape=(20, 20, 10)):
    i = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    return np.linalg.norm((i - np.array(centre)) * SPACING, axis=-1) <= radius


def test_a_mask_agrees_with_itself():
    found = agreement(ball(6), ball(6), SPACING)
    assert (found.dice, found.nsd) == (1, 1)
    assert (found.hd95_mm, found.assd_mm, found.max_mm, found.rvd_percent) == (0, 0, 0, 0)
    assert found.true_ml == found.predicted_ml == np.count_nonzero(ball(6)) * 1.6 / 1000


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=24, max_size=24))
def test_dice_and_volume_difference_equal_counting(bits):
    a, b = np.array(bits).T.reshape(2, 4, 3, 2)
    n, m, both = (sum(p for p, _ in bits), sum(q for _, q in bits), sum(p and q for p, q in bits))
    assert dice(a, b) == pytest.approx(2 * both / (n + m) if n + m else 1)
    if n and m:
        assert agreement(a, b, SPACING).rvd_percent == pytest.approx(100 * (m / n - 1), abs=1e-9)


def test_agreement_is_symmetric_but_for_the_sign_of_the_volume():
    a, b = ball(6), ball(4, centre=(12, 10, 5))
    one, other = agreement(a, b, SPACING), agreement(b, a, SPACING)
    for name in ("dice", "hd95_mm", "nsd", "assd_mm", "max_mm"):
        assert getattr(one, name) == pytest.approx(getattr(other, name))
    assert one.rvd_percent < 0 < other.rvd_percent


def test_a_region_that_is_nowhere_is_found_perfectly():
    nothing = np.zeros((5, 6, 7), dtype=bool)
    found = agreement(nothing, nothing, SPACING)
    assert (found.dice, found.hd95_mm, found.nsd, found.assd_mm, found.max_mm, found.rvd_percent) == (1, 0, 1, 0, 0, 0)


@pytest.mark.parametrize(("missed", "volume"), [(True, -100), (False, 100)])
def test_a_region_missed_or_invented_costs_the_images_diagonal(missed, volume):
    something, nothing = np.zeros((2, 30, 40, 20), dtype=bool)
    something[3, 4, 5] = True
    found = agreement(*((something, nothing) if missed else (nothing, something)), SPACING)
    diagonal = np.sqrt((30 * 0.8) ** 2 + 40**2 + 40**2)
    assert (found.dice, found.nsd, found.rvd_percent) == (0, 0, volume)
    assert found.hd95_mm == found.assd_mm == found.max_mm == pytest.approx(diagonal)


def test_no_prediction_is_worse_in_distance_than_none_at_all():
    truth, far = np.zeros((2, 20, 20, 20), dtype=bool)
    truth[0, 0, 0] = far[-1, -1, -1] = True
    nothing = np.zeros_like(truth)
    assert agreement(truth, nothing, SPACING).hd95_mm > agreement(truth, far, SPACING).hd95_mm


def test_the_tolerance_is_in_millimetres_and_inclusive():
    a, b = ball(6), np.roll(ball(6), 1, axis=2)
    assert agreement(a, b, SPACING, tolerance_mm=2.0).nsd == 1
    assert agreement(a, b, SPACING, tolerance_mm=0.0).nsd < 1


def test_only_the_largest_component_is_kept():
    mask = np.zeros((10, 10, 10), dtype=bool)
    mask[1:4, 1:4, 1:4] = True
    mask[4, 4, 4] = True  # touches by a corner
    mask[8, 8, 8] = True
    kept = largest_component(mask)
    assert kept.sum() == 28
    assert not kept[8, 8, 8]
    assert not largest_component(np.zeros((3, 3, 3), dtype=bool)).any()


def test_inner_regions_lie_in_outer_ones_after_the_largest_part_is_chosen():
    wt, tc, et = np.zeros((3, 9), dtype=bool)
    wt[1:4], tc[3:5], et[4:6], et[8] = True, True, True, True
    found = settled(np.stack([wt, tc, et]), [(1, 2, 3, 4), (1, 3, 4), (4,)], largest=True)
    assert [np.flatnonzero(mask).tolist() for mask in found] == [[1, 2, 3, 4, 5], [3, 4, 5], [4, 5]]
    assert np.flatnonzero(settled(et[None], [(4,)], largest=False)[0]).tolist() == [4, 5, 8]
    assert np.flatnonzero(wt).tolist() == [1, 2, 3]


def test_regions_overlap_by_the_labels_they_share():
    labels = np.array([[0, 1], [2, 4]], np.uint8)
    found = masks_of(labels, {"WT": (1, 2, 3, 4), "ET": (4,)})
    assert found.tolist() == [[[False, True], [True, True]], [[False, False], [False, True]]]


@pytest.mark.real
def test_the_scores_published_with_a_sample_submission_are_met(real_data):
    folder = real_data / "metric_reference"
    truth, predicted = (sitk.ReadImage(folder / f"chaos_liver_{name}.nii.gz") for name in ("gt", "sample_submission"))
    a, b = (sitk.GetArrayFromImage(image).T > 0 for image in (truth, predicted))
    found = agreement(a, b, np.array(truth.GetSpacing()))
    assert round(found.dice, 3) == 0.978
    assert round(abs(found.rvd_percent), 3) == 0.665
    assert round(found.assd_mm, 3) == 0.734
    assert round(found.max_mm) == 14


def test_regions_without_a_common_label_are_rivals():
    found = rivals([(1, 2), (2,), (3,)])
    assert found.tolist() == [[False, False, True], [False, False, True], [True, True, False]]


def test_of_rivals_a_voxel_goes_to_the_likeliest_and_of_others_to_each():
    p = np.array([[0.6, 0.9, 0.4, 0.7], [0.7, 0.8, 0.3, 0.7], [0.9, 0.1, 0.6, 0.2]], np.float32)
    found = decided(p, 0.5, rivals([(1,), (2,), (1, 2, 3)]))
    assert found.tolist() == [[False, True, False, True], [True, False, False, False], [True, False, True, False]]
    np.testing.assert_array_equal(decided(p, 0.5), p > 0.5)
    assert (decided(p[:2], 0.5, rivals([(1,), (2,)])).sum(axis=0) <= 1).all()


def test_masks_of_regions_are_found_by_every_label_of_theirs():
    labels = np.arange(255, dtype=np.uint8).reshape(5, 51)
    regions = {"a": (1, 7, 254), "b": tuple(range(100, 200))}
    for mask, members in zip(masks_of(labels, regions), regions.values(), strict=True):
        np.testing.assert_array_equal(mask, np.isin(labels, members))
