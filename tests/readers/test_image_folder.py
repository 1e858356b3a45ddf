from pathlib import Path

import numpy as np
import pytest
from pictures import ramp, save, save_dicom

from pcrl_cli.core.errors import DataError
from pcrl_cli.data.volume import Volume
from pcrl_cli.readers import folder as volumes
from pcrl_cli.readers import image_folder as folder
from pcrl_cli.readers.volume_io import write_mhd, write_nifti

PLATE = ramp(16, 16).astype(np.uint16)


@pytest.fixture
def root(tmp_path) -> Path:
    root = tmp_path / "raw"
    save(root / "ann/a 1.png")
    save(root / "ann/a2.JPG", format="JPEG")
    save(root / "bob.png")
    save_dicom(root / "plates/1", PLATE, PatientID="P 9")
    save_dicom(root / "plates/2.dcm", PLATE, PatientID="P 9")
    save(root / ".hidden/x.png")
    (root / "notes.txt").write_text("no picture", encoding="utf-8")
    return root


def labels(root: Path, text: str) -> Path:
    path = root.parent / "labels.csv"
    path.write_text(text, encoding="utf-8")
    return path


def refs(cases):
    return {ref.id: ref for case in cases for ref in case.images}


def volume(path: Path) -> None:
    array = Volume(np.zeros((4, 5, 6), np.int16), np.ones(3), np.zeros(3), np.eye(3))
    (write_mhd if path.suffix == ".mhd" else write_nifti)(array, path)


def test_without_a_table_every_picture_is_taken_and_nothing_is_known_of_it(root):
    cases = folder.cases(root)
    assert {name: ref.patient for name, ref in refs(cases).items()} == {
        "ann/a 1.png": "ann/a 1.png", "ann/a2.JPG": "ann/a2.JPG", "bob.png": "bob.png", "plates/1": "P 9",
        "plates/2.dcm": "P 9",
    }  # fmt: skip
    pictures = folder.read(cases[0], 16)
    assert (pictures.image.shape, pictures.label.shape) == ((5, 1, 16, 16), (5, 0))
    assert (folder.classes(None), folder.absent_rows(root, cases), folder.remarks(root, cases)) == ((), {}, [])


def test_a_column_a_class(root):
    table = labels(root, "path,old,patient,new\nbob.png,1,B,\nann/a 1.png,0,A,1.0\nann/none.png,0,A,-1\n")
    cases = folder.cases(root, table)
    assert {name: (ref.patient, ref.label) for name, ref in refs(cases).items()} == {
        "bob.png": ("B", (1, -1)), "ann/a 1.png": ("A", (0, 1)),
    }  # fmt: skip
    assert folder.classes(table) == ("old", "new")
    assert folder.absent_rows(root, cases, table) == {"labels.csv": 1}
    (said,) = folder.remarks(root, cases, table)
    assert said.startswith("3 pictures are not in")
    assert "ann/a2.JPG" in said


def test_names_of_classes_in_one_column(root):
    table = labels(root, "label,path\nwet|cold,bob.png\n,ann/a2.JPG\ncold,./ann/a 1.png\n")
    assert folder.classes(table) == ("cold", "wet")
    assert {name: ref.label for name, ref in refs(folder.cases(root, table)).items()} == {
        "ann/a 1.png": (1, 0), "ann/a2.JPG": (-1, -1), "bob.png": (1, 1),
    }  # fmt: skip


def test_patients_come_from_their_table_the_labels_the_header_in_this_order(root, tmp_path):
    table = labels(root, "path,patient,x\nbob.png,B,1\nann/a 1.png,A,0\nplates/1,,1\nann/a2.JPG,,1\n")
    (tmp_path / "p.csv").write_text("path,patient\nbob.png,C\n", encoding="utf-8")
    found = refs(folder.cases(root, table, tmp_path / "p.csv"))
    assert {name: ref.patient for name, ref in found.items()} == {
        "ann/a 1.png": "A", "ann/a2.JPG": "ann/a2.JPG", "bob.png": "C", "plates/1": "P 9",
    }  # fmt: skip


def test_a_class_that_nobody_has_is_remarked_on(root):
    table = labels(root, "path,x,y\n" + "".join(f"{name},1,0\n" for name in refs(folder.cases(root))))
    said = folder.remarks(root, folder.cases(root, table), table)
    assert said == ["no image has y, so nothing can be learnt or measured of it"]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("path,x\nbob.png,2\n", "line 2: '2' in the column 'x' is none of 1, 0, -1 and blank"),
        ("path,age,x\nbob.png,61,1\n", "'61' in the column 'age'.*remove the column"),
        ("path,patient\nbob.png,B\n", "has no class"),
        ("path,label\nbob.png,\n", "names no class"),
        ("path,label,x\nbob.png,a,1\n", "keep one or the other"),
        ("file,x\nbob.png,1\n", "lacks the column 'path'"),
        ("path,x\n,1\n", "line 2: the column 'path' is empty"),
        ("path,x\nrob.png,1\n", "names none of the 5 pictures"),
        ("path,x\nbob.png,1\nbob.png,0\n", r"two things of bob\.png \(lines 2 and 3\)"),
    ],
)
def test_a_malformed_table_is_refused(root, text, what):
    with pytest.raises(DataError, match=what):
        folder.cases(root, labels(root, text))


def test_a_missing_table_and_a_folder_without_pictures(root, tmp_path):
    with pytest.raises(DataError, match=r"none\.csv is not there"):
        folder.cases(root, tmp_path / "none.csv")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/a.txt").write_text("", encoding="utf-8")
    with pytest.raises(DataError, match="holds no picture: put radiographs"):
        folder.cases(tmp_path / "empty")


def test_pictures_that_are_all_of_one_patient_are_remarked_on(root):
    table = labels(root, "path,patient,x\nbob.png,B,1\nann/a2.JPG,B,0\n")
    assert "one patient ('B')" in folder.remarks(root, folder.cases(root, table), table)[1]


# ------------------------------------------------------------------------------------------------ pictures or volumes


def test_a_folder_of_pictures_or_plates_is_one_of_images(root):
    assert volumes.module_for(root) == volumes.IMAGES == folder.__name__
    assert volumes.module_for(root / "plates") == volumes.IMAGES == folder.__name__


@pytest.mark.parametrize("name", ["a.nii.gz", "a.mhd"])
def test_a_folder_of_volumes_is_one_of_crops(tmp_path, name):
    volume(tmp_path / name)
    assert volumes.module_for(tmp_path) == volumes.__name__


def test_a_folder_of_ct_slices_is_one_of_crops(tmp_path):
    save_dicom(tmp_path / "1.dcm", PLATE, Modality="CT")
    assert volumes.module_for(tmp_path) == volumes.__name__


def test_pictures_beside_volumes_are_refused_unless_a_table_lists_them(root):
    volume(root / "ct.nii.gz")
    with pytest.raises(DataError, match=r"holds pictures \(.*\) and volumes \(ct\.nii\.gz\).*two folders"):
        volumes.module_for(root)
    assert volumes.module_for(root, labels(root, "path,x\nbob.png,1\n")) == volumes.IMAGES == folder.__name__
