"""One's own radiographs: a tree of PNG, JPEG and DICOM files, with a table of labels or none; `prep folder` reads it.

What the table holds is said in `label_table`.
"""

from collections.abc import Iterable
from pathlib import Path

from pcrl_cli.core.case import Case, ImageRef
from pcrl_cli.core.errors import DataError
from pcrl_cli.core.plan import Pictures
from pcrl_cli.readers import shards
from pcrl_cli.readers.image_io import PLAIN, Aspect, dicom_facts
from pcrl_cli.readers.label_table import Row, classes_of, read_labels, require_one_part
from pcrl_cli.readers.tables import PATH, below, note_name, of_one_patient, patients_by, require_folder, walk
from pcrl_cli.readers.volume_io import is_dicom

NAME = "folder"
CITATION = "the user's own data"
LICENSE = "unknown: the user's own data"
CLASSES: tuple[str, ...] = ()  # those of the table: see `classes`
MODALITY = "xray"
KIND = "images"
OPTIONS = ("labels", "patients")
WITH_MASKS = "pcrl_cli.readers.masked_images"
"""Reads the same pictures with masks."""

_WHAT = "radiographs (PNG, JPEG or single DICOM files)"


def cases(root: Path, labels: Path | None = None, patients: Path | None = None) -> list[Case]:
    """Shards of the radiographs below `root`, by their paths below it, which are their ids.

    labels: the table; what it does not list is left out (see `remarks`), and rows without a file are counted by
    `absent_rows`. Without it every picture is taken and nothing is known of it. A picture belongs to the patient that
    `patients` (a CSV with the columns path and patient) names, else the table of labels, else its DICOM header, and
    counts as a patient of its own if none does.

    Raises:
        DataError: no folder, no picture, two of one name, a malformed table, or one that puts a patient into two parts.
    """
    root = require_folder(root, _WHAT)
    there = _pictures(root)
    if not there:
        raise DataError(f"{root} holds no picture: put {_WHAT} there, or give --data DIR.")
    known = read_labels(Path(labels), root).rows if labels else dict.fromkeys(there, Row("", ()))
    if not known.keys() & there.keys():
        raise DataError(f"{labels} names none of the {len(there)} pictures in {root}: check its column {PATH!r}.")
    whose = patients_by(Path(patients), (PATH,), set(there), root) if patients else {}
    listed = shards.shards(
        [
            ImageRef(
                name, whose.get(name) or row.patient or _patient(there[name]) or name, there[name], row.label, row.part
            )
            for name, row in known.items()
            if name in there
        ],
        root,
    )
    if labels:
        require_one_part(listed, Path(labels))
    return listed


def classes(labels: Path | None) -> tuple[str, ...]:
    """The names of the table's classes: its columns in their order, or the sorted words of its column `label`.

    Raises:
        DataError: a malformed table, or one without a class.
    """
    return classes_of(Path(labels)) if labels else ()


def read(case: Case, size: int, aspect: Aspect = "stretch") -> Pictures:
    """The images of a shard; see `shards.read_shard`."""
    return shards.read_shard(case, size, aspect)


def files(case: Case) -> list[Path]:
    """What `read` reads."""
    return shards.shard_files(case)


def remarks(root: Path, cases: Iterable[Case], labels: Path | None = None, patients: Path | None = None) -> list[str]:
    """Sentences that the user should read: unlisted pictures, classes that nobody has, all of one patient."""
    said, refs = [], [ref for case in cases for ref in case.images]
    if labels is not None:
        unlisted = _pictures(Path(root)).keys() - read_labels(Path(labels), Path(root)).rows.keys()
        if unlisted:
            said.append(f"{len(unlisted)} pictures are not in {labels} (the first: {min(unlisted)}) and were left out")
        said += shards.empty_classes(cases, classes(labels))
    return [*said, *of_one_patient((ref.patient for ref in refs), "pictures")]


def absent_rows(
    root: Path, cases: Iterable[Case], labels: Path | None = None, patients: Path | None = None
) -> dict[str, int]:
    """How many pictures the table of labels lists that are not among `cases`, by the table's name."""
    if labels is None:
        return {}
    here = {ref.id for case in cases for ref in case.images}
    return {Path(labels).name: len(read_labels(Path(labels), Path(root)).rows.keys() - here)}


def _pictures(root: Path) -> dict[str, Path]:
    """The files named like pictures, and DICOM files without an ending, by their paths below the root."""
    found: dict[str, Path] = {}
    for path in walk(root):
        if shards.is_picture(path.name) or ("." not in path.name and is_dicom(path)):
            note_name(found, below(root, path), path)
    return found


def _patient(path: Path) -> str:
    """The PatientID of a DICOM file; empty for others."""
    return "" if path.suffix.lower() in PLAIN else dicom_facts(path)[0]
