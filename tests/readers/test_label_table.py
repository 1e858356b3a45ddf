"""Tables of labels, of pictures and of scans: what is read, and what a wrong one is told."""

import unicodedata
from pathlib import Path

import numpy as np
import pytest
from pictures import ramp, save, save_dicom
from test_volume_io import write_series

from pcrl_cli.core.errors import DataError
from pcrl_cli.data.volume import Volume
from pcrl_cli.readers import folder, image_folder
from pcrl_cli.readers.label_table import Row, read_labels
from pcrl_cli.readers.volume_io import write_nifti


def table(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def scan(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_nifti(Volume(np.zeros((4, 5, 6), np.int16), np.ones(3), np.zeros(3), np.eye(3)), path)


@pytest.fixture
def scans(tmp_path) -> Path:
    root = tmp_path / "raw"
    for name in ("ann/1.nii.gz", "ann/2.nii.gz", "bob.nii.gz", "bob_seg.nii.gz"):
        scan(root / name)
    write_series(root / "dicom", [0, 2, 4], uid="1.2.3")
    return root


@pytest.fixture
def pictures(tmp_path) -> Path:
    root = tmp_path / "pictures"
    for name in ("a.png", "b.png", "c.png"):
        save(root / name)
    return root


def labels_of(cases):
    return {case.id: (case.patient, case.label, case.part) for case in cases}


# ------------------------------------------------------------------------------------------------------- the table


def test_rows_hold_patient_labels_and_part(tmp_path):
    found = read_labels(
        table(tmp_path / "t.csv", "path,part,x,patient,y\n./a//b.png,val,1,P,-1\nc.png,train,0,,\n"), tmp_path
    )
    assert (found.key, found.classes) == ("path", ("x", "y"))
    assert found.rows == {"a/b.png": Row("P", (1, -1), "val"), "c.png": Row("", (0, -1), "train")}


def test_a_part_that_is_blank_everywhere_says_nothing(tmp_path):
    found = read_labels(table(tmp_path / "t.csv", "path,part,x\na.png,,1\nb.png,,0\n"), tmp_path)
    assert {row.part for row in found.rows.values()} == {None}
    assert found.classes == ("x",)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (
            "path,part,x\na.png,train,1\nb.png,,0\n",
            "line 3: a blank in the column 'part' is none of train, val and test",
        ),
        ("path,part,x\na.png,Train,1\n", "line 2: 'Train' in the column 'part'"),
        ("path,part\na.png,train\n", "has no class"),
        ("path,x,part\na.png,1,val\na.png,1,test\n", "says two things of a.png"),
    ],
)
def test_a_wrong_part_is_told_in_one_sentence(tmp_path, text, what):
    with pytest.raises(DataError, match=what):
        read_labels(table(tmp_path / "t.csv", text), tmp_path)


# -------------------------------------------------------------------------------------------------------- pictures


def test_pictures_take_their_part_from_the_table(tmp_path, pictures):
    listed = table(tmp_path / "t.csv", "path,patient,x,part\na.png,A,1,train\nb.png,B,0,val\nc.png,A,0,train\n")
    (case,) = image_folder.cases(pictures, listed)
    assert [(ref.id, ref.label, ref.part) for ref in case.images] == [
        ("a.png", (1,), "train"), ("b.png", (0,), "val"), ("c.png", (0,), "train"),
    ]  # fmt: skip
    assert image_folder.classes(listed) == ("x",)


@pytest.mark.parametrize("of", ["pictures", "scans"])
def test_a_patient_in_two_parts_is_refused(request, tmp_path, of):
    root = request.getfixturevalue(of)
    one, two = ("a.png", "b.png") if of == "pictures" else ("bob.nii.gz", "ann/2.nii.gz")
    listed = table(tmp_path / "t.csv", f"path,patient,x,part\n{one},A,1,train\n{two},A,0,test\n")
    module = image_folder if of == "pictures" else folder
    with pytest.raises(DataError, match="the patient A in the parts t"):
        module.cases(root, labels=listed)


