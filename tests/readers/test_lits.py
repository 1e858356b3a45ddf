from pathlib import Path

import numpy as np
import pytest

from pcrl_cli.core.errors import DataError
from pcrl_cli.core.plan import Grid
from pcrl_cli.data.labelled import Preparation, label
from pcrl_cli.data.volume import Volume
from pcrl_cli.readers import lits
from pcrl_cli.readers.volume_io import write_mask, write_nifti

FLIPS = (np.eye(3), np.diag([-1.0, -1.0, 1.0]), np.array([[0.0, 0, 1], [-1, 0, 0], [0, 1, 0]]))
SHAPE = (6, 7, 8)


def scan(path: Path, seed: int = 0, direction=FLIPS[0], shape=SHAPE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.random.default_rng(seed).integers(-500, 500, shape).astype(np.int16)
    write_nifti(Volume(array, np.array([1.0, 2.0, 3.0]), np.array([5.0, -6.0, 7.0]), direction), path)


def mask(path: Path, labels=(1, 2), direction=FLIPS[0], shape=SHAPE, origin=(5.0, -6.0, 7.0)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.zeros(shape, np.uint8)
    array[2:4, 3, 4], array[1, 1, 1] = labels[0], labels[-1]
    write_mask(array, Grid(shape, np.array([1.0, 2.0, 3.0]), np.array(origin), direction), path)


@pytest.fixture
def root(tmp_path) -> Path:
    for folder, number, ending in (
        ("Training Batch 1", 0, ".nii"),
        ("Training Batch 1", 3, ".nii.gz"),
        ("b/c", 28, ".nii"),
    ):
        direction = FLIPS[number % 3]
        scan(tmp_path / folder / f"volume-{number}{ending}", number, direction)
        mask(tmp_path / folder / f"segmentation-{number}{ending}", direction=direction)
    return tmp_path


def test_scans_are_found_in_every_folder_in_the_order_of_their_numbers(root):
    found = lits.cases(root)
    assert [c.id for c in found] == ["volume-0", "volume-3", "volume-28"]
    assert [c.patient for c in found] == [c.id for c in found]
    assert [p.name for p in lits.files(found[1])] == ["volume-3.nii.gz", "segmentation-3.nii.gz"]
    assert lits.remarks(root, found) == []


def test_a_scan_is_read_with_its_mask(root):
    for case in lits.cases(root):
        volumes = lits.read(case)
        assert volumes.names == ("ct",)
        assert volumes.images[0].array.shape == volumes.mask.array.shape == SHAPE
        assert set(np.unique(volumes.mask.array)) == {0, 1, 2}
        assert label(volumes, Preparation()).native_mask.sum() == volumes.mask.array.sum()


def test_masks_may_lie_elsewhere_and_be_packed(tmp_path):
    scan(tmp_path / "volumes/volume-4.nii")
    mask(tmp_path / "masks/segmentation-4.nii.gz")
    (case,) = lits.cases(tmp_path)
    assert lits.read(case).mask is not None


def test_test_volumes_are_passed_over_and_said(root):
    scan(root / "test-volume-0.nii")
    assert len(lits.cases(root)) == 3
    assert lits.remarks(root, []) == ["1 test-volume files have no masks and were passed over"]


@pytest.mark.parametrize(
    ("gone", "left"), [("volume-0.nii", "segmentation-0.nii"), ("segmentation-0.nii", "volume-0.nii")]
)
def test_a_mask_without_its_scan_and_the_reverse_are_refused_by_name(root, gone, left):
    (root / "Training Batch 1" / gone).unlink()
    case = lits.cases(root)[0]
    assert case.id == "volume-0"
    assert [p.name for p in lits.files(case)] == [left]
    with pytest.raises(DataError, match=rf"{left} has no (scan|mask) \({gone}\): add it"):
        lits.read(case)


def test_one_number_twice_is_refused(root):
    scan(root / "copy/volume-3.nii")
    with pytest.raises(
        DataError, match=r"volume-3\.nii are both the volume of number 3|are both the volume of number 3"
    ):
        lits.cases(root)


def test_labels_that_are_not_documented_are_listed(root):
    mask(root / "Training Batch 1/segmentation-0.nii", labels=(3, 9))
    with pytest.raises(DataError, match=r"segmentation-0\.nii holds the labels 3, 9, and only 0, 1, 2 are known"):
        lits.read(lits.cases(root)[0])


def test_a_mask_on_another_grid_is_refused_when_it_is_prepared(root):
    for change, message in (
        ({"shape": (6, 7, 9)}, "6 x 7 x 9 voxels"),
        ({"origin": (5.0, -6.0, 9.0)}, "2 mm off the grid"),
    ):
        mask(root / "Training Batch 1/segmentation-0.nii", **change)
        with pytest.raises(DataError, match=rf"segmentation-0\.nii.*{message}"):
            label(lits.read(lits.cases(root)[0]), Preparation())


def test_a_csv_groups_scans_by_patient(root, tmp_path):
    table = tmp_path / "patients.csv"
    table.write_text("case,patient\nvolume-0,anna\nvolume-28,anna\n")
    assert [c.patient for c in lits.cases(root, patients=table)] == ["anna", "volume-3", "anna"]


def test_a_folder_without_scans_says_what_belongs_there(tmp_path):
    (tmp_path / "readme.txt").write_text("x")
    with pytest.raises(DataError, match=r"no volume-N\.nii"):
        lits.cases(tmp_path)
    with pytest.raises(DataError, match="is not there"):
        lits.cases(tmp_path / "none")


def test_four_dimensional_files_are_refused(root):
    import nibabel

    path = root / "Training Batch 1/volume-0.nii"
    nibabel.save(nibabel.Nifti1Image(np.zeros((*SHAPE, 2), np.int16), np.eye(4)), path)
    with pytest.raises(DataError, match=r"volume-0\.nii holds a 4D image"):
        lits.read(lits.cases(root)[0])


@pytest.mark.real
def test_real_scans_are_read_with_their_masks(real_data):
    found = lits.cases(real_data / "LiTS")
    assert [c.id for c in found] == ["volume-0", "volume-1", "volume-2"]
    for case in found:
        scan = label(lits.read(case), Preparation())
        liver = scan.image[0][scan.mask > 0]
        assert 0 < np.median(liver) < 150  # HU: it is the liver
        ml = (scan.mask > 0).sum() / 1000
        native = (scan.native_mask > 0).sum() * np.prod(scan.native.spacing) / 1000
        assert abs(ml / native - 1) < 0.03
        x = np.argwhere(scan.mask > 0).mean(0)[0]
        assert x < scan.mask.shape[0] / 2  # on the patient's right in every orientation
