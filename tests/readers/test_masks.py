"""Which mask belongs to which scan, and what its labels are called and stored as."""

from pathlib import Path

import numpy as np
import pytest

from pcrl_cli.core.case import Case
from pcrl_cli.core.errors import ConfigError, DataError
from pcrl_cli.pure.regions import masks_of
from pcrl_cli.readers.masks import (
    MASK,
    codes,
    encoded,
    joined,
    label_values,
    labels_in,
    pair,
    parsed,
    regions_for,
    stored_regions,
)


def paired(folder: Path, scans, *masks):
    """Scan -> what its mask is called below the folder (by region), and the lonely ones."""
    for name in masks:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    found = pair(scans, folder, lambda path: path.name.endswith(".nii.gz"), ".nii.gz")
    return {
        s: {k: p.relative_to(folder).as_posix() for k, p in f.items()} for s, f in found.files.items()
    }, found.lonely


@pytest.mark.parametrize(
    "name", ["a", "a_seg", "a-seg", "a_mask", "a.label", "a_labels", "a_segmentation", "a-GT", "a Mask"]
)
def test_a_mask_is_named_as_its_scan_with_or_without_a_word_for_mask(tmp_path, name):
    assert paired(tmp_path, ["a"], f"{name}.nii.gz") == ({"a": {MASK: f"{name}.nii.gz"}}, ())


def test_paths_below_the_two_folders_have_to_agree(tmp_path):
    files, lonely = paired(tmp_path, ["x/a", "y/a"], "x/a.nii.gz", "y/a_seg.nii.gz", "z/a.nii.gz")
    assert files == {"x/a": {MASK: "x/a.nii.gz"}, "y/a": {MASK: "y/a_seg.nii.gz"}}
    assert lonely == ("z/a",)


def test_a_word_for_mask_is_never_all_of_a_name(tmp_path):
    assert paired(tmp_path, ["mask", "x/seg"], "mask.nii.gz", "x/seg.nii.gz")[0] == {
        "mask": {MASK: "mask.nii.gz"},
        "x/seg": {MASK: "x/seg.nii.gz"},
    }


def test_an_exact_name_goes_before_one_with_a_word(tmp_path):
    files, lonely = paired(tmp_path, ["a"], "a.nii.gz", "a_seg.nii.gz")
    assert files["a"][MASK] == "a.nii.gz"
    assert lonely == ("a_seg",)


def test_two_masks_that_fit_equally_are_refused_by_name(tmp_path):
    with pytest.raises(DataError, match=r"a_label.nii.gz and .*a_seg.nii.gz are both masks of a"):
        paired(tmp_path, ["a"], "a_seg.nii.gz", "a_label.nii.gz")


def test_the_mark_of_a_first_channel_is_no_part_of_a_masks_name(tmp_path):
    assert paired(tmp_path, ["a_0000", "b_0000"], "a.nii.gz", "b.nii.gz")[0]["b_0000"] == {MASK: "b.nii.gz"}


def test_where_no_path_fits_names_that_are_of_one_scan_and_one_mask_do(tmp_path):
    files, _ = paired(tmp_path, ["x/a", "y/b", "z/b"], "m/a_seg.nii.gz", "m/b.nii.gz")
    assert files["x/a"][MASK] == "m/a_seg.nii.gz"
    assert {files["y/b"][MASK], files["z/b"][MASK]} == {"y/b.nii.gz", "z/b.nii.gz"}  # neither is there


def test_sub_folders_that_mirror_the_scans_are_regions(tmp_path):
    files, lonely = paired(
        tmp_path, ["p/a", "p/b"], "liver/p/a.nii.gz", "liver/p/b.nii.gz", "a tumour/p/a_seg.nii.gz", "liver/p/c.nii.gz"
    )
    assert files["p/a"] == {"mask/liver": "liver/p/a.nii.gz", "mask/a_tumour": "a tumour/p/a_seg.nii.gz"}
    assert files["p/b"]["mask/a_tumour"] == "a tumour/p/b.nii.gz"  # missing, and named so that it can be refused
    assert lonely == ("liver/p/c",)


