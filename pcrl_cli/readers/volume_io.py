"""Image files to Volumes and back: MetaImage, NIfTI, NRRD and DICOM series. The only place that knows SimpleITK."""

import errno
import gzip
import os
import re
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

import numpy as np
from jaxtyping import Float32, Float64, Int16, Num, UInt

from pcrl_cli.core.errors import DataError, blame_reading
from pcrl_cli.core.files import blame_machine, sync
from pcrl_cli.core.plan import Grid
from pcrl_cli.data.volume import Volume, check
from pcrl_cli.readers.headers import check_file, data_file, suffix

if TYPE_CHECKING:
    import SimpleITK

SUFFIXES = (".mhd", ".mha", ".nii", ".nii.gz", ".nrrd", ".nhdr")
UNEVEN = 0.01  # share of the slice spacing by which a slice may lie off its place
_SERIES_TAG, _PATIENT_TAG, _SPACING_TAG = "0020|000e", "0010|0020", "0028|0030"


def read_volume(path: Path) -> Volume:
    """Reads a scan: an image file, a folder with one DICOM series, or one file of a series for all of that series.

    CT comes in HU (slope and intercept are applied). int16 where all values are such integers, else float32.

    Raises:
        DataError: the file is not there, is torn or lies about its size, or is no usable 3D scan; a DICOM series has
            missing, doubled, uneven or mixed slices.
        MachineError: one of its files may not be read, or the disk or mount fails.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path} is not there: check the path.")
    _try_to_read(volume_files(path))
    if path.is_dir():
        volume = _read_series(path, _only_series(path, _whole_series(path)))
    elif suffix(path) in SUFFIXES:
        check_file(path)
        volume = _volume(_read_image(path), str(path))
    else:
        uid = _series_uid(path)
        volume = _read_series(path.parent, _whole_series(path.parent).get(uid, [path]), uid)
    _check(volume)
    return volume


def read_grid(path: Path) -> Grid:
    """The grid of an image file, by its header alone.

    Raises:
        DataError: it is not there, is no such image, or not one of three axes.
    """
    if not path.is_file():
        raise DataError(f"{path} is not there: check the path.")
    reader = _quiet_itk().ImageFileReader()
    reader.SetFileName(str(path))
    with _translated(path):
        reader.ReadImageInformation()
    if reader.GetDimension() != 3:
        raise DataError(f"{path} holds a {reader.GetDimension()}D image, not a 3D scan: convert it or leave it out.")
    x, y, z = reader.GetSize()
    direction = np.array(reader.GetDirection()).reshape(3, 3)
    return Grid((x, y, z), np.array(reader.GetSpacing()), np.array(reader.GetOrigin()), direction)


def volume_files(path: Path) -> list[Path]:
    """The files that a scan is read from, sorted: of an image its header and its voxels; of a DICOM series what lies in
    its folder and is no image of another format.
    """
    if not path.exists():
        return []
    if path.is_file() and suffix(path) in SUFFIXES:
        return sorted(file for file in {path, data_file(path)} if file.is_file())
    folder = path if path.is_dir() else path.parent
    return sorted(f for f in folder.iterdir() if suffix(f) not in SUFFIXES and f.is_file() and f.name[0] != ".")


def _try_to_read(files: list[Path]) -> None:
    """The imaging library does not tell a file that it may not open from a torn one."""
    for path in files:
        with blame_reading(path), path.open("rb") as file:
            file.read(1)


def _check(volume: Volume) -> None:
    """`check`, and whether it is the voxels or the geometry that it refuses."""
    try:
        check(volume)
    except DataError as error:
        finite = volume.array.dtype.kind != "f" or bool(np.isfinite(volume.array).all())
        raise DataError(str(error), slug="bad_geometry" if finite else "bad_values") from None


def dicom_series(folder: Path) -> dict[str, list[Path]]:
    """The files of every DICOM series that lies directly in a folder, by series UID; unordered within a series."""
    sitk = _quiet_itk()
    with _translated(folder):
        uids = sorted(sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder)))
        return {
            uid: sorted(Path(f) for f in sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), uid))
            for uid in uids
        }


def dicom_patient(path: Path) -> str | None:
    """The PatientID of a DICOM file, or None where it is empty or the file can't be read."""
    try:
        reader = _read_information(path)
    except DataError:
        return None  # reading the scan will say what is wrong
    text = reader.GetMetaData(_PATIENT_TAG) if reader.HasMetaDataKey(_PATIENT_TAG) else ""
    return text.encode("utf-8", "replace").decode().strip(" \0") or None


