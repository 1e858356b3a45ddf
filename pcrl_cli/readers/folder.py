"""One's own scans: a tree of NIfTI, MetaImage and NRRD files and DICOM series, in any arrangement.

Maybe with a table of labels, which `label_table` describes; it names a scan by its `path` (of the file, or of a DICOM
series' folder, below the data folder) or by its `case`, the id.
"""

import re
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path

from pcrl_cli.core.case import Case
from pcrl_cli.core.errors import DataError
from pcrl_cli.data.volume import Volume
from pcrl_cli.readers.headers import suffix
from pcrl_cli.readers.image_io import PLAIN, dicom_facts
from pcrl_cli.readers.label_table import CASE, LabelTable, classes_of, read_labels, require_one_part
from pcrl_cli.readers.shards import empty_classes
from pcrl_cli.readers.tables import (
    PATH,
    below,
    note_name,
    of_one_patient,
    patients_by,
    require_folder,
    safe_ids,
    same_name,
    walk,
    walk_files,
)
from pcrl_cli.readers.volume_io import SUFFIXES, dicom_patient, dicom_series, is_dicom, read_volume, volume_files

NAME = "folder"
KIND = "crops"
OPTIONS: tuple[str, ...] = ("labels", "patients")
CITATION = "the user's own data"
LICENSE = "unknown: the user's own data"
CLASSES: tuple[str, ...] = ()  # those of the table: see `classes`
MODALITY = "ct"  # unless `--modality mr` says otherwise
IMAGES = "pcrl_cli.readers.image_folder"
"""Reads such folders of radiographs."""
WITH_MASKS = "pcrl_cli.readers.masked_folder"
"""Reads the same scans with masks."""

KEYS = (PATH, CASE)
"""Columns that may name a scan in a table."""

