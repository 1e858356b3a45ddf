from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from pcrl_cli.data.labelled import Preparation, label
from pcrl_cli.phantoms import abdomen
from pcrl_cli.readers import lits

PATIENTS = 10


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("lits")
    abdomen.make(folder, PATIENTS)
    return folder


@pytest.fixture(scope="module")
def scans(root):
    return [lits.read(case) for case in lits.cases(root)]


def digest(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_same_bytes_again_and_fewer_patients_are_the_first_ones(root, tmp_path):
    told = []
    abdomen.make(tmp_path, 3, progress=lambda done, of: told.append((done, of)))
    few, all_ = digest(tmp_path), digest(root)
    few.pop(abdomen.LAST)
    assert len(few) == 6
    assert all(all_[name] == value for name, value in few.items())
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert not np.array_equal(abdomen.abdomen(1, 0).mask, abdomen.abdomen(0, 0).mask)


def test_the_layout_is_that_of_lits(root):
    assert sorted(p.name for p in root.iterdir()) == ["Training Batch 1", "Training Batch 2", abdomen.LAST]
    assert len(lits.cases(root)) == PATIENTS
    assert lits.remarks(root, []) == []


def test_spacing_size_and_orientation_vary(scans):
    assert len({tuple(s.images[0].spacing) for s in scans}) == PATIENTS
    assert len({s.images[0].direction.round().tobytes() for s in scans}) >= 3
    for s in scans:
        assert (np.array(s.images[0].array.shape) * s.images[0].spacing > 85).all()


def test_the_liver_lies_on_the_right_and_is_told_from_fat_by_its_density(scans):
    for s in scans:
        scan = label(s, Preparation())
        liver = scan.mask > 0
        assert np.argwhere(liver).mean(0)[0] < scan.mask.shape[0] / 2
        assert 70 < np.median(scan.image[0][scan.mask == 1]) < 140
        assert 0.05 < liver.mean() < 0.25


def test_some_patients_have_lesions_which_are_darker_than_the_liver(scans):
    lesions = [label(s, Preparation()) for s in scans if (s.mask.array == 2).any()]
    assert 3 <= len(lesions) < PATIENTS
    for scan in lesions:
        assert np.median(scan.image[0][scan.mask == 2]) < np.median(scan.image[0][scan.mask == 1]) - 10


def test_density_alone_does_not_tell_the_liver_from_other_organs(scans):
    """A threshold finds the liver's voxels, and as many that are none."""
    scan = label(scans[0], Preparation())
    low, high = np.percentile(scan.image[0][scan.mask == 1], [10, 90])
    like = (scan.image[0] >= low) & (scan.image[0] <= high)
    dice = 2 * (like & (scan.mask > 0)).sum() / (like.sum() + (scan.mask > 0).sum())
    assert dice < 0.85
