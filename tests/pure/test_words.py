"""Visual words: who belongs to them, where they lie, and what is cut there."""

from pathlib import Path

import numpy as np
import pytest

from pcrl_cli.core.case import Case
from pcrl_cli.core.errors import DataError
from pcrl_cli.core.plan import Prepared
from pcrl_cli.pure.words import Thumbnails, Words, discover, instances, nearest

CUBE = (8, 8, 4)


def found(n=9, words=6, members=4, acceptable=lambda scan, corner: True, shapes=None, border=(3, 3, 2), seed=0):
    rng = np.random.default_rng(seed)
    descriptors = rng.normal(size=(n, 5))
    shapes = np.full((n, 3), 40) if shapes is None else np.asarray(shapes)
    return descriptors, discover(descriptors, shapes, acceptable, rng, words, members, CUBE, border, 5.0)


def prepared(shape=(40, 38, 20), seed=0):
    values = np.random.default_rng(seed).uniform(-1000, 500, shape).astype(np.float32)
    return Prepared(values, np.ones(3), np.zeros(3), np.eye(3), -150.0, -1000.0)


def test_a_reference_is_its_own_nearest_neighbour_also_where_another_is_equal():
    descriptors = np.array([[0.0, 0], [1, 0], [0, 0], [5, 5]])
    assert nearest(descriptors, 2)[0] == 2
    assert nearest(descriptors, 1).tolist()[0] == 1
    assert nearest(descriptors, 3).tolist() == [3, 1, 0, 2]


def test_members_are_the_nearest_scans_and_every_word_has_equally_many():
    descriptors, words = found()
    for word in words:
        reference = word.members[0]
        distance = np.linalg.norm(descriptors - descriptors[reference], axis=1)
        assert set(word.members) == set(np.argsort(distance)[:4].tolist())
    labels = [label for rows in instances(words, [str(i) for i in range(9)]).values() for label, *_ in rows]
    assert np.bincount(labels).tolist() == [4] * 6


def test_corners_lie_apart_and_inside_the_border():
    _, words = found(words=8)
    corners = np.array([word.corner for word in words])
    apart = np.linalg.norm(corners[:, None] - corners[None], axis=2) + 100 * np.eye(8)
    assert apart.min() >= 5
    assert (corners >= (3, 3, 2)).all()
    assert (corners + CUBE <= np.array([37, 37, 38])).all()


def test_references_are_used_up_before_any_is_used_again():
    _, words = found(n=9, words=9)
    assert sorted(word.members[0] for word in words) == list(range(9))


def test_only_acceptable_places_become_words_and_scans_that_end_before_them_are_passed_over():
    shapes = [[40, 40, 40]] * 6 + [[40, 40, 12]] * 3
    _, words = found(shapes=shapes, acceptable=lambda scan, corner: corner[2] >= 12)
    assert all(word.corner[2] >= 12 for word in words)
    assert all(member < 6 for word in words for member in word.members)


def test_where_there_is_no_place_it_says_so():
    with pytest.raises(DataError, match=r"only 0 of 6 visual words.*lower words\.classes"):
        found(acceptable=lambda scan, corner: False)


def test_a_scan_too_small_for_the_border_gets_a_smaller_one():
    _, words = found(shapes=np.full((9, 3), 12), border=(100, 100, 30), words=1)
    assert words[0].corner == (2, 2, 4)


def test_three_cubes_an_instance_and_the_first_is_the_exact_crop():
    scan = prepared()
    plan = Words(cube=CUBE, sides=(6, 11), shift=3, instances={"a": ((1, 5, 6, 7), (0, 30, 28, 16))})
    drawn = plan.draw(scan, Case("a", "p", Path("a")), np.random.default_rng(0))
    word, label, corner = (drawn.arrays[name] for name in ("word", "label", "corner"))
    assert word.shape == (6, 1, *CUBE)
    assert word.dtype == np.int16
    assert label.tolist() == [1, 1, 1, 0, 0, 0]
    assert np.array_equal(word[0, 0], np.rint(scan.values[5:13, 6:14, 7:11]))
    assert np.array_equal(word[3, 0], np.rint(scan.values[30:38, 28:36, 16:20]))
    assert not np.array_equal(word[1], word[0])
    assert corner[:3].tolist() == [[5, 6, 7]] * 3


def test_the_other_cubes_stay_inside_the_scan():
    plan = Words(cube=CUBE, sides=(30, 60), shift=10)
    rng = np.random.default_rng(0)
    boxes = [plan._other((0, 30, 16), (40, 38, 20), rng) for _ in range(200)]
    for box in boxes:
        assert all(s >= 0 for s in box.start)
        assert all(stop <= n for stop, n in zip(box.stop, (40, 38, 20), strict=True))
        assert box.size[2] == CUBE[2]
    assert len({box.size[0] for box in boxes}) > 5


def test_a_scan_of_no_word_is_left_out():
    with pytest.raises(DataError, match="belongs to no visual word"):
        Words().draw(prepared(), Case("b", "p", Path("b")), np.random.default_rng(0))


def test_a_thumbnail_is_the_whole_scan_and_remembers_its_shape():
    scan = prepared()
    drawn = Thumbnails(shape=(16, 16, 8)).draw(scan, Case("a", "p", Path("a")), np.random.default_rng(0))
    assert drawn.arrays["image"].shape == (1, 1, 16, 16, 8)
    assert drawn.arrays["shape"].tolist() == [[40, 38, 20]]
    assert abs(drawn.arrays["image"].mean() - scan.values.mean()) < 40
