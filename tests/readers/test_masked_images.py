"""Pictures with masks as PNG."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pcrl_cli.core.errors import DataError
from pcrl_cli.readers import folder, image_folder, masked_images
from pcrl_cli.readers.image_io import read_image, read_labels, read_whole, write_labels, write_png

REGIONS = {"a": (1, 2), "b": (2,)}


def picture(path: Path, shape=(9, 12), seed=0) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)
    write_png(pixels, path) if path.suffix == ".png" else Image.fromarray(pixels).save(path)
    return pixels


def mask(path: Path, shape=(9, 12)) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    found = np.zeros(shape, np.uint8)
    found[2:6, 3:9], found[3, 5] = 1, 2
    write_png(found, path)
    return found


def test_pictures_and_masks_are_paired_and_read_in_all_their_pixels(tmp_path):
    pixels = picture(tmp_path / "s/p/a.png")
    picture(tmp_path / "s/b.jpg")
    wanted = mask(tmp_path / "m/p/a_mask.png")
    mask(tmp_path / "m/b.png")
    assert masked_images.__name__ == image_folder.WITH_MASKS
    assert folder.module_for(tmp_path / "s") == image_folder.__name__
    cases = masked_images.cases(tmp_path / "s", tmp_path / "m")
    assert [case.id for case in cases] == ["b", "p-a"]
    found, labels = masked_images.read(cases[1], REGIONS)
    np.testing.assert_array_equal(found.pixels, pixels)
    np.testing.assert_array_equal(labels, wanted)
    assert found.scan_id == read_image(cases[1].path, 16).scan_id  # as the picture has in a cache of images
    assert masked_images.read(cases[0], REGIONS)[0].pixels.shape == (9, 12)
    assert [path.name for path in masked_images.files(cases[1])] == ["a.png", "a_mask.png"]


def test_masks_beside_the_pictures_and_below_them_are_no_pictures(tmp_path):
    picture(tmp_path / "one/a.png")
    mask(tmp_path / "one/a_seg.png")
    assert [c.id for c in masked_images.cases(tmp_path / "one", tmp_path / "one")] == ["a"]
    picture(tmp_path / "two/a.png")
    mask(tmp_path / "two/m/a.png")
    assert [c.id for c in masked_images.cases(tmp_path / "two", tmp_path / "two/m")] == ["a"]


def test_regions_in_sub_folders_overlap_in_one_mask(tmp_path):
    picture(tmp_path / "s/a.png")
    for name, rows in (("lung", slice(0, 6)), ("heart", slice(4, 9))):
        (tmp_path / "m" / name).mkdir(parents=True)
        one = np.zeros((9, 12), np.uint8)
        one[rows] = 255
        write_png(one, tmp_path / "m" / name / "a.png")
    (case,) = masked_images.cases(tmp_path / "s", tmp_path / "m")
    labels = masked_images.read(case, {"heart": (1, 3), "lung": (2, 3)})[1]
    assert labels[:, 0].tolist() == [2, 2, 2, 2, 3, 3, 1, 1, 1]
    picture(tmp_path / "m/lung/a.png", (9, 9))
    write_png(np.zeros((9, 9), np.uint8), tmp_path / "m/lung/a.png")
    with pytest.raises(DataError, match="are of different sizes"):
        masked_images.read(case, {"heart": (1, 3), "lung": (2, 3)})


@pytest.mark.parametrize("mode", ["1", "L", "P", "I;16", "RGB", "LA"])
def test_every_way_of_storing_whole_numbers_in_a_png_is_read(tmp_path, mode):
    values = np.array([[0, 1, 0], [1, 1, 0]], np.uint8)
    if mode == "I;16":
        Image.fromarray(values.astype(np.uint16) * 300).save(tmp_path / "m.png")
    elif mode == "P":
        image = Image.fromarray(values, "L").convert("P")
        image.putdata(values.ravel().tolist())
        image.save(tmp_path / "m.png")
    elif mode == "1":
        Image.fromarray(values * 255).convert("1").save(tmp_path / "m.png")
    else:
        Image.fromarray(values).convert(mode).save(tmp_path / "m.png")
    np.testing.assert_array_equal(read_labels(tmp_path / "m.png"), values.astype(int) * (300 if mode == "I;16" else 1))


def test_masks_with_colours_or_with_loss_are_refused(tmp_path):
    Image.fromarray(np.array([[[255, 0, 0], [0, 0, 0]]], np.uint8)).save(tmp_path / "m.png")
    with pytest.raises(DataError, match=r"m.png holds colours"):
        read_labels(tmp_path / "m.png")
    picture(tmp_path / "m.jpg")
    with pytest.raises(DataError, match=r"m.jpg is no PNG, which masks have to be"):
        read_labels(tmp_path / "m.jpg")


@pytest.mark.parametrize("most", [1, 255, 256, 65535])
def test_labels_come_back_as_they_were_written(tmp_path, most):
    values = np.array([[0, most], [1, 0]], np.uint32)
    write_labels(values, tmp_path / "m.png")
    np.testing.assert_array_equal(read_labels(tmp_path / "m.png"), values)


def test_a_jpeg_is_read_whole_however_large(tmp_path):
    picture(tmp_path / "a.jpg", (700, 500))
    assert read_whole(tmp_path / "a.jpg").pixels.shape == (700, 500)


def test_a_picture_without_a_mask_is_refused_by_name_and_said(tmp_path):
    picture(tmp_path / "s/a.png")
    picture(tmp_path / "s/b.png")
    mask(tmp_path / "m/a.png")
    mask(tmp_path / "m/z.png")
    cases = masked_images.cases(tmp_path / "s", tmp_path / "m")
    with pytest.raises(DataError, match=r"b.png has no mask \(.*m/b.png\)"):
        masked_images.read(cases[1], REGIONS)
    said = masked_images.remarks(tmp_path / "s", cases, tmp_path / "m")
    assert [text[:8] for text in said] == ["1 pictur", "1 masks "]


def test_patients_are_those_of_a_cache_of_the_same_pictures(tmp_path):
    for name in ("a", "b"):
        picture(tmp_path / f"s/{name}.png")
        mask(tmp_path / f"m/{name}.png")
    plain = [ref.patient for case in image_folder.cases(tmp_path / "s") for ref in case.images]
    assert [case.patient for case in masked_images.cases(tmp_path / "s", tmp_path / "m")] == plain
    (tmp_path / "p.csv").write_text("path,patient\na.png,x\nb.png,x\n", encoding="utf-8")
    cases = masked_images.cases(tmp_path / "s", tmp_path / "m", patients=tmp_path / "p.csv")
    assert {case.patient for case in cases} == {"x"}
    assert "are of one patient" in masked_images.remarks(tmp_path / "s", cases, tmp_path / "m")[-1]


def test_pictures_that_differ_in_their_endings_only_are_refused(tmp_path):
    picture(tmp_path / "s/a.png")
    picture(tmp_path / "s/a.jpg")
    mask(tmp_path / "m/a.png")
    with pytest.raises(DataError, match="differ in their endings only"):
        masked_images.cases(tmp_path / "s", tmp_path / "m")
