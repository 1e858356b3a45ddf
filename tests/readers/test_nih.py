from pathlib import Path

import numpy as np
import pytest
from pictures import save

from pcrl_cli.core.errors import DataError
from pcrl_cli.readers import nih, shards

TAIL = "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
HEAD = f"Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,{TAIL}"
ROWS = {
    "00000001_000.png": "Cardiomegaly|Emphysema,0,1",
    "00000001_001.png": "No Finding,1,1",
    "00000002_000.png": "Hernia,0,2",
    "00000003_000.png": "Pleural_Thickening|Mass,0,3",
}


def table(root: Path, rows: dict[str, str] = ROWS, name: str = "Data_Entry_2017.csv", head: str = HEAD) -> None:
    lines = [f"{image},{row},058Y,M,PA,2682,2749,0.143,0.143" for image, row in rows.items()]
    (root / name).write_text("\n".join([head, *lines]) + "\n", encoding="utf-8")


@pytest.fixture
def root(tmp_path) -> Path:
    for name in ROWS:
        save(tmp_path / "images" / name)
    table(tmp_path)
    return tmp_path


def refs(cases):
    return [ref for case in cases for ref in case.images]


def positive(ref):
    return {name for name, value in zip(nih.CLASSES, ref.label, strict=True) if value}


def test_images_come_with_patient_and_findings(root):
    cases = nih.cases(root)
    assert [case.id for case in cases] == ["images-00000"]
    assert [(ref.id, ref.patient) for ref in refs(cases)] == [(n, r.rsplit(",")[-1]) for n, r in ROWS.items()]
    assert [positive(ref) for ref in refs(cases)] == [
        {"Cardiomegaly", "Emphysema"}, set(), {"Hernia"}, {"Pleural_Thickening", "Mass"},
    ]  # fmt: skip
    assert nih.files(cases[0]) == [root / "images" / name for name in ROWS]
    assert (nih.absent_rows(root, cases), nih.remarks(root, cases)[0][:12]) == (
        {"Data_Entry_2017.csv": 0},
        "no image has",
    )


def test_the_findings_are_in_the_papers_order():
    assert len(set(nih.CLASSES)) == 14
    assert (nih.CLASSES[0], nih.CLASSES[2], nih.CLASSES[8], nih.CLASSES[13]) == (
        "Atelectasis", "Effusion", "Consolidation", "Hernia",
    )  # fmt: skip


def test_twelve_folders_are_one_data_set(root):
    for i, name in enumerate(ROWS):
        (root / f"images_{i + 1:03d}/images").mkdir(parents=True)
        (root / "images" / name).rename(root / f"images_{i + 1:03d}/images" / name)
    assert len(refs(nih.cases(root))) == 4
    save(root / "images" / next(iter(ROWS)))
    with pytest.raises(DataError, match=r"images/00000001_000\.png and .*images_001.* have one name"):
        nih.cases(root)


@pytest.mark.parametrize(
    ("head", "comma"),
    [
        (HEAD, ""),
        (f"{HEAD},", ","),
        (HEAD, ","),
        (HEAD.replace("[Width,Height]", "[Width, Height]"), ""),
        (HEAD.replace(TAIL, '"OriginalImage[Width, Height]","OriginalImagePixelSpacing[x, y]"'), ""),
        (f"\ufeff{HEAD}", ""),
        (HEAD.replace("Image Index,", "Image Index ,").replace("Gender", "Sex"), ""),
        # the odd names first: there they would move every column behind them
        ('"OriginalImage[Width,Height]",' + HEAD.replace("OriginalImage[Width,Height],", ""), ""),
    ],
)
def test_commas_in_the_headers_names_move_no_column(root, head, comma):
    first = head.startswith('"')
    lines = [
        f"{'2682,2749,' * first}{n},{r},58,M,PA,{'2682,2749,' * (not first)}0.1,0.1{comma}" for n, r in ROWS.items()
    ]
    (root / "Data_Entry_2017.csv").unlink()
    (root / "Data_Entry_2017_v2020.csv").write_text("\r\n".join([head, *lines]), encoding="utf-8")
    assert [ref.patient for ref in refs(nih.cases(root))] == ["1", "1", "2", "3"]


def test_the_newer_table_is_used_where_both_are_there(root):
    table(root, {"00000002_000.png": "Hernia,0,2"}, "Data_Entry_2017_v2020.csv")
    assert [ref.id for ref in refs(nih.cases(root))] == ["00000002_000.png"]


def test_missing_and_unlisted_images_are_counted(root):
    (root / "images/00000002_000.png").unlink()
    save(root / "images/00000009_000.png")
    (root / "images/._00000001_000.png").write_bytes(b"")
    cases = nih.cases(root)
    assert len(refs(cases)) == 3
    assert nih.absent_rows(root, cases) == {"Data_Entry_2017.csv": 1}
    assert nih.remarks(root, cases)[0].startswith(
        "1 images are not in Data_Entry_2017.csv (the first: 00000009_000.png)"
    )


def test_findings_that_nobody_has_are_remarked_on(root):
    (text,) = nih.remarks(root, nih.cases(root))
    assert text.startswith("no image has Atelectasis, Effusion")
    assert "Mass" not in text


@pytest.mark.parametrize("text", ["Cardiomegaly|Lungs", "cardiomegaly", "No Finding|Mass"])
def test_an_unknown_or_contradictory_finding_names_its_line(root, text):
    table(root, {**ROWS, "00000002_000.png": f"{text},0,2"})
    with pytest.raises(DataError, match=r"Data_Entry_2017\.csv, line 4: .*(no finding|contradicts).*Atelectasis, "):
        nih.cases(root)


