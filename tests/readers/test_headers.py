"""What a header may not promise: each of these is found before a voxel is read."""

import gzip
import re
import struct
import zlib

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from pcrl_cli.core.errors import DataError
from pcrl_cli.data.volume import Volume
from pcrl_cli.readers.headers import check_file
from pcrl_cli.readers.volume_io import write_mhd, write_nifti

SHAPE = (20, 30, 40)


@pytest.fixture
def scan() -> Volume:
    array = np.random.default_rng(0).integers(-1000, 1000, SHAPE).astype(np.int16)
    return Volume(array, np.ones(3), np.zeros(3), np.eye(3))


def edit(path, **fields: str) -> None:
    """Replaces (or, given "", removes) lines of a MetaImage header."""
    text = path.read_text("utf-8")
    for key, value in fields.items():
        line = f"{key} = {value}\n" if value else ""
        text = re.sub(rf"^{key} = .*\n", line, text, flags=re.M) if f"{key} =" in text else line + text
    path.write_text(text)


@pytest.mark.parametrize("name", ["a.mha", "a.nii", "a.nii.gz", "a.nrrd", "a.nhdr"])
@pytest.mark.parametrize("compressed", [False, True])
def test_a_good_file_passes(tmp_path, scan, name, compressed):
    sitk.WriteImage(sitk.GetImageFromArray(scan.array.T.copy()), str(tmp_path / name), compressed)
    check_file(tmp_path / name)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"DimSize": "20 30 41"}, "declares 49200 bytes of voxels and a.raw holds 48000"),
        ({"DimSize": "20 30 39"}, "a.raw holds more"),
        ({"DimSize": "2000 3000 4000"}, "2\\^31"),
        ({"DimSize": "20 30 5000"}, "4096 an axis"),
        ({"DimSize": "0 30 40"}, "none"),
        ({"DimSize": "-20 -30 40"}, "none"),
        ({"DimSize": "600 40 1"}, "2 or more along each axis"),
        ({"DimSize": "20 30 20 2", "NDims": "4"}, "4D image"),
        ({"DimSize": "20 1200", "NDims": "2"}, "2D image"),
        ({"DimSize": "20 30"}, r"no readable image header \([^()]*\): copy"),
        ({"DimSize": "20 30 forty"}, "no readable image header"),
        ({"DimSize": ""}, "no readable image header"),
        ({"ElementType": "MET_STRING"}, "no readable image header"),
        ({"ElementType": "MET_FLOAT"}, "declares 96000 bytes"),
        ({"ElementNumberOfChannels": "3"}, "several numbers a voxel"),
        ({"ElementDataFile": "other.raw"}, "other.raw, which is not there"),
        ({"ElementDataFile": "../a.raw"}, "outside its own folder"),
        ({"ElementDataFile": "/etc/hostname"}, "outside its own folder"),
        ({"ElementDataFile": "LIST"}, "several files"),
        ({"ElementDataFile": "a%03d.raw 1 40 1"}, "several files"),
        ({"ElementDataFile": ""}, "no readable image header"),
        ({"HeaderSize": "10"}, "a.raw holds 47990"),
    ],
)
def test_a_lie_in_an_mhd_header_is_found(tmp_path, scan, fields, message):
    write_mhd(scan, tmp_path / "a.mhd")
    edit(tmp_path / "a.mhd", **fields)
    with pytest.raises(DataError, match=message) as caught:
        check_file(tmp_path / "a.mhd")
    assert str(tmp_path / "a.mhd") in str(caught.value)


def test_a_header_that_skips_bytes_of_its_data_file_is_read(tmp_path, scan):
    write_mhd(scan, tmp_path / "a.mhd")
    (tmp_path / "a.raw").write_bytes(bytes(7) + (tmp_path / "a.raw").read_bytes())
    for skip in ("7", "-1"):
        edit(tmp_path / "a.mhd", HeaderSize=skip)
        check_file(tmp_path / "a.mhd")


