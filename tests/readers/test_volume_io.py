import errno
import os
from dataclasses import replace
from itertools import permutations, product
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from pcrl_cli.core.errors import DataError, MachineError
from pcrl_cli.data.volume import Volume, index_to_world
from pcrl_cli.readers.volume_io import (
    dicom_series,
    is_dicom,
    read_grid,
    read_volume,
    volume_files,
    write_mask,
    write_mhd,
    write_nifti,
)

C, S = np.cos(0.3), np.sin(0.3)
OBLIQUE = np.array([[0.0, -C, S], [0.0, S, C], [-1.0, 0.0, 0.0]])


def scan(shape=(5, 6, 7), dtype=np.int16) -> Volume:
    array = np.random.default_rng(0).integers(-1000, 1000, shape).astype(dtype)
    return Volume(array, np.array([0.7, 0.8, 2.5]), np.array([-20.5, 5.0, -300.25]), OBLIQUE)


def same(a: Volume, b: Volume) -> None:
    np.testing.assert_array_equal(a.array, b.array)
    for name in ("spacing", "origin", "direction"):
        np.testing.assert_allclose(getattr(a, name), getattr(b, name), atol=1e-5)


@pytest.mark.parametrize("compressed", [False, True])
def test_mhd_comes_back_as_it_was_written(tmp_path, compressed):
    write_mhd(scan(), tmp_path / "a.mhd", compressed)
    read = read_volume(tmp_path / "a.mhd")
    same(read, scan())
    assert read.array.dtype == np.int16
    assert read.source == str(tmp_path / "a.mhd")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mhd", "a.zraw" if compressed else "a.raw"]


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_nifti_comes_back_as_it_was_written_and_nibabel_sees_the_same_places(tmp_path, name):
    write_nifti(scan(), tmp_path / name)
    same(read_volume(tmp_path / name), scan())
    affine = nibabel.load(tmp_path / name).affine
    lps = (affine @ [1, 2, 3, 1])[:3] * [-1, -1, 1]  # NIfTI's world is RAS
    np.testing.assert_allclose(lps, index_to_world(scan(), np.array([1, 2, 3])), atol=1e-4)


@pytest.mark.parametrize("name", ["a.mha", "a.nrrd", "a.nhdr", "a.mhd"])
@pytest.mark.parametrize("compressed", [False, True])
def test_what_simpleitk_writes_is_read(tmp_path, name, compressed):
    image = sitk.GetImageFromArray(np.ascontiguousarray(scan().array.T))
    image.SetSpacing([0.7, 0.8, 2.5])
    image.SetOrigin([-20.5, 5.0, -300.25])
    image.SetDirection(OBLIQUE.ravel().tolist())
    sitk.WriteImage(image, str(tmp_path / name), compressed)
    same(read_volume(tmp_path / name), scan())


def test_whole_floats_become_int16_and_others_float32(tmp_path):
    whole, half = scan(dtype=np.float32), scan(dtype=np.float32)
    half.array[0, 0, 0] += 0.5
    large = scan(dtype=np.float32)
    large.array[0, 0, 0] = 40_000
    for volume, dtype in ((whole, np.int16), (half, np.float32), (large, np.float32)):
        write_mhd(volume, tmp_path / "a.mhd")
        assert read_volume(tmp_path / "a.mhd").array.dtype == dtype
        np.testing.assert_array_equal(read_volume(tmp_path / "a.mhd").array, volume.array)


def test_scaled_nifti_is_read_in_its_scaled_values(tmp_path):
    image = nibabel.Nifti1Image(np.arange(60, dtype=np.int16).reshape(3, 4, 5), np.eye(4))
    image.header.set_slope_inter(2, -1024)
    nibabel.save(image, tmp_path / "a.nii.gz")
    stored = nibabel.load(tmp_path / "a.nii.gz").get_fdata()
    read = read_volume(tmp_path / "a.nii.gz")
    np.testing.assert_allclose(read.array, stored)


