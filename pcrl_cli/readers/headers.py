"""What an image file's header promises, held against the file before a voxel is read.

The imaging library fills what a truncated gzip or zlib stream lacks with zeros and says nothing, allocates whatever a
header asks for, and reads the NaN of a NIfTI file as 0, which in CT is water; so sizes are checked here, compressed
streams are run through to their checksum, and NIfTI's floating-point voxels are looked at one by one.
"""

import gzip
import math
import os
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

import numpy as np

from pcrl_cli.core.errors import DataError, blame_reading

MAX_AXIS = 4096
MAX_VOXELS = 2**31
MAX_INFLATION = 1040  # deflate packs at most 1032 bytes into one
_HEADER_LIMIT = 1 << 16
_CHUNK = 1 << 20

_MET_BYTES = {"CHAR": 1, "UCHAR": 1, "SHORT": 2, "USHORT": 2, "INT": 4, "UINT": 4, "LONG": 4, "ULONG": 4}
_MET_BYTES |= {"LONG_LONG": 8, "ULONG_LONG": 8, "FLOAT": 4, "DOUBLE": 8}
_NIFTI_BYTES = {2: 1, 4: 2, 8: 4, 16: 4, 64: 8, 256: 1, 512: 2, 768: 4, 1024: 8, 1280: 8}
_NRRD_BYTES = {"char": 1, "short": 2, "int": 4, "long long": 8, "longlong": 8, "float": 4, "double": 8}
_NRRD_BYTES |= {"int8": 1, "int16": 2, "int32": 4, "int64": 8}


@dataclass(frozen=True)
class Declared:
    """What a header promises.

    shape: voxels along each axis.
    itemsize: bytes a voxel.
    data: the file that holds the voxels.
    start: where in that file they, or the compressed stream, begin; None: they are the file's last bytes.
    compressed: a zlib or gzip stream.
    lead: bytes before the voxels inside the stream (a compressed file's own header).
    floats: the voxels' NumPy type, where they are to be checked for NaN here.
    """

    shape: tuple[int, ...]
    itemsize: int
    data: Path
    start: int | None
    compressed: bool
    lead: int = 0
    floats: str | None = None


def check_file(path: Path) -> None:
    """Checks an .mhd, .mha, .nii, .nii.gz, .nrrd or .nhdr file against its own header.

    Raises:
        DataError: no such header; not one 3D image of numbers; a size that is absurd or differs from the file's; voxels
            outside the header's folder; a compressed stream that is torn; a NIfTI voxel that is not finite.
        MachineError: it may not be read, or the disk or mount fails.
    """
    try:
        with blame_reading(path):
            declared = _parser(path)(path)
    except (KeyError, ValueError, struct.error, zlib.error) as error:
        raise DataError(
            f"{path} has no readable image header ({_why(error)}): copy it again or leave it out."
        ) from None
    except OSError as error:
        raise DataError(f"{path} cannot be opened ({error.strerror}): check that it exists and may be read.") from None
    _check_shape(path, declared)
    if not declared.data.is_file():
        raise DataError(f"{path} says that its voxels are in {declared.data.name}, which is not there: copy it too.")
    _check_bytes(path, declared)
    if declared.floats:
        _check_finite(path, declared, np.dtype(declared.floats))