def test_a_truncated_raw_is_found(tmp_path, scan):
    write_mhd(scan, tmp_path / "a.mhd")
    (tmp_path / "a.raw").write_bytes((tmp_path / "a.raw").read_bytes()[:-2])
    with pytest.raises(DataError, match=r"declares 48000 bytes of voxels and a\.raw holds 47998"):
        check_file(tmp_path / "a.mhd")


@pytest.mark.parametrize("size_stated", [True, False])
def test_a_truncated_zraw_is_found(tmp_path, scan, size_stated):
    write_mhd(scan, tmp_path / "a.mhd", compressed=True)
    (tmp_path / "a.zraw").write_bytes((tmp_path / "a.zraw").read_bytes()[:-1000])
    if not size_stated:
        edit(tmp_path / "a.mhd", CompressedDataSize="")
    with pytest.raises(DataError, match="compressed bytes and" if size_stated else "when decompressed"):
        check_file(tmp_path / "a.mhd")


def test_a_flipped_byte_in_a_zraw_is_found_by_its_checksum(tmp_path, scan):
    write_mhd(scan, tmp_path / "a.mhd", compressed=True)
    data = bytearray((tmp_path / "a.zraw").read_bytes())
    data[len(data) // 2] ^= 0xFF
    (tmp_path / "a.zraw").write_bytes(data)
    with pytest.raises(DataError, match=r"torn stream|when decompressed|bytes of voxels"):
        check_file(tmp_path / "a.mhd")


@pytest.mark.parametrize("slices", [39, 41])
def test_a_stream_of_another_length_than_declared_is_found(tmp_path, scan, slices):
    write_mhd(scan, tmp_path / "a.mhd", compressed=True)
    edit(tmp_path / "a.mhd", DimSize=f"20 30 {slices}")
    with pytest.raises(DataError, match=r"holds 48000|holds more"):
        check_file(tmp_path / "a.mhd")


def test_more_than_deflate_can_pack_is_refused_without_decompressing(tmp_path, scan, monkeypatch):
    write_mhd(scan, tmp_path / "a.mhd", compressed=True)
    edit(tmp_path / "a.mhd", DimSize="1000 1000 1000")
    monkeypatch.setattr(zlib, "decompressobj", lambda *_: pytest.fail("decompressed"))
    with pytest.raises(DataError, match=r"more than a\.zraw can hold"):
        check_file(tmp_path / "a.mhd")


def test_a_bomb_is_not_run_through_to_its_end(tmp_path, scan):
    write_mhd(scan, tmp_path / "a.mhd", compressed=True)
    bomb = zlib.compress(bytes(200_000_000), 1)
    (tmp_path / "a.zraw").write_bytes(bomb)
    edit(tmp_path / "a.mhd", CompressedDataSize=str(len(bomb)))
    with pytest.raises(DataError, match="holds more"):
        check_file(tmp_path / "a.mhd")


def test_a_truncated_mha_is_found(tmp_path, scan):
    sitk.WriteImage(sitk.GetImageFromArray(scan.array.T.copy()), str(tmp_path / "a.mha"))
    (tmp_path / "a.mha").write_bytes((tmp_path / "a.mha").read_bytes()[:-5])
    with pytest.raises(DataError, match="holds 47995"):
        check_file(tmp_path / "a.mha")


@pytest.mark.parametrize("cut", [5, 3000])
def test_a_truncated_nii_gz_is_found(tmp_path, scan, cut):
    """The imaging library itself reads such a file, with zeros for what is missing."""
    write_nifti(scan, tmp_path / "a.nii.gz")
    (tmp_path / "a.nii.gz").write_bytes((tmp_path / "a.nii.gz").read_bytes()[:-cut])
    with pytest.raises(DataError, match="when decompressed"):
        check_file(tmp_path / "a.nii.gz")


def test_a_truncated_nii_is_found(tmp_path, scan):
    write_nifti(scan, tmp_path / "a.nii")
    (tmp_path / "a.nii").write_bytes((tmp_path / "a.nii").read_bytes()[:-1])
    with pytest.raises(DataError, match="holds 48351"):
        check_file(tmp_path / "a.nii")


def test_a_gzip_of_two_members_is_one_stream(tmp_path, scan):
    write_nifti(scan, tmp_path / "a.nii")
    data = (tmp_path / "a.nii").read_bytes()
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(data[:9000]) + gzip.compress(data[9000:]))
    check_file(tmp_path / "a.nii.gz")


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("order", ["<", ">"])
def test_both_niftis_of_both_byte_orders_are_understood(tmp_path, kind, order):
    header = kind.header_class(endianness=order)
    header.set_data_dtype(np.dtype(np.float32).newbyteorder(order))
    nibabel.save(kind(np.zeros((3, 4, 5), np.float32), np.eye(4), header), tmp_path / "a.nii")
    check_file(tmp_path / "a.nii")