# ------------------------------------------------------------------------------------------------------------ scans


def test_scans_are_named_by_their_file_or_the_folder_of_a_series(tmp_path, scans):
    listed = table(tmp_path / "t.csv", "path,patient,x,part\nann/1.nii.gz,A,1,train\ndicom,D,0,test\ngone.nii,,1,val\n")
    cases = folder.cases(scans, labels=listed)
    assert labels_of(cases) == {"ann-1": ("A", (1,), "train"), "dicom": ("D", (0,), "test")}
    assert folder.absent_rows(scans, cases, labels=listed) == {"t.csv": 1}
    said = folder.remarks(scans, cases, labels=listed)
    assert said[0] == f"2 scans are not in {listed} (the first: ann/2.nii.gz) and were left out"
    assert "1 files are named like masks" in " ".join(said)


def test_scans_are_named_by_their_ids_too(tmp_path, scans):
    listed = table(tmp_path / "t.csv", "case,label\nann-1,wet|cold\nbob,\n")
    cases = folder.cases(scans, labels=listed)
    assert folder.classes(listed) == ("cold", "wet")
    assert {name: label for name, (_, label, _) in labels_of(cases).items()} == {"ann-1": (1, 1), "bob": (-1, -1)}
    assert folder.absent_rows(scans, cases, labels=listed) == {"t.csv": 0}


def test_with_a_path_a_column_called_case_is_a_class(tmp_path, scans):
    listed = table(tmp_path / "t.csv", "path,case\nann/1.nii.gz,1\nbob.nii.gz,0\n")
    assert folder.classes(listed) == ("case",)
    assert {c.id: c.label for c in folder.cases(scans, labels=listed)} == {"ann-1": (1,), "bob": (0,)}


def test_what_a_table_lists_is_a_scan_whatever_its_name(tmp_path, scans):
    listed = table(tmp_path / "t.csv", "path,x\nbob_seg.nii.gz,1\nbob.nii.gz,0\n")
    cases = folder.cases(scans, labels=listed)
    assert [case.id for case in cases] == ["bob", "bob_seg"]
    assert not any("masks" in text for text in folder.remarks(scans, cases, labels=listed))


def test_the_table_of_patients_goes_before_that_of_labels(tmp_path, scans):
    listed = table(tmp_path / "t.csv", "path,patient,x\nann/1.nii.gz,A,1\nbob.nii.gz,B,0\nann/2.nii.gz,,0\n")
    patients = table(tmp_path / "p.csv", "case,patient\nbob,C\n")
    found = labels_of(folder.cases(scans, patients, listed))
    assert {name: patient for name, (patient, *_) in found.items()} == {"ann-1": "A", "ann-2": "ann-2", "bob": "C"}


def test_a_class_that_no_scan_has_is_remarked_on(tmp_path, scans):
    listed = table(tmp_path / "t.csv", "path,x,y\nann/1.nii.gz,1,0\nbob.nii.gz,0,0\n")
    said = folder.remarks(scans, folder.cases(scans, labels=listed), labels=listed)
    assert "no scan has y, so nothing can be learnt or measured of it" in said


def test_a_table_that_names_no_scan_is_refused(tmp_path, scans):
    for text, key in (("path,x\nnone.nii.gz,1\n", "path"), ("case,x\nnone,1\n", "case")):
        with pytest.raises(DataError, match=f"names none of the . scans: check its column '{key}'"):
            folder.cases(scans, labels=table(tmp_path / "t.csv", text))


# ------------------------------------------------------------------------------------------------ pictures or scans


def test_a_table_of_scans_is_of_scans_and_one_of_pictures_of_pictures(tmp_path, scans, pictures):
    for text in ("path,x\nbob.nii.gz,1\n", "path,x\ndicom,1\n", "case,x\nbob,1\n", "path,x\nnone,1\n"):
        assert folder.module_for(scans, table(tmp_path / "t.csv", text)) == folder.__name__
    assert folder.module_for(pictures, table(tmp_path / "t.csv", "path,x\na.png,1\n")) == folder.IMAGES


