import contextlib

import numpy as np
import pytest
from pictures import bomb, ramp, save, save_dicom
from PIL import Image

from pcrl_cli.core.errors import DataError, MachineError
from pcrl_cli.readers import image_io
from pcrl_cli.readers.image_io import dicom_facts, read_image, write_png

GREY = ramp(32, 32)


def pixels(path, size=32, aspect="stretch"):
    return read_image(path, size, aspect).pixels.astype(int)


# ------------------------------------------------------------------------------------------------ kinds of pixels


def test_a_grey_png_of_the_right_size_is_itself(tmp_path):
    np.testing.assert_array_equal(pixels(save(tmp_path / "a.png", GREY)), GREY)


def test_what_the_file_is_counts_and_not_its_ending(tmp_path):
    path = save(tmp_path / "a.jpg", GREY, format="PNG")
    np.testing.assert_array_equal(pixels(path), GREY)


@pytest.mark.parametrize("kind", ["RGB", "RGBA", "P", "LA", "1", "transparent palette"])
def test_every_mode_becomes_the_same_grey(tmp_path, kind):
    grey = Image.fromarray(np.where(GREY > 120, 255, 0).astype(np.uint8) if kind == "1" else GREY)
    if kind == "transparent palette":
        grey.convert("P").save(tmp_path / "a.png", transparency=bytes([0] * 100 + [255] * 156))
    else:
        grey.convert(kind).save(tmp_path / "a.png")
    assert np.abs(pixels(tmp_path / "a.png") - np.asarray(grey)).max() <= 1


@pytest.mark.parametrize("ending", ["png", "jpg"])
def test_a_picture_that_is_to_be_shown_turned_is_refused(tmp_path, ending):
    exif = Image.Exif()
    exif[0x0112] = 3
    path = tmp_path / f"a.{ending}"
    Image.fromarray(GREY).save(path, exif=exif)
    with pytest.raises(DataError, match="EXIF orientation 3"):
        pixels(path)
    exif[0x0112] = 1
    Image.fromarray(GREY).save(path, exif=exif)
    assert pixels(path).shape == (32, 32)


def test_transparency_hides_nothing(tmp_path):
    rgba = np.dstack([GREY, GREY, GREY, np.zeros_like(GREY)])
    np.testing.assert_array_equal(pixels(save(tmp_path / "a.png", rgba)), GREY)


def test_colour_is_weighed_as_luma(tmp_path):
    red = np.zeros((8, 8, 3), np.uint8)
    red[..., 0] = 200
    assert np.all(pixels(save(tmp_path / "a.png", red), 8) == round(0.299 * 200))


def test_16_bits_are_scaled_by_their_full_range(tmp_path):
    wide = GREY.astype(np.uint16) * 257
    np.testing.assert_array_equal(pixels(save(tmp_path / "a.png", wide)), GREY)


def test_12_bits_in_a_16_bit_file_are_scaled_by_theirs(tmp_path):
    twelve = np.rint(GREY * (4095 / 255)).astype(np.uint16)
    np.testing.assert_array_equal(pixels(save(tmp_path / "a.png", twelve)), GREY)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_jpeg_of_every_mode_is_grey_at_any_size(tmp_path, mode):
    big = Image.fromarray(ramp(400, 400)).convert(mode)
    big.save(tmp_path / "a.jpg", quality=95)
    for size in (30, 100, 400):
        assert np.abs(pixels(tmp_path / "a.jpg", size) - ramp(size, size)).max() <= 6


def test_a_progressive_jpeg_is_read(tmp_path):
    path = save(tmp_path / "a.jpg", ramp(300, 300), progressive=True, quality=95)
    assert np.abs(pixels(path, 64) - ramp(64, 64)).max() <= 4


# -------------------------------------------------------------------------------------------------------- resizing


def test_stretching_fills_the_square(tmp_path):
    assert np.abs(pixels(save(tmp_path / "a.png", ramp(90, 150)), 30) - ramp(30, 30)).max() <= 3


@pytest.mark.parametrize(("shape", "rows", "columns"), [((90, 60), 30, 20), ((60, 90), 20, 30), ((5, 400), 1, 30)])
def test_padding_keeps_the_aspect_and_centres_on_black(tmp_path, shape, rows, columns):
    square = pixels(save(tmp_path / "a.png", np.full(shape, 200, np.uint8)), 30, "pad")
    top, left = (30 - rows) // 2, (30 - columns) // 2
    assert np.all(square[top : top + rows, left : left + columns] == 200)
    assert square.sum() == 200 * rows * columns


