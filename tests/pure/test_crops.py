from collections import Counter
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.stats import chi2, chisquare

from pcrl_cli.core.case import Case, Points
from pcrl_cli.core.config import recipe
from pcrl_cli.core.errors import DataError
from pcrl_cli.core.plan import Prepared
from pcrl_cli.pure.crops import (
    GLOBAL_SIZES,
    LOCAL_SIZES,
    Box,
    CandidateBlocks,
    CropPairs,
    WholeScan,
    block_at,
    draw_local_anywhere,
    draw_local_corner,
    draw_local_in,
    draw_pair,
    draw_pair_blind,
    hull,
    inside,
    iou,
    reachable_pairs,
    to_int16,
    whole,
)
from pcrl_cli.pure.resize import resize

CASE = Case("case", "patient", Path("case"))
RELEASED = CropPairs(**recipe("released", "prep", "crops", "pairs"))
SMALL = {
    "pairs": 3,
    "global_sizes": ((12, 12, 6), (16, 16, 12)),
    "local_sizes": ((2, 2, 2), (6, 6, 4)),
    "global_shape": (8, 8, 4),
    "local_shape": (4, 4, 4),
    "n_locals": 2,
}
BOXES = st.builds(Box, st.tuples(*[st.integers(0, 9)] * 3), st.tuples(*[st.integers(1, 9)] * 3))


def scan(values, **changes):
    facts = {
        "spacing": np.ones(3),
        "origin": np.zeros(3),
        "direction": np.eye(3),
        "background": -150.0,
        "air": -1000.0,
    }
    return Prepared(np.asarray(values, np.float32), **(facts | changes))


def noise(shape, seed=0, low=-100, high=100):
    return np.random.default_rng(seed).uniform(low, high, shape)


# ------------------------------------------------------------------------------------------------------- boxes


@given(BOXES, BOXES)
@settings(max_examples=100, deadline=None)
def test_iou_counts_voxels(a, b):
    grids = []
    for box in (a, b):
        grid = np.zeros((20, 20, 20), bool)
        grid[box.slices] = True
        grids.append(grid)
    assert iou(a, b) == iou(b, a) == (grids[0] & grids[1]).sum() / (grids[0] | grids[1]).sum()


@given(BOXES, BOXES)
@settings(max_examples=100, deadline=None)
def test_the_hull_is_the_smallest_box_that_holds_both(a, b):
    outer = hull(a, b)
    assert inside(a, outer)
    assert inside(b, outer)
    for axis, step in product(range(3), (0, 1)):
        start, size = list(outer.start), list(outer.size)
        start[axis] += step
        size[axis] -= 1
        smaller = Box(tuple(start), tuple(size))
        assert not (inside(a, smaller) and inside(b, smaller))


def test_ten_of_the_papers_sixteen_pairs_can_overlap_enough():
    pairs = reachable_pairs(GLOBAL_SIZES, 0.3)
    small = GLOBAL_SIZES[0]
    assert len(pairs) == 10
    assert [p for p in pairs if small in p] == [(small, small)]


def test_all_ten_pairs_are_drawn_equally_often():
    rng = np.random.default_rng(0)
    drawn = Counter(tuple(b.size for b in draw_pair((130, 130, 110), rng, GLOBAL_SIZES, 0.3)) for _ in range(2000))
    assert set(drawn) == set(reachable_pairs(GLOBAL_SIZES, 0.3))
    assert chisquare(list(drawn.values())).pvalue > 1e-4


@given(st.tuples(*[st.integers(0, 25)] * 3), st.integers(0, 2**32), st.sampled_from([0.05, 0.3, 0.5, 0.9, 1.0]))
@settings(max_examples=60, deadline=None)
def test_pairs_overlap_enough_and_stay_in_the_scan(extra, seed, min_iou):
    shape = tuple(n + m for n, m in zip((6, 6, 3), extra, strict=True))
    sizes = ((6, 6, 3), (9, 9, 6), (9, 9, 9), (11, 11, 6))
    a, b = draw_pair(shape, np.random.default_rng(seed), sizes, min_iou)
    assert iou(a, b) >= min_iou
    assert inside(hull(a, b), Box((0, 0, 0), shape))


