from dataclasses import replace

import numpy as np
import pytest
from data.labelled_cases import AXES, ct, mr
from pydantic import ValidationError

from pcrl_cli.core.errors import DataError
from pcrl_cli.data.labelled import (
    Preparation,
    foreground_box,
    label,
    nearest,
    prepare_images,
    require_labels,
    require_same_grid,
)
from pcrl_cli.data.volume import Intensity, canonical, index_to_world, prepare, resample
from pcrl_cli.pure.volumes import first_voxel

CT, MR = Preparation(), Preparation(modality="mr")


@pytest.mark.parametrize("direction", AXES)
def test_every_orientation_of_a_scan_gives_the_same_arrays(direction):
    for made, how in ((ct, CT), (mr, MR)):
        want, got = label(made(), how), label(made(direction), how)
        for name in ("image", "mask", "native_mask", "box"):
            np.testing.assert_allclose(getattr(got, name), getattr(want, name), atol=1e-3, err_msg=name)
        np.testing.assert_allclose(got.grid.row(), want.grid.row(), atol=1e-9)
        np.testing.assert_allclose(got.native.row(), want.native.row(), atol=1e-9)
        assert got.scan_ids == want.scan_ids


def test_ct_is_the_resampled_scan_in_the_window():
    scan = ct()
    got = label(scan, CT)
    want = np.clip(resample(canonical(scan.images[0]), 1.0).array, -200, 200)
    np.testing.assert_array_equal(got.image[0], want)
    scale, offset = CT.to_unit
    unit = got.image * scale + offset
    assert (unit.min(), unit.max()) == (0, 1)
    assert CT.pad * scale + offset == 0


def test_ct_carries_the_id_that_pre_training_knows_the_scan_by_whatever_its_window_and_grid():
    scan = ct()
    known = prepare(scan.images[0], Intensity()).scan_ids
    for how in (CT, Preparation(hu_min=-1000, hu_max=300), Preparation(spacing_mm=None), Preparation(spacing_mm=2)):
        assert label(scan, how).scan_ids == known
    assert label(ct(seed=1), CT).scan_ids != known


def test_every_mr_sequence_carries_the_id_that_pre_training_on_it_knows():
    scan = mr()
    known = tuple(prepare(v, Intensity(modality="mr")).scan_ids[0] for v in scan.images)
    assert label(scan, MR).scan_ids == known
    assert label(mr(seed=1, shape=(10, 12, 9)), MR).scan_ids != known


def test_the_mask_takes_the_label_of_the_nearest_voxel():
    scan = ct()
    got = label(scan, CT)
    native = got.native_mask
    index = [np.arange(n) for n in got.mask.shape]
    for _ in range(200):
        at = np.array([np.random.default_rng(_).integers(len(i)) for i in index])
        position = np.minimum(at / [1.5, 1.25, 2.5], np.array(native.shape) - 1)
        off = np.abs(position - np.floor(position) - 0.5)
        if (off > 1e-6).all():
            assert got.mask[tuple(at)] == native[tuple(np.rint(position).astype(int))]
    assert set(np.unique(got.mask)) == {0, 1, 2}


def test_native_spacing_keeps_every_voxel():
    got = label(ct(), Preparation(spacing_mm=None))
    np.testing.assert_array_equal(got.mask, got.native_mask)
    np.testing.assert_array_equal(got.grid.row(), got.native.row())


def test_a_spacing_that_is_nearly_the_wanted_one_is_not_interpolated():
    scan = ct(spacing=(1.0004, 0.9996, 1.0))
    got = label(scan, CT)
    np.testing.assert_array_equal(got.image[0], np.clip(scan.images[0].array, -200, 200))
    np.testing.assert_array_equal(got.grid.spacing, [1.0004, 0.9996, 1.0])


def test_the_training_box_is_the_foreground_and_a_margin_cut_at_the_edges():
    mask = np.zeros((40, 50, 60), np.uint8)
    mask[10:20, 5:45, 30] = 3
    np.testing.assert_array_equal(foreground_box(mask), [[10, 5, 30], [10, 40, 1]])
    np.testing.assert_array_equal(foreground_box(mask, 8), [[2, 0, 22], [26, 50, 17]])
    np.testing.assert_array_equal(label(ct(), Preparation(margin=2)).box[0], [4, 4, 5])


def test_without_foreground_the_box_is_the_whole_scan():
    scan = ct()
    empty = replace(scan, mask=replace(scan.mask, array=np.zeros_like(scan.mask.array)))
    got = label(empty, CT)
    np.testing.assert_array_equal(got.box, [[0, 0, 0], got.mask.shape])