def test_a_small_picture_is_enlarged_smoothly(tmp_path):
    large = pixels(save(tmp_path / "a.png", ramp(8, 8)), 64)
    assert np.abs(np.diff(large, axis=1)).max() < 5


@pytest.mark.parametrize("side", [1024, 700, 411])
def test_shrinking_does_not_alias(tmp_path, side):
    """Stripes of one pixel become even grey, and a shrunk picture has the mean of the large one."""
    stripes = np.zeros((side, side), np.uint8)
    stripes[:, ::2] = 200
    small = pixels(save(tmp_path / "a.png", stripes), 256)
    assert abs(small.mean() - stripes.mean()) < 1
    assert small[4:-4, 4:-4].std() < (1 if side % 256 == 0 else 26)  # a bare choice of pixels would give 100


@pytest.mark.real
def test_real_films_are_as_a_triangle_filter_alone_would_make_them(real_data):
    """The quick way down (blocks first) is another filter, but not another picture."""
    for path in sorted((real_data / "ChestXray14/images").glob("*.png"))[:20]:
        whole = Image.open(path)
        plain = np.asarray(whole.resize((60, 60), Image.Resampling.BILINEAR)).astype(int)
        assert np.abs(pixels(path, 60) - plain).mean() < 2.5
        np.testing.assert_array_equal(pixels(path, 256), np.asarray(whole))


# ----------------------------------------------------------------------------------------------------------- DICOM


TWELVE = np.rint(GREY * (4095 / 255)).astype(np.uint16)


def test_a_plate_without_a_window_is_scaled_by_its_stored_bits(tmp_path):
    np.testing.assert_array_equal(pixels(save_dicom(tmp_path / "a.dcm", TWELVE)), GREY)


def test_signed_values_with_a_slope_are_scaled_by_their_range(tmp_path):
    signed = TWELVE.astype(np.int16) - 2048
    path = save_dicom(tmp_path / "a", signed, RescaleSlope="2", RescaleIntercept="-7")
    np.testing.assert_array_equal(pixels(path), GREY)


def test_monochrome_1_is_inverted(tmp_path):
    path = save_dicom(tmp_path / "a.dcm", TWELVE, PhotometricInterpretation="MONOCHROME1")
    assert np.abs(pixels(path) - (255 - GREY)).max() <= 1


@pytest.mark.parametrize(
    ("function", "value", "expected"),
    [
        ("LINEAR", 1000, (1000 - 1499.5) / 999 + 0.5), ("LINEAR", 1750, (1750 - 1499.5) / 999 + 0.5),
        ("LINEAR", 2500, 1.0), ("LINEAR_EXACT", 1250, 0.25), ("SIGMOID", 1750, 1 / (1 + np.exp(-1))),
    ],
)  # fmt: skip
def test_the_first_window_is_applied(tmp_path, function, value, expected):
    stored = np.full((8, 8), value, np.uint16)
    tags = {"WindowCenter": [1500, 9], "WindowWidth": [1000, 9], "VOILUTFunction": function}
    assert np.all(pixels(save_dicom(tmp_path / "a.dcm", stored, **tags), 8) == round(255 * min(max(expected, 0), 1)))


def test_a_voi_table_goes_before_a_window(tmp_path):
    from pydicom.dataset import Dataset

    table = Dataset()
    table.LUTDescriptor, table.LUTData = [16, 0, 8], np.arange(255, 0, -16).astype(np.uint16).tobytes()
    stored = np.arange(16, dtype=np.uint16).reshape(4, 4)
    path = save_dicom(tmp_path / "a.dcm", stored, VOILUTSequence=[table], WindowCenter=3, WindowWidth=4)
    np.testing.assert_array_equal(pixels(path, 4).ravel(), np.arange(255, 0, -16))


def test_a_colour_capture_becomes_grey(tmp_path):
    path = save_dicom(tmp_path / "a.dcm", np.repeat(GREY[..., None], 3, axis=2), bits=8)
    np.testing.assert_array_equal(pixels(path), GREY)


def test_the_header_tells_patient_and_modality(tmp_path):
    path = save_dicom(tmp_path / "a.dcm", TWELVE, PatientID="p 7 ")
    assert dicom_facts(path) == ("p 7", "DX")
    assert dicom_facts(save(tmp_path / "a.png")) == ("", "")


