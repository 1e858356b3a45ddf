"""Surfaces and distances against brute force on tiny masks."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pcrl_cli.pure.surface import bounding_box, surface, surface_distances

SPACING = np.array([0.7, 1.3, 2.5])


@st.composite
def masks(draw, shape=(5, 4, 3)):
    """Two masks with a voxel each at least, somewhere in a larger image."""
    found = []
    for _ in range(2):
        mask = np.zeros((7, 8, 5), dtype=bool)
        bits = draw(st.lists(st.booleans(), min_size=int(np.prod(shape)), max_size=int(np.prod(shape))))
        start = [draw(st.integers(0, big - small)) for big, small in zip(mask.shape, shape, strict=True)]
        part = np.array(bits).reshape(shape)
        part[tuple(draw(st.integers(0, n - 1)) for n in shape)] = True
        mask[tuple(slice(s, s + n) for s, n in zip(start, shape, strict=True))] = part
        found.append(mask)
    return found


def plain_surface(mask, faces=False):
    """Voxel by voxel, neighbour by neighbour."""
    found = np.zeros_like(mask)
    for at in product(*map(range, mask.shape)):
        for axis, step in product(range(mask.ndim), (-1, 1)):
            other = list(at)
            other[axis] += step
            outside = not 0 <= other[axis] < mask.shape[axis]
            if mask[at] and (faces if outside else not mask[tuple(other)]):
                found[at] = True
    return found


def plain_distances(a, b, spacing):
    one, other = (np.argwhere(plain_surface(m)) * spacing for m in (a, b))
    every = np.linalg.norm(one[:, None] - other[None], axis=2)
    return every.min(axis=1), every.min(axis=0)


@settings(max_examples=40, deadline=None)
@given(masks())
def test_a_surface_voxel_has_a_face_neighbour_outside_the_mask(pair):
    for mask in pair:
        assert np.array_equal(surface(mask), plain_surface(mask))
        assert np.array_equal(surface(mask, faces=True), plain_surface(mask, faces=True))


@settings(max_examples=40, deadline=None)
@given(masks())
def test_distances_equal_those_between_all_pairs_of_surface_voxels(pair):
    a, b = pair
    found, (of_a, of_b) = surface_distances(a, b, SPACING), plain_distances(a, b, SPACING)
    assert np.allclose(np.sort(found.of_a), np.sort(of_a), rtol=1e-6)
    assert np.allclose(np.sort(found.of_b), np.sort(of_b), rtol=1e-6)
    both = np.concatenate([of_a, of_b])
    assert found.mean == pytest.approx(both.mean(), rel=1e-6)
    assert found.max == pytest.approx(both.max(), rel=1e-6)
    assert found.percentile(95.0) == pytest.approx(max(np.percentile(of_a, 95), np.percentile(of_b, 95)), rel=1e-5)
    assert found.within(1.0) == pytest.approx((both <= 1.0).mean())


def test_spacing_is_that_of_the_axis():
    a, b = np.zeros((2, 9, 9, 9), dtype=bool)
    a[1, 1, 1] = b[1, 1, 5] = True
    assert surface_distances(a, b, SPACING).max == pytest.approx(4 * 2.5)
    assert surface_distances(a.swapaxes(0, 2), b.swapaxes(0, 2), SPACING).max == pytest.approx(4 * 0.7)


def test_where_the_image_cuts_the_organ_off_is_no_surface():
    organ = np.zeros((6, 6, 6), dtype=bool)
    organ[1:5, 1:5, :4] = True
    assert not surface(organ)[2:4, 2:4, 0].any()
    assert surface(organ)[2:4, 2:4, 3].all()


def test_a_mask_that_fills_the_image_is_compared_by_its_faces():
    full, part = np.ones((4, 4, 4), dtype=bool), np.zeros((4, 4, 4), dtype=bool)
    part[:2] = True
    found = surface_distances(full, part, np.ones(3))
    assert found.max == 2
    assert len(found.of_a) == 4**3 - 2**3


def test_a_bounding_box_is_the_smallest_and_an_empty_mask_has_none():
    mask = np.zeros((6, 7), dtype=bool)
    assert bounding_box(mask) is None
    mask[2, 3] = mask[4, 5] = True
    assert bounding_box(mask) == (slice(2, 5), slice(3, 6))


def test_two_dimensions_work_alike():
    a, b = np.zeros((2, 9, 9), dtype=bool)
    a[2:5, 2:5], b[3:8, 2:5] = True, True
    of_a, of_b = plain_distances(a, b, np.array([2.0, 1.0]))
    found = surface_distances(a, b, np.array([2.0, 1.0]))
    assert found.mean == pytest.approx(np.concatenate([of_a, of_b]).mean())
