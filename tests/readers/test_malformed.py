"""A corpus of files that are torn, lie, or mean harm: each is read with the right geometry or refused in one sentence.

Every case is read in a child process of its own, under a limit of memory and time, so that a crash or a hang is noticed.
"""

import gzip
import json
import os
import random
import resource
import signal
import struct
import time
import traceback
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pcrl_cli.core.errors import PcrlError
from pcrl_cli.readers.headers import check_file
from pcrl_cli.readers.image_io import read_image
from pcrl_cli.readers.volume_io import read_volume

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="cases are read in forked children")
GIGABYTE = 1 << 30
SECONDS = 20
SHAPE, SPACING, ORIGIN = (6, 5, 4), (0.5, 0.75, 2.0), (-10.0, 20.0, 30.0)
VOXELS = np.arange(np.prod(SHAPE), dtype="<i2").reshape(SHAPE, order="F")
RAW = VOXELS.tobytes(order="F")


def as_volume(path: Path) -> dict[str, object]:
    volume = read_volume(path)
    return {
        "read": list(volume.array.shape),
        "spacing": volume.spacing.tolist(),
        "origin": volume.origin.tolist(),
        "sum": float(volume.array.sum()),
    }


def as_picture(path: Path) -> dict[str, object]:
    pixels = read_image(path, 8).pixels
    return {"read": list(pixels.shape), "sum": float(pixels.sum())}


def outcome(path: Path, read: Callable[[Path], dict[str, object]] = as_volume) -> dict[str, object]:
    """What a child process makes of a file: read (shape, spacing, ...), refused, crashed, or hung."""
    answer = path.parent / f"answer-{path.name}.json"
    pid = os.fork()
    if pid == 0:
        try:
            pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else 0
            most = pages * resource.getpagesize() + GIGABYTE
            resource.setrlimit(resource.RLIMIT_AS, (most, most))
            resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
            try:
                value = read(path)
            except PcrlError as error:
                value = {"refused": str(error)}
            except BaseException:
                value = {"crashed": traceback.format_exc()[-600:]}
            answer.write_text(json.dumps(value), encoding="utf-8")
        finally:
            os._exit(0)
    end = time.monotonic() + 2 * SECONDS
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            if os.WIFSIGNALED(status) or not answer.exists():
                return {"crashed": f"signal or no answer, status {status}"}
            return json.loads(answer.read_text("utf-8"))
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return {"hung": True}


def refused(path: Path, read: Callable[[Path], dict[str, object]] = as_volume) -> str:
    got = outcome(path, read)
    assert "refused" in got, got
    text = str(got["refused"])
    assert "\n" not in text
    assert str(path.parent) in text
    return text


def sound(path: Path) -> None:
    got = outcome(path)
    assert got.get("read") == list(SHAPE), got
    assert got["spacing"] == pytest.approx(list(SPACING), abs=1e-6)
    assert got["origin"] == pytest.approx(list(ORIGIN), abs=1e-4)
    assert got["sum"] == float(VOXELS.sum())


def either(path: Path, read: Callable[[Path], dict[str, object]] = as_volume) -> None:
    """Read as what it is, or refused: never a crash, never a hang."""
    got = outcome(path, read)
    assert "refused" in got or "read" in got, got
    if "refused" in got:
        assert "\n" not in str(got["refused"])


# --------------------------------------------------------------------------------------------- files by hand


def mhd(data: str = "a.raw", **fields: object) -> bytes:
    values: dict[str, object] = {
        "ObjectType": "Image",
        "NDims": 3,
        "BinaryData": "True",
        "BinaryDataByteOrderMSB": "False",
        "CompressedData": "False",
        "TransformMatrix": "1 0 0 0 1 0 0 0 1",
        "Offset": " ".join(map(str, ORIGIN)),
        "ElementSpacing": " ".join(map(str, SPACING)),
        "DimSize": " ".join(map(str, SHAPE)),
        "ElementType": "MET_SHORT",
    }
    values |= fields
    lines = [f"{key} = {value}" for key, value in values.items() if value is not None]
    return ("\n".join([*lines, f"ElementDataFile = {data}"]) + "\n").encode()


