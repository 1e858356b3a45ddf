"""One radiograph file to a grey uint8 square: PNG, JPEG and DICOM. The only place that knows Pillow and pydicom.

Every kind of pixel becomes grey levels 0 .. 255 by one rule:

    1, L              as they are
    16 bits           v / 65535, or v / 4095 where no value is above 4095: DICOM exports often leave 12 bits in 16
    colour, palette   0.299 R + 0.587 G + 0.114 B; an alpha channel is left out
    DICOM             modality LUT or slope; VOI LUT or first window, else the range that the stored bits can hold;
                      MONOCHROME1 inverted

and then a square of the asked side, antialiased: whole factors by averaging blocks (JPEG: while it is decoded), what is
left, less than a factor of two, by a triangle filter as wide as the shrinking asks for. EXIF rotations are not applied.
"""

import contextlib
import hashlib
import os
import warnings
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float32, Num, UInt8

from pcrl_cli.core.errors import DataError, PcrlError, blame_reading
from pcrl_cli.core.files import write_atomic

if TYPE_CHECKING:
    from PIL.Image import Image

Aspect = Literal["stretch", "pad"]
"""stretch: both sides become the square's, as 2D pipelines commonly do. pad: the longer side does; black is added."""

PLAIN = (".png", ".jpg", ".jpeg")
SUFFIXES = (*PLAIN, ".dcm", ".dicom")
MAX_PIXELS = 1 << 26
"""Larger files are refused before anything is decoded; the largest plates give about half of it."""

_GAP = 1.0  # blocks are averaged as long as what is left is at least this many times the wanted side
_SAMPLE = 256  # rows and columns of which a picture's id is made
_FULL_16, _FULL_12 = 65535, 4095


class Picture(NamedTuple):
    """pixels: (s, s) rows, columns. scan_id: see `_id_of`."""

    pixels: UInt8[np.ndarray, "s s"]
    scan_id: str


def read_image(path: Path, size: int, aspect: Aspect = "stretch") -> Picture:
    """Reads one radiograph as a grey square of `size` pixels.

    Raises:
        DataError: the file is not there, no PNG, JPEG or DICOM, torn, empty, too large, or of several frames.
        MachineError: it may not be read, or the disk or mount fails.
    """
    with _translated(path):
        grey = _decode(path, size) or _of_dicom(path)
        return Picture(_square(grey, size, aspect), _id_of(grey))


def read_whole(path: Path) -> Picture:
    """As `read_image`, in all of its pixels: (rows, columns)."""
    with _translated(path):
        grey = _decode(path, MAX_PIXELS) or _of_dicom(path)
        return Picture(np.array(grey, np.uint8), _id_of(grey))


def read_labels(path: Path) -> Num[np.ndarray, "rows columns"]:
    """A mask as it is stored: whole numbers of 8 or 16 bits, or the numbers of a palette's colours.

    Raises:
        DataError: as `read_image`; the file is no PNG, or holds colours.
    """
    from PIL import Image, UnidentifiedImageError

    with _translated(path):
        try:
            image: Image.Image = Image.open(path, formats=("PNG",))
        except UnidentifiedImageError:
            raise DataError(f"{path} is no PNG, which masks have to be: convert it without loss.") from None
        with image:
            _check_size(path, *image.size)
            image.load()
            if image.mode in ("1", "L", "P") or image.mode.startswith("I"):
                return np.array(image).astype(np.int32)
            values = np.array(image)
            colours = values[..., :3] if image.mode in ("RGB", "RGBA") else values[..., :1]  # without opacity
            if (colours == colours[..., :1]).all():
                return colours[..., 0].astype(np.int32)
        raise DataError(f"{path} holds colours, and a mask holds the number of a label in every pixel: convert it.")


def write_labels(mask: Num[np.ndarray, "rows columns"], path: Path) -> None:
    """Writes a mask as a PNG of 8 bits, or of 16 where a label needs them; renamed into place when complete.

    Raises:
        MachineError: the disk is full or the place may not be written to.
    """
    from PIL import Image

    buffer = BytesIO()
    Image.fromarray(mask.astype(np.uint8 if mask.max(initial=0) < 256 else np.uint16)).save(buffer, format="PNG")
    write_atomic(path, buffer.getvalue())


def dicom_facts(path: Path) -> tuple[str, str]:
    """PatientID and Modality (CR, DX, CT, ...) of a DICOM file; empty where they are missing or it can't be read."""
    from pydicom import dcmread

    with contextlib.suppress(Exception), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = dcmread(path, stop_before_pixels=True, specific_tags=["PatientID", "Modality"])
        return str(found.get("PatientID", "") or "").strip(" \0"), str(found.get("Modality", "") or "").strip()
    return "", ""


