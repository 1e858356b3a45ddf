from pathlib import Path

import numpy as np
import pytest

from pcrl_cli.core.errors import DataError
from pcrl_cli.data.volume import Volume, world_to_index
from pcrl_cli.readers import luna
from pcrl_cli.readers.volume_io import read_volume, write_mhd

HEAD = "seriesuid,coordX,coordY,coordZ"


def scan(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_mhd(Volume(np.zeros((4, 5, 6), np.int16), np.ones(3), np.zeros(3), np.eye(3)), path)


@pytest.fixture
def root(tmp_path) -> Path:
    for name in ("subset3/1.2.30", "subset0/1.2.4", "1.2.5"):
        scan(tmp_path / f"{name}.mhd")
    rows = ["1.2.4,1,2,3,0", "1.2.9,0,0,0,0", "1.2.30,4,5,6,1", "1.2.4,-1.5,2,3e1,1"]
    (tmp_path / "candidates_V2.csv").write_text("\n".join([f"{HEAD},class", *rows]))
    (tmp_path / "annotations.csv").write_text(
        f"{HEAD},diameter_mm\n1.2.4,-1.5,2,30,6.25\n1.2.8,0,0,0,5\n1.2.8,1,0,0,5\n"
    )
    return tmp_path


def test_scans_of_all_subsets_and_the_root_are_found_in_order(root):
    cases = luna.cases(root)
    assert [case.id for case in cases] == ["1.2.30", "1.2.4", "1.2.5"]
    assert [case.patient for case in cases] == ["1.2.30", "1.2.4", "1.2.5"]
    assert luna.read(cases[0]).array.shape == (4, 5, 6)


def test_candidates_and_lesions_belong_to_their_scans(root):
    case = {case.id: case for case in luna.cases(root)}
    points = case["1.2.4"].points
    assert points.id == ("1.2.4#0", "1.2.4#3")
    np.testing.assert_array_equal(points.world, [[1, 2, 3], [-1.5, 2, 30]])
    np.testing.assert_array_equal(points.label, [0, 1])
    np.testing.assert_array_equal(case["1.2.4"].lesions, [[-1.5, 2, 30, 6.25]])
    assert len(case["1.2.5"].points) == 0
    assert case["1.2.5"].lesions.shape == (0, 4)


def test_excluded_findings_are_read_where_their_table_is_there(root):
    assert all(case.excluded is None for case in luna.cases(root))
    (root / "annotations_excluded.csv").write_text(
        f"{HEAD},diameter_mm\n1.2.4,7,8,9,-1\n1.2.9,0,0,0,5\n1.2.4,1,1,1,4.5\n"
    )
    case = {case.id: case for case in luna.cases(root)}
    np.testing.assert_array_equal(case["1.2.4"].excluded, [[7, 8, 9, -1], [1, 1, 1, 4.5]])
    assert case["1.2.5"].excluded.shape == (0, 4)
    assert luna.absent_rows(root, case.values())["annotations_excluded.csv"] == 1
    (root / "annotations_excluded.csv").write_text(f"{HEAD}\n1.2.4,7,8,9\n")
    with pytest.raises(DataError, match="lacks the column 'diameter_mm'"):
        luna.cases(root)


def test_the_files_of_a_scan_are_the_header_and_the_voxels_that_it_names(root):
    case = next(case for case in luna.cases(root) if case.id == "1.2.4")
    assert luna.files(case) == [case.path, case.path.with_suffix(".raw")]
    case.path.with_suffix(".raw").rename(case.path.with_name("voxels0.raw"))
    case.path.write_text(case.path.read_text("utf-8").replace("1.2.4.raw", "voxels0.raw"))
    (case.path.parent / "1.2.4.9.mhd").write_text("another scan whose name begins the same")
    assert luna.files(case) == [case.path, case.path.with_name("voxels0.raw")]


def test_rows_of_absent_scans_are_counted(root):
    assert luna.absent_rows(root, luna.cases(root)) == {"candidates_V2.csv": 1, "annotations.csv": 2}


def test_without_tables_there_are_no_points(root):
    (root / "candidates_V2.csv").unlink()
    (root / "annotations.csv").unlink()
    assert all(case.points is None and case.lesions is None for case in luna.cases(root))
    assert luna.absent_rows(root, []) == {}


def test_the_older_candidates_are_used_where_the_newer_are_not_there(root):
    (root / "candidates_V2.csv").rename(root / "candidates.csv")
    assert sum(len(case.points) for case in luna.cases(root)) == 3


def test_a_table_of_candidates_can_be_given(root, tmp_path):
    (root / "mine.csv").write_text(f"{HEAD},class\n1.2.5,1,1,1,1\n")
    assert [len(case.points) for case in luna.cases(root, candidates=root / "mine.csv")] == [0, 0, 1]


def test_a_table_of_patients_joins_series(root):
    (root / "p.csv").write_text("seriesuid,patient\n1.2.4,ann\n1.2.30,ann\n")
    assert [case.patient for case in luna.cases(root, patients=root / "p.csv")] == ["ann", "ann", "1.2.5"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seriesuid,patient\n1.2.4,ann\n1.2.4,bob\n", "two patients"),
        ("seriesuid,patient\n7.7,ann\n", "names none of the scans"),
        ("seriesuid,person\n1.2.4,ann\n", "lacks the column 'patient'"),
        ("seriesuid,patient\n1.2.4,\n", "line 2: the column 'patient' is empty"),
    ],
)
def test_a_malformed_table_of_patients_is_refused(root, text, message):
    (root / "p.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        luna.cases(root, patients=root / "p.csv")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{HEAD}\n1.2.4,1,2,3\n", "lacks the column 'class'"),
        (f"{HEAD},class\n1.2.4,1,2,3,0\n1.2.4,1,x,3,0\n", "line 3: the column 'coordY' is not a number"),
        (f"{HEAD},class\n1.2.4,1,inf,3,0\n", "'coordY' is not a number"),
        (f"{HEAD},class\n1.2.4,1,2\n", "'coordZ' is not a number"),
        (f"{HEAD},class\n1.2.4,1,2,3,2\n", "line 2: the column 'class' is neither 0 nor 1"),
        ("", "not a readable CSV"),
        (f'{HEAD},class\n"1.2.4,1,2,3,2\n', "not a readable CSV"),
    ],
)
def test_a_malformed_table_of_candidates_is_refused(root, text, message):
    (root / "candidates_V2.csv").write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        luna.cases(root)
    assert "\n" not in str(caught.value)