@pytest.mark.parametrize("min_iou", [0.0, 0.2, 0.35])
def test_positions_are_uniform_over_a_small_lattice(min_iou):
    """Box 1 uniform; given it, box 2 uniform over every position with enough overlap: against full enumeration."""
    shape, a, b = (5, 4, 5), (3, 2, 3), (2, 3, 4)
    rng = np.random.default_rng(3)
    n = 2500
    drawn = Counter()
    while drawn.total() < n:
        pair = draw_pair(shape, rng, (a, b), min_iou)
        if (pair[0].size, pair[1].size) == (a, b):
            drawn[pair] += 1
    firsts = [Box(s, a) for s in product(*(range(x - m + 1) for x, m in zip(shape, a, strict=True)))]
    expected = {}
    for first in firsts:
        seconds = [Box(s, b) for s in product(*(range(x - m + 1) for x, m in zip(shape, b, strict=True)))]
        good = [second for second in seconds if iou(first, second) >= min_iou]
        expected |= {(first, second): n / len(firsts) / len(good) for second in good}
    assert set(drawn) <= set(expected)
    distance = sum((drawn[pair] - e) ** 2 / e for pair, e in expected.items())
    assert distance < chi2.ppf(1 - 1e-4, len(expected) - 1)


def test_borders_are_kept_free():
    rng = np.random.default_rng(0)
    for draw in (
        lambda: draw_pair((30, 30, 20), rng, ((8, 8, 8),), 0.3, (7, 5, 3)),
        lambda: draw_pair_blind((30, 30, 20), rng, ((8, 8, 8),), (7, 5, 3)),
    ):
        for _ in range(50):
            assert all(inside(box, Box((7, 5, 3), (16, 20, 14))) for box in draw())


@given(BOXES, st.integers(0, 2**32))
@settings(max_examples=100, deadline=None)
def test_locals_lie_inside_the_hull(outer, seed):
    box = draw_local_in(outer, ((1, 1, 1), (3, 2, 1), (9, 9, 9)), np.random.default_rng(seed))
    assert inside(box, outer)


def test_local_starts_reach_both_ends_of_the_hull():
    rng = np.random.default_rng(0)
    starts = {draw_local_in(Box((5, 6, 7), (3, 3, 3)), ((2, 2, 2),), rng).start for _ in range(200)}
    assert starts == set(product((5, 6), (6, 7), (7, 8)))


def test_locals_from_anywhere_leave_the_hull_but_not_the_scan():
    rng = np.random.default_rng(0)
    boxes = [draw_local_anywhere((20, 20, 20), LOCAL_SIZES, rng) for _ in range(300)]
    assert {box.size for box in boxes} == {(8, 8, 8), (16, 16, 16)}
    assert all(inside(box, Box((0, 0, 0), (20, 20, 20))) for box in boxes)


def test_half_of_the_released_locals_stick_out_of_the_hull():
    rng = np.random.default_rng(0)
    shape, out = (350, 350, 320), []
    while len(out) < 3000:
        a, b = draw_pair_blind(shape, rng, GLOBAL_SIZES, (70, 70, 15))
        if iou(a, b) > 0.3:
            outer = hull(a, b)
            out += [not inside(draw_local_corner(outer, LOCAL_SIZES, shape, rng), outer) for _ in range(20)]
    assert np.mean(out) == pytest.approx(0.53, abs=0.03)  # what was counted in the released code


def test_released_locals_are_cut_at_the_scans_edge():
    rng = np.random.default_rng(0)
    boxes = [draw_local_corner(Box((0, 0, 0), (40, 40, 20)), LOCAL_SIZES, (40, 40, 20), rng) for _ in range(300)]
    assert all(inside(box, Box((0, 0, 0), (40, 40, 20))) and min(box.size) >= 1 for box in boxes)
    assert any(box.size not in LOCAL_SIZES for box in boxes)


# ------------------------------------------------------------------------------------------------------- pairs


