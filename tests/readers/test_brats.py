from pathlib import Path

import nibabel
import numpy as np
import pytest

from pcrl_cli.core.errors import ConfigError, DataError
from pcrl_cli.core.plan import Grid
from pcrl_cli.data.labelled import Preparation, label
from pcrl_cli.data.volume import Volume
from pcrl_cli.readers import brats
from pcrl_cli.readers.volume_io import write_mask, write_nifti

SHAPE, ONE = (6, 7, 8), np.ones(3)
LPS = np.diag([-1.0, -1.0, 1.0])


def write(folder: Path, name: str, what=("flair", "t1", "t1ce", "t2", "seg"), direction=LPS, ending=".nii.gz") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    grid = Grid(SHAPE, ONE, np.array([0.0, 239.0, 0.0]), direction)
    for k, kind in enumerate(what):
        path = folder / f"{name}_{kind}{ending}"
        if kind == "seg":
            mask = np.zeros(SHAPE, np.uint8)
            mask[2:4, 2:4, 2:4], mask[2, 2, 2], mask[3, 3, 3] = 2, 1, 4
            write_mask(mask, grid, path)
        else:
            array = np.zeros(SHAPE, np.int16)
            array[1:5, 1:6, 1:7] = np.random.default_rng(k).integers(1, 900, (4, 5, 6))
            write_nifti(Volume(array, ONE, grid.origin, direction), path)


@pytest.fixture
def root(tmp_path) -> Path:
    for grade, name in (("HGG", "Brats18_CBICA_AAM_1"), ("LGG", "TCGA-DU-7294"), ("HGG", "a")):
        write(tmp_path / grade / name, name, direction=LPS if name != "a" else np.eye(3))
    return tmp_path


def test_cases_of_both_grades_are_found_with_their_patients(root):
    found = brats.cases(root)
    assert [c.id for c in found] == ["Brats18_CBICA_AAM_1", "TCGA-DU-7294", "a"]
    assert [c.patient for c in found] == ["Brats18_CBICA_AAM", "TCGA-DU-7294", "a"]
    assert [p.name for p in brats.files(found[2])] == [f"a_{k}.nii.gz" for k in ("flair", "t1", "t1ce", "t2", "seg")]


@pytest.mark.parametrize(
    ("name", "patient"),
    [
        ("brats_2013_pat0001_1", "brats_2013_pat0001"),
        ("brats_tcia_pat101_0083", "brats_tcia_pat101"),
        ("Brats17_2013_10_1", "Brats17_2013_10"),
        ("BraTS20_Training_001", "BraTS20_Training_001"),
        ("brats_1", "brats_1"),
        ("patient_2", "patient_2"),
    ],
)
def test_a_visit_is_no_patient_and_a_number_is_no_visit(tmp_path, name, patient):
    write(tmp_path / name, name, ("flair", "seg"))
    assert brats.cases(tmp_path)[0].patient == patient


def test_sequences_come_in_one_order_whatever_was_asked(root):
    case = brats.cases(root, modalities=(" T1ce", "flair"))[0]
    volumes = brats.read(case)
    assert volumes.names == ("flair", "t1ce")
    assert [v.source.split("_")[-1] for v in volumes.images] == ["flair.nii.gz", "t1ce.nii.gz"]
    assert brats.read(brats.cases(root)[0]).names == brats.MODALITIES


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (("flair", "dwi"), "no modality 'dwi'"),
        (("t1", "T1"), "twice"),
        ((), "no modality is named"),
        (("seg",), "'seg'"),
    ],
)
def test_modalities_that_are_none_are_refused(root, asked, message):
    with pytest.raises(ConfigError, match=message):
        brats.cases(root, modalities=asked)


def test_a_missing_sequence_is_refused_by_name_and_a_subset_is_offered(root):
    (root / "HGG/a/a_t2.nii.gz").unlink()
    with pytest.raises(DataError, match=r"a lacks a_t2\.nii\.gz: .* --modalities"):
        brats.read(brats.cases(root)[2])
    assert brats.read(brats.cases(root, modalities=("flair", "t1"))[2]).names == ("flair", "t1")


@pytest.mark.parametrize("gone", [("seg",), ("flair", "t1", "t1ce", "t2")])
def test_a_scan_without_its_mask_and_the_reverse_are_refused_by_name(root, gone):
    for what in gone:
        (root / f"HGG/a/a_{what}.nii.gz").unlink()
    case = brats.cases(root)[2]
    with pytest.raises(DataError, match=rf"a lacks a_{gone[0]}\.nii\.gz"):
        brats.read(case)


def test_labels_that_are_not_documented_are_listed(root):
    mask = np.full(SHAPE, 5, np.uint8)
    write_mask(mask, Grid(SHAPE, ONE, np.array([0.0, 239.0, 0.0]), np.eye(3)), root / "HGG/a/a_seg.nii.gz")
    with pytest.raises(DataError, match=r"a_seg\.nii\.gz holds the labels 5, and only 0, 1, 2, 3, 4 are known"):
        brats.read(brats.cases(root)[2])


def test_sequences_on_different_grids_are_refused(root):
    path = root / "HGG/a/a_t1.nii.gz"
    image = nibabel.load(path)
    moved = image.affine.copy()
    moved[:3, 3] += 2
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), moved), path)
    with pytest.raises(DataError, match=r"a_t1\.nii\.gz lies up to .* mm off the grid of .*a_flair\.nii\.gz"):
        label(brats.read(brats.cases(root)[2]), Preparation(modality="mr"))


def test_one_name_twice_and_one_file_twice_are_refused(root):
    write(root / "LGG/a", "a")
    with pytest.raises(DataError, match="cases of one name"):
        brats.cases(root)
    write(root / "LGG/b", "b")
    write(root / "LGG/b", "b", ("flair",), ending=".nii")
    with pytest.raises(DataError, match="both the flair of one case"):
        brats.cases(root)


def test_a_csv_groups_cases_by_patient(root, tmp_path):
    table = tmp_path / "p.csv"
    table.write_text("case,patient\na,x\nTCGA-DU-7294,x\n")
    assert [c.patient for c in brats.cases(root, patients=table)] == ["Brats18_CBICA_AAM", "x", "x"]


def test_the_sequences_of_a_new_case_are_found_without_a_mask(root):
    found = brats.find_sequences(root / "HGG/a")
    assert sorted(found) == sorted(brats.MODALITIES)


def test_a_folder_without_cases_says_what_belongs_there(tmp_path):
    (tmp_path / "readme.txt").write_text("x")
    with pytest.raises(DataError, match="no CASE_flair"):
        brats.cases(tmp_path)


@pytest.mark.real
def test_real_cases_are_read_and_prepared(real_data):
    found = brats.cases(real_data / "BraTS", modalities=("flair", "t1ce"))
    assert len(found) == 7
    assert found[2].patient == "brats_2013_pat0001"
    for case in found:
        scan = label(brats.read(case), Preparation(modality="mr"))
        assert max(scan.mask.shape) < 200
        assert (scan.mask > 0).sum() > 0.99 * (scan.native_mask > 0).sum()
        assert scan.image[0][scan.mask == 2].mean() > 500  # oedema is bright on FLAIR: more than half a deviation
