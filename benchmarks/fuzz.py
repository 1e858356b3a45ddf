"""Parsers of files that nobody vouches for under a fuzzer that looks at which lines an input reaches (atheris).

    python -m benchmarks.fuzz [PARSER ...] [--seconds 300] [--work DIR] [--write docs/reliability.md]

atheris is no dependency of pcrl nor of its tests: `pip install atheris` first, best into an environment of its own beside
pcrl's libraries. Every parser runs in a process of its own, with 2 GB of memory and 20 s an input, from a few sound files
and what earlier runs found worth keeping in DIR. An input that ends in anything but a value or one of pcrl's errors in
one line ends that process and is kept in DIR/PARSER/. Ends with 1 if there was one.
"""

import argparse
import gzip
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from pcrl_cli.core.errors import PcrlError

Read = Callable[[Path], object]
INSTRUMENTED = ["pcrl_cli.readers", "pcrl_cli.networks.transfer", "pcrl_cli.networks.open_torch", "pydicom", "zipfile"]
VOXELS = np.arange(60, dtype="<i2")


@dataclass(frozen=True)
class Parser:
    """name: of the file that each input becomes, whose ending says the format.

    reader: imports what is fuzzed, under instrumentation, and returns it. seeds: sound files.
    """

    name: str
    reader: Callable[[], Read]
    seeds: Callable[[], list[bytes]]
    packed: bool = False
    """Inputs are compressed with gzip before they are read, so that changes reach the header inside."""


def _headers() -> Read:
    from pcrl_cli.readers.headers import check_file

    return check_file


def _picture() -> Read:
    import pydicom.filereader
    import pydicom.pixels  # noqa: F401  imported late by the reader, too late to be instrumented

    from pcrl_cli.readers.image_io import read_image

    return lambda path: read_image(path, 8)


def _weights() -> Read:
    from pcrl_cli.networks.transfer import read_weights

    return read_weights


def _archive() -> Read:
    from pcrl_cli.networks.open_torch import Unsafe, check_archive

    def read(path: Path) -> None:
        try:
            check_archive(path)
        except Unsafe as error:
            raise PcrlError(str(error).replace("\n", " ")) from None

    return read


def _metaimages() -> list[bytes]:
    head = b"ObjectType = Image\nNDims = 3\nDimSize = 5 4 3\nElementType = MET_SHORT\n%sElementDataFile = LOCAL\n"
    import zlib

    packed = zlib.compress(VOXELS.tobytes())
    more = b"CompressedData = True\nCompressedDataSize = %d\n" % len(packed)
    return [head % b"ElementSpacing = 1 1 2\n" + VOXELS.tobytes(), head % more + packed]


def _niftis() -> list[bytes]:
    import struct

    one, two = bytearray(352), bytearray(544)
    struct.pack_into("<i", one, 0, 348)
    struct.pack_into("<8h", one, 40, 3, 5, 4, 3, 1, 1, 1, 1)
    struct.pack_into("<2h", one, 70, 4, 16)
    struct.pack_into("<f", one, 108, 352.0)
    one[344:348] = b"n+1\0"
    struct.pack_into(">i", two, 0, 540)
    two[4:12] = b"n+2\0\r\n\x1a\n"
    struct.pack_into(">h", two, 12, 16)
    struct.pack_into(">8q", two, 16, 3, 5, 4, 3, 1, 1, 1, 1)
    struct.pack_into(">q", two, 168, 544)
    return [bytes(one) + VOXELS.tobytes(), bytes(two) + VOXELS.astype(">f4").tobytes()]


def _nrrds() -> list[bytes]:
    head = "NRRD0004\ntype: short\ndimension: 3\nsizes: 5 4 3\nendian: little\nencoding: {}\n\n"
    packed = gzip.compress(VOXELS.tobytes(), mtime=0)
    return [head.format("raw").encode() + VOXELS.tobytes(), head.format("gzip").encode() + packed]


def _pictures() -> list[bytes]:
    from PIL import Image

    made = []
    for mode, kind in (("L", "PNG"), ("RGB", "PNG"), ("P", "PNG"), ("I;16", "PNG"), ("L", "JPEG")):
        file = io.BytesIO()
        Image.new(mode, (9, 7)).save(file, kind)
        made.append(file.getvalue())
    return made


def _dicoms() -> list[bytes]:
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid

    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = UID("1.2.840.10008.5.1.4.1.1.1.1")
    data.file_meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=["pcrl"])
    data.Rows, data.Columns, data.SamplesPerPixel, data.PixelRepresentation = 6, 5, 1, 0
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, 12, 11
    data.PhotometricInterpretation, data.WindowCenter, data.WindowWidth = "MONOCHROME1", "30", "50"
    data.RescaleSlope, data.RescaleIntercept = "1", "0"
    data.PixelData = np.arange(30, dtype="<u2").tobytes()
    file = io.BytesIO()
    data.save_as(file, enforce_file_format=True)
    return [file.getvalue()]


def _safetensors() -> list[bytes]:
    from safetensors.numpy import save

    return [save({"a": np.ones((2, 3), np.float32), "n": np.array(3)}, {"contract": "{}"})]