@pytest.mark.parametrize("dims", [(3, 4, 5, 2), (3, 4), (3, 4, 1), (5, 5000, 3)])
def test_a_nifti_that_is_no_3d_scan_is_refused(tmp_path, dims):
    nibabel.save(nibabel.Nifti1Image(np.zeros(dims, np.uint8), np.eye(4)), tmp_path / "a.nii.gz")
    with pytest.raises(DataError, match=r"D image|2 or more|4096 an axis"):
        check_file(tmp_path / "a.nii.gz")


def test_a_fourth_axis_of_one_is_no_fourth_axis(tmp_path):
    nibabel.save(nibabel.Nifti1Image(np.zeros((3, 4, 5, 1), np.uint8), np.eye(4)), tmp_path / "a.nii.gz")
    check_file(tmp_path / "a.nii.gz")


@pytest.mark.parametrize("content", [b"", b"short", bytes(400), struct.pack("<i", 348) + bytes(396)])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.mhd", "a.mha", "a.nrrd"])
def test_garbage_is_refused_in_one_sentence(tmp_path, name, content):
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    with pytest.raises(DataError, match="no readable image header"):
        check_file(tmp_path / name)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"sizes: 20 30 40", b"sizes: 20 30 41", "declares 49200 bytes"),
        (b"sizes: 20 30 40", b"sizes: 20 30", "no readable"),
        (b"type: short", b"type: block", "no readable"),
        (b"encoding: raw", b"encoding: hex", "convert it"),
        (b"encoding: raw", b"encoding: raw\ndata file: ../b.raw", "outside its own folder"),
        (b"encoding: raw", b"encoding: raw\nline skip: 2", "skips lines"),
    ],
)
def test_a_lie_in_an_nrrd_header_is_found(tmp_path, scan, old, new, message):
    sitk.WriteImage(sitk.GetImageFromArray(scan.array.T.copy()), str(tmp_path / "a.nrrd"))
    data = (tmp_path / "a.nrrd").read_bytes()
    assert old in data
    (tmp_path / "a.nrrd").write_bytes(data.replace(old, new, 1))
    with pytest.raises(DataError, match=message):
        check_file(tmp_path / "a.nrrd")


def test_a_flipped_byte_in_a_gzipped_nrrd_is_found(tmp_path, scan):
    sitk.WriteImage(sitk.GetImageFromArray(scan.array.T.copy()), str(tmp_path / "a.nrrd"), True)
    data = bytearray((tmp_path / "a.nrrd").read_bytes())
    data[-3000] ^= 0xFF
    (tmp_path / "a.nrrd").write_bytes(data)
    with pytest.raises(DataError, match=r"torn stream|when decompressed|bytes of voxels"):
        check_file(tmp_path / "a.nrrd")


def test_a_name_of_too_many_bytes_but_few_letters_is_refused(tmp_path):
    lines = ["NDims = 3", "DimSize = 5 4 3", "ElementType = MET_SHORT", f"ElementDataFile = {chr(0xEB) * 200}"]
    (tmp_path / "a.mhd").write_bytes("\n".join(lines).encode("latin-1"))
    with pytest.raises(DataError, match="names no file"):
        check_file(tmp_path / "a.mhd")