def test_a_series_in_two_subsets_is_refused_and_both_are_named(root):
    scan(root / "subset5/1.2.4.mhd")
    with pytest.raises(DataError, match=r"subset0/1\.2\.4\.mhd and .*subset5/1\.2\.4\.mhd"):
        luna.cases(root)


def test_missing_empty_and_scanless_folders_say_what_to_do(tmp_path):
    for folder, message in ((tmp_path / "none", "is not there"), (tmp_path, "is empty")):
        with pytest.raises(DataError, match=f"{message}: put LUNA16 .* give --data"):
            luna.cases(folder)
    (tmp_path / "readme.txt").write_text("")
    with pytest.raises(DataError, match=r"holds no subset\*"):
        luna.cases(tmp_path)


def test_hidden_files_of_other_systems_are_passed_over(root):
    (root / "subset0/._1.2.4.mhd").write_bytes(b"\0")
    assert len(luna.cases(root)) == 3


@pytest.mark.real
def test_real_nodule_centres_lie_inside_their_masks(real_data):
    cases = luna.cases(real_data / "LUNA16")
    assert [len(case.lesions) for case in cases] == [3, 1, 0]
    assert luna.absent_rows(real_data / "LUNA16", cases)["annotations.csv"] == 1182
    for case in cases:
        mask = read_volume(real_data / "LUNA16/nodule_masks" / f"{case.id}.nii.gz")
        volume = luna.read(case)
        assert volume.array.shape == mask.array.shape
        assert volume.array.min() >= -1024
        for lesion in case.lesions:
            assert mask.array[tuple(np.rint(world_to_index(mask, lesion[:3])).astype(int))] > 0
        positives = case.points.world[case.points.label == 1]
        np.testing.assert_allclose(np.sort(positives, 0), np.sort(case.lesions[:, :3], 0), atol=1e-3)