def _why(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"it lacks {error}"
    return str(error) or type(error).__name__


def data_file(path: Path) -> Path:
    """The file of voxels that a header names; the header itself where it can't be parsed (reading says why)."""
    try:
        with blame_reading(path):
            return _parser(path)(path).data
    except (DataError, OSError, KeyError, ValueError, struct.error, zlib.error):
        return path


def suffix(path: Path) -> str:
    """The lower-case ending that tells the format; `.nii.gz` counts as one."""
    name = path.name.lower()
    return ".nii.gz" if name.endswith(".nii.gz") else Path(name).suffix


def _parser(path: Path) -> Callable[[Path], Declared]:
    kinds = {".mhd": _meta, ".mha": _meta, ".nii": _nifti, ".nii.gz": _nifti, ".nrrd": _nrrd, ".nhdr": _nrrd}
    if suffix(path) not in kinds:
        raise DataError(f"{path} is none of the formats that can be read ({', '.join(kinds)}, DICOM): convert it.")
    return kinds[suffix(path)]


def _check_shape(path: Path, declared: Declared) -> None:
    shape = declared.shape
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    size = " x ".join(map(str, shape))
    if len(shape) != 3:
        raise DataError(f"{path} holds a {len(shape)}D image ({size}), not a 3D scan: convert it or leave it out.")
    if min(shape) <= 0 or max(shape) > MAX_AXIS or math.prod(shape) > MAX_VOXELS:
        raise DataError(
            f"{path} declares {size} voxels, more than {MAX_AXIS} an axis, 2^31 in all, or none: correct its header."
        )
    if min(shape) < 2:
        raise DataError(
            f"{path} has {size} voxels, and a 3D scan needs 2 or more along each axis: leave it out.", slug="too_small"
        )


def _check_bytes(path: Path, declared: Declared) -> None:
    wanted = declared.lead + math.prod(declared.shape) * declared.itemsize
    size = declared.data.stat().st_size
    held = wanted if declared.start is None and size >= wanted else size - (declared.start or 0)
    if declared.compressed:
        if wanted > held * MAX_INFLATION:
            raise DataError(
                f"{path} declares {wanted} bytes of voxels, more than {declared.data.name} can hold in its {size} "
                "compressed ones: copy it again or leave it out."
            )
        held = _inflated(path, declared, wanted)
    if held != wanted:
        raise DataError(
            f"{path} declares {wanted} bytes of voxels and {declared.data.name} holds "
            f"{'more' if held > wanted else held}: copy it again or leave it out."
        )


def _inflated(path: Path, declared: Declared, limit: int) -> int:
    """Bytes in the compressed stream, or limit + 1 where there are more; nothing is kept."""
    total, stream = 0, zlib.decompressobj(47)  # 47: either zlib or gzip
    try:
        with declared.data.open("rb") as file:
            file.seek(declared.start or 0)
            rest = file.read(_CHUNK)
            while rest and total <= limit:
                if stream.eof:  # a gzip file may have several members
                    stream = zlib.decompressobj(47)
                total += len(stream.decompress(rest, _CHUNK))
                rest = stream.unconsumed_tail or stream.unused_data.lstrip(b"\0") or file.read(_CHUNK)
    except zlib.error as error:
        raise DataError(f"{declared.data} has a torn stream ({error}): copy it again or leave it out.") from None
    if not stream.eof and total <= limit:
        raise DataError(
            f"{declared.data} ends after {total} of {limit} bytes when decompressed: copy it again or leave it out."
        )
    return min(total, limit + 1)


def _check_finite(path: Path, declared: Declared, dtype: "np.dtype[np.floating]") -> None:
    bad = 0
    with declared.data.open("rb") as raw:
        file = cast(IO[bytes], gzip.GzipFile(fileobj=raw)) if declared.compressed else raw
        file.read(declared.lead)
        left = math.prod(declared.shape)
        while left > 0 and (content := file.read(min(left * dtype.itemsize, _CHUNK))):
            values = np.frombuffer(content, dtype)
            left -= values.size
            bad += int(values.size - np.isfinite(values).sum())
    if bad:
        raise DataError(
            f"{path} holds {bad} voxels that are NaN or infinite: repair it or leave it out.", slug="bad_values"
        )


def _beside(path: Path, name: str) -> Path:
    """The file of voxels that a header names: it has to lie in the header's folder."""
    if not name or len(os.fsencode(name)) > 255 or not name.isprintable():  # the system counts bytes, not letters
        raise DataError(f"{path} names {name[:40]!r} for its voxels, which names no file: correct its header.")
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise DataError(f"{path} names {name!r} for its voxels, outside its own folder: correct its header.")
    return path.parent / name


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_HEADER_LIMIT)


def _meta(path: Path) -> Declared:
    """MetaImage: `Key = Value` lines, of which ElementDataFile is the last."""
    fields, end, head = dict[str, str](), 0, _head(path)
    while "ElementDataFile" not in fields:
        stop = head.find(b"\n", end)
        line, end = head[end : stop if stop >= 0 else None].decode("latin-1"), stop + 1
        key, _, value = line.partition("=")
        fields[key.strip()] = value.strip()
        if stop < 0 and "ElementDataFile" not in fields:
            raise ValueError("no ElementDataFile")
    name, compressed = fields["ElementDataFile"], fields.get("CompressedData", "False").lower() in ("true", "1")
    if name == "LIST" or "%" in name or fields.get("BinaryData", "True").lower() in ("false", "0"):
        raise DataError(f"{path} keeps its voxels in several files or as text, which is not read: convert it.")
    if int(fields.get("ElementNumberOfChannels", 1)) != 1:
        raise DataError(f"{path} has several numbers a voxel, and a scan has one: convert it or leave it out.")
    shape = tuple(int(n) for n in fields["DimSize"].split())
    if len(shape) != int(fields["NDims"]):
        raise ValueError(f"NDims = {fields['NDims']} and DimSize = {fields['DimSize']}")
    itemsize, skip = _MET_BYTES[fields["ElementType"].removeprefix("MET_")], int(fields.get("HeaderSize", 0))
    local = name.upper() == "LOCAL"
    data = path if local else _beside(path, name)
    start = end if local else None if skip < 0 else skip
    _check_compressed_size(path, data, start, fields)
    return Declared(shape, itemsize, data, start, compressed)