def test_a_single_sub_folder_of_equal_names_is_a_region_too(tmp_path):
    assert paired(tmp_path, ["a"], "liver/a.nii.gz")[0] == {"a": {"mask/liver": "liver/a.nii.gz"}}


def test_a_folder_a_case_holds_its_mask_or_one_a_region(tmp_path):
    beside = paired(tmp_path / "1", ["p/ct", "q/ct"], "p/mask.nii.gz", "q/segmentation.nii.gz")[0]
    assert beside == {"p/ct": {MASK: "p/mask.nii.gz"}, "q/ct": {MASK: "q/segmentation.nii.gz"}}
    files, lonely = paired(
        tmp_path / "2", ["p", "q"], "p/liver.nii.gz", "p/lesion_mask.nii.gz", "q/liver.nii.gz", "r/x.nii.gz"
    )
    assert files["p"] == {"mask/lesion": "p/lesion_mask.nii.gz", "mask/liver": "p/liver.nii.gz"}
    assert files["q"] == {"mask/lesion": "q/lesion.nii.gz", "mask/liver": "q/liver.nii.gz"}  # the first is not there
    assert lonely == ("r/x",)
    with pytest.raises(DataError, match="has the name of a scan"):  # whose of the two is it
        paired(tmp_path / "3", ["p/a", "p/b"], "p/mask.nii.gz")


def test_more_sub_folders_than_a_cache_has_bits_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"8 regions \(r0, r1, r2, ...\), each in files of its own, and 7 can overlap"):
        paired(tmp_path, ["a"], *(f"r{i}/a.nii.gz" for i in range(8)))


def test_masks_of_nobody_and_no_folder_are_said_in_one_sentence(tmp_path):
    with pytest.raises(DataError, match=r"no mask in .* \(b, ...\) has the name of a scan \(a, ...\)"):
        paired(tmp_path, ["a"], "b.nii.gz")
    with pytest.raises(DataError, match="is not there: give --masks"):
        paired(tmp_path / "none", ["a"])


# ------------------------------------------------------------------------------------------------------- labels


def test_regions_are_read_from_the_command_line_a_file_and_a_mapping(tmp_path):
    wanted = {"WT": (1, 2, 4), "ET": (4,)}
    assert parsed("WT=1+2+4, ET=4") == wanted
    file = tmp_path / "regions.yaml"
    file.write_text("WT: [1, 2, 4]\nET: 4\n", encoding="utf-8")
    assert parsed(file) == parsed(str(file)) == parsed({"WT": [1, 2, 4], "ET": (4,)}) == wanted
    assert list(parsed("b=2,a=1")) == ["b", "a"]  # the order is the user's


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("WT=1+x", "are no labels"),
        ("WT=", "are no labels"),
        ("WT=0", "above 0, which is the background"),
        ("WT=2+2", "have to be different"),
        ("a/b=1", "is no name"),
        ("a=1,a=2", "names a region twice"),
        ("nothing.yaml", "neither NAME=LABEL"),
        ("ignored=3", "names no region"),
        ("a=1+2,ignored=2", "the label 2 is ignored and in a region"),
        (",".join(f"r{i}={i}" for i in range(1, 62)), "61 regions of 61 labels are more than"),
    ],
)
def test_regions_that_cannot_be_are_told_in_one_sentence(text, message):
    with pytest.raises(ConfigError, match=message) as caught:
        parsed(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["2024-13-45", "[" * 5000, "a: [1", "\x00"])