def nifti(dims: tuple[int, ...] = (3, *SHAPE, 1, 1, 1, 1), kind: int = 4, bits: int = 16, **change: bytes) -> bytes:
    """A NIfTI-1 header; x and y of its world point the other way than LPS."""
    head = bytearray(352)
    struct.pack_into("<i", head, 0, 348)
    struct.pack_into("<8h", head, 40, *dims)
    struct.pack_into("<hh", head, 70, kind, bits)
    struct.pack_into("<8f", head, 76, 1, *SPACING, 0, 0, 0, 0)
    struct.pack_into("<f", head, 108, 352)
    struct.pack_into("<hh", head, 252, 0, 1)
    rows = [(-SPACING[0], 0, 0, -ORIGIN[0]), (0, -SPACING[1], 0, -ORIGIN[1]), (0, 0, SPACING[2], ORIGIN[2])]
    for i, row in enumerate(rows):
        struct.pack_into("<4f", head, 280 + 16 * i, *row)
    head[344:348] = b"n+1\0"
    for place, value in change.items():
        at = int(place[1:])
        head[at : at + len(value)] = value
    return bytes(head)


def nrrd(data: bytes = RAW, encoding: object = "raw", **fields: object) -> bytes:
    values: dict[str, object] = {
        "type": "short",
        "dimension": 3,
        "space": "left-posterior-superior",
        "sizes": " ".join(map(str, SHAPE)),
        "space directions": f"({SPACING[0]},0,0) (0,{SPACING[1]},0) (0,0,{SPACING[2]})",
        "space origin": "(" + ",".join(map(str, ORIGIN)) + ")",
        "endian": "little",
        "encoding": encoding,
    }
    values |= {key.replace("_", " "): value for key, value in fields.items()}
    return ("NRRD0004\n" + "".join(f"{k}: {v}\n" for k, v in values.items()) + "\n").encode() + data


