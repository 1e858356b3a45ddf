"""Scans with masks in whatever folders they lie."""

import unicodedata
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from pcrl_cli.core.errors import ConfigError, DataError
from pcrl_cli.core.plan import Grid
from pcrl_cli.data.labelled import Preparation, label
from pcrl_cli.data.volume import Volume
from pcrl_cli.readers import folder, masked_folder
from pcrl_cli.readers.volume_io import write_mask, write_mhd, write_nifti

SHAPE = (8, 7, 6)
GRID = Grid(SHAPE, np.array([1.0, 1.5, 2.0]), np.array([3.0, -7.0, 40.0]), np.diag([-1.0, -1.0, 1.0]))
REGIONS = {"a": (1, 2), "b": (2,)}


def scan(path: Path, seed=0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(-100, 200, SHAPE).astype(np.int16)
    volume = Volume(values, GRID.spacing, GRID.origin, GRID.direction)
    (write_mhd if path.suffix == ".mhd" else write_nifti)(volume, path)
    return path


def mask(path: Path, values=None, grid=GRID) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    found = np.zeros(grid.shape, np.uint8)
    found[2:5, 2:5, 1:4], found[3, 3, 2] = 1, 2
    found = found if values is None else values
    write_mask(found, grid, path)
    return found


def ids(root, masks, **options):
    return [
        (case.id, {k: p.name for k, p in case.files.items()}) for case in masked_folder.cases(root, masks, **options)
    ]


def test_scans_and_masks_in_two_folders_are_paired_and_read(tmp_path):
    scan(tmp_path / "s/p/a.mhd")
    scan(tmp_path / "s/b.nii.gz")
    wanted = mask(tmp_path / "m/p/a_seg.nii.gz")
    mask(tmp_path / "m/b.nii.gz")
    cases = masked_folder.cases(tmp_path / "s", tmp_path / "m")
    assert [(c.id, c.patient, c.files["mask"].name) for c in cases] == [
        ("b", "b", "b.nii.gz"),
        ("p-a", "p-a", "a_seg.nii.gz"),
    ]
    found = masked_folder.read(cases[1], REGIONS)
    np.testing.assert_array_equal(found.mask.array, wanted)
    assert len(found.images) == 1
    labelled = label(found, Preparation(spacing_mm=None))
    np.testing.assert_array_equal(labelled.native_mask, wanted[::-1, ::-1])  # upright
    names = {path.name for path in masked_folder.files(cases[1])}
    assert names == {"a.mhd", "a.raw", "a_seg.nii.gz"}


def test_ids_are_those_of_the_folder_without_masks(tmp_path):
    for name in ("s/p/a.nii.gz", "s/b.nii.gz"):
        scan(tmp_path / name)
        mask(tmp_path / "m" / Path(name).relative_to("s"))
    plain = [(c.id, c.patient, c.path) for c in folder.cases(tmp_path / "s")]
    assert [(c.id, c.patient, c.path) for c in masked_folder.cases(tmp_path / "s", tmp_path / "m")] == plain


def test_masks_may_lie_beside_the_scans_or_in_a_folder_below_them(tmp_path):
    scan(tmp_path / "one/a.nii.gz")
    mask(tmp_path / "one/a_mask.nii.gz")
    assert ids(tmp_path / "one", tmp_path / "one") == [("a", {"mask": "a_mask.nii.gz"})]
    scan(tmp_path / "two/a.nii.gz")
    mask(tmp_path / "two/truth/a.nii.gz")
    assert ids(tmp_path / "two", tmp_path / "two/truth") == [("a", {"mask": "a.nii.gz"})]


def test_a_folder_a_case_may_hold_scan_and_mask(tmp_path):
    for case in "pq":
        scan(tmp_path / case / "ct.nii.gz")
        mask(tmp_path / case / "seg.nii.gz")
    found = masked_folder.cases(tmp_path, tmp_path)
    assert [c.id for c in found] == ["p-ct", "q-ct"]
    assert [c.files["mask"] for c in found] == [tmp_path / "p/seg.nii.gz", tmp_path / "q/seg.nii.gz"]


def test_the_scans_may_lie_below_the_folder_of_masks(tmp_path):
    scan(tmp_path / "images/a.nii.gz")
    mask(tmp_path / "a.nii.gz")
    assert ids(tmp_path / "images", tmp_path) == [("a", {"mask": "a.nii.gz"})]


def test_a_scan_without_a_mask_is_refused_by_name_and_both_kinds_are_said(tmp_path):
    scan(tmp_path / "s/a.nii.gz")
    scan(tmp_path / "s/b.nii.gz")
    mask(tmp_path / "m/a.nii.gz")
    mask(tmp_path / "m/c.nii.gz")
    cases = masked_folder.cases(tmp_path / "s", tmp_path / "m")
    with pytest.raises(DataError, match=r"b.nii.gz has no mask \(.*m/b.nii.gz\)"):
        masked_folder.read(cases[1], REGIONS)
    said = masked_folder.remarks(tmp_path / "s", cases, tmp_path / "m")
    assert said[0].startswith("1 scans have no mask in ")
    assert said[1].startswith("1 masks in ")
    assert "(the first: b)" in said[0]
    assert "(the first: c)" in said[1]


def test_regions_in_sub_folders_may_overlap_and_none_may_be_missing(tmp_path):
    for name in ("a", "b"):
        scan(tmp_path / f"s/{name}.nii.gz")
        mask(tmp_path / f"m/liver/{name}.nii.gz", np.ones(SHAPE, np.uint8))
    lesion = np.zeros(SHAPE, np.uint8)
    lesion[2:4] = 255
    mask(tmp_path / "m/lesion/a.nii.gz", lesion)
    one, two = masked_folder.cases(tmp_path / "s", tmp_path / "m")
    assert set(one.files) == {"mask/liver", "mask/lesion"}
    found = masked_folder.read(one, {"lesion": (1, 3), "liver": (2, 3)}).mask.array
    np.testing.assert_array_equal(found, np.where(lesion > 0, 3, 2))
    with pytest.raises(DataError, match=r"has no mask \(.*lesion/b.nii.gz\)"):
        masked_folder.read(two, {"lesion": (1, 3), "liver": (2, 3)})


def test_two_files_of_one_channel_are_refused(tmp_path):
    for name in ("a_t1", "a_T1", "a_t2"):
        scan(tmp_path / f"s/{name}.nii.gz")
    mask(tmp_path / "m/a.nii.gz")
    with pytest.raises(DataError, match=r"a_T1.nii.gz and .*a_t1.nii.gz are both t1 of one case"):
        masked_folder.cases(tmp_path / "s", tmp_path / "m", modalities=("t1", "t2"))


def test_channels_are_files_of_one_case(tmp_path):
    for name in ("a_t1", "a_t2", "b_t2", "b_t1", "c_T1", "c_t3"):
        scan(tmp_path / f"s/{name}.nii.gz")
    for name in "abc":
        mask(tmp_path / f"m/{name}.nii.gz")
    cases = masked_folder.cases(tmp_path / "s", tmp_path / "m", modalities=("t2", "t1"))
    assert [case.id for case in cases] == ["a", "b", "c"]
    assert masked_folder.read(cases[1], REGIONS).names == ("t2", "t1")
    with pytest.raises(DataError, match=r"c_t2.nii.gz is not there, and the other channels"):
        masked_folder.read(cases[2], REGIONS)
    with pytest.raises(DataError, match=r"no scan ends in _flair \(a_t1, ...\)"):
        masked_folder.cases(tmp_path / "s", tmp_path / "m", modalities=("flair",))


@pytest.mark.parametrize("names", [("t1", "t1"), (), ("t1", "")])
def test_channels_that_cannot_be_told_apart_are_refused(names):
    with pytest.raises(ConfigError, match="has to name different ends"):
        masked_folder.chosen(names)


def test_a_mask_on_another_grid_is_refused(tmp_path):
    scan(tmp_path / "s/a.nii.gz")
    shifted = Grid(SHAPE, GRID.spacing, GRID.origin + 5.0, GRID.direction)
    mask(tmp_path / "m/a.nii.gz", grid=shifted)
    (case,) = masked_folder.cases(tmp_path / "s", tmp_path / "m")
    with pytest.raises(DataError, match=r"m/a.nii.gz lies up to .* mm off the grid of .*s/a.nii.gz"):
        label(masked_folder.read(case, REGIONS), Preparation())


def test_a_mask_of_four_axes_and_an_unknown_label_are_refused(tmp_path):
    scan(tmp_path / "s/a.nii.gz")
    (tmp_path / "m").mkdir()
    sitk.WriteImage(
        sitk.GetImageFromArray(np.zeros((2, *SHAPE), np.uint8), isVector=False), str(tmp_path / "m/a.nii.gz")
    )
    (case,) = masked_folder.cases(tmp_path / "s", tmp_path / "m")
    with pytest.raises(DataError, match=r"m/a.nii.gz"):
        masked_folder.read(case, REGIONS)
    mask(tmp_path / "m/a.nii.gz", np.full(SHAPE, 9, np.uint8))
    with pytest.raises(DataError, match="holds the labels 9, which are in no region"):
        masked_folder.read(case, REGIONS)
    assert masked_folder.labels_in_file(case.files["mask"]) == {9}


def test_the_folder_reader_leaves_masks_to_the_right_module(tmp_path):
    scan(tmp_path / "s/a.nii.gz")
    mask(tmp_path / "s/m/a.nii.gz")
    assert folder.module_for(tmp_path / "s") == folder.__name__
    assert masked_folder.__name__ == folder.WITH_MASKS
    mask(tmp_path / "t/m/a.nii.gz")
    with pytest.raises(DataError, match="holds no scan outside"):
        masked_folder.cases(tmp_path / "t", tmp_path / "t/m")


# ---------------------------------------------------------------------------------------------- patients of several channels


def channels(tmp_path, table: str) -> dict:
    for name in ("a_t1", "a_t2", "b_t1", "b_t2"):
        scan(tmp_path / f"s/{name}.nii.gz")
    for name in "ab":
        mask(tmp_path / f"m/{name}.nii.gz")
    (tmp_path / "p.csv").write_text(table, encoding="utf-8")
    cases = masked_folder.cases(tmp_path / "s", tmp_path / "m", patients=tmp_path / "p.csv", modalities=("t1", "t2"))
    return {case.id: case.patient for case in cases}


@pytest.mark.parametrize(
    "table",
    [
        "path,patient\na_t1.nii.gz,P\nb_t1.nii.gz,Q\n",
        "path,patient\na_t2.nii.gz,P\nb_t2.nii.gz,Q\n",
        "path,patient\na_t2.nii.gz,P\na_t1.nii.gz,P\nb_t1.nii.gz,Q\n",
        "case,patient\na,P\nb,Q\n",
        "case,patient\na_t2,P\nb_t1,Q\n",
    ],
)
def test_a_table_may_name_a_case_or_any_of_its_channels(tmp_path, table):
    assert channels(tmp_path, table) == {"a": "P", "b": "Q"}


def test_channels_of_two_patients_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"channels of a are of the patients P and Q: correct .*p.csv"):
        channels(tmp_path, "path,patient\na_t1.nii.gz,P\na_t2.nii.gz,Q\n")


def test_a_case_that_no_table_names_is_a_patient_of_its_own(tmp_path):
    assert channels(tmp_path, "path,patient\na_t2.nii.gz,P\n") == {"a": "P", "b": "b"}


def test_scans_that_differ_in_their_endings_only_are_refused_and_not_lost(tmp_path):
    scan(tmp_path / "s/a.nii.gz")
    scan(tmp_path / "s/a.mhd")
    mask(tmp_path / "m/a.nii.gz")
    with pytest.raises(DataError, match="differ in their endings only"):
        masked_folder.cases(tmp_path / "s", tmp_path / "m")


def test_a_mask_whose_accents_are_stored_apart_is_the_scans(tmp_path):
    scan(tmp_path / "s" / unicodedata.normalize("NFC", "L\u00e9a.nii.gz"))
    stored = unicodedata.normalize("NFD", "L\u00e9a_seg.nii.gz")
    mask(tmp_path / "m" / stored)
    (case,) = masked_folder.cases(tmp_path / "s", tmp_path / "m")
    assert case.files["mask"].name == stored
    assert masked_folder.read(case, REGIONS).mask is not None