def test_the_paper_recipe_gives_the_cached_shapes():
    drawn = CropPairs(pairs=2).draw(scan(noise((80, 80, 50))), CASE, np.random.default_rng(0))
    assert {name: (array.shape, array.dtype.name) for name, array in drawn.arrays.items()} == {
        "globals": ((2, 2, 1, 64, 64, 32), "int16"),
        "locals_sub": ((2, 6, 1, 16, 16, 16), "int16"),
        "locals_multi": ((2, 6, 1, 16, 16, 16), "int16"),
        "boxes": ((2, 14, 6), "int16"),
    }
    assert drawn.counts["tried"] == drawn.counts["kept"] == 2
    assert drawn.counts["unfit_sizes"] == 9


def test_every_cached_crop_is_its_box_resized_then_rounded():
    values = noise((30, 28, 20))
    drawn = CropPairs(**SMALL).draw(scan(values), CASE, np.random.default_rng(0)).arrays
    for pair in range(3):
        crops = [*drawn["globals"][pair], *drawn["locals_sub"][pair], *drawn["locals_multi"][pair]]
        boxes = [Box(tuple(row[:3].tolist()), tuple(row[3:].tolist())) for row in drawn["boxes"][pair]]
        for crop, box in zip(crops, boxes, strict=True):
            exact = resize(values.astype(np.float32)[box.slices], crop.shape[1:])
            assert np.abs(crop[0] - exact).max() <= 0.5 + 1e-9
        assert iou(*boxes[:2]) >= 0.3
        assert all(inside(box, hull(*boxes[:2])) for box in boxes[2:4])


def test_the_same_generator_gives_the_same_pairs_and_another_gives_others():
    plan, prepared = CropPairs(**SMALL), scan(noise((30, 28, 20)))
    one, same, other = (plan.draw(prepared, CASE, np.random.default_rng(seed)).arrays for seed in (1, 1, 2))
    assert all(np.array_equal(one[name], same[name]) for name in one)
    assert not np.array_equal(one["boxes"], other["boxes"])


def test_mostly_empty_crops_are_refused_before_resizing():
    values = noise((40, 40, 20))
    values[20:] = -1000
    plan = CropPairs(**SMALL | {"pairs": 40}, max_background=0.5)
    drawn = plan.draw(scan(values), CASE, np.random.default_rng(0))
    for start, size in drawn.arrays["boxes"][:, :2].reshape(-1, 2, 3):
        crop = values[Box(tuple(start.tolist()), tuple(size.tolist())).slices]
        assert (crop < -150).mean() <= 0.5
    assert drawn.counts["refused_background"] > 0
    assert drawn.counts["tried"] == drawn.counts["kept"] + drawn.counts["refused_background"]


def test_a_scan_of_air_ends_with_a_reason():
    with pytest.raises(DataError, match="no acceptable crops: 0 of 3 pairs after 40 tries") as caught:
        CropPairs(**SMALL, max_tries=40).draw(scan(np.full((30, 30, 20), -1000)), CASE, np.random.default_rng(0))
    assert caught.value.slug == "no_crops"
    assert "smaller pairs.global_sizes, or with --labels cut none (--pairs 0)" in str(caught.value)
    assert (caught.value.counts["tried"], caught.value.counts["refused_background"]) == (40, 40)


@pytest.mark.parametrize("shape", [(63, 64, 32), (64, 64, 31), (200, 200, 1)])
@pytest.mark.parametrize("plan", [CropPairs(), RELEASED])
def test_a_scan_without_room_is_too_small(shape, plan):
    with pytest.raises(DataError, match="too small") as caught:
        plan.draw(scan(np.zeros(shape)), CASE, np.random.default_rng(0))
    assert caught.value.slug == "too_small"


def test_the_released_border_leaves_no_room_in_a_scan_that_the_paper_recipe_takes():
    prepared = scan(noise((150, 150, 60)))
    assert CropPairs(pairs=1).draw(prepared, CASE, np.random.default_rng(0)).counts["kept"] == 1
    with pytest.raises(DataError, match="70x70x15 kept free"):
        RELEASED.draw(prepared, CASE, np.random.default_rng(0))