_WHAT = "scans (NIfTI, MHD, NRRD or DICOM series)"
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

    What a table of labels lists decides, where it says. Else PNG and JPEG files say that it is radiographs, and volume
    files the contrary; DICOM files are radiographs where the first one's modality is theirs (CR, DX, MG, ...).

    Raises:
        DataError: no folder, nothing in it, or pictures and volumes side by side.
    """
    root = require_folder(root, f"{_WHAT} or radiographs")
    listed = _listed(root, Path(labels)) if labels is not None else None
    if listed is not None:
        return listed
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


def _listed(root: Path, labels: Path) -> str | None:
    """The module that reads what a table lists; None where nothing of it is there by its path.

    Raises:
        DataError: it lists pictures and volumes; a malformed table.
    """
    table = read_labels(labels, root, KEYS)
    if table.key == CASE:
        return __name__
    volumes, pictures = list[str](), list[str]()
    for folder, names in walk_files(root):
        if (name := below(root, folder)) in table.rows:
            volumes.append(name)
        for name in (name for file in names if (name := below(root, folder / file)) in table.rows):
            (volumes if suffix(Path(name)) in SUFFIXES else pictures).append(name)
    if volumes and pictures:
        raise DataError(
            f"{labels} lists pictures ({pictures[0]}) and volumes ({volumes[0]}), which "
            "no one cache can hold: make two tables of it, and prepare each into its own --out."
        )
    return __name__ if volumes else IMAGES if pictures else None


def cases(root: Path, patients: Path | None = None, labels: Path | None = None) -> list[Case]:
    """Every scan below `root`, sorted by id; hidden and unrelated files are passed over, and so are those that are named
    like masks (`_seg`, `-seg`, `segmentation`, `mask`, `label` at the end; see `remarks`).

    Of several DICOM series in one folder each is a case. An id is the path below `root` without its ending, made safe
    as a file name, with 8 hexadecimal digits of its hash only where two would be equal. A scan counts as a patient of
    its own, and DICOM series of one PatientID as one patient, unless `patients` says otherwise: a CSV with the columns
    patient and path (of the file, or of a DICOM series' folder, below `root`) or case (the id).

    labels: the table; a scan that it does not list is left out (see `remarks`), and rows without a scan are counted by
    `absent_rows`. What it lists is a scan whatever its name. Its patients count where `patients` does not name them.

    Raises:
        DataError: no folder, nothing in it, no scan, a malformed table, or one that puts a patient into two parts.
    """
    root = require_folder(root, _WHAT)
    known = read_labels(Path(labels), root, KEYS) if labels else None
    found = list(_find(root, frozenset(known.rows) if known else frozenset()))
    if not found:
        masks = " but files that are named like masks" if _masks(root) else ""
        raise DataError(f"{root} holds no scan{masks}: put {_WHAT} there, or give --data DIR.")
    _require_different(found)
    ids = safe_ids([scan.name for scan in found], [f"{scan.name} {scan.where}" for scan in found])
    names_of = {*ids, *(scan.where for scan in found)}
    table = patients_by(Path(patients), KEYS, names_of, root) if patients else {}
    listed = [
        Case(case_id, table.get(case_id) or table.get(scan.where) or scan.patient or case_id, scan.path)
        for case_id, scan in zip(ids, found, strict=True)
    ]
    if known is not None:
        listed = _labelled(listed, found, known, set(table), Path(labels or ""))
    return sorted(listed, key=lambda case: case.id)


def _labelled(
    cases: Sequence[Case], found: Sequence[_Found], table: LabelTable, grouped: Set[str], labels: Path
) -> list[Case]:
    """The scans that a table lists, with what it says of them. grouped: whose patients another table names.

    Raises:
        DataError: it lists none, says one thing of several series, or puts a patient into two parts.
    """
    _require_one_series(cases, found, table, labels)
    listed = []
    for case, scan in zip(cases, found, strict=True):
        row = table.rows.get(case.id) or table.rows.get(scan.where)
        if row is not None:
            named = case.id in grouped or scan.where in grouped
            patient = case.patient if named else row.patient or case.patient
            listed.append(replace(case, patient=patient, label=row.label, part=row.part))
    if not listed:
        raise DataError(f"{labels} names none of the {len(cases)} scans: check its column {table.key!r}.")
    require_one_part(listed, labels)
    return listed


def _require_one_series(cases: Sequence[Case], found: Sequence[_Found], table: LabelTable, labels: Path) -> None:
    """A row of a folder is of the one series in it.

    Raises:
        DataError: there are several.
    """
    beside: dict[str, list[str]] = {}
    for case, scan in zip(cases, found, strict=True):
        beside.setdefault(scan.where, []).append(case.id)
    for where, ids in beside.items():
        if len(ids) > 1 and where in table.rows:
            raise DataError(
                f"{labels} has one row for {where}, which holds {len(ids)} DICOM series: give each a row of its own, by its id "
                f"in a column {CASE!r} in place of {PATH!r} ({', '.join(sorted(ids)[:2])}{', ...' * (len(ids) > 2)})."
            )


def _require_different(found: Iterable[_Found]) -> None:
    """Raises:
    DataError: two files have one name but for how it is stored, so that their ids would be one.
    """
    known: dict[tuple[str, str], Path] = {}
    for scan in found:
        note_name(known, (scan.name, scan.where), scan.path)


def classes(labels: Path | None) -> tuple[str, ...]:
    """The names of the table's classes; see `label_table.classes_of`.

    Raises:
        DataError: a malformed table, or one without a class.
    """
    return classes_of(Path(labels), KEYS) if labels else ()


def absent_rows(
    root: Path, cases: Iterable[Case], patients: Path | None = None, labels: Path | None = None
) -> dict[str, int]:
    """How many scans the table of labels lists that are not among `cases`, by the table's name."""
    if labels is None:
        return {}
    rows = read_labels(Path(labels), Path(root), KEYS).rows
    return {Path(labels).name: len(rows.keys() - _names(Path(root), cases))}


def _names(root: Path, cases: Iterable[Case]) -> set[str]:
    """What a table may call these scans: ids, paths of files, folders of DICOM series."""
    return {name for case in cases for name in (case.id, where_of(case.path, root))}


def where_of(path: Path, root: Path) -> str:
    """What a table calls a scan that is read from a path: the file below the root, or the folder of its DICOM series."""
    return below(root, path if path.is_dir() or suffix(path) in SUFFIXES else path.parent)


def remarks(root: Path, cases: Iterable[Case], patients: Path | None = None, labels: Path | None = None) -> list[str]:
    """Sentences that the user should read: scans left out, files passed over as masks, classes that nobody has, DICOM
    series that are all of one patient.
    """
    said, rows = [], read_labels(Path(labels), Path(root), KEYS).rows if labels else {}
    masks = [name for name in _masks(Path(root)) if name not in rows]
    if labels is not None:
        here = {case.path for case in cases}
        unlisted = [scan.where for scan in _find(Path(root), frozenset(rows)) if scan.path not in here]
        if unlisted:
            said.append(f"{len(unlisted)} scans are not in {labels} (the first: {min(unlisted)}) and were left out")
        said += empty_classes(cases, classes(labels))
    if masks:
        said.append(
            f"{len(masks)} files are named like masks and were passed over ({masks[0]}{', ...' * (len(masks) > 1)}); "
            "rename those that are scans"
        )
    return [*said, *of_one_patient((case.patient for case in cases), "scans")]


def read(case: Case) -> Volume:
    """The scan, CT in HU.

    Raises:
        DataError: see `volume_io.read_volume`.
    """
    return read_volume(case.path)


def files(case: Case) -> list[Path]:
    """What `read` reads: the image file and the file of voxels that it names, or the files of the DICOM folder."""
    return volume_files(case.path)


def _find(root: Path, listed: Set[str] = frozenset()) -> Iterator[_Found]:
    """Every scan. listed: paths that a table names, which are scans even where they are named like masks."""
    for here, names in walk_files(root):
        others = []
        for name in names:
            path = here / name
            if suffix(path) not in SUFFIXES:
                others.append(path)
            elif not is_mask(path) or below(root, path) in listed:
                where = below(root, path)
                yield _Found(where[: -len(suffix(path))], path, where)
        if any(is_dicom(path) for path in others):
            yield from _find_series(here, below(root, here))


def _find_series(folder: Path, where: str) -> Iterator[_Found]:
    name = same_name(folder.name) if where == "." else where
    series = dicom_series(folder)
    for uid, files in series.items():
        patient = dicom_patient(files[0])
        if len(series) == 1:
            yield _Found(name, folder, where, patient)
        else:
            yield _Found(f"{name}/{uid}", files[0], where, patient)


def _masks(root: Path) -> list[str]:
    """The image files that are named like masks, by their paths below the root."""
    return [below(root, path) for path in walk(root) if suffix(path) in SUFFIXES and is_mask(path)]


def is_mask(path: Path) -> bool:
    """Whether an image file is named like a mask, and so is no scan."""
    return bool(_MASK.search(path.name[: -len(suffix(path))]))