def test_rows_that_repeat_are_read_once_and_rows_that_disagree_are_refused(root):
    path = root / "Data_Entry_2017.csv"
    text = path.read_text("utf-8")
    path.write_text(text + text.splitlines()[1] + "\n", encoding="utf-8")
    cases = nih.cases(root)
    assert len(refs(cases)) == 4
    assert "1 rows of Data_Entry_2017.csv repeat another" in nih.remarks(root, cases)[0]
    path.write_text(text + text.splitlines()[1].replace("Emphysema", "Mass") + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"two things of 00000001_000\.png \(lines 2 and 6\)"):
        nih.cases(root)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("Image Index,Finding Labels\na.png,Mass\n", "lacks the column 'Patient ID'"),
        (f"{HEAD}\n00000001_000.png,Mass\n", "line 2: the row ends before its column 'Patient ID'"),
        (f"{HEAD}\n00000001_000.png,Mass,0,,1\n", "line 2: the column 'Patient ID' is empty"),
        ("", "lacks the column 'Image Index'"),
        (f'{HEAD}\n"00000001_000.png,Mass,0,3', "not a readable CSV"),
    ],
)
def test_a_malformed_table_is_refused_in_one_sentence(root, text, what):
    (root / "Data_Entry_2017.csv").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=what) as caught:
        nih.cases(root)
    assert "\n" not in str(caught.value)


def test_what_is_not_there_is_said_with_what_to_do(root, tmp_path):
    (root / "Data_Entry_2017.csv").rename(root / "other.csv")
    with pytest.raises(DataError, match=r"holds no Data_Entry_2017\.csv: put ChestX-ray14"):
        nih.cases(root)
    with pytest.raises(DataError, match="is not there: put ChestX-ray14"):
        nih.cases(tmp_path / "none")
    table(root, {"00000009_000.png": "Mass,0,9"})
    with pytest.raises(DataError, match="holds none of the 1 images"):
        nih.cases(root)


# ------------------------------------------------------------------------------------------------- official parts


def lists(root, train, test):
    (root / "train_val_list.txt").write_text("\n".join(train), encoding="utf-8")
    (root / "test_list.txt").write_text("\n".join(test) + "\n", encoding="utf-8")


def test_official_lists_give_the_parts_of_patients(root):
    names = list(ROWS)
    lists(root, [*names[:3], "00000077_000.png"], names[3:])
    cases = nih.cases(root, official_split=True)
    assert nih.official_parts(root, cases) == {"1": "train", "2": "train", "3": "test"}


def test_a_patient_in_both_official_lists_is_refused(root):
    names = list(ROWS)
    lists(root, names[1:], names[:1])
    with pytest.raises(DataError, match="the patient 1 is in two of the official parts"):
        nih.cases(root, official_split=True)
    assert len(nih.cases(root)) == 1


def test_an_image_in_no_list_and_a_missing_list_are_refused(root):
    lists(root, list(ROWS)[:2], list(ROWS)[3:])
    with pytest.raises(DataError, match=r"1 images are in neither .*00000002_000\.png"):
        nih.cases(root, official_split=True)
    (root / "test_list.txt").unlink()
    with pytest.raises(DataError, match=r"test_list\.txt is not there.*--official-split"):
        nih.cases(root, official_split=True)


# ---------------------------------------------------------------------------------------------------------- shards


def test_a_shard_is_read_without_its_bad_images_and_says_why(root):
    (root / "images/00000001_001.png").write_bytes(b"no picture")
    (case,) = nih.cases(root)
    (root / "images/00000003_000.png").unlink()
    pictures = nih.read(case, 16)
    assert pictures.image.shape == (2, 1, 16, 16)
    assert pictures.id == ("00000001_000.png", "00000002_000.png")
    assert pictures.patient == ("1", "2")
    assert pictures.label.tolist() == [list(ref.label) for ref in case.images if ref.id in pictures.id]
    assert len(pictures.scan_ids) == 2
    assert "no PNG" in pictures.bad["00000001_001.png"]
    assert "is not there" in pictures.bad["00000003_000.png"]


@pytest.mark.parametrize(
    ("images", "size"), [(1, 64), (497, 64), (8191, 64), (8192, 128), (112_120, 1024), (223_648, 2048), (10**6, 2048)]
)
def test_shards_grow_with_the_listing_and_stay_many(images, size):
    assert shards.shard_size(images) == size
    assert images // size >= 64 or size == shards.SMALLEST


def test_shards_are_cut_from_the_sorted_list(root, monkeypatch):
    monkeypatch.setattr(shards, "SMALLEST", 3)
    cases = nih.cases(root)
    assert [len(case.images) for case in cases] == [3, 1]
    assert [ref.id for ref in refs(cases)] == sorted(ROWS)
    assert [case.id for case in cases] == ["images-00000", "images-00001"]


@pytest.mark.real
def test_the_real_subset_is_listed_and_read(real_data):
    root = real_data / "ChestXray14"
    cases = nih.cases(root)
    assert len(refs(cases)) == len({ref.patient for ref in refs(cases)}) == 497
    assert len(cases) == 8
    assert nih.absent_rows(root, cases) == {"Data_Entry_2017.csv": 0}
    assert nih.remarks(root, cases) == []
    count = dict(zip(nih.CLASSES, np.sum([ref.label for ref in refs(cases)], axis=0).tolist(), strict=True))
    assert (count["Infiltration"], count["Edema"], count["Pleural_Thickening"]) == (104, 15, 48)
    pictures = nih.read(cases[0], 64)
    assert pictures.image.shape == (64, 1, 64, 64)
    assert not pictures.bad
    assert len(set(pictures.scan_ids)) == 64