def write_png(pixels: UInt8[np.ndarray, "rows columns"], path: Path) -> None:
    """Writes a grey PNG; equal pixels give equal bytes with one build of Pillow."""
    from PIL import Image

    temporary = path.with_name(f".{path.name}.tmp")
    Image.fromarray(pixels).save(temporary, format="PNG", compress_level=1)
    temporary.replace(path)


# -------------------------------------------------------------------------------------------------- PNG and JPEG


_ORIENTATION = 0x0112  # EXIF


def _decode(path: Path, size: int) -> "Image | None":
    """A PNG or JPEG in grey (mode L), JPEG maybe smaller than it is, but no side below `size`; None for other files."""
    from PIL import Image, UnidentifiedImageError

    try:
        image: Image.Image = Image.open(path, formats=("PNG", "JPEG"))
    except UnidentifiedImageError:
        return None
    with image:
        _check_size(path, *image.size)
        _check_upright(path, image)
        if image.format == "JPEG":
            image.draft("L", (size, size))
        image.load()
        if image.mode.startswith("I"):
            return Image.fromarray(_from_16(np.asarray(image), path))
        if image.mode in ("P", "PA"):
            image = image.convert("RGBA" if "transparency" in image.info else "RGB")
        return image if image.mode == "L" else image.convert("L")


def _check_upright(path: Path, image: "Image") -> None:
    """Raises:
    DataError: a tag says that the picture is to be shown turned or mirrored, which masks and boxes beside it may or may not be.
    """
    turn = image.getexif().get(_ORIENTATION, 1)
    if turn != 1:
        raise DataError(
            f"{path} is to be shown turned or mirrored (EXIF orientation {turn}): save it upright, without the tag.",
            slug="bad_geometry",
        )


def _from_16(values: Num[np.ndarray, "rows columns"], path: Path) -> UInt8[np.ndarray, "rows columns"]:
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > _FULL_16:
        raise DataError(
            f"{path} has values from {low} to {high}, more than 16 bits hold: convert it.", slug="bad_values"
        )
    return _levels(values.astype(np.float32) / (_FULL_12 if high <= _FULL_12 else _FULL_16))


def _levels(unit: Float32[np.ndarray, "rows columns"]) -> UInt8[np.ndarray, "rows columns"]:
    """[0, 1] to the nearest of 256 grey levels; values outside are clipped."""
    return np.rint(np.clip(unit, 0, 1) * 255).astype(np.uint8)


def _square(grey: "Image", size: int, aspect: Aspect) -> UInt8[np.ndarray, "s s"]:
    """Resized to `size` x `size`, or to its longer side and centred on black."""
    if aspect == "stretch":
        return _resized(grey, size, size)
    factor = size / max(grey.size)
    width, height = (max(1, round(side * factor)) for side in grey.size)
    square = np.zeros((size, size), np.uint8)
    top, left = (size - height) // 2, (size - width) // 2
    square[top : top + height, left : left + width] = _resized(grey, width, height)
    return square


def _resized(grey: "Image", width: int, height: int) -> UInt8[np.ndarray, "height width"]:
    from PIL import Image

    if grey.size != (width, height):
        grey = grey.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=_GAP)
    return np.frombuffer(grey.tobytes(), np.uint8).reshape(height, width)  # np.asarray takes far longer


def _id_of(grey: "Image") -> str:
    """20 hexadecimal digits that are equal for copies of one picture, whatever its name, patient and cached size.

    The SHA-256 of its shape and of up to 256 rows and columns of it, before it is resized. Pictures that were stored
    again with loss, or at another size, get other ids; so may one JPEG at two cached sizes (it is decoded smaller).
    """
    from PIL import Image

    rows = grey.resize((min(grey.width, _SAMPLE), min(grey.height, _SAMPLE)), Image.Resampling.NEAREST)
    return hashlib.sha256(f"{grey.width} {grey.height} ".encode() + rows.tobytes()).hexdigest()[:20]


# --------------------------------------------------------------------------------------------------------- DICOM


def _of_dicom(path: Path) -> "Image":
    """One frame of a DICOM file as a workstation would show it, in grey."""
    with path.open("rb") as file:
        head = file.read(132)
    if head[128:] != b"DICM":
        what = "is no PNG, JPEG or DICOM file" if head else "is an empty file"
        raise DataError(f"{path} {what}: copy it again or leave it out.", slug="unreadable")
    from PIL import Image
    from pydicom import dcmread
    from pydicom.filereader import read_file_meta_info
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on values that only look odd
        try:
            meta = read_file_meta_info(path)
        except MemoryError:
            raise DataError(f"{path} states a length that no file has: copy it again.", slug="unreadable") from None
        if meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
            raise DataError(
                f"{path} is deflated as a whole, which may hide any size: convert it first.", slug="unreadable"
            )
        data = dcmread(BytesIO(path.read_bytes()))  # from a file, a stated length is allocated before it is read
        if "PixelData" not in data or "Rows" not in data:
            raise DataError(f"{path} holds no pixels: copy it again or leave it out.", slug="unreadable")
        frames = int(data.get("NumberOfFrames", 1) or 1)
        if frames != 1:
            raise DataError(f"{path} has {frames} frames, so it is no radiograph: leave it out.")
        _check_size(path, int(data.Columns), int(data.Rows))
        if int(data.get("SamplesPerPixel", 1)) == 3:
            return Image.fromarray(_eight_bits(data.pixel_array, int(data.BitsStored))).convert("L")
        return Image.fromarray(_levels(_shown(data)))


