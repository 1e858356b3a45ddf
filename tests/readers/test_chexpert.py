from pathlib import Path

import pytest
from pictures import save

from pcrl_cli.core.errors import DataError
from pcrl_cli.readers import chexpert

HEAD = "Path,Sex,Age,Frontal/Lateral,AP/PA," + ",".join(chexpert.CLASSES)
TRAIN = {
    "train/patient00001/study1/view1_frontal.jpg": ("Frontal", "1.0,,,,,,,,,,,,,1.0"),
    "train/patient00002/study1/view1_frontal.jpg": ("Frontal", ",,1.0,-1.0,,-1.0,0.0,,,,-1.0,,,"),
    "train/patient00002/study1/view2_lateral.jpg": ("Lateral", ",,1.0,-1.0,,-1.0,0.0,,,,-1.0,,,"),
}
VALID = {"valid/patient64541/study1/view1_frontal.jpg": ("Frontal", ",".join(["0.0"] * 13 + ["1.0"]))}


def table(root: Path, name: str, rows: dict[str, tuple[str, str]], prefix: str = "CheXpert-v1.0-small/") -> None:
    lines = [f"{prefix}{path},Female,68,{side},AP,{values}" for path, (side, values) in rows.items()]
    (root / name).write_text("\n".join([HEAD, *lines]) + "\n", encoding="utf-8")


@pytest.fixture
def root(tmp_path) -> Path:
    root = tmp_path / "CheXpert-v1.0-small"
    for path in (*TRAIN, *VALID):
        save(root / path)
    table(root, "train.csv", TRAIN)
    table(root, "valid.csv", VALID)
    return root


def refs(cases):
    return {ref.id: ref for case in cases for ref in case.images}


def test_both_tables_and_both_views_are_listed(root):
    cases = chexpert.cases(root)
    assert list(refs(cases)) == sorted([*TRAIN, *VALID])
    assert [ref.patient for ref in refs(cases).values()] == [
        "patient00001",
        "patient00002",
        "patient00002",
        "patient64541",
    ]
    assert chexpert.absent_rows(root, cases) == {"train.csv": 0, "valid.csv": 0}
    assert chexpert.read(cases[0], 16).image.shape == (4, 1, 16, 16)


def test_the_folder_above_is_as_good(root):
    assert chexpert.cases(root.parent) == chexpert.cases(root)
    assert [str(ref.path) for ref in refs(chexpert.cases(root.parent)).values()] == [
        str(root / name) for name in sorted([*TRAIN, *VALID])
    ]


@pytest.mark.parametrize("prefix", ["", "CheXpert-v1.0/"])
def test_the_folders_name_in_the_paths_does_not_matter(root, prefix):
    table(root, "train.csv", TRAIN, prefix)
    assert list(refs(chexpert.cases(root))) == sorted([*TRAIN, *VALID])


@pytest.mark.parametrize(("uncertain", "value"), [("zero", 0), ("one", 1), ("ignore", -1)])
def test_uncertain_labels_become_what_was_asked(root, uncertain, value):
    label = refs(chexpert.cases(root, uncertain=uncertain))["train/patient00002/study1/view1_frontal.jpg"].label
    expected = dict.fromkeys(chexpert.CLASSES, 0) | {"Cardiomegaly": 1, "Lung Opacity": value, "Edema": value}
    assert label == tuple((expected | {"Pleural Effusion": value}).values())


@pytest.mark.parametrize(("view", "count"), [("frontal", 3), ("lateral", 1), ("all", 4)])
def test_views_can_be_chosen(root, view, count):
    cases = chexpert.cases(root, view=view)
    assert len(refs(cases)) == count
    assert sum(chexpert.absent_rows(root, cases, view=view).values()) == 0


def test_missing_images_are_counted(root):
    (root / "train/patient00001/study1/view1_frontal.jpg").unlink()
    cases = chexpert.cases(root)
    assert len(refs(cases)) == 3
    assert chexpert.absent_rows(root, cases) == {"train.csv": 1, "valid.csv": 0}


def test_one_table_is_enough_and_none_is_not(root):
    (root / "valid.csv").unlink()
    assert len(refs(chexpert.cases(root))) == 3
    (root / "train.csv").unlink()
    with pytest.raises(DataError, match=r"holds neither train\.csv nor valid\.csv: put CheXpert"):
        chexpert.cases(root)


@pytest.mark.parametrize(
    ("path", "side", "values", "what"),
    [
        (
            "train/patient00001/study1/view1_frontal.jpg",
            "Frontal",
            "2.0" + 13 * ",",
            "'2.0' in the column 'No Finding'",
        ),
        (
            "train/patient00001/study1/view1_frontal.jpg",
            "Oblique",
            13 * ",",
            "'Oblique' is neither Frontal nor Lateral",
        ),
        ("train/p1/study1/view1_frontal.jpg", "Frontal", 13 * ",", "names no patient's image"),
        ("train/../patient00001/view1.jpg", "Frontal", 13 * ",", "names no patient's image"),
        ("train/patient00001/study1/view1_frontal.jpg", "Frontal", "0", "the row ends before"),
    ],
)
def test_a_malformed_row_is_named(root, path, side, values, what):
    table(root, "train.csv", {path: (side, values)})
    with pytest.raises(DataError, match=rf"train\.csv, line 2: .*{what}"):
        chexpert.cases(root)


def test_rows_that_repeat_are_read_once_and_rows_that_disagree_are_refused(root):
    path, text = root / "train.csv", (root / "train.csv").read_text("utf-8")
    path.write_text(text + text.splitlines()[1] + "\n", encoding="utf-8")
    cases = chexpert.cases(root)
    assert len(refs(cases)) == 4
    assert chexpert.remarks(root, cases)[0] == "1 rows of train.csv repeat another and were read once"
    path.write_text(text + text.splitlines()[1].replace("1.0", "0.0") + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"two things of train/patient00001.* \(lines 2 and 5\)"):
        chexpert.cases(root)


def test_an_image_in_both_tables_is_read_once_and_refused_where_they_disagree(root):
    name, (side, values) = next(iter(TRAIN.items()))
    table(root, "valid.csv", VALID | {name: (side, values)})
    assert len(refs(chexpert.cases(root))) == 4
    table(root, "valid.csv", VALID | {name: (side, values.replace("1.0", "0.0"))})
    with pytest.raises(DataError, match=rf"train\.csv and valid\.csv of .* say two things of {name}"):
        chexpert.cases(root)


def test_the_radiologists_table_is_the_official_test_part(root):
    cases = chexpert.cases(root, official_split=True)
    assert chexpert.official_parts(root, cases) == {
        "patient00001": "train", "patient00002": "train", "patient64541": "test",
    }  # fmt: skip


def test_a_patient_in_both_tables_is_refused(root):
    name = "valid/patient00002/study9/view1_frontal.jpg"
    save(root / name)
    table(root, "valid.csv", VALID | {name: ("Frontal", 13 * ",")})
    with pytest.raises(DataError, match="the patient patient00002 is in two of the official parts"):
        chexpert.cases(root, official_split=True)


def test_observations_that_nobody_has_are_remarked_on(root):
    (text,) = chexpert.remarks(root, chexpert.cases(root))
    assert text.startswith("no image has Enlarged Cardiomediastinum")
    assert "Support Devices" not in text