def test_side_by_side_the_table_decides(tmp_path, scans):
    save(scans / "film.png")
    save_dicom(scans / "plate.dcm", ramp(16, 16).astype(np.uint16), Modality="CT")
    for name in ("film.png", "plate.dcm"):
        assert folder.module_for(scans, table(tmp_path / "t.csv", f"path,x\n{name},1\n")) == folder.IMAGES
    assert folder.module_for(scans, table(tmp_path / "t.csv", "path,x\nbob.nii.gz,1\n")) == folder.__name__
    with pytest.raises(DataError, match=r"lists pictures \(film\.png\) and volumes \(bob\.nii\.gz\).*two tables"):
        folder.module_for(scans, table(tmp_path / "t.csv", "path,x\nbob.nii.gz,1\nfilm.png,0\n"))


@pytest.mark.parametrize("head", ["path,Patient,x", "path,PART,x", "Path,path,x", "path,x,Label"])
def test_a_column_of_our_own_that_is_written_otherwise_is_no_class(tmp_path, head):
    """Patients that were taken for a class would come to lie in several parts."""
    with pytest.raises(DataError, match=r"write it '(patient|part|path|label)'"):
        read_labels(table(tmp_path / "labels.csv", f"{head}\na.png,1,0\n"), tmp_path)


@pytest.mark.parametrize("text", ["path,a b,a/b\na.png,1,0\n", "path,label\na.png,a b|A_b\n"])
def test_classes_whose_metrics_would_have_one_name_are_refused(tmp_path, text):
    with pytest.raises(DataError, match="differ in signs only"):
        read_labels(table(tmp_path / "labels.csv", text), tmp_path)


# ------------------------------------------------------------------------------------- names as other machines write them


def test_a_folder_of_several_series_is_not_given_one_label(tmp_path, scans):
    write_series(scans / "two", [0, 2, 4], uid="1.2.4")
    write_series(scans / "two", [0, 2, 4, 6], uid="1.2.5", stem="b")
    listed = table(tmp_path / "t.csv", "path,x\ntwo,1\n")
    with pytest.raises(DataError, match=r"one row for two, which holds 2 DICOM series.*'case'.*two-1.2.4, two-1.2.5"):
        folder.cases(scans, labels=listed)
    by_id = table(tmp_path / "ids.csv", "case,x\ntwo-1.2.4,1\ntwo-1.2.5,0\n")
    assert {c.id: c.label for c in folder.cases(scans, labels=by_id)} == {"two-1.2.4": (1,), "two-1.2.5": (0,)}


COMPOSED, APART = unicodedata.normalize("NFC", "L\u00e9a"), unicodedata.normalize("NFD", "L\u00e9a")


@pytest.mark.parametrize(("stored", "written"), [(APART, COMPOSED), (COMPOSED, APART)])
def test_accents_that_are_stored_apart_are_the_same_name(tmp_path, stored, written):
    scan(tmp_path / f"s/{stored}.nii.gz")
    save(tmp_path / f"p/{stored}.png")
    of_scans = table(tmp_path / "s.csv", f"path,x\n{written}.nii.gz,1\n")
    of_pictures = table(tmp_path / "p.csv", f"path,x\n{written}.png,1\n")
    (case,) = folder.cases(tmp_path / "s", labels=of_scans)
    (shard,) = image_folder.cases(tmp_path / "p", labels=of_pictures)
    assert (case.label, shard.images[0].label, shard.images[0].id) == ((1,), (1,), f"{COMPOSED}.png")
    assert case.id == folder.cases(tmp_path / "s")[0].id == "L_a"
    assert all(path.exists() for path in (*folder.files(case), shard.images[0].path))
    assert folder.absent_rows(tmp_path / "s", [case], labels=of_scans) == {"s.csv": 0}
    assert folder.remarks(tmp_path / "s", [case], labels=of_scans) == []