def test_nan_voxels_are_refused(tmp_path):
    volume = scan(dtype=np.float32)
    volume.array[1, 1, 1] = np.nan
    write_mhd(volume, tmp_path / "a.mhd")
    with pytest.raises(DataError, match="NaN"):
        read_volume(tmp_path / "a.mhd")


def test_sheared_axes_are_refused_in_one_sentence(tmp_path):
    affine = np.eye(4)
    affine[0, 1] = 0.2
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 4), np.int16), affine), tmp_path / "a.nii")
    with pytest.raises(DataError, match="orthonormal") as caught:
        read_volume(tmp_path / "a.nii")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["a.mhd", "a.raw"])
@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO, errno.ESTALE])
def test_a_file_that_the_machine_does_not_give_is_not_called_torn(tmp_path, monkeypatch, name, code):
    write_mhd(scan(), tmp_path / "a.mhd")
    real = Path.open

    def refusing(path, *arguments, **options):
        if path.name == name:
            raise OSError(code, "not now", str(path))
        return real(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", refusing)
    with pytest.raises(MachineError, match=rf"cannot read .*{name}: not now; mend"):
        read_volume(tmp_path / "a.mhd")


def test_the_files_of_a_scan_are_those_that_are_read(tmp_path):
    write_mhd(scan(), tmp_path / "a.mhd")
    write_nifti(scan(), tmp_path / "a.b.nii.gz")
    names = {name: [file.name for file in volume_files(tmp_path / name)] for name in ("a.mhd", "a.b.nii.gz", "no.mhd")}
    assert names == {"a.mhd": ["a.mhd", "a.raw"], "a.b.nii.gz": ["a.b.nii.gz"], "no.mhd": []}
    (tmp_path / "a.mhd").write_text("torn")
    assert volume_files(tmp_path / "a.mhd") == [tmp_path / "a.mhd"]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"none\.mhd is not there"):
        read_volume(tmp_path / "none.mhd")


def write_series(
    folder: Path, z: list[float], uid: str = "1.2.3", stem: str = "s", size: tuple[int, int] = (4, 5), slope: float = 1
) -> None:
    """One DICOM file a slice; the slice at position z holds the stored value int(z)."""
    folder.mkdir(exist_ok=True)
    for i, position in enumerate(z):
        image = sitk.GetImageFromArray(np.full((1, size[1], size[0]), int(position), np.int16))
        image.SetSpacing([0.5, 0.75, 1.0])
        tags = {
            "0008|0060": "CT", "0020|000d": "1.2.99", "0020|000e": uid, "0008|0018": f"{uid}.{i + 1}",
            "0008|0016": "1.2.840.10008.5.1.4.1.1.2", "0020|0013": str(i + 1), "0020|0032": f"-10\\-20\\{position}",
            "0020|0037": "1\\0\\0\\0\\1\\0", "0028|1052": "-1024", "0028|1053": str(slope),
        }  # fmt: skip
        for key, value in tags.items():
            image.SetMetaData(key, value)
        writer = sitk.ImageFileWriter()
        writer.KeepOriginalImageUIDOn()
        writer.SetImageIO("GDCMImageIO")
        writer.SetFileName(str(folder / f"{stem}{len(z) - i:03d}.dcm"))
        writer.Execute(image)


def hu(folder: Path) -> np.ndarray:
    """What one file of the series says by itself."""
    return np.array([float(sitk.GetArrayFromImage(sitk.ReadImage(str(f))).mean()) for f in sorted(folder.iterdir())])


@pytest.mark.parametrize("by", ["folder", "file"])
def test_a_dicom_series_is_ordered_by_position_whatever_its_files_are_called(tmp_path, by):
    write_series(tmp_path / "d", [0, 2.5, 5, 7.5])  # the files' names run the other way
    read = read_volume(tmp_path / "d" if by == "folder" else tmp_path / "d/s002.dcm")
    assert read.array.shape == (4, 5, 4)
    assert read.array.dtype == np.int16
    np.testing.assert_array_equal(read.spacing, [0.5, 0.75, 2.5])
    np.testing.assert_array_equal(read.origin, [-10, -20, 0])
    np.testing.assert_array_equal(read.direction, np.eye(3))
    np.testing.assert_array_equal(read.array[0, 0], hu(tmp_path / "d")[::-1])
    assert (np.diff(read.array[0, 0]) > 0).all()