def test_mr_has_mean_0_and_deviation_1_in_the_brain_and_is_cut_to_its_box():
    got = label(mr(), MR)
    assert got.image.shape == (2, 6, 9, 4)
    unit = got.image * MR.to_unit[0]
    np.testing.assert_allclose(unit.reshape(2, -1).mean(1), 0, atol=1e-5)
    np.testing.assert_allclose(unit.reshape(2, -1).std(1), 1, atol=1e-5)
    assert first_voxel(got.grid, got.native) == (2, 1, 3)
    np.testing.assert_array_equal(got.mask, got.native_mask[2:8, 1:10, 3:7])
    np.testing.assert_array_equal(got.box, [[0, 0, 0], [6, 9, 4]])


def test_a_voxel_is_brain_where_any_sequence_is_not_0_and_all_are_0_elsewhere():
    scan = mr()
    one, two = (v.array.copy() for v in scan.images)
    one[2:4], two[7] = 0, 0
    one[3, 5, 4] = -3  # some files hold negative values
    images = (replace(scan.images[0], array=one), replace(scan.images[1], array=two))
    got = label(replace(scan, images=images), MR)
    assert got.image.shape == (2, 6, 9, 4)
    outside = one[2:8, 1:10, 3:7] == 0
    both = outside & (two[2:8, 1:10, 3:7] == 0)
    assert not both.any()
    one[:], two[:] = 0, 0
    one[2:8:5, 1:10, 3:7] = 5
    one[2, 1, 3] = 9
    two[2:8:5, 1:10, 3:7] = np.arange(36).reshape(9, 4) + 1
    hollow = label(replace(scan, images=images), MR).image
    assert not hollow[:, 1:5].any()
    assert hollow[:, 0].any()


def test_min_max_is_the_released_normalisation():
    how = Preparation(modality="mr", normalise="minmax")
    scan = mr()
    unit = label(scan, how).image * how.to_unit[0]
    for got, volume in zip(unit, scan.images, strict=True):
        np.testing.assert_allclose(got, volume.array[2:8, 1:10, 3:7] / volume.array.max(), atol=1e-4)


def test_outliers_stay_within_16_bits():
    scan = mr(shape=(40, 40, 40))
    scan.images[0].array[2, 2, 4] = 32000
    got = label(scan, MR)
    assert got.image.max() <= 32000


@pytest.mark.parametrize("value", [0, 7])
def test_a_sequence_without_a_brain_or_of_one_value_is_refused(value):
    scan = mr(sequences=1)
    scan.images[0].array[...] = value
    with pytest.raises(DataError, match=r"a scan in memory (is 0 everywhere|has one value)"):
        prepare_images(scan, MR, identify=False)


def test_grids_that_differ_are_refused_by_name():
    one = replace(ct().images[0], source="a.nii")
    for change, message in (
        ({"array": one.array[:-1]}, r"b\.nii has 11 x 15 x 9 voxels and a\.nii 12 x 15 x 9"),
        ({"origin": one.origin + np.array([0, 0, 1])}, r"b\.nii lies up to 1 mm off the grid of a\.nii"),
        ({"spacing": one.spacing * [1, 1, 1.1]}, "off the grid"),
        ({"direction": np.diag([1.0, 1.0, -1.0])}, "off the grid"),
    ):
        with pytest.raises(DataError, match=message) as caught:
            require_same_grid(one, replace(one, source="b.nii", **change))
        assert caught.value.slug == "bad_geometry"
    require_same_grid(one, replace(one, origin=one.origin + 0.05, spacing=one.spacing * 1.001))


def test_a_mask_on_another_grid_is_refused():
    scan = ct()
    with pytest.raises(DataError, match="off the grid"):
        label(replace(scan, mask=replace(scan.mask, origin=scan.mask.origin + 3)), CT)


def test_labels_outside_the_documented_set_are_listed():
    mask = replace(ct().mask, source="m.nii")
    require_labels(mask, (0, 1, 2))
    mask.array[0, 0, 0], mask.array[1, 1, 1] = 7, -1
    with pytest.raises(DataError, match=r"m\.nii holds the labels -1, 7, and only 0, 1, 2 are known"):
        require_labels(mask, (0, 1, 2))
    half = replace(mask, array=np.where(mask.array == 1, 0.5, 0).astype(np.float32))
    with pytest.raises(DataError, match=r"labels 0\.5,"):
        require_labels(half, (0, 1, 2))


def test_nearest_makes_the_grid_that_resample_makes():
    scan = ct()
    image, mask = scan.images[0], np.asarray(scan.mask.array, np.uint8)
    native = label(scan, CT).native
    for spacing in (0.7, 1.0, 1.9, 3.0):
        assert nearest(mask, native, np.full(3, spacing)).shape == resample(image, spacing).array.shape


def test_a_cut_grid_says_where_it_lies():
    got = label(mr(AXES[17]), MR)
    native = label(mr(), Preparation(modality="mr", spacing_mm=None)).native
    at = np.array([3, 2, 1])
    world = index_to_world(replace(mr().images[0], origin=got.grid.origin), at)
    np.testing.assert_allclose(world, native.origin + at + [2, 1, 3])


def test_a_window_of_no_width_is_refused():
    with pytest.raises(ValidationError, match="must lie below"):
        Preparation(hu_min=100, hu_max=100)