def _eight_bits(values: np.ndarray, bits: int) -> np.ndarray:
    return values if values.dtype == np.uint8 else (values >> max(bits - 8, 0)).astype(np.uint8)


def _shown(data: Any) -> Float32[np.ndarray, "rows columns"]:
    """Stored values through modality and VOI transforms to [0, 1], white = 1 (PS3.3 C.11.1, C.11.2)."""
    from pydicom.pixels import apply_modality_lut, apply_voi

    values = apply_modality_lut(data.pixel_array, data)
    if data.get("VOILUTSequence"):
        depth = int(data.VOILUTSequence[0].LUTDescriptor[2])
        unit = np.asarray(apply_voi(values, data), np.float32) / (2**depth - 1)
    elif _first(data, "WindowWidth"):
        unit = _windowed(
            values, _first(data, "WindowCenter"), _first(data, "WindowWidth"), str(data.get("VOILUTFunction", "LINEAR"))
        )
    else:
        low, high = _stored_range(data)
        unit = (values - np.float32(low)) / np.float32(high - low)
    unit = np.clip(unit, 0, 1).astype(np.float32)
    return 1 - unit if data.get("PhotometricInterpretation") == "MONOCHROME1" else unit


def _windowed(values: np.ndarray, centre: float, width: float, function: str) -> np.ndarray:
    """The three functions of PS3.3 C.11.2.1.2 and C.11.2.1.3."""
    v = values.astype(np.float32)
    if function == "SIGMOID":
        return 1 / (1 + np.exp(-4 * (v - centre) / width))
    if function == "LINEAR_EXACT":
        return (v - centre) / width + 0.5
    return (v - (centre - 0.5)) / max(width - 1, 1e-6) + 0.5


def _first(data: Any, name: str) -> float:
    """A window's number; the first where there are several, 0 where there is none."""
    value = data.get(name)
    value = value[0] if value is not None and not isinstance(value, str) and hasattr(value, "__len__") else value
    return float(value) if value is not None and value != "" else 0.0


def _stored_range(data: Any) -> tuple[float, float]:
    """The least and the greatest value that the stored bits can stand for, after the modality transform."""
    if data.get("ModalityLUTSequence"):
        return 0.0, 2.0 ** int(data.ModalityLUTSequence[0].LUTDescriptor[2]) - 1
    bits, signed = int(data.BitsStored), int(data.get("PixelRepresentation", 0))
    ends = np.array([-(2 ** (bits - 1)) if signed else 0, 2 ** (bits - signed) - 1], np.float64)
    ends = ends * float(data.get("RescaleSlope", 1)) + float(data.get("RescaleIntercept", 0))
    return float(ends.min()), float(ends.max())


# -------------------------------------------------------------------------------------------------------- errors


def _check_size(path: Path, width: int, height: int) -> None:
    if width < 1 or height < 1:
        raise DataError(f"{path} is {width} x {height} pixels, so empty: leave it out.", slug="unreadable")
    if width * height > MAX_PIXELS:
        raise DataError(
            f"{path} says that it has {width} x {height} pixels, more than {MAX_PIXELS} in all; it was not decoded: "
            "reduce it or leave it out.",
            slug="unreadable",
        )


@contextlib.contextmanager
def _translated(path: Path) -> Iterator[None]:
    """Every way in which decoding fails as one sentence that names the file."""
    from PIL import Image

    try:
        with blame_reading(path), warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except (FileNotFoundError, IsADirectoryError):
        what = "is a folder" if os.path.isdir(path) else "is not there"  # noqa: PTH112
        raise DataError(f"{path} {what}: check the path.", slug="unreadable") from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise DataError(
            f"{path} has more than {MAX_PIXELS} pixels; it was not decoded: reduce it or leave it out.",
            slug="unreadable",
        ) from None
    except (PcrlError, MemoryError):
        raise
    except Exception as error:  # Pillow and pydicom fail on broken files in every way there is
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"{path} cannot be decoded ({reason}): copy it again or leave it out.", slug="unreadable"
        ) from None