@pytest.mark.parametrize(
    ("z", "message"),
    [
        ([0, 2, 4, 8, 10], r"lacks 1 slice between s003\.dcm and s002\.dcm"),
        ([0, 2, 4, 10, 12, 14], r"lacks 2 slices between"),
        ([0, 2, 4, 4, 6], "two slices at one position"),
        ([0, 2, 4, 6.05, 8], "uneven slices"),
        ([0], "one slice"),
    ],
)
def test_a_series_with_a_wrong_slice_is_refused_and_the_slice_is_named(tmp_path, z, message):
    write_series(tmp_path / "d", z)
    with pytest.raises(DataError, match=message):
        read_volume(tmp_path / "d")


def test_positions_that_are_off_by_less_than_a_hundredth_are_even(tmp_path):
    write_series(tmp_path / "d", [0, 2, 4.01, 6, 8])
    assert read_volume(tmp_path / "d").array.shape[2] == 5


@pytest.mark.parametrize("keep", [0, 140, 300, -300])
@pytest.mark.parametrize("torn", ["s001.dcm", "s003.dcm"])
def test_a_torn_slice_is_refused_and_not_left_out_of_the_series(tmp_path, torn, keep):
    write_series(tmp_path / "d", [0, 2, 4, 6, 8], size=(16, 16))
    (tmp_path / "d" / torn).write_bytes((tmp_path / "d" / torn).read_bytes()[:keep])
    with pytest.raises(DataError, match=torn):
        read_volume(tmp_path / "d")


def test_mixed_sizes_in_one_series_are_refused(tmp_path):
    write_series(tmp_path / "d", [0, 2, 4])
    write_series(tmp_path / "d", [6, 8], stem="t", size=(6, 5))
    with pytest.raises(DataError, match="different sizes"):
        read_volume(tmp_path / "d")


def test_two_series_in_a_folder_are_told_apart_and_not_mixed(tmp_path):
    write_series(tmp_path / "d", [0, 2, 4], uid="1.2.3")
    write_series(tmp_path / "d", [0, 3, 6, 9], uid="1.2.4", stem="t")
    series = dicom_series(tmp_path / "d")
    assert {uid: len(files) for uid, files in series.items()} == {"1.2.3": 3, "1.2.4": 4}
    assert read_volume(series["1.2.4"][0]).array.shape == (4, 5, 4)
    assert read_volume(series["1.2.3"][0]).array.shape == (4, 5, 3)
    with pytest.raises(DataError, match=r"2 DICOM series \(1\.2\.3, 1\.2\.4\)"):
        read_volume(tmp_path / "d")


def test_a_folder_without_dicom_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(DataError, match="no DICOM series"):
        read_volume(tmp_path)


def test_dicom_is_known_by_its_mark(tmp_path):
    write_series(tmp_path / "d", [0])
    (tmp_path / "x.dcm").write_bytes(b"no")
    assert is_dicom(tmp_path / "d/s001.dcm")
    assert not is_dicom(tmp_path / "x.dcm")


@pytest.mark.real
def test_all_real_scans_can_be_read(real_data):
    paths = [*real_data.glob("CT/*.nii.gz"), *real_data.glob("BraTS/*/*/*flair.nii.gz")]
    assert len(paths) >= 12
    for path in paths:
        volume, reference = read_volume(path), nibabel.load(path)
        assert volume.array.shape == reference.shape[:3]
        corner = np.array(volume.array.shape) - 1
        lps = (reference.affine @ [*corner, 1])[:3] * [-1, -1, 1]
        np.testing.assert_allclose(index_to_world(volume, corner), lps, atol=1e-2)
        np.testing.assert_allclose(volume.array[::9, ::9, ::9], reference.get_fdata()[::9, ::9, ::9], atol=1e-2)


