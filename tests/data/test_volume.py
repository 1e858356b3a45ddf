from dataclasses import replace
from itertools import permutations, product

import numpy as np
import pytest
from pydantic import ValidationError
from scipy.ndimage import map_coordinates

from pcrl_cli.core.errors import DataError
from pcrl_cli.data.volume import (
    Intensity,
    Volume,
    canonical,
    check,
    index_to_world,
    otsu,
    prepare,
    resample,
    world_to_index,
)


def volume(shape=(6, 7, 8), spacing=(0.7, 0.8, 2.5), direction=None, dtype=np.float32, seed=0) -> Volume:
    array = np.random.default_rng(seed).integers(-1200, 1300, shape).astype(dtype)
    axes = np.eye(3) if direction is None else np.asarray(direction, float)
    return Volume(array, np.array(spacing, float), np.array([-20.0, 5.0, -300.0]), axes, "scan.mhd")


def rotation(*angles: float) -> np.ndarray:
    turn = np.eye(3)
    for axis, angle in enumerate(angles):
        i, j = [k for k in range(3) if k != axis]
        step = np.eye(3)
        step[i, i] = step[j, j] = np.cos(angle)
        step[i, j], step[j, i] = -np.sin(angle), np.sin(angle)
        turn = turn @ step
    return turn


SIGNED_PERMUTATIONS = [
    np.eye(3)[list(order)] * np.array(sign)
    for order in permutations(range(3))
    for sign in product((1.0, -1.0), repeat=3)
]


def test_world_to_index_undoes_index_to_world_on_an_oblique_grid():
    grid = volume(direction=rotation(0.3, -0.8, 2.0))
    index = np.random.default_rng(1).uniform(-5, 20, (50, 3))
    np.testing.assert_allclose(world_to_index(grid, index_to_world(grid, index)), index, atol=1e-10)


def test_index_to_world_follows_its_definition():
    grid = volume(direction=rotation(0.3, -0.8, 2.0))
    expected = grid.origin + grid.direction @ (np.array([1, 2, 3]) * grid.spacing)
    np.testing.assert_allclose(index_to_world(grid, np.array([1, 2, 3])), expected)


@pytest.mark.parametrize("direction", SIGNED_PERMUTATIONS)
def test_canonical_undoes_every_flip_and_permutation_and_keeps_every_voxel_in_its_place(direction):
    before = volume(direction=direction)
    after = canonical(before)
    np.testing.assert_array_equal(after.direction, np.eye(3))
    index = np.argwhere(np.ones(after.array.shape, bool))
    back = np.rint(world_to_index(before, index_to_world(after, index))).astype(int)
    np.testing.assert_array_equal(after.array.ravel(), before.array[tuple(back.T)])
    np.testing.assert_allclose(index_to_world(before, back), index_to_world(after, index), atol=1e-9)


def test_canonical_of_an_oblique_scan_is_within_a_half_turn_of_the_identity_and_keeps_positions():
    before = volume(direction=rotation(0.2, 0.1, 0.3) @ SIGNED_PERMUTATIONS[13])
    after = canonical(before)
    assert (np.abs(after.direction).argmax(0) == [0, 1, 2]).all()
    assert (np.diagonal(after.direction) > 0.9).all()
    corner = world_to_index(before, index_to_world(after, np.array([1, 2, 3])))
    assert after.array[1, 2, 3] == before.array[tuple(np.rint(corner).astype(int))]


def test_canonical_leaves_an_upright_scan_alone_and_copies_nothing():
    before = volume()
    after = canonical(before)
    assert np.shares_memory(after.array, before.array)
    np.testing.assert_array_equal(after.origin, before.origin)


@pytest.mark.parametrize("new", [0.5, 0.8, 1.0, 1.7])
@pytest.mark.parametrize("order", ["C", "F"])
def test_resample_equals_scipy_linear_interpolation_with_the_edge_held(new, order):
    scan = volume((9, 11, 7), dtype=np.int16)
    scan = replace(scan, array=np.asarray(scan.array, order=order))
    out = resample(scan, new)
    size = [round(n * s / new) for n, s in zip(scan.array.shape, scan.spacing, strict=True)]
    assert out.array.shape == tuple(size)
    assert out.array.dtype == np.float32
    lines = [np.arange(n) * new / s for n, s in zip(size, scan.spacing, strict=True)]
    where = np.meshgrid(*lines, indexing="ij")
    expected = map_coordinates(scan.array.astype(np.float64), where, order=1, mode="nearest")
    np.testing.assert_allclose(out.array, expected, atol=2e-3)


def test_resample_keeps_the_first_voxel_centre_and_the_direction():
    scan = volume(direction=rotation(0.3, 0, 0))
    out = resample(scan, 1.0)
    np.testing.assert_array_equal(out.origin, scan.origin)
    np.testing.assert_array_equal(out.direction, scan.direction)
    assert out.array[0, 0, 0] == scan.array[0, 0, 0]


def test_resample_to_the_same_spacing_changes_nothing():
    scan = volume(spacing=(1, 1, 1), dtype=np.int16)
    np.testing.assert_array_equal(resample(scan, 1.0).array, scan.array)