def test_two_files_of_one_name_but_for_its_accents_are_refused(tmp_path):
    for name in (APART, COMPOSED):
        scan(tmp_path / f"s/{name}.nii.gz")
        save(tmp_path / f"p/{name}.png")
    for module, root in ((folder, tmp_path / "s"), (image_folder, tmp_path / "p")):
        with pytest.raises(DataError, match="differ only in how accents or slashes are stored"):
            module.cases(root)


@pytest.mark.parametrize(("stored", "written"), [(APART, COMPOSED), ("a\\b", "a/b"), ("a\\b", "a\\b")])
def test_the_table_decides_side_by_side_however_names_are_stored(tmp_path, scans, stored, written):
    save(scans / f"{stored}.png")
    listed = table(tmp_path / "t.csv", f"path,x\n{written}.png,1\n")
    assert folder.module_for(scans, listed) == folder.IMAGES
    (shard,) = image_folder.cases(scans, listed)
    assert [ref.path for ref in shard.images] == [scans / f"{stored}.png"]


def test_where_the_root_lies_is_looked_up_once_a_table(tmp_path, pictures, monkeypatch):
    listed = table(tmp_path / "t.csv", "path,x\n" + "".join(f"{pictures}/{i}.png,1\n" for i in range(50)))
    asked, was = [], Path.resolve
    monkeypatch.setattr(Path, "resolve", lambda self, *a, **k: (asked.append(self), was(self, *a, **k))[1])
    assert set(read_labels(listed, pictures).rows) == {f"{i}.png" for i in range(50)}
    assert len(asked) == 1


def test_a_path_may_be_absolute_if_it_is_below_the_folder(tmp_path, scans, pictures, monkeypatch):
    of_scans = table(
        tmp_path / "s.csv", f"path,x,patient\n{scans}/bob.nii.gz,1,B\n.\\ann\\1.nii.gz,0,A\n/else/2.nii.gz,0,A\n"
    )
    of_pictures = table(tmp_path / "p.csv", f"path,x\n{pictures}/a.png,1\n")
    monkeypatch.chdir(tmp_path)
    for root in (scans, scans.relative_to(tmp_path)):
        cases = folder.cases(root, labels=of_scans, patients=of_scans)
        assert labels_of(cases) == {"ann-1": ("A", (0,), None), "bob": ("B", (1,), None)}
        assert folder.absent_rows(root, cases, labels=of_scans) == {"s.csv": 1}
    assert image_folder.cases(pictures, of_pictures)[0].images[0].id == "a.png"
    of_root = table(tmp_path / "r.csv", f"path,x\n{scans}/dicom,1\n")
    assert labels_of(folder.cases(scans / "dicom", labels=of_root)) == {"dicom": ("dicom", (1,), None)}


@pytest.mark.parametrize(("sign", "name"), [(";", "semicolons"), ("\t", "tabs")])
def test_a_table_of_other_separators_is_told_to_be_saved_with_commas(tmp_path, scans, sign, name):
    listed = table(tmp_path / "t.csv", f"path{sign}patient{sign}x\nbob.nii.gz{sign}B{sign}1\n")
    for options in ({"labels": listed}, {"patients": listed}):
        with pytest.raises(DataError, match=f"has {name} between its columns: save it as a CSV with commas"):
            folder.cases(scans, **options)


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_a_table_of_another_encoding_is_told_to_be_saved_in_utf_8(tmp_path, scans, encoding):
    listed = tmp_path / "t.csv"
    listed.write_bytes("path,patient,x\nbob.nii.gz,Zo\u00eb,1\n".encode(encoding))
    for options in ({"labels": listed}, {"patients": listed}):
        with pytest.raises(DataError, match="is not in UTF-8: save it as CSV in UTF-8"):
            folder.cases(scans, **options)
