from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from pcrl_cli.data.labelled import Preparation, label
from pcrl_cli.phantoms import brain
from pcrl_cli.readers import brats

PATIENTS = 5


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("brats")
    brain.make(folder, PATIENTS)
    return folder


@pytest.fixture(scope="module")
def scans(root):
    return {c.id: label(brats.read(c), Preparation(modality="mr")) for c in brats.cases(root)}


def digest(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_same_bytes_again_and_fewer_patients_are_the_first_ones(root, tmp_path):
    told = []
    brain.make(tmp_path, 2, progress=lambda done, of: told.append((done, of)))
    few, all_ = digest(tmp_path), digest(root)
    few.pop(brain.LAST)
    assert len(few) == 10
    assert all(all_[name] == value for name, value in few.items())
    assert told == [(1, 2), (2, 2)]
    assert not np.array_equal(brain.brain(1, 0).mask, brain.brain(0, 0).mask)


def test_the_layout_is_that_of_brats(root):
    assert sorted(p.name for p in root.iterdir()) == ["HGG", "LGG", brain.LAST]
    cases = brats.cases(root)
    assert len(cases) == PATIENTS
    assert len({c.patient for c in cases}) == PATIENTS
    assert {int(np.sign(v.direction[0, 0])) for c in cases for v in brats.read(c).images} == {1, -1}


def test_the_skull_is_gone_and_all_sequences_show_one_brain(root):
    for case in brats.cases(root):
        arrays = [v.array for v in brats.read(case).images]
        for array in arrays[1:]:
            np.testing.assert_array_equal(array > 0, arrays[0] > 0)
        assert 0.25 < (arrays[0] > 0).mean() < 0.7
        assert not arrays[0][0].any()


def test_grades_differ_in_what_enhances_and_tumours_in_size(scans):
    grades = {name: (scan.mask == 4).any() for name, scan in scans.items()}
    assert list(grades.values()) == [True, True, True, False, True]
    sizes = sorted(int((scan.mask > 0).sum()) for scan in scans.values())
    assert sizes[-1] > 3 * sizes[0]
    for scan in scans.values():
        assert {1, 2} < set(np.unique(scan.mask)) <= {0, 1, 2, 4} or {0, 1, 2} == set(np.unique(scan.mask))


def test_oedema_is_bright_on_flair_and_the_rim_on_enhanced_t1(scans):
    for scan in scans.values():
        flair, _, t1ce, _ = scan.image
        other = (scan.mask == 0) & scan.image.any(0)
        assert flair[scan.mask == 2].mean() > flair[other].mean() + 1000  # one deviation
        if (scan.mask == 4).any():
            assert t1ce[scan.mask == 4].mean() > t1ce[other].mean() + 1000