def test_the_released_background_rule_refuses_tissue():
    small_only = SMALL | {"global_sizes": ((12, 12, 6),)}  # 256 resized voxels of tissue > 15 % of 864
    plan = CropPairs(**small_only, background_rule="released", max_tries=30)
    with pytest.raises(DataError, match="refused for background"):
        plan.draw(scan(noise((30, 30, 20))), CASE, np.random.default_rng(0))
    assert plan.draw(scan(np.full((30, 30, 20), -1000)), CASE, np.random.default_rng(0)).counts["kept"] == 3


def test_the_released_background_rule_never_refuses_a_first_box_of_96_cubed():
    options = {"global_sizes": ((96, 96, 96),), "pairs": 1, "n_locals": 0, "background_rule": "released"}
    drawn = CropPairs(**options).draw(scan(noise((100, 100, 100))), CASE, np.random.default_rng(0))
    assert drawn.counts["refused_background"] == 0


def test_blind_pairs_overlap_more_than_the_minimum_and_refusals_are_counted():
    drawn = CropPairs(**SMALL, pair_rule="blind").draw(scan(noise((40, 40, 30))), CASE, np.random.default_rng(0))
    assert drawn.counts["refused_iou"] > 0
    assert drawn.counts["tried"] == drawn.counts["kept"] + drawn.counts["refused_iou"]
    for boxes in drawn.arrays["boxes"][:, :2].tolist():
        assert iou(*(Box(tuple(row[:3]), tuple(row[3:])) for row in boxes)) > 0.3


def test_values_that_are_not_finite_are_bad_data():
    values = noise((30, 30, 20))
    values[::3] = np.nan
    with pytest.raises(DataError, match="not finite") as caught:
        CropPairs(**SMALL).draw(scan(values), CASE, np.random.default_rng(0))
    assert caught.value.slug == "bad_values"


def test_plans_are_frozen_and_know_their_options():
    with pytest.raises(ValidationError):
        CropPairs(paires=3)
    with pytest.raises(ValidationError):
        CropPairs().pairs = 3


# -------------------------------------------------------------------------------------------------- candidates

