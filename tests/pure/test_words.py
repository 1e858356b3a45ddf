"""Visual words: who belongs to them, where they lie, and what is cut there."""

from pathlib import Path

import numpy as np
import pytest

from pcrl_cli.core.case import Case
from pcrl_cli.core.errors import DataError
from pcrl_cli.core.plan import Pictures, Prepared
from pcrl_cli.pure.resize import resize
from pcrl_cli.pure.words import Thumbnails, Words, discover, instances, nearest

CUBE = (8, 8, 4)


def found(
    n=9,
    words=6,
    members=4,
    acceptable=lambda scan, corner: True,
    shapes=None,
    border=(3, 3, 2),
    seed=0,
    owners=None,
    dim=3,
):
    rng = np.random.default_rng(seed)
    descriptors = rng.normal(size=(n, 5))
    shapes = np.full((n, dim), 40) if shapes is None else np.asarray(shapes)
    owners = np.arange(n) if owners is None else np.asarray(owners)
    cube, border = CUBE[:dim], border[:dim]
    return descriptors, discover(descriptors, shapes, owners, acceptable, rng, words, members, cube, border, 5.0)


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


@pytest.mark.parametrize("dim", [2, 3])
def test_corners_lie_apart_and_inside_the_border(dim):
    _, words = found(words=8, dim=dim)
    corners = np.array([word.corner for word in words])
    apart = np.linalg.norm(corners[:, None] - corners[None], axis=2) + 100 * np.eye(8)
    assert apart.min() >= 5
    assert (corners >= (3, 3, 2)[:dim]).all()
    assert (corners + CUBE[:dim] <= np.array([37, 37, 38])[:dim]).all()


def test_a_word_has_one_scan_a_patient_and_that_is_the_nearest():
    owners = np.array([0, 0, 0, 1, 1, 2, 2, 3, 4])
    descriptors, words = found(owners=owners, words=9)
    for word in words:
        assert len(set(owners[list(word.members)])) == 4
        order = nearest(descriptors, word.members[0]).tolist()
        for member in word.members:
            others = np.flatnonzero(owners == owners[member])
            assert order.index(member) == min(order.index(other) for other in others)


def test_more_patients_than_there_are_find_no_place():
    with pytest.raises(DataError, match="a place that 4 patients share"):
        found(owners=[0, 0, 0, 1, 1, 1, 2, 2, 2])


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
        assert all(s.start >= 0 and s.stop <= n for s, n in zip(box.slices, (40, 38, 20), strict=True))
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


def pictures(n=4, side=40, seed=0):
    image = np.random.default_rng(seed).integers(0, 256, (n, 1, side, side), dtype=np.uint8)
    ids = tuple(f"film{i}" for i in range(n))
    return Pictures(image, ids, ("a", "a", "b", "c")[:n], np.zeros((n, 0), np.int8), ids)


SQUARES = Words(
    cube=(12, 10),
    resized=(24, 24),
    sides=(9, 15),
    shift=3,
    instances={"film1": ((1, 5, 6), (0, 20, 3)), "film3": ((1, 5, 6),)},
)


def test_squares_of_a_shards_images_are_resized_and_say_which_image_they_are_from():
    films = pictures()
    drawn = SQUARES.draw(films, Case("shard", "", Path("s")), np.random.default_rng(0))
    word, label, corner = (drawn.arrays[name] for name in ("word", "label", "corner"))
    assert word.shape == (9, 1, 24, 24)
    assert word.dtype == np.uint8
    assert label.tolist() == [1, 1, 1, 0, 0, 0, 1, 1, 1]
    assert drawn.source.tolist() == [1] * 6 + [3] * 3
    assert corner[::3].tolist() == [[5, 6], [20, 3], [5, 6]]
    exact = resize(films.image[3, 0, 5:17, 6:16].astype(np.float32), (24, 24))
    assert np.array_equal(word[6, 0], np.rint(exact))
    assert not np.array_equal(word[7], word[6])


def test_the_other_squares_stay_inside_the_image():
    rng = np.random.default_rng(0)
    windows = [SQUARES._other((0, 35), (40, 40), rng) for _ in range(100)]
    assert all(0 <= s.start < s.stop <= 40 for w in windows for s in w.slices)
    assert len({w.size for w in windows}) > 10


def test_a_shard_of_no_word_is_left_out():
    with pytest.raises(DataError, match="belongs to no visual word"):
        Words().draw(pictures(), Case("shard", "", Path("s")), np.random.default_rng(0))