def test_resample_does_not_write_into_its_input():
    scan = volume(spacing=(1, 1, 1))
    before = scan.array.copy()
    resample(scan, 1.0).array[:] = 0
    np.testing.assert_array_equal(scan.array, before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"array": np.zeros((8, 8, 1), np.int16)}, "2 or more"),
        ({"spacing": np.array([1.0, 0.0, 1.0])}, "spacing"),
        ({"spacing": np.array([1.0, -1.0, 1.0])}, "spacing"),
        ({"spacing": np.array([1.0, np.nan, 1.0])}, "spacing"),
        ({"spacing": np.array([1.0, 51.0, 1.0])}, "spacing"),
        ({"spacing": np.array([0.009, 1.0, 1.0])}, "spacing"),
        ({"array": np.zeros((2, 2, 61), np.int16), "spacing": np.array([1.0, 1.0, 50.0])}, "extent of 2 x 2 x 3050 mm"),
        ({"array": np.zeros((50, 50, 50), np.int16), "spacing": np.full(3, 26.0)}, "extent of 1300 x 1300 x 1300 mm"),
        ({"origin": np.array([0.0, np.inf, 0.0])}, "origin"),
        ({"direction": np.diag([1.0, 1.0, 0.0])}, "orthonormal"),
        ({"direction": np.array([[1.0, 0.1, 0], [0, 1, 0], [0, 0, 1]])}, "orthonormal"),
        ({"direction": np.full((3, 3), np.nan)}, "orthonormal"),
    ],
)
def test_absurd_geometry_is_refused_by_name(change, message):
    with pytest.raises(DataError, match=message) as caught:
        check(replace(volume(), **change))
    assert "scan.mhd" in str(caught.value)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_voxel_that_is_no_number_is_refused(bad):
    scan = volume()
    scan.array[3, 2, 1] = bad
    with pytest.raises(DataError, match=r"scan\.mhd holds 1 voxels that are NaN or infinite"):
        prepare(scan, Intensity())


def test_prepared_ct_is_clipped_unrounded_hu():
    scan = volume(dtype=np.int16)
    ready = prepare(scan, Intensity())
    assert ready.values.dtype == np.float32
    assert (ready.values.min(), ready.values.max()) == (-1000, 1000)
    assert (ready.background, ready.air) == (-150, -1000)
    np.testing.assert_array_equal(ready.values, np.clip(resample(scan, 1.0).array, -1000, 1000))
    assert not np.array_equal(ready.values, np.rint(ready.values))


def test_prepare_turns_the_scan_upright_first():
    scan = volume(direction=np.diag([-1.0, -1.0, 1.0]), dtype=np.int16)
    ready = prepare(scan, Intensity())
    np.testing.assert_array_equal(ready.direction, np.eye(3))
    assert ready.values[0, 0, 0] == np.clip(scan.array[-1, -1, 0], -1000, 1000)


@pytest.mark.parametrize("intensity", [Intensity(), Intensity(hu_min=-200, hu_max=200)])
def test_ct_window_maps_to_the_unit_range(intensity):
    def unit(stored: float) -> float:
        return stored * intensity.store_scale + intensity.store_offset

    assert unit(intensity.hu_min) == pytest.approx(0)
    assert unit(intensity.hu_max) == pytest.approx(1)
    assert unit(intensity.air) == pytest.approx(0)


def test_mr_percentiles_map_to_the_stored_range_and_background_is_otsus():
    rng = np.random.default_rng(0)
    array = np.concatenate([rng.normal(40, 5, (20, 20, 20)), rng.normal(400, 30, (20, 20, 20))]).astype(np.float32)
    scan = Volume(array, np.ones(3), np.zeros(3), np.eye(3))
    ready = prepare(scan, Intensity(modality="mr"))
    low, high = np.percentile(array, [0.5, 99.5])
    expected = np.clip((array - low) / (high - low), 0, 1)
    np.testing.assert_allclose(ready.values * Intensity(modality="mr").store_scale, expected, atol=1e-5)
    dark, bright = ready.values[:20], ready.values[20:]
    assert dark.max() < ready.background < bright.min()


def test_an_mr_scan_of_one_value_is_refused():
    scan = Volume(np.full((4, 4, 4), 7, np.int16), np.ones(3), np.zeros(3), np.eye(3), "flat.nii")
    with pytest.raises(DataError, match=r"flat\.nii has one value"):
        prepare(scan, Intensity(modality="mr"))


def test_stripped_brains_of_one_outline_have_ids_of_their_own():
    ids = set()
    for seed in range(3):
        array = np.zeros((16, 16, 16), np.int16)
        array[2:14, 2:14, 2:14] = np.random.default_rng(seed).integers(200, 260, (12, 12, 12))
        ids |= set(prepare(Volume(array, np.ones(3), np.zeros(3), np.eye(3)), Intensity(modality="mr")).scan_ids)
    assert len(ids) == 3


def test_otsu_finds_the_edge_that_the_definition_names():
    values = np.random.default_rng(0).normal(0, 1, 4000) ** 2
    values[::3] += 5
    best = -1.0
    for edge in np.histogram_bin_edges(values, 256)[1:-1]:
        low, high = values[values < edge], values[values >= edge]
        between = len(low) * len(high) * (low.mean() - high.mean()) ** 2 if len(low) and len(high) else 0
        if between > best:
            best, expected = between, edge
    assert otsu(values) == pytest.approx(expected, abs=3 * np.ptp(values) / 256)


def test_a_window_of_no_width_is_refused():
    with pytest.raises(ValidationError, match="must lie below"):
        Intensity(hu_min=100, hu_max=100)
