"""One's own scans: a tree of NIfTI, MetaImage and NRRD files and DICOM series, in any arrangement."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pcrl_cli.core.case import Case
from pcrl_cli.core.errors import DataError
from pcrl_cli.data.volume import Volume
from pcrl_cli.readers.headers import suffix
from pcrl_cli.readers.image_io import PLAIN, dicom_facts
from pcrl_cli.readers.tables import patients_by, require_folder, safe_name, walk_files
from pcrl_cli.readers.volume_io import SUFFIXES, dicom_patient, dicom_series, is_dicom, read_volume, volume_files

NAME = "folder"
KIND = "crops"
OPTIONS: tuple[str, ...] = ("patients",)
CITATION = "the user's own data"
LICENSE = "unknown: the user's own data"
CLASSES: tuple[str, ...] = ()
MODALITY = "ct"  # unless `--modality mr` says otherwise
IMAGES = "pcrl_cli.readers.image_folder"
"""Reads such folders of radiographs."""
WITH_MASKS = "pcrl_cli.readers.masked_folder"
"""Reads the same scans with masks."""

_WHAT = "scans (NIfTI, MHD, NRRD or DICOM series)"
_LONGEST_ID = 120
_PLATES = frozenset(("CR", "DX", "MG", "RG", "PX", "IO"))  # DICOM modalities of single pictures
_MASK = re.compile(r"((^|[_-])seg|segmentation|masks?|labels?)$", re.IGNORECASE)


@dataclass(frozen=True)
class _Found:
    """A scan: the name that its id is made of, what to read, its path below the root, its PatientID if DICOM."""

    name: str
    path: Path
    where: str
    patient: str | None = None


def module_for(root: Path, labels: Path | None = None) -> str:
    """The module that reads what lies below `root`: this one volumes, `image_folder` radiographs.

    A table of labels is for radiographs; else PNG and JPEG files say that it is they, and volume files the contrary. DICOM
    files are radiographs where the first one's modality is theirs (CR, DX, MG, ...).

    Raises:
        DataError: no folder, nothing in it, or pictures and volumes side by side.
    """
    root = require_folder(root, f"{_WHAT} or radiographs")
    if labels is not None:
        return IMAGES
    picture, volume, dicom = None, None, None
    for folder, names in walk_files(root):
        for name in names:
            if suffix(folder / name) in SUFFIXES:
                volume = volume or folder / name
            elif name.lower().endswith(PLAIN):
                picture = picture or folder / name
            elif dicom is None and is_dicom(folder / name):
                dicom = folder / name
    if dicom is not None:
        if dicom_facts(dicom)[1] in _PLATES:
            picture = picture or dicom
        else:
            volume = volume or dicom
    if picture and volume:
        raise DataError(
            f"{root} holds pictures ({picture.relative_to(root)}) and volumes ({volume.relative_to(root)}), which no one "
            "cache can hold: put them into two folders, or list the pictures in a table for --labels."
        )
    return IMAGES if picture else __name__


def cases(root: Path, patients: Path | None = None) -> list[Case]:
    """Every scan below `root`, sorted by id; hidden and unrelated files are passed over, and so are those that are named
    like masks (`_seg`, `-seg`, `segmentation`, `mask`, `label` at the end; see `remarks`).

    Of several DICOM series in one folder each is a case. An id is the path below `root` without its ending, made safe
    as a file name, with 8 hexadecimal digits of its hash only where two would be equal. A scan counts as a patient of
    its own, and DICOM series of one PatientID as one patient, unless `patients` says otherwise: a CSV with the columns
    patient and path (of the file, or of a DICOM series' folder, below `root`) or case (the id).

    Raises:
        DataError: no folder, nothing in it, no scan, or a malformed table.
    """
    root = require_folder(root, _WHAT)
    found = list(_find(root))
    if not found:
        masks = " but files that are named like masks" if _masks(root) else ""
        raise DataError(f"{root} holds no scan{masks}: put {_WHAT} there, or give --data DIR.")
    names = [_plain_id(scan.name) for scan in found]
    count = Counter(name.lower() for name in names)
    ids = [
        _hashed(plain, f"{scan.name} {scan.where}") if count[plain.lower()] > 1 or len(plain) > _LONGEST_ID else plain
        for plain, scan in zip(names, found, strict=True)
    ]
    known = {*ids, *(scan.where for scan in found)}
    table = patients_by(Path(patients), ("path", "case"), known) if patients else {}
    listed = [
        Case(case_id, table.get(case_id) or table.get(scan.where) or scan.patient or case_id, scan.path)
        for case_id, scan in zip(ids, found, strict=True)
    ]
    return sorted(listed, key=lambda case: case.id)


def remarks(root: Path, cases: Iterable[Case], patients: Path | None = None) -> list[str]:
    """Sentences that the user should read: files passed over as masks, and DICOM series that are all of one patient."""
    said, masks = [], _masks(Path(root))
    if masks:
        said.append(
            f"{len(masks)} files are named like masks and were passed over ({masks[0]}{', ...' * (len(masks) > 1)}); "
            "rename those that are scans"
        )
    people = Counter(case.patient for case in cases)
    if len(people) == 1 and people.total() > 1:
        said.append(
            f"all {people.total()} scans are of one patient ({next(iter(people))!r}), so all are in one part of the "
            "split; if they are not, say which is whose with --patients"
        )
    return said


def read(case: Case) -> Volume:
    """The scan, CT in HU.

    Raises:
        DataError: see `volume_io.read_volume`.
    """
    return read_volume(case.path)


def files(case: Case) -> list[Path]:
    """What `read` reads: the image file and the file of voxels that it names, or the files of the DICOM folder."""
    return volume_files(case.path)


def _find(root: Path) -> Iterator[_Found]:
    for here, names in walk_files(root):
        others = []
        for name in names:
            path = here / name
            if suffix(path) not in SUFFIXES:
                others.append(path)
            elif not _is_mask(path):
                where = path.relative_to(root).as_posix()
                yield _Found(where[: -len(suffix(path))], path, where)
        if any(is_dicom(path) for path in others):
            yield from _find_series(here, here.relative_to(root).as_posix())


def _find_series(folder: Path, where: str) -> Iterator[_Found]:
    name = folder.name if where == "." else where
    series = dicom_series(folder)
    for uid, files in series.items():
        patient = dicom_patient(files[0])
        if len(series) == 1:
            yield _Found(name, folder, where, patient)
        else:
            yield _Found(f"{name}/{uid}", files[0], where, patient)


def _masks(root: Path) -> list[str]:
    """The image files that are named like masks, by their paths below the root."""
    paths = (here / name for here, names in walk_files(root) for name in names)
    return [path.relative_to(root).as_posix() for path in paths if suffix(path) in SUFFIXES and _is_mask(path)]


def _is_mask(path: Path) -> bool:
    return bool(_MASK.search(path.name[: -len(suffix(path))]))


def _plain_id(name: str) -> str:
    return safe_name("-".join(PurePosixPath(name).parts))


def _hashed(plain: str, unique: str) -> str:
    return f"{plain[:_LONGEST_ID]}-{hashlib.sha256(unique.encode()).hexdigest()[:8]}"


def is_mask(path: Path) -> bool:
    """Whether an image file is named like a mask, and so is no scan."""
    return _is_mask(path)