def is_dicom(path: Path) -> bool:
    """Whether a file carries DICOM's mark after its 128 bytes of preamble (an index of a disc does not count)."""
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM" and path.name.upper() != "DICOMDIR"
    except OSError:
        return False


def write_mhd(volume: Volume, path: Path, compressed: bool = False) -> None:
    """Writes PATH.mhd and PATH.raw (or .zraw) beside it as LUNA16 does; equal volumes give equal bytes.

    The voxels come first and each file is renamed into place, so that a header never promises what is not there.
    """
    path, kind = Path(path), {"int16": "MET_SHORT", "float32": "MET_FLOAT"}[volume.array.dtype.name]
    voxels = volume.array.astype(volume.array.dtype.newbyteorder("<"), copy=False).tobytes(order="F")
    voxels = zlib.compress(voxels, 6) if compressed else voxels
    data = path.with_suffix(".zraw" if compressed else ".raw")
    size = f"CompressedDataSize = {len(voxels)}\n" if compressed else ""
    header = (
        "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\n"
        f"CompressedData = {compressed}\n{size}"
        f"TransformMatrix = {_words(volume.direction.T.ravel())}\n"  # MetaImage lists the axes one after another
        f"Offset = {_words(volume.origin)}\nCenterOfRotation = 0 0 0\nAnatomicalOrientation = RAI\n"
        f"ElementSpacing = {_words(volume.spacing)}\nDimSize = {' '.join(map(str, volume.array.shape))}\n"
        f"ElementType = {kind}\nElementDataFile = {data.name}\n"
    )
    for target, content in ((data, voxels), (path, header.encode())):
        temporary = _temporary(target)
        temporary.write_bytes(content)
        temporary.replace(target)


def write_nifti(volume: Volume, path: Path) -> None:
    """Writes .nii or .nii.gz, renamed into place when complete."""
    _write_nifti(volume.array, volume, path)


def write_mask(mask: UInt[np.ndarray, "i j k"], grid: Volume | Grid, path: Path) -> None:
    """Writes a mask as .nii or .nii.gz of its own whole numbers with exactly a grid's geometry (NIfTI keeps it as float32).

    mask: axes as in the grid's own file, see `data.volume.as_filed`. Renamed into place when complete.

    Raises:
        MachineError: the disk is full or the place may not be written to.
    """
    assert mask.shape == (grid.array.shape if isinstance(grid, Volume) else grid.shape)
    with blame_machine(path):
        _write_nifti(mask, grid, path)


def _write_nifti(array: Num[np.ndarray, "i j k"], grid: Volume | Grid, path: Path) -> None:
    sitk = _quiet_itk()
    image = sitk.GetImageFromArray(np.ascontiguousarray(array.T))
    image.SetSpacing(grid.spacing.tolist())
    image.SetOrigin(grid.origin.tolist())
    image.SetDirection(grid.direction.ravel().tolist())
    temporary = _temporary(Path(path))
    try:
        with _itk_to_os(path):
            sitk.WriteImage(image, str(temporary), useCompression=True)
            if not _holds(temporary, array.nbytes):
                raise RuntimeError("the library could not write it and did not say so")
        sync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _holds(path: Path, nbytes: int) -> bool:
    """Whether so many bytes are in a file just written; a small one on a full disk is left empty without a word."""
    total = 0
    with cast(IO[bytes], gzip.open(path) if suffix(path) == ".nii.gz" else path.open("rb")) as file:
        try:
            while chunk := file.read(1 << 20):
                total += len(chunk)
        except (OSError, EOFError, zlib.error):
            return False
    return total >= nbytes