def _archives() -> list[bytes]:
    import torch

    file = io.BytesIO()
    torch.save({"state_dict": {"w": torch.ones(2)}}, file)
    return [file.getvalue()]


PARSERS = {
    "metaimage": Parser("a.mha", _headers, _metaimages),
    "nifti": Parser("a.nii", _headers, _niftis),
    "nifti_gz": Parser("a.nii.gz", _headers, _niftis, packed=True),
    "nrrd": Parser("a.nrrd", _headers, _nrrds),
    "picture": Parser("a.png", _picture, _pictures),
    "dicom": Parser("a.dcm", _picture, _dicoms),
    "safetensors": Parser("a.safetensors", _weights, _safetensors),
    "archive": Parser("a.pt", _archive, _archives),
}


def one(read: Read, path: Path, content: bytes) -> None:
    """A parser returns, or refuses in one line; anything else gets out of here."""
    path.write_bytes(content)
    try:
        read(path)
    except PcrlError as error:
        if "\n" in str(error):
            raise AssertionError(f"more than a line: {error}") from None


def fuzz(name: str, work: Path, seconds: int) -> None:
    """Never returns: libFuzzer ends the process."""
    import atheris

    parser, folder = PARSERS[name], work / name
    (folder / "corpus").mkdir(parents=True, exist_ok=True)
    with atheris.instrument_imports(include=INSTRUMENTED, enable_loader_override=False):
        read = parser.reader()
    for i, content in enumerate(parser.seeds()):
        (folder / "corpus" / f"seed{i}").write_bytes(content)
    scratch = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None)) / parser.name
    pack: Callable[[bytes], bytes] = (lambda data: gzip.compress(data, 1)) if parser.packed else (lambda data: data)
    limits = [f"-max_total_time={seconds}", "-max_len=4096", "-rss_limit_mb=2048", "-timeout=20"]
    options = [*limits, "-print_final_stats=1", "-verbosity=1", f"-artifact_prefix={folder}/"]
    atheris.Setup([sys.argv[0], *options, str(folder / "corpus")], lambda data: one(read, scratch, pack(data)))
    atheris.Fuzz()


def outcome(name: str, work: Path, seconds: int) -> dict[str, Any]:
    """What came of fuzzing one parser in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.fuzz", name, "--here", "--seconds", str(seconds), "--work", str(work)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    executed = re.search(r"number_of_executed_units:\s*(\d+)", done.stderr)
    reached = re.findall(r"cov: (\d+)", done.stderr)
    failed = done.returncode != 0
    kept = sorted(p.name for p in (work / name).glob("*-*") if p.is_file()) if failed else []
    said = done.stderr.strip()[-1500:] if failed else ""
    return {
        "executions": int(executed[1]) if executed else 0,
        "edges": int(reached[-1]) if reached else 0,
        "failed": failed,
        "kept": kept,
        "said": said,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="PARSER", help=f"of {', '.join(PARSERS)} (default: all)")
    parser.add_argument("--seconds", type=int, default=300, help="of each parser")
    parser.add_argument("--jobs", type=int, default=1, help="parsers at once")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / f"pcrl-fuzz-{os.getuid()}")
    parser.add_argument("--write", type=Path, help="put a row into this page")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    names = options.names or list(PARSERS)
    unknown = sorted(set(names) - PARSERS.keys())
    if unknown:
        parser.error(f"{unknown[0]} is none of {', '.join(PARSERS)}")
    if find_spec("atheris") is None:
        parser.error("atheris is not here; pip install atheris")
    if options.here:
        fuzz(names[0], options.work, options.seconds)
    began = time.monotonic()
    with ThreadPoolExecutor(options.jobs) as pool:
        found = dict(
            zip(names, pool.map(lambda name: outcome(name, options.work, options.seconds), names), strict=True)
        )
    for name, result in found.items():
        print(
            f"{name}: {result['executions']} executions, {result['edges']} edges, {'FAILED' if result['failed'] else 'ok'}"
        )
        print(result["said"], end="\n" if result["said"] else "")
    (options.work / "results.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    if options.write:
        _write(options.write, found, options.seconds, (time.monotonic() - began) / 60)
    raise SystemExit(int(any(result["failed"] for result in found.values())))


def _write(page: Path, found: dict[str, dict[str, Any]], seconds: int, minutes: float) -> None:
    from benchmarks.reliability.__main__ import machine, write

    each = ", ".join(f"{name} {result['executions']}" for name, result in found.items())
    line = {
        "name": "parsers under a fuzzer",
        "target": "0 crashes, 0 hangs",
        "trials": sum(result["executions"] for result in found.values()),
        "failures": [name for name, result in found.items() if result["failed"]],
        "date": time.strftime("%Y-%m-%d"),
        "minutes": minutes,
        "note": f"`benchmarks/fuzz.py`, {seconds} s a parser; executions: {each}",
        "machine": machine(),
    }
    write(page, {"fuzzed": line})


if __name__ == "__main__":
    main()