def test_a_file_of_regions_that_is_no_yaml_is_told_in_one_sentence(tmp_path, text):
    (tmp_path / "r.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match="neither NAME=LABEL"):
        parsed(tmp_path / "r.yaml")


def test_a_file_without_regions_is_refused(tmp_path):
    (tmp_path / "r.yaml").write_text("- 1\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="holds no regions"):
        parsed(tmp_path / "r.yaml")


def case(*names):
    return Case("a", "a", Path("a"), files={name: Path(name) for name in names})


def test_every_label_that_is_found_is_a_region_unless_regions_are_given():
    def found():
        return {7, 2}

    assert regions_for([case(MASK)], None, found) == {"2": (2,), "7": (7,)}
    assert regions_for([case(MASK)], "x=2+7", found) == {"x": (2, 7)}
    with pytest.raises(DataError, match="no mask has a label"):
        regions_for([case(MASK)], None, set)
    with pytest.raises(DataError, match="200 different labels, which is more like an image"):
        regions_for([case(MASK)], None, lambda: set(range(1, 201)))


def test_sub_folders_name_the_regions_and_nothing_else_does():
    assert regions_for([case("mask/a", "mask/b")], None, set) == {"a": (1, 3), "b": (2, 3)}
    with pytest.raises(ConfigError, match="folders or files name the regions"):
        regions_for([case("mask/a", "mask/b")], "a=1", set)


def test_one_sub_folder_of_masks_of_several_labels_is_no_region_and_says_which_folder_to_give(tmp_path):
    lone = [Case("a", "a", Path("a"), files={"mask/all": tmp_path / "m/all/site/a.nii.gz"})]
    assert regions_for(lone, None, lambda: {255}) == {"all": (1,)}
    where = tmp_path / "m/all"
    with pytest.raises(DataError, match=f"labels 1, 2: give --masks {where}, and each label is a region"):
        regions_for(lone, None, lambda: {1, 2})
    with pytest.raises(ConfigError, match=f"counts as a region; for --regions give --masks {where}"):
        regions_for(lone, "a=1", lambda: {1})


def test_labels_are_stored_as_they_are_or_numbered_where_they_exceed_eight_bits():
    assert codes({"a": (1, 4), "b": (4,)}) == {1: 1, 4: 4}
    assert label_values({"a": (1, 4)}) == {}
    big = {"a": (255,), "b": (17, 255)}
    assert codes(big) == {17: 1, 255: 2}
    assert stored_regions(big) == {"a": (2,), "b": (1, 2)}
    assert label_values(big) == {"1": 17, "2": 255}


def test_ignored_labels_are_background_and_no_region():
    regions = {"a": (2,), "ignored": (1, 300)}
    assert stored_regions(regions) == {"a": (2,)}
    assert encoded(np.array([[0, 1, 2, 300]]), regions, "m").tolist() == [[0, 0, 2, 0]]
    assert label_values(regions) == {}


@pytest.mark.parametrize("dtype", [np.int16, np.float32, np.int32])
def test_a_mask_is_encoded_and_a_label_of_no_region_refused(dtype):
    mask = np.array([[[0, 17], [300, 17]]], dtype)
    assert encoded(mask, {"a": (17,), "b": (300,)}, "m").tolist() == [[[0, 1], [2, 1]]]
    with pytest.raises(DataError, match=r"m holds the labels 300, which are in no region.*ignored=300"):
        encoded(mask, {"a": (17,)}, "m")


@pytest.mark.parametrize("value", [0.5, -1, np.nan])
def test_values_that_are_no_labels_are_refused(value):
    with pytest.raises(DataError, match="whole numbers from 0 on"):
        labels_in(np.array([[0.0, value]], np.float32), "m")


def test_masks_of_one_region_each_are_joined_so_that_each_comes_back():
    rng = np.random.default_rng(0)
    masks = {name: rng.integers(0, 2, (4, 5, 3)) * value for name, value in (("a", 1), ("b", 255), ("c", 7))}
    names = [f"mask/{name}" for name in masks]
    regions = regions_for([case(*names)], None, set)
    stored = joined({name: (mask, name) for name, mask in masks.items()}, regions)
    back = masks_of(stored, stored_regions(regions))
    for found, mask in zip(back, masks.values(), strict=True):
        np.testing.assert_array_equal(found, mask > 0)
    with pytest.raises(
        DataError, match="m holds the labels 1 and 2, and a mask beside those of other regions is 0 and one"
    ):
        joined({"a": (np.array([[1, 2]]), "m"), "b": (np.array([[0, 1]]), "n")}, {"a": (1, 3), "b": (2, 3)})
