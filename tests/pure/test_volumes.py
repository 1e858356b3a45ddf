from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from data.labelled_cases import AXES, ct, mr

from pcrl_cli.core.case import Case
from pcrl_cli.core.plan import CropPlan, Grid
from pcrl_cli.data.cache import shard_path, write_shard
from pcrl_cli.data.labelled import Preparation, label
from pcrl_cli.data.volume import Volume, as_filed, canonical, resample
from pcrl_cli.pure.regions import rivals
from pcrl_cli.pure.volumes import CHUNK, WholeVolumes, chunk_of, label_map, sample_foreground, to_native

CASE = Case("volume-0", "p", Path("volume-0.nii"))


def draw(scan, seed=0, **options):
    return WholeVolumes(**options).draw(scan, CASE, np.random.default_rng(seed))


def test_the_plan_is_a_crop_plan_of_the_group_volumes():
    assert isinstance(WholeVolumes(), CropPlan)
    assert WholeVolumes().group == "volumes"


def test_arrays_are_what_the_cache_promises():
    scan = label(ct(), Preparation())
    drawn = draw(scan)
    kinds = {name: (array.dtype.name, array.shape) for name, array in drawn.arrays.items()}
    x, y, z = scan.mask.shape
    assert kinds == {
        "image": ("int16", (1, x, y, z)),
        "mask": ("uint8", (x, y, z)),
        "native_mask": ("uint8", (12, 15, 9)),
        "box": ("int32", (2, 3)),
        "foreground": ("int32", (np.count_nonzero(scan.mask), 3)),
        "grid": ("float64", (18,)),
        "native": ("float64", (18,)),
    }
    np.testing.assert_array_equal(drawn.arrays["image"], np.rint(scan.image))
    assert drawn.packed == {"mask", "native_mask"}
    pieces = {"image": (1, x, y, z), "mask": (x, y, z), "native_mask": (12, 15, 9)}
    assert drawn.chunks == pieces | {"foreground": (np.count_nonzero(scan.mask), 3)}
    assert Grid.of_row(drawn.arrays["grid"]).shape == (x, y, z)


def test_the_foregrounds_voxels_are_stored_in_one_piece_with_no_index_that_is_larger_than_they_are(tmp_path):
    scan = label(ct(), Preparation())
    mask = np.ones_like(scan.mask)
    drawn = draw(replace(scan, mask=mask))
    (tmp_path / "shards").mkdir()
    write_shard(tmp_path, "a", {"volumes": drawn}, {})
    with h5py.File(shard_path(tmp_path, "a")) as file:
        assert file["volumes/foreground"].chunks == drawn.arrays["foreground"].shape
    empty = draw(replace(scan, mask=np.zeros_like(mask)))
    write_shard(tmp_path, "b", {"volumes": empty}, {})
    assert empty.arrays["foreground"].shape == (0, 3)