def _check_compressed_size(path: Path, data: Path, start: int | None, fields: dict[str, str]) -> None:
    stated = int(fields.get("CompressedDataSize", 0))
    if stated and data.is_file() and data.stat().st_size - (start or 0) != stated:
        held = data.stat().st_size - (start or 0)
        raise DataError(
            f"{path} declares {stated} compressed bytes and {data.name} holds {held}: copy it again or leave it out."
        )


def _nifti(path: Path) -> Declared:
    """NIfTI-1 (348-byte header) or NIfTI-2 (540), of either byte order, plain or as one gzip stream."""
    head = _head(path)
    compressed = head[:2] == b"\x1f\x8b"
    if compressed != (suffix(path) == ".nii.gz"):
        raise ValueError("its name and its content disagree about compression")
    if compressed:
        head = zlib.decompressobj(31).decompress(head, 540)
    order = next((o for o in "<>" if struct.unpack_from(o + "i", head)[0] in (348, 540)), None)
    if order is None:
        raise ValueError("no NIfTI magic number")
    if struct.unpack_from(order + "i", head)[0] == 348:
        dims, (kind,) = struct.unpack_from(order + "8h", head, 40), struct.unpack_from(order + "h", head, 70)
        magic, offset = head[344:348], struct.unpack_from(order + "f", head, 108)[0]
    else:
        dims, (kind,) = struct.unpack_from(order + "8q", head, 16), struct.unpack_from(order + "h", head, 12)
        magic, offset = head[4:8], struct.unpack_from(order + "q", head, 168)[0]
    if not magic.startswith(b"n+") or not 1 <= dims[0] <= 7 or kind not in _NIFTI_BYTES:
        raise ValueError(f"magic {magic!r}, {dims[0]} dimensions, data type {kind}")
    shape, itemsize, offset = tuple(dims[1 : 1 + dims[0]]), _NIFTI_BYTES[kind], int(offset)
    floats = f"{order}f{itemsize}" if kind in (16, 64) else None
    return Declared(shape, itemsize, path, 0, compressed, lead=max(offset, 0), floats=floats)


def _nrrd(path: Path) -> Declared:
    """NRRD: `field: value` lines up to an empty one, then the voxels, or `data file:` where they are elsewhere."""
    text, separator, _ = _head(path).replace(b"\r\n", b"\n").partition(b"\n\n")
    if not text.startswith(b"NRRD"):
        raise ValueError("no NRRD magic number")
    lines = (line.partition(": ") for line in text.decode("latin-1").splitlines()[1:] if not line.startswith("#"))
    fields = {key.strip().lower(): value.strip() for key, _, value in lines}
    encoding, name = fields["encoding"].lower(), fields.get("data file", fields.get("datafile"))
    if encoding not in ("raw", "gzip", "gz") or (name is not None and (name.startswith("LIST") or "%" in name)):
        raise DataError(f"{path} keeps its voxels as {encoding} or in several files, which is not read: convert it.")
    shape = tuple(int(n) for n in fields["sizes"].split())
    if len(shape) != int(fields["dimension"]):
        raise ValueError(f"dimension: {fields['dimension']} and sizes: {fields['sizes']}")
    kind = fields["type"].lower().removeprefix("signed ").removeprefix("unsigned ").removesuffix(" int")
    itemsize = _NRRD_BYTES[kind.removeprefix("u").removesuffix("_t")]
    skip = int(fields.get("byte skip", fields.get("byteskip", 0)))
    if int(fields.get("line skip", fields.get("lineskip", 0))) or skip > 0:
        raise DataError(f"{path} skips lines or bytes before its voxels, which is not read: convert it.")
    data = path if name is None else _beside(path, name)
    head_bytes = _head(path)
    blank = [head_bytes.find(mark) + len(mark) for mark in (b"\n\n", b"\r\n\r\n") if mark in head_bytes]
    if name is None and not (separator and blank):
        raise ValueError("no empty line after its header")
    start = None if skip < 0 else 0 if name is not None else min(blank)
    return Declared(shape, itemsize, data, start, encoding != "raw")