def write(folder: Path, **files: bytes) -> Path:
    """Files by name (`a_mhd` is a.mhd); the first is the one to read."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / name.replace("_", ".") for name in files]
    for path, content in zip(paths, files.values(), strict=True):
        path.write_bytes(content)
    return paths[0]


BOMB = zlib.compress(b"\0" * (256 << 20), 9)
SOUND: dict[str, Callable[[Path], Path]] = {
    "MHD": lambda f: write(f, a_mhd=mhd(), a_raw=RAW),
    "MHD, compressed": lambda f: write(f, a_mhd=mhd("a.zraw", CompressedData="True"), a_zraw=zlib.compress(RAW)),
    "MHA": lambda f: write(f, a_mha=mhd("LOCAL") + RAW),
    "NIfTI": lambda f: write(f, a_nii=nifti() + RAW),
    "NIfTI, gzip": lambda f: write(f, a_nii_gz=gzip.compress(nifti() + RAW, mtime=0)),
    "NRRD": lambda f: write(f, a_nrrd=nrrd()),
    "NRRD, gzip": lambda f: write(f, a_nrrd=nrrd(gzip.compress(RAW, mtime=0), "gzip")),
}
LIES: dict[str, Callable[[Path], Path]] = {}
for size in ("0 5 4", "-6 5 4", "6 5", "6 5 4 2", "100000 100000 100000", "2147483648 2 2", "6 5 x", "1e3 5 4", ""):
    LIES[f"MHD of {size}"] = lambda f, size=size: write(f, a_mhd=mhd(DimSize=size), a_raw=RAW)
    LIES[f"NRRD of {size}"] = lambda f, size=size: write(f, a_nrrd=nrrd(sizes=size))
for dims in (
    (3, 0, 5, 4), (3, -6, 5, 4), (3, 32767, 32767, 32767), (4, 6, 5, 4, 3), (9, 6, 5, 4), (-1, 6, 5, 4), (2, 6, 5, 1),
):  # fmt: skip
    filled = (*dims, *[1] * (8 - len(dims)))
    LIES[f"NIfTI of {dims}"] = lambda f, filled=filled: write(f, a_nii=nifti(filled) + RAW)
LIES |= {
    "MHD of 4 dimensions": lambda f: write(f, a_mhd=mhd(NDims=4, DimSize="6 5 4 2"), a_raw=RAW * 2),
    "MHD that names a file outside": lambda f: write(f, a_mhd=mhd("../../etc/passwd"), a_raw=RAW),
    "MHD that names an absolute file": lambda f: write(f, a_mhd=mhd("/etc/passwd"), a_raw=RAW),
    "MHD that names itself": lambda f: write(f, a_mhd=mhd("a.mhd"), a_raw=RAW),
    "MHD of many files": lambda f: write(f, a_mhd=mhd("a%03d.raw 1 4 1"), a_raw=RAW),
    "MHD without voxels": lambda f: write(f, a_mhd=mhd("b.raw"), a_raw=RAW),
    "MHD of 2 channels": lambda f: write(f, a_mhd=mhd(ElementNumberOfChannels=2), a_raw=RAW * 2),
    "MHD of unknown type": lambda f: write(f, a_mhd=mhd(ElementType="MET_QUAD"), a_raw=RAW),
    "MHD whose voxels are a folder": lambda f: _with_folder(f),
    "MHD with a spacing of 0": lambda f: write(f, a_mhd=mhd(ElementSpacing="0 0.75 2"), a_raw=RAW),
    "MHD with a spacing of NaN": lambda f: write(f, a_mhd=mhd(ElementSpacing="nan 0.75 2"), a_raw=RAW),
    "MHD with axes in one plane": lambda f: write(f, a_mhd=mhd(TransformMatrix="1 0 0 1 0 0 0 0 1"), a_raw=RAW),
    "MHD, a bomb": lambda f: write(f, a_mhd=mhd("a.zraw", CompressedData="True"), a_zraw=BOMB),
    "MHD, a bomb that says so": lambda f: write(
        f, a_mhd=mhd("a.zraw", CompressedData="True", DimSize="4096 4096 8"), a_zraw=BOMB[:-9]
    ),
    "NIfTI, a bomb": lambda f: write(f, a_nii_gz=gzip.compress(nifti() + RAW + b"\0" * (64 << 20), mtime=0)),
    "NIfTI of complex numbers": lambda f: write(f, a_nii=nifti(kind=32, bits=64) + RAW * 4),
    "NIfTI with an offset of 1e30": lambda f: write(f, a_nii=nifti(_108=struct.pack("<f", 1e30)) + RAW),
    "NIfTI with an offset of NaN": lambda f: write(f, a_nii=nifti(_108=struct.pack("<f", float("nan"))) + RAW),
    "NIfTI with NaN in its affine": lambda f: write(f, a_nii=nifti(_280=struct.pack("<f", float("nan"))) + RAW),
    "NIfTI named as another": lambda f: write(f, a_nii_gz=nifti() + RAW),
    "NRRD, a bomb": lambda f: write(f, a_nrrd=nrrd(BOMB, "gzip")),
    "NRRD of bzip2": lambda f: write(f, a_nrrd=nrrd(RAW, "bzip2")),
    "NRRD as text": lambda f: write(f, a_nrrd=nrrd(b"1 2 3", "ascii")),
    "NRRD whose voxels are outside": lambda f: write(f, a_nhdr=nrrd(b"", data_file="../a.raw"), a_raw=RAW),
    "a text by an image's name": lambda f: write(f, a_nii=b"hello\n" * 100),
    "a PNG by an image's name": lambda f: write(f, a_mha=b"\x89PNG\r\n\x1a\n" + b"\0" * 500),
    "an empty file": lambda f: write(f, a_nrrd=b""),
    "a format that is not read": lambda f: write(f, a_png=b"\x89PNG\r\n\x1a\n" + b"\0" * 500),
    "a folder of nothing": lambda f: write(f, a_txt=b"x").parent,
}


def _with_folder(folder: Path) -> Path:
    path = write(folder, a_mhd=mhd())
    (folder / "a.raw").mkdir()
    return path


@pytest.mark.parametrize("make", SOUND.values(), ids=SOUND.keys())
def test_the_corpus_starts_from_files_that_are_read(tmp_path, make):
    sound(make(tmp_path))


@pytest.mark.parametrize("make", LIES.values(), ids=LIES.keys())
def test_a_lying_file_is_refused_in_one_sentence(tmp_path, make):
    path = make(tmp_path / "x")
    got = outcome(path)
    assert "refused" in got, got
    assert "\n" not in str(got["refused"])
    assert "x" in str(got["refused"])


@pytest.mark.parametrize("make", SOUND.values(), ids=SOUND.keys())
def test_a_truncated_file_is_refused(tmp_path, make):
    for i, share in enumerate((0, 0.01, 0.3, 0.7, 0.999)):
        path = make(tmp_path / str(i))
        biggest = max(path.parent.iterdir(), key=lambda p: p.stat().st_size) if path.suffix != ".mhd" else path
        for victim in {biggest, *path.parent.glob("a.*raw")}:
            content = victim.read_bytes()
            victim.write_bytes(content[: min(int(share * len(content)), len(content) - 2)])
            refused(path)
            victim.write_bytes(content)


@pytest.mark.parametrize("make", SOUND.values(), ids=SOUND.keys())
def test_flipped_bits_crash_and_hang_nothing(tmp_path, make):
    path = make(tmp_path / "x")
    content = path.read_bytes()
    for seed in range(40):
        rng = random.Random(seed)
        changed = bytearray(content)
        for _ in range(rng.choice((1, 1, 3, 10))):
            place = rng.randrange(min(len(changed), 400))
            changed[place] ^= 1 << rng.randrange(8)
        path.write_bytes(changed)
        either(path)


# ------------------------------------------------------------------------------------------------------ DICOM


def dicom(path: Path, z: float, uid: str = "1.2.3", number: int = 1, **change: object) -> Path:
    """One slice of 4 x 5 pixels, 12 bits in 16, slope 1, intercept -1024."""
    import pydicom
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, f"{uid}.{number}"
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    d = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    d.SOPClassUID, d.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    d.SeriesInstanceUID, d.StudyInstanceUID, d.PatientID, d.Modality = uid, f"{uid}.9", "p", "CT"
    d.Rows, d.Columns, d.BitsAllocated, d.BitsStored, d.HighBit, d.PixelRepresentation = 4, 5, 16, 12, 11, 0
    d.SamplesPerPixel, d.PhotometricInterpretation = 1, "MONOCHROME2"
    d.PixelSpacing, d.ImageOrientationPatient = [0.75, 0.5], [1, 0, 0, 0, 1, 0]
    d.ImagePositionPatient, d.InstanceNumber = [0, 0, z], number
    d.RescaleSlope, d.RescaleIntercept = 1, -1024
    d.PixelData = np.full((4, 5), 1000, "<u2").tobytes()
    for key, value in change.items():
        setattr(d, key, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    d.save_as(str(path), enforce_file_format=True)
    assert pydicom is not None
    return path


def series(folder: Path, positions: tuple[float, ...] = (0, 2, 4, 6), **change: object) -> Path:
    for i, z in enumerate(positions):
        dicom(folder / f"{i}.dcm", z, number=i + 1, **change)
    return folder


def spoilt(folder: Path, spoil: Callable[[bytes], bytes]) -> Path:
    path = series(folder) / "2.dcm"
    path.write_bytes(spoil(path.read_bytes()))
    return folder


def with_odd(folder: Path, **change: object) -> Path:
    dicom(series(folder) / "2.dcm", 4, number=3, **change)
    return folder


DICOM = {
    "a missing slice": lambda f: series(f, (0, 2, 6, 8)),
    "a doubled slice": lambda f: series(f, (0, 2, 2, 4)),
    "uneven slices": lambda f: series(f, (0, 2, 4.7, 6)),
    "one slice": lambda f: series(f, (0,)),
    "two series": lambda f: dicom(series(f) / "other.dcm", 0, uid="1.2.4").parent,
    "slices of two sizes": lambda f: with_odd(f, Rows=5, Columns=4),
    "slices of two orientations": lambda f: with_odd(f, ImageOrientationPatient=[0, 1, 0, 1, 0, 0]),
    "slices of two spacings": lambda f: with_odd(f, PixelSpacing=[1, 1]),
    "a torn slice": lambda f: spoilt(f, lambda b: b[:200]),
    "an empty slice": lambda f: spoilt(f, lambda b: b""),
    "a slice of text": lambda f: spoilt(f, lambda b: b"hello" * 100),
    "pixels cut off": lambda f: spoilt(f, lambda b: b[:-11]),
    "rows that lie": lambda f: with_odd(f, Rows=4000),
    "a spacing of 0": lambda f: series(f, PixelSpacing=[0, 0]),
    "a negative spacing": lambda f: series(f, PixelSpacing=[-0.5, 0.5]),
}


def test_a_sound_series_is_read(tmp_path):
    got = outcome(series(tmp_path / "s"))
    assert got.get("read") == [5, 4, 4], got
    assert got["spacing"] == pytest.approx([0.5, 0.75, 2.0])
    assert got["sum"] == -24.0 * 80


@pytest.mark.parametrize("make", DICOM.values(), ids=DICOM.keys())
def test_a_broken_series_is_refused_in_one_sentence(tmp_path, make):
    refused(make(tmp_path / "s"))


def test_flipped_bits_of_a_slice_crash_and_hang_nothing(tmp_path):
    folder = series(tmp_path / "s")
    path = folder / "1.dcm"
    content = path.read_bytes()
    for seed in range(40):
        rng = random.Random(seed)
        changed = bytearray(content)
        for _ in range(rng.choice((1, 3, 10))):
            changed[rng.randrange(128, len(changed))] ^= 1 << rng.randrange(8)
        path.write_bytes(changed)
        either(folder)


# ------------------------------------------------------------------------------------------------ radiographs


def png(width: int = 10, height: int = 12, rows: bytes | None = None, bits: int = 8, kind: int = 0) -> bytes:
    """A grey PNG by hand: what its header says and what its stream holds may differ."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    pixels = b"".join(b"\0" + bytes(range(y, y + 10)) for y in range(12)) if rows is None else rows
    head = struct.pack(">IIBBBBB", width % 2**32, height % 2**32, bits, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(pixels, 9)) + chunk(b"IEND", b"")


