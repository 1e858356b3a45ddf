import re
from pathlib import Path

import numpy as np
import pytest
from test_volume_io import write_series

from pcrl_cli.core.errors import DataError
from pcrl_cli.data.volume import Volume
from pcrl_cli.readers import READERS, folder
from pcrl_cli.readers.volume_io import write_mhd, write_nifti


def scan(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    volume = Volume(np.zeros((4, 5, 6), np.int16), np.ones(3), np.zeros(3), np.eye(3))
    (write_mhd if path.suffix == ".mhd" else write_nifti)(volume, path)


@pytest.fixture
def root(tmp_path) -> Path:
    scan(tmp_path / "ann/day 1/ct.nii.gz")
    scan(tmp_path / "bob.mhd")
    scan(tmp_path / ".hidden/x.nii.gz")
    scan(tmp_path / "ann/.y.nii.gz")
    (tmp_path / "notes.txt").write_text("not a scan")
    return tmp_path


def test_scans_are_found_and_named_by_their_paths(root):
    cases = folder.cases(root)
    assert [case.id for case in cases] == ["ann-day_1-ct", "bob"]
    assert [case.patient for case in cases] == ["ann-day_1-ct", "bob"]
    assert folder.read(cases[0]).array.shape == (4, 5, 6)


def test_a_hash_is_added_only_where_names_would_be_equal(root):
    scan(root / "ann/day_1/ct.nii.gz")
    scan(root / "ann/day_1/ct.mhd")
    ids = [case.id for case in folder.cases(root)]
    assert len(set(ids)) == 4
    assert "bob" in ids
    assert sum(bool(re.fullmatch(r"ann-day_1-ct-[0-9a-f]{8}", i)) for i in ids) == 3


def test_every_id_is_a_safe_file_name(root):
    scan(root / "größe & co" / (40 * "long ") / "..x#.nii.gz".lstrip("."))
    for case in folder.cases(root):
        assert re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,140}", case.id)


def test_one_series_is_its_folder_and_of_several_each_is_a_case(root):
    write_series(root / "one", [0, 2, 4], uid="1.2.3")
    write_series(root / "two", [0, 2, 4], uid="1.2.4")
    write_series(root / "two", [0, 2, 4, 6], uid="1.2.5", stem="t")
    cases = {case.id: case for case in folder.cases(root)}
    assert set(cases) == {"ann-day_1-ct", "bob", "one", "two-1.2.4", "two-1.2.5"}
    assert cases["one"].path == root / "one"
    assert folder.read(cases["one"]).array.shape[2] == 3
    assert folder.read(cases["two-1.2.5"]).array.shape[2] == 4


@pytest.mark.parametrize(
    "table", ["path,patient\nbob.mhd,p1\nann/day 1/ct.nii.gz,p1\n", "case,patient\nbob,p1\nann-day_1-ct,p1\n"]
)
def test_patients_are_named_by_path_or_by_case(root, table):
    (root / "p.csv").write_text(table)
    assert {case.patient for case in folder.cases(root, patients=root / "p.csv")} == {"p1"}


def test_a_table_that_names_no_scan_is_refused(root):
    (root / "p.csv").write_text("path,patient\nelse.nii,p1\n")
    with pytest.raises(DataError, match="names none of the scans"):
        folder.cases(root, patients=root / "p.csv")


def test_missing_and_scanless_folders_say_what_to_do(tmp_path):
    with pytest.raises(DataError, match="is not there: put scans"):
        folder.cases(tmp_path / "none")
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(DataError, match="holds no scan"):
        folder.cases(tmp_path)


def test_every_reader_has_the_same_words():
    import importlib

    for name, module in READERS.items():
        reader = importlib.import_module(module)
        assert name == reader.NAME
        assert reader.MODALITY in ("ct", "mr", "xray")
        assert isinstance(reader.CLASSES, tuple)
        assert reader.CITATION
        assert reader.LICENSE
        assert callable(reader.cases)
        assert callable(reader.read)
        assert callable(reader.files)


@pytest.mark.real
def test_real_folders_are_listed(real_data):
    assert len(folder.cases(real_data / "CT")) == 5