TURNED = np.array([[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])


def candidates(n0, n1, seed=0, low=0, high=19):
    rng = np.random.default_rng(seed)
    n = n0 + n1
    index = rng.integers(low, high, (n, 3))
    label = rng.permutation(np.repeat(np.array([0, 1], np.uint8), [n0, n1]))
    return index, label, tuple(f"c{i}" for i in range(n))


def test_a_candidate_is_at_the_centre_of_its_block_whatever_the_grids_frame():
    values = noise((20, 20, 20))
    index, label, ids = candidates(3, 2)
    prepared = scan(values, origin=np.array([-100.0, 30.0, 7.5]), direction=TURNED)
    world = prepared.origin + (index + 0.3) @ TURNED.T
    case = Case("a", "a", Path("a"), Points(world, label, ids))
    arrays = CandidateBlocks(side_mm=8).draw(prepared, case, np.random.default_rng(0)).arrays
    assert arrays["blocks"].shape == (5, 1, 8, 8, 8)
    np.testing.assert_array_equal(arrays["blocks"][:, 0, 4, 4, 4], np.rint(values[tuple(index.T)]))
    np.testing.assert_array_equal(arrays["world"], world)
    assert arrays["id"].tolist() == [name.encode() for name in ids]
    assert arrays["lesions"].shape == (0, 4)


def test_blocks_are_padded_with_air_outside_the_scan():
    values = noise((20, 20, 20))
    block = block_at(scan(values), np.array([0.0, 19.0, 10.0]), 8)
    np.testing.assert_array_equal(block[4:, :5, :], np.rint(values[:4, 15:20, 6:14]))
    assert (block[:4] == -1000).all()
    assert (block[:, 5:] == -1000).all()
    assert (block_at(scan(values), np.array([500.0, 0.0, 0.0]), 8) == -1000).all()


def test_all_of_class_1_and_a_seeded_sample_of_class_0_are_cached_and_counted():
    index, label, ids = candidates(50, 4, low=-5, high=19)
    case = Case("a", "a", Path("a"), Points(index.astype(float), label, ids), lesions=np.ones((2, 4)))
    plan, prepared = CandidateBlocks(side_mm=4, negatives=7), scan(noise((20, 20, 20)))
    one, same, other = (plan.draw(prepared, case, np.random.default_rng(s)) for s in (0, 0, 1))
    within = (index >= 0).all(axis=1)
    assert one.counts == {
        "candidates_0": (within & (label == 0)).sum(),
        "candidates_1": (within & (label == 1)).sum(),
        "candidates_outside": (~within).sum(),
        "cached_0": 7,
        "cached_1": (within & (label == 1)).sum(),
    }
    assert (one.arrays["label"] == 1).sum() == one.counts["candidates_1"]
    assert (one.arrays["label"] == 0).sum() == 7
    assert one.arrays["id"].tolist() == same.arrays["id"].tolist() != other.arrays["id"].tolist()
    assert one.arrays["lesions"].shape == (2, 4)


def test_a_case_without_candidates_gives_empty_arrays():
    arrays = CandidateBlocks(side_mm=4).draw(scan(noise((20, 20, 20))), CASE, np.random.default_rng(0)).arrays
    assert {name: array.shape for name, array in arrays.items()} == {
        "blocks": (0, 1, 4, 4, 4),
        "world": (0, 3),
        "label": (0,),
        "id": (0,),
        "lesions": (0, 4),
        "excluded": (0, 4),
    }


def test_findings_that_count_for_nothing_are_cached_beside_the_lesions():
    findings = np.array([[1.0, 2.0, 3.0, -1.0], [4.0, 5.0, 6.0, 7.5]])
    case = Case("a", "a", Path("a"), lesions=np.ones((1, 4)), excluded=findings)
    arrays = CandidateBlocks(side_mm=4).draw(scan(noise((20, 20, 20))), case, np.random.default_rng(0)).arrays
    np.testing.assert_array_equal(arrays["excluded"], findings)
    np.testing.assert_array_equal(arrays["lesions"], np.ones((1, 4)))


# ----------------------------------------------------------------------------------------------------- whole scans


def labelled(shape=(20, 22, 24), seed=3):
    values = np.random.default_rng(seed).integers(-1000, 1000, shape).astype(np.float32)
    return Prepared(values, np.ones(3), np.zeros(3), np.eye(3), -150.0, -1000.0)


def test_a_whole_scan_is_resized_to_the_shape_as_a_crop_is():
    scan = labelled()
    assert np.array_equal(whole(scan, (10, 11, 12), "resize"), to_int16(resize(scan.values, (10, 11, 12))))
    assert np.array_equal(whole(scan, (20, 22, 24), "resize"), scan.values)


@pytest.mark.parametrize("shape", [(8, 9, 24), (24, 30, 11), (21, 23, 25)])
def test_a_cropped_scan_lies_in_the_middle_with_air_around(shape):
    scan, found = labelled(), whole(labelled(), shape, "crop")
    assert found.shape == shape
    expected = np.full(shape, -1000, np.int16)
    first = [max(0, (n - have) // 2) for n, have in zip(shape, scan.values.shape, strict=True)]
    start = [max(0, (have - n) // 2) for n, have in zip(shape, scan.values.shape, strict=True)]
    size = [min(n, have) for n, have in zip(shape, scan.values.shape, strict=True)]
    part = scan.values[tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))]
    expected[tuple(slice(a, a + n) for a, n in zip(first, size, strict=True))] = part
    assert np.array_equal(found, expected)


def test_a_labelled_scan_is_stored_as_an_image_is():
    plan = WholeScan(shape=(8, 8, 8), classes=("x", "y", "z"))
    drawn = plan.draw(labelled(), Case("a", "Ann", Path("a"), label=(1, 0, -1)), np.random.default_rng(0))
    assert {name: (a.shape, a.dtype.kind) for name, a in drawn.arrays.items()} == {
        "image": ((1, 1, 8, 8, 8), "i"), "label": ((1, 3), "i"), "id": ((1,), "S"), "patient": ((1,), "S"),
    }  # fmt: skip
    assert drawn.arrays["label"].tolist() == [[1, 0, -1]]
    assert (drawn.arrays["id"].tolist(), drawn.arrays["patient"].tolist()) == ([b"a"], [b"Ann"])
    assert drawn.counts == {"kept": 1, "with x": 1, "with y": 0, "with z": 0, "unknown z": 1}
