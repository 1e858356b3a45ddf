"""One's own scans: a tree of NIfTI, MetaImage and NRRD files and DICOM series, in any arrangement."""

import hashlib
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from pcrl_cli.core.case import Case
from pcrl_cli.core.errors import DataError
from pcrl_cli.data.volume import Volume
from pcrl_cli.readers.headers import suffix
from pcrl_cli.readers.tables import patients_by, require_folder, safe_name
from pcrl_cli.readers.volume_io import SUFFIXES, dicom_series, is_dicom, read_volume

NAME = "folder"
CITATION = "the user's own data"
LICENSE = "unknown: the user's own data"
CLASSES: tuple[str, ...] = ()
MODALITY = "ct"  # unless `--modality mr` says otherwise

_WHAT = "scans (NIfTI, MHD, NRRD or DICOM series)"
_LONGEST_ID = 120


def cases(root: Path, patients: Path | None = None) -> list[Case]:
    """Every scan below `root`, sorted by id; hidden and unrelated files are passed over.

    Of several DICOM series in one folder each is a case. An id is the path below `root` without its ending, made safe
    as a file name, with 8 hexadecimal digits of its hash only where two would be equal. A scan counts as a patient of
    its own, unless `patients` says otherwise: a CSV with the columns patient and path (of the file, or of a DICOM
    series' folder, below `root`) or case (the id).

    Raises:
        DataError: no folder, nothing in it, no scan, or a malformed table.
    """
    root = require_folder(root, _WHAT)
    found = list(_find(root))
    if not found:
        raise DataError(f"{root} holds no scan: put {_WHAT} there, or give --data DIR.")
    names = [_plain_id(name) for name, _, _ in found]
    count = Counter(name.lower() for name in names)
    ids = [
        _hashed(plain, f"{name} {where}") if count[plain.lower()] > 1 or len(plain) > _LONGEST_ID else plain
        for plain, (name, _, where) in zip(names, found, strict=True)
    ]
    known = {*ids, *(where for _, _, where in found)}
    patient_of = patients_by(Path(patients), ("path", "case"), known) if patients else {}
    listed = [
        Case(case_id, patient_of.get(case_id, patient_of.get(where, case_id)), path)
        for case_id, (_, path, where) in zip(ids, found, strict=True)
    ]
    return sorted(listed, key=lambda case: case.id)


def read(case: Case) -> Volume:
    """The scan, CT in HU.

    Raises:
        DataError: see `volume_io.read_volume`.
    """
    return read_volume(case.path)


def _find(root: Path) -> Iterator[tuple[str, Path, str]]:
    """Of each scan: a name to make its id of, what to read, and its path below the root for the table of patients."""
    for folder, below, files in os.walk(root):
        below[:] = sorted(name for name in below if not name.startswith("."))
        here, others = Path(folder), []
        for name in sorted(files):
            path = here / name
            if name.startswith("."):
                continue
            if suffix(path) in SUFFIXES:
                where = path.relative_to(root).as_posix()
                yield where[: -len(suffix(path))], path, where
            else:
                others.append(path)
        if any(is_dicom(path) for path in others):
            yield from _find_series(here, here.relative_to(root).as_posix())


def _find_series(folder: Path, where: str) -> Iterator[tuple[str, Path, str]]:
    name = folder.name if where == "." else where
    series = dicom_series(folder)
    for uid, files in series.items():
        if len(series) == 1:
            yield name, folder, where
        else:
            yield f"{name}/{uid}", files[0], where


def _plain_id(name: str) -> str:
    return safe_name("-".join(PurePosixPath(name).parts))


def _hashed(plain: str, unique: str) -> str:
    return f"{plain[:_LONGEST_ID]}-{hashlib.sha256(unique.encode()).hexdigest()[:8]}"