def test_several_frames_and_deflated_files_are_refused(tmp_path):
    film = save_dicom(tmp_path / "f.dcm", np.zeros((8, 8), np.uint16), NumberOfFrames="2")
    with pytest.raises(DataError, match=r"f\.dcm has 2 frames, so it is no radiograph"):
        read_image(film, 8)
    path = save_dicom(tmp_path / "d.dcm", TWELVE)
    path.write_bytes(path.read_bytes().replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.1.99"[:20]))
    with pytest.raises(DataError, match=r"d\.dcm"):
        read_image(path, 8)


def test_a_plate_that_says_it_is_huge_is_not_decoded(tmp_path):
    path = save_dicom(tmp_path / "a.dcm", TWELVE, Rows=60000, Columns=60000)
    with pytest.raises(DataError, match=r"60000 x 60000 pixels.*not decoded"):
        read_image(path, 8)


# ------------------------------------------------------------------------------------------------------ broken files


def test_a_bomb_is_refused_before_it_is_decoded(tmp_path):
    for width, height in ((9000, 9000), (12000, 12000), (60000, 60000)):
        with pytest.raises(DataError, match=r"b\.png .*not decoded"):
            read_image(bomb(tmp_path / "b.png", width, height), 8)


def test_pictures_up_to_the_limit_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(image_io, "MAX_PIXELS", 32 * 32)
    assert pixels(save(tmp_path / "a.png", GREY)).shape == (32, 32)
    with pytest.raises(DataError, match="33 x 32 pixels"):
        read_image(save(tmp_path / "b.png", ramp(32, 33)), 8)


@pytest.mark.parametrize("ending", ["png", "jpg", "dcm"])
def test_a_torn_file_is_named_wherever_it_ends(tmp_path, ending):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64)).astype(np.uint8)
    path = tmp_path / f"a.{ending}"
    if ending == "dcm":
        save_dicom(path, noise.astype(np.uint16))
    else:
        save(path, noise)
    whole = path.read_bytes()
    for share in (0.02, 0.3, 0.6, 0.9):
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(DataError, match=rf"a\.{ending} ") as caught:
            read_image(path, 16)
        assert caught.value.slug == "unreadable"
        assert "\n" not in str(caught.value)


def test_flipped_bytes_are_a_refusal_or_a_picture_and_never_another_error(tmp_path):
    rng = np.random.default_rng(1)
    for maker in (lambda p: save(p, GREY, format="PNG"), lambda p: save(p, GREY, format="JPEG"),
                  lambda p: save_dicom(p, TWELVE, WindowCenter=100, WindowWidth=50)):  # fmt: skip
        path = maker(tmp_path / "a.bin.png")
        whole = path.read_bytes()
        for _ in range(60):
            broken = bytearray(whole)
            for place in rng.integers(0, len(whole), 3):
                broken[place] = rng.integers(256)
            path.write_bytes(broken)
            with contextlib.suppress(DataError):
                assert read_image(path, 16).pixels.shape == (16, 16)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "is an empty file"),
        (b"hello", "is no PNG"),
        (b"GIF89a" + bytes(200), "is no PNG"),
        (bytes(500), "is no PNG"),
    ],
)
def test_what_is_no_picture_is_said_to_be_none(tmp_path, content, what):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(DataError, match=rf"a\.png {what}"):
        read_image(tmp_path / "a.png", 8)


def test_missing_files_folders_and_empty_pictures(tmp_path):
    with pytest.raises(DataError, match=r"none\.png is not there"):
        read_image(tmp_path / "none.png", 8)
    with pytest.raises(DataError, match="is a folder"):
        read_image(tmp_path, 8)
    with pytest.raises(DataError, match=r"a\.png"):
        read_image(bomb(tmp_path / "a.png", 0, 5), 8)


def test_a_file_that_may_not_be_read_is_the_machines_fault(tmp_path, monkeypatch):
    path = save(tmp_path / "a.png")

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Image, "open", refuse)
    with pytest.raises(MachineError, match=r"cannot read .*a\.png: permission denied"):
        read_image(path, 8)


# ------------------------------------------------------------------------------------------------------------- ids


def test_the_id_is_of_the_pixels_and_not_of_name_or_size(tmp_path):
    a, b = save(tmp_path / "a.png", ramp(70, 90)), save(tmp_path / "b.png", ramp(70, 90), optimize=True)
    assert a.read_bytes() != b.read_bytes()
    assert read_image(a, 16).scan_id == read_image(b, 32, "pad").scan_id
    other = ramp(70, 90)
    other[40, 50] += 1
    assert read_image(save(tmp_path / "c.png", other), 16).scan_id != read_image(a, 16).scan_id


def test_written_pictures_read_back(tmp_path):
    write_png(GREY, tmp_path / "a.png")
    np.testing.assert_array_equal(pixels(tmp_path / "a.png"), GREY)
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