def jpeg(folder: Path) -> bytes:
    """Made in a child, so that this process decodes nothing."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.arange(120, dtype=np.uint8).reshape(12, 10)).save(folder / "made.jpg")
    return (folder / "made.jpg").read_bytes()


def film(folder: Path, **change: object) -> Path:
    return dicom(folder / "a.dcm", 0, Modality="DX", **change)


PICTURES: dict[str, Callable[[Path], Path]] = {
    "PNG of width 0": lambda f: write(f, a_png=png(0)),
    "PNG of a negative height": lambda f: write(f, a_png=png(10, -12)),
    "PNG of 2^31 pixels a side": lambda f: write(f, a_png=png(2**31 - 1, 2**31 - 1)),
    "PNG of 60,000 pixels a side": lambda f: write(f, a_png=png(60_000, 60_000)),
    "PNG, a bomb that says so": lambda f: write(f, a_png=png(16_000, 16_000, b"\0" * (16_001 * 16_000))),
    "PNG of 3 bits": lambda f: write(f, a_png=png(bits=3)),
    "PNG of too few rows": lambda f: write(f, a_png=png(rows=b"\0" * 30)),
    "PNG with a wrong checksum": lambda f: write(f, a_png=png()[:-20] + b"\xff" + png()[-19:]),
    "PNG cut in its header": lambda f: write(f, a_png=png()[:20]),
    "PNG cut in its pixels": lambda f: write(f, a_png=png()[:50]),
    "JPEG cut": lambda f: write(f, a_jpg=jpeg(f)[:150]),
    "no picture": lambda f: write(f, a_png=b"hello\n" * 50),
    "a GIF by a PNG's name": lambda f: write(f, a_png=b"GIF89a" + b"\0" * 100),
    "an empty file": lambda f: write(f, a_png=b""),
    "DICOM whose rows lie": lambda f: film(f, Rows=4000, Columns=4000),
    "DICOM of 65,535 x 65,535": lambda f: film(f, Rows=65_535, Columns=65_535),
    "DICOM of 0 rows": lambda f: film(f, Rows=0),
    "DICOM of a billion frames": lambda f: film(f, NumberOfFrames=10**9),
    "DICOM of 7 bits": lambda f: film(f, BitsAllocated=7, BitsStored=7, HighBit=6),
    "DICOM without pixels": lambda f: film(f, PixelData=b""),
    "DICOM cut": lambda f: _cut(film(f), 300),
}


def _cut(path: Path, size: int) -> Path:
    path.write_bytes(path.read_bytes()[:size])
    return path


def test_the_corpus_of_pictures_starts_from_what_is_read(tmp_path):
    for path in (write(tmp_path / "p", a_png=png()), write(tmp_path / "j", a_jpg=jpeg(tmp_path)), film(tmp_path / "d")):
        assert outcome(path, as_picture).get("read") == [8, 8], path


@pytest.mark.parametrize("make", PICTURES.values(), ids=PICTURES.keys())
def test_a_broken_picture_is_refused_in_one_sentence(tmp_path, make):
    refused(make(tmp_path / "x"), as_picture)


def test_a_stream_longer_than_its_picture_is_not_inflated_to_its_end(tmp_path):
    either(write(tmp_path, a_png=png(rows=b"\0" * (256 << 20))), as_picture)


@pytest.mark.parametrize("kind", ["png", "jpg", "dcm"])
def test_flipped_bits_of_a_picture_crash_and_hang_nothing(tmp_path, kind):
    path = tmp_path / f"a.{kind}"
    content = {"png": lambda: png(), "jpg": lambda: jpeg(tmp_path), "dcm": lambda: film(tmp_path).read_bytes()}[kind]()
    for seed in range(40):
        rng = random.Random(seed)
        changed = bytearray(content)
        for _ in range(rng.choice((1, 3, 10))):
            changed[rng.randrange(8 if kind != "dcm" else 128, len(changed))] ^= 1 << rng.randrange(8)
        path.write_bytes(changed)
        either(path, as_picture)


# ------------------------------------------------------------------------------------------------- the parsers

WORD = st.text(st.characters(min_codepoint=9, max_codepoint=255), max_size=20)
NUMBER = st.one_of(st.integers(-(2**70), 2**70), st.floats(), WORD).map(str)
FUZZ = settings(max_examples=150, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])


def only_ours(path: Path) -> None:
    """The parser returns, or raises one of our errors in one line."""
    said = ""
    try:
        check_file(path)
    except PcrlError as error:
        said = str(error)
    assert "\n" not in said


@FUZZ
@given(st.dictionaries(st.sampled_from(["NDims", "DimSize", "ElementType", "HeaderSize", "CompressedData",
                                        "CompressedDataSize", "BinaryData", "ElementNumberOfChannels"]), NUMBER),
       st.sampled_from(["a.raw", "LOCAL", "LIST", "", "..", "a\0b", "x" * 5000, "\xeb" * 200]))  # fmt: skip
def test_any_metaimage_header_is_parsed_or_refused(tmp_path, fields, data):
    only_ours(write(tmp_path, a_mhd=mhd(data, **fields), a_raw=RAW))


@FUZZ
@given(st.binary(max_size=600))
def test_any_bytes_are_parsed_or_refused(tmp_path, content):
    for name in ("a_mhd", "a_nii", "a_nii_gz", "a_nrrd"):
        only_ours(write(tmp_path, **{name: content}))
    only_ours(write(tmp_path, a_nii_gz=gzip.compress(content)))


@FUZZ
@given(st.integers(0, 347), st.binary(min_size=1, max_size=16))
def test_any_change_of_a_nifti_header_is_parsed_or_refused(tmp_path, place, value):
    only_ours(write(tmp_path, a_nii=nifti(**{f"_{place}": value})[:352] + RAW))


@FUZZ
@given(st.dictionaries(st.sampled_from(["sizes", "dimension", "type", "encoding", "byte_skip", "data_file"]), NUMBER))
def test_any_nrrd_header_is_parsed_or_refused(tmp_path, fields):
    only_ours(write(tmp_path, a_nrrd=nrrd(RAW, **({"encoding": "raw"} | fields))))