@pytest.mark.parametrize("n", [1, 31, 32, 33, 64, 65, 127, 128, 129, 140, 372, 512])
def test_chunks_are_equal_parts_that_waste_little(n):
    chunk = chunk_of((2, n, n, n))
    assert chunk[0] == 1
    for part, most in zip(chunk[1:], CHUNK, strict=True):
        pieces = -(-n // part)
        assert part <= most
        assert pieces == -(-n // most)
        assert pieces * part - n < pieces


def test_counts_name_the_voxels_of_each_label_and_scans_without_foreground():
    scan = label(mr(), Preparation(modality="mr"))
    assert dict(draw(scan).counts) == {
        "volumes": 1, "without_foreground": 0, "label_1": 1, "label_2": 14, "label_4": 1,
    }  # fmt: skip
    scan.mask[...] = 0
    drawn = draw(scan)
    assert dict(drawn.counts) == {"volumes": 1, "without_foreground": 1}
    assert drawn.arrays["foreground"].shape == (0, 3)


def test_listed_foreground_is_a_seeded_sample_of_the_foreground():
    mask = np.zeros((20, 20, 20), np.uint8)
    mask[3:15, 2:9, 4:19] = 1
    one, same, other = (sample_foreground(mask, 50, np.random.default_rng(s)) for s in (0, 0, 1))
    assert one.shape == (50, 3)
    assert len(np.unique(one, axis=0)) == 50
    assert mask[tuple(one.T)].all()
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)
    counts = np.zeros(mask.shape)
    for seed in range(300):
        counts[tuple(sample_foreground(mask, 126, np.random.default_rng(seed)).T)] += 1
    assert counts[mask == 0].max() == 0
    assert abs(counts[mask > 0].mean() - 30) < 1e-9  # 126 of 1260, 300 times
    assert counts[mask > 0].min() > 5


def grid(shape, spacing, origin=(0, 0, 0)):
    return Grid(shape, np.array(spacing, float), np.array(origin, float), np.eye(3))


def test_the_same_grid_gives_the_thresholded_probabilities_themselves():
    probability = np.random.default_rng(0).random((3, 5, 6, 7)).astype(np.float32)
    same = grid((5, 6, 7), (1, 1, 1), (4, 5, 6))
    np.testing.assert_array_equal(to_native(probability, same, same), probability > 0.5)
    np.testing.assert_array_equal(to_native(probability, same, same, 0.9), probability > 0.9)


@pytest.mark.parametrize("spacing", [(0.7, 0.8, 2.5), (1.0, 1.0, 1.0), (0.74, 3.0, 0.31)])
def test_a_plane_comes_back_to_where_it_was(spacing):
    """Half of the scan is foreground: linear interpolation there and back moves no voxel but those at the border."""
    shape = (20, 24, 30)
    native = grid(shape, spacing, (10, 20, 30))
    for axis in range(3):
        at = np.arange(shape[axis]).reshape([-1 if i == axis else 1 for i in range(3)])
        truth = np.broadcast_to(at >= shape[axis] // 2, shape)
        volume = Volume(truth.astype(np.float32), native.spacing, native.origin, native.direction)
        working = resample(volume, 1.0)
        back = to_native(working.array[None], grid(working.array.shape, (1, 1, 1), (10, 20, 30)), native)[0]
        wrong = np.flatnonzero((back != truth).any(axis=tuple(i for i in range(3) if i != axis)))
        reach = int(np.ceil(1 / spacing[axis]))
        assert all(abs(i - shape[axis] // 2 + 0.5) <= reach for i in wrong), (axis, wrong)


def test_probabilities_are_interpolated_linearly():
    native, working = grid((9, 4, 4), (0.5, 1, 1)), grid((4, 4, 4), (1, 1, 1))
    probability = np.zeros((1, 4, 4, 4), np.float32)
    probability[0, :] = np.array([0, 0.4, 0.8, 1.0]).reshape(-1, 1, 1)
    got = to_native(probability, working, native)[0, :, 0, 0]
    line = np.array([0, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0, 1.0, 1.0])  # beyond the last voxel its value is held
    np.testing.assert_array_equal(got, line > 0.5)
    for threshold in (0.1, 0.3, 0.5, 0.7, 0.85, 0.95):
        np.testing.assert_array_equal(to_native(probability, working, native, threshold)[0, :, 0, 0], line > threshold)


def test_what_was_cut_off_is_not_foreground():
    scan = label(mr(), Preparation(modality="mr"))
    ones = np.ones((1, *scan.grid.shape), np.float32)
    got = to_native(ones, scan.grid, scan.native)[0]
    want = np.zeros(got.shape, bool)
    want[2:8, 1:10, 3:7] = True
    np.testing.assert_array_equal(got, want)
    assert not to_native(0 * ones, scan.grid, scan.native).any()


@pytest.mark.parametrize("direction", AXES)
def test_a_prediction_lies_on_the_file_as_its_mask_did_in_every_orientation(direction):
    """The mask as its own prediction, through the 1 mm grid and back into the axes of the file."""
    shape, spacing = (24, 20, 18), (1.5, 1.25, 2.5)
    for made, how in (
        (ct(direction, shape, spacing, box=((6, 5, 4), (16, 15, 13))), Preparation()),
        (mr(direction), Preparation(modality="mr")),
    ):
        scan = label(made, how)
        back = to_native((scan.mask > 0)[None].astype(np.float32), scan.grid, scan.native)[0]
        np.testing.assert_array_equal(back, scan.native_mask > 0)
        filed = as_filed(back, made.images[0].direction)
        np.testing.assert_array_equal(filed, made.mask.array > 0)


@pytest.mark.parametrize("direction", AXES)
def test_as_filed_undoes_canonical(direction):
    array = np.arange(3 * 4 * 5, dtype=np.int16).reshape(3, 4, 5)
    filed = Volume(array, np.array([1.0, 2.0, 3.0]), np.zeros(3), direction)
    np.testing.assert_array_equal(as_filed(canonical(filed).array, direction), array)


def test_nested_regions_become_the_data_sets_labels():
    wt, tc, et = (np.array(row, bool) for row in ([0, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 0], [0, 0, 0, 1, 0, 1]))
    got = label_map(np.stack([wt, tc, et]), [(1, 2, 3, 4), (1, 3, 4), (4,)])
    assert got.tolist() == [0, 2, 1, 4, 1, 4]
    assert label_map(wt[None], [(1, 2)]).tolist() == [0, 1, 1, 1, 0, 0]


@pytest.mark.parametrize(
    "regions",
    [
        [(1, 3), (2, 3)],  # two that overlap, one bit each
        [(4,), (1, 4), (1, 2, 4)],  # nested, the innermost first
        [(1,), (2,), (3,)],  # apart
        [(1, 2), (2, 5), (7,)],
    ],
)
def test_a_label_map_holds_every_way_in_which_regions_can_overlap(regions):
    """Whatever labels there are, regions made of them come back."""
    labels = np.array([0, *sorted({n for members in regions for n in members})], np.uint8)
    masks = np.stack([np.isin(labels, members) for members in regions])
    np.testing.assert_array_equal(label_map(masks, regions), labels)


def test_where_no_label_is_of_exactly_these_regions_none_of_them_is_lost_that_can_be_kept():
    both = np.array([[True, True], [True, False]])
    assert label_map(both, [(1,), (2,)])[0] in (1, 2)
    assert label_map(both, [(1,), (2,)])[1] == 1
    assert label_map(np.array([[False], [True], [True]]), [(1, 2, 4), (1, 4), (4,)])[0] == 4


def test_rivals_share_no_voxel_on_the_scans_grid():
    working, native = grid((6, 5, 4), (2, 2, 2), (0, 0, 0)), grid((12, 10, 8), (1, 1, 1), (0, 0, 0))
    p = np.random.default_rng(0).random((3, 6, 5, 4)).astype(np.float32)
    alone, apart = to_native(p, working, native), to_native(p, working, native, 0.5, rivals([(1,), (2,), (3,)]))
    assert (alone.sum(axis=0) > 1).any()
    assert (apart.sum(axis=0) <= 1).all()
    np.testing.assert_array_equal(apart.any(axis=0), alone.any(axis=0))