AXES = [
    np.eye(3)[list(order)] * np.array(sign)
    for order in permutations(range(3))
    for sign in product((1.0, -1.0), repeat=3)
]


@pytest.mark.parametrize("direction", [*AXES, OBLIQUE])
@pytest.mark.parametrize("name", ["m.nii.gz"])
def test_a_mask_has_exactly_the_geometry_of_the_scan_it_was_made_for(tmp_path, direction, name):
    """To the bit: the same header fields as the scan's own file has."""
    volume = Volume(scan().array, np.array([0.7031, 0.8, 2.5]), np.array([-20.53, 5.0, -300.25]), direction)
    write_nifti(volume, tmp_path / "scan.nii.gz")
    read = read_volume(tmp_path / "scan.nii.gz")
    mask = (read.array > 0).astype(np.uint8)
    write_mask(mask, read, tmp_path / name)
    one, two = nibabel.load(tmp_path / "scan.nii.gz"), nibabel.load(tmp_path / name)
    assert two.get_data_dtype() == np.uint8
    np.testing.assert_allclose(two.affine, one.affine, rtol=1e-6, atol=1e-5)
    np.testing.assert_allclose(two.header.get_zooms(), one.header.get_zooms(), rtol=1e-6)
    np.testing.assert_array_equal(np.asarray(two.dataobj), mask)
    same(read_volume(tmp_path / name), replace(read, array=mask.astype(np.int16)))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.nii.gz", "scan.nii.gz"]


def test_masks_have_equal_bytes_again(tmp_path):
    mask = (scan().array > 0).astype(np.uint8)
    for name in ("a", "b"):
        write_mask(mask, scan(), tmp_path / f"{name}.nii.gz")
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


def test_a_mask_that_cannot_be_written_is_the_machines_fault_and_leaves_nothing(tmp_path):
    tmp_path.chmod(0o500)
    try:
        if os.access(tmp_path, os.W_OK):
            pytest.skip("this user may write everywhere")
        with pytest.raises(MachineError, match=r"cannot write .*m\.nii"):
            write_mask((scan().array > 0).astype(np.uint8), scan(), tmp_path / "m.nii")
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.parametrize("name", ["m.nii", "m.nii.gz"])
def test_a_mask_that_the_library_leaves_empty_is_noticed(tmp_path, monkeypatch, name):
    monkeypatch.setattr(sitk, "WriteImage", lambda image, path, useCompression: Path(path).touch())  # a full disk's way
    with pytest.raises(MachineError, match="could not be written whole"):
        write_mask(np.zeros(scan().array.shape, np.uint8), scan(), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.real
def test_a_mask_of_a_real_scan_has_its_files_geometry(real_data, tmp_path):
    paths = [*real_data.glob("LiTS/volume-*.nii.gz"), *real_data.glob("BraTS/*/*/*flair.nii.gz")]
    assert len(paths) >= 10
    for path in paths:
        read = read_volume(path)
        write_mask((read.array > 40).astype(np.uint8), read, tmp_path / "m.nii.gz")
        one, two = nibabel.load(path), nibabel.load(tmp_path / "m.nii.gz")
        np.testing.assert_allclose(two.affine, one.affine, rtol=1e-6, atol=1e-5)
        np.testing.assert_array_equal(np.asarray(two.dataobj) > 0, np.asarray(one.dataobj) > 40)


def test_a_header_alone_tells_the_grid(tmp_path):
    write_nifti(scan(), tmp_path / "a.nii.gz")
    read, grid = read_volume(tmp_path / "a.nii.gz"), read_grid(tmp_path / "a.nii.gz")
    assert grid.shape == read.array.shape
    for name in ("spacing", "origin", "direction"):
        np.testing.assert_array_equal(getattr(grid, name), getattr(read, name))
    (tmp_path / "b.nii").write_bytes(b"no image")
    for name in ("b.nii", "c.nii"):
        with pytest.raises(DataError, match=name):
            read_grid(tmp_path / name)