@contextmanager
def _itk_to_os(path: Path) -> Iterator[None]:
    """The imaging library says little about why it could not write; the folder is asked."""
    try:
        yield
    except RuntimeError as error:
        with tempfile.TemporaryFile(dir=Path(path).parent) as probe:
            probe.write(bytes(1 << 20))
            probe.flush()
        raise OSError(errno.EIO, "the file could not be written whole", str(path)) from error


def _words(numbers: Float64[np.ndarray, " n"]) -> str:
    return " ".join(repr(float(n)) for n in numbers)


def _temporary(path: Path) -> Path:
    """A hidden name beside `path` with the same ending."""
    return path.with_name(f".tmp{os.getpid()}-{path.name}")


def _quiet_itk() -> Any:
    """SimpleITK, imported on first use, its warnings off: what is wrong with a file is said by our errors."""
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    return sitk


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    """Turns the library's exceptions into one sentence."""
    try:
        yield
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = re.sub(r"\(0x[0-9a-f]+\)", "", lines[-1].split("ERROR: ")[-1]).rstrip(".") if lines else "no reason"
        raise DataError(f"{path} cannot be read as an image ({reason}): copy it again or leave it out.") from None


def _read_image(path: Path) -> "SimpleITK.Image":
    sitk = _quiet_itk()
    with _translated(path):
        return sitk.ReadImage(str(path))


def _volume(image: "SimpleITK.Image", source: str) -> Volume:
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        raise DataError(f"{source} is not a 3D image of one number a voxel: convert it or leave it out.")
    array = _lean(_quiet_itk().GetArrayFromImage(image)).T
    origin, spacing = np.array(image.GetOrigin()), np.array(image.GetSpacing())
    return Volume(array, spacing, origin, np.array(image.GetDirection()).reshape(3, 3), source)


def _lean(array: Num[np.ndarray, "z y x"]) -> Int16[np.ndarray, "z y x"] | Float32[np.ndarray, "z y x"]:
    """int16 where that holds every value exactly, else float32."""
    if array.dtype == np.int16:
        return array
    inside = array.min() >= -32768 and array.max() <= 32767  # False for NaN
    whole = array.dtype.kind in "iu" or (inside and all(np.array_equal(plane, np.rint(plane)) for plane in array))
    return array.astype(np.int16 if inside and whole else np.float32, copy=False)


@dataclass(frozen=True)
class _Slice:
    """A DICOM file of one slice: where it lies (mm) and which way its rows and columns run."""

    file: Path
    position: Float64[np.ndarray, "3"]
    axes: Float64[np.ndarray, "3 3"]
    size: tuple[int, ...]
    spacing: tuple[float, ...]


def _read_information(path: Path) -> "SimpleITK.ImageFileReader":
    reader = _quiet_itk().ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(path))
    with _translated(path):
        reader.ReadImageInformation()
    return reader


def _series_uid(path: Path) -> str:
    reader = _read_information(path)
    if not reader.HasMetaDataKey(_SERIES_TAG):
        raise DataError(f"{path} names no DICOM series: leave it out.")
    return str(reader.GetMetaData(_SERIES_TAG)).strip(" \0")


def _whole_series(folder: Path) -> dict[str, list[Path]]:
    """As `dicom_series`, which passes over files that it can't read: a torn slice is an error here, not a gap."""
    series = dicom_series(folder)
    listed = {file for files in series.values() for file in files}
    for file in sorted(folder.iterdir()):
        slice_like = file.suffix.lower() in (".dcm", ".dicom", ".ima") or is_dicom(file)
        if slice_like and file.is_file() and file not in listed and not file.name.startswith("."):
            raise DataError(f"{file} is torn or no DICOM slice: copy it again or leave it out.")
    return series


def _only_series(folder: Path, series: dict[str, list[Path]]) -> list[Path]:
    if len(series) == 1:
        return next(iter(series.values()))
    if not series:
        raise DataError(f"{folder} holds no DICOM series: name an image file or a folder of DICOM slices.")
    raise DataError(
        f"{folder} holds {len(series)} DICOM series ({', '.join(series)}): name one file of the one you mean."
    )


def _read_series(folder: Path, files: list[Path], uid: str = "") -> Volume:
    source = f"{folder} (series {uid})" if uid else str(folder)
    slices = [_slice(file) for file in files]
    if len(slices) == 1 and slices[0].size[2] > 1:  # one multi-frame file
        return _volume(_read_image(files[0]), source)
    _check_alike(source, slices)
    normal = slices[0].axes[:, 2]
    slices.sort(key=lambda s: (float(s.position @ normal), s.file))
    spacing = _check_even(source, slices, normal)
    sitk = _quiet_itk()
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([str(s.file) for s in slices])
    reader.SetOutputPixelType(sitk.sitkFloat32)  # else the first slice's type, which another slice's slope may not fit
    with _translated(folder):
        volume = _volume(reader.Execute(), source)
    steps = np.array([*slices[0].spacing[:2], spacing])
    return Volume(volume.array, steps, slices[0].position, slices[0].axes, source)


def _slice(file: Path) -> _Slice:
    info = _read_information(file)
    _check_pixel_spacing(file, info)
    axes = np.array(info.GetDirection()).reshape(3, 3)
    return _Slice(file, np.array(info.GetOrigin()), axes, tuple(info.GetSize()), tuple(info.GetSpacing()))


def _check_pixel_spacing(file: Path, info: "SimpleITK.ImageFileReader") -> None:
    """The library puts 1 mm in the place of a spacing that is 0, negative or no number, and says nothing."""
    if info.HasMetaDataKey(_SPACING_TAG):
        text = info.GetMetaData(_SPACING_TAG).strip(" \0")
        try:
            right = all(0 < float(number) < np.inf for number in text.split("\\")) and text.count("\\") == 1
        except ValueError:
            right = False
        if not right:
            raise DataError(
                f"{file} states a pixel spacing of {text[:40]!r}: repair it or leave the scan out.", slug="bad_geometry"
            )


def _check_alike(source: str, slices: list[_Slice]) -> None:
    """All slices have one size, one orientation and one spacing in the plane."""
    if len(slices) < 2:
        raise DataError(f"{source} has one slice, and a 3D scan needs at least 2: leave it out.", slug="bad_slices")
    first = slices[0]
    for other in slices[1:]:
        if other.size != first.size or other.size[2] != 1:
            what = "sizes"
        elif not np.allclose(other.axes, first.axes, atol=1e-4):
            what = "orientations"
        elif not np.allclose(other.spacing[:2], first.spacing[:2], rtol=1e-4):
            what = "pixel spacings"
        else:
            continue
        raise DataError(
            f"{source} mixes slices of different {what} ({first.file.name} and {other.file.name}): separate them.",
            slug="bad_slices",
        )


def _check_even(source: str, slices: list[_Slice], normal: Float64[np.ndarray, "3"]) -> float:
    """The spacing of sorted slices (mm); steps may differ from it by 1 %, and no slice may be missing or doubled."""
    position = np.array([s.position for s in slices])
    steps = np.diff(position @ normal)
    spacing = float(np.median(steps))
    for i, step in enumerate(steps):
        pair = f"{slices[i].file.name} and {slices[i + 1].file.name}"
        if step <= UNEVEN * spacing or step <= 0:
            raise DataError(f"{source} has two slices at one position ({pair}): remove one of them.", slug="bad_slices")
        if abs(step - spacing) > UNEVEN * spacing:
            missing = round(step / spacing) - 1
            if missing > 0 and abs(step / spacing - round(step / spacing)) <= UNEVEN * (missing + 1):
                raise DataError(
                    f"{source} lacks {missing} slice{'s' * (missing > 1)} between {pair}: "
                    "copy the series again or leave it out.",
                    slug="bad_slices",
                )
            raise DataError(
                f"{source} has uneven slices, {step:g} mm between {pair} and {spacing:g} mm elsewhere: "
                "resample it or leave it out.",
                slug="bad_slices",
            )
    aside = np.diff(position - np.outer(position @ normal, normal), axis=0)
    if np.linalg.norm(aside, axis=1).max() > UNEVEN * spacing:
        raise DataError(
            f"{source} has slices shifted sideways (a tilted gantry): resample it or leave it out.", slug="bad_slices"
        )
    return float(steps.mean())
