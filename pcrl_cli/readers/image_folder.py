"""One's own radiographs: a tree of PNG, JPEG and DICOM files, with a table of labels or none; `prep folder` reads it.

The table is a CSV with a column `path` (below the data folder), maybe `patient`, and one of

    a column a class     1 present, 0 absent, -1 or blank not known
    label                names of classes, several joined by |; a blank says that nothing is known
"""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from pcrl_cli.core.case import Case, ImageRef
from pcrl_cli.core.errors import DataError
from pcrl_cli.core.plan import Pictures
from pcrl_cli.readers import shards
from pcrl_cli.readers.image_io import PLAIN, Aspect, dicom_facts
from pcrl_cli.readers.tables import header_of, patients_by, read_columns, require_folder, walk_files
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
_PATH, _PATIENT, _LABEL = "path", "patient", "label"
_SAYS = {"1": 1, "1.0": 1, "0": 0, "0.0": 0, "-1": -1, "-1.0": -1, "": -1}


def cases(root: Path, labels: Path | None = None, patients: Path | None = None) -> list[Case]:
    """Shards of the radiographs below `root`, by their paths below it, which are their ids.

    labels: the table; what it does not list is left out (see `remarks`), and rows without a file are counted by
    `absent_rows`. Without it every picture is taken and nothing is known of it. A picture belongs to the patient that
    `patients` (a CSV with the columns path and patient) names, else the table of labels, else its DICOM header, and
    counts as a patient of its own if none does.

    Raises:
        DataError: no folder, no picture, or a malformed table.
    """
    root = require_folder(root, _WHAT)
    there = _pictures(root)
    if not there:
        raise DataError(f"{root} holds no picture: put {_WHAT} there, or give --data DIR.")
    known = _labelled(Path(labels)) if labels else dict.fromkeys(there, ("", ()))
    if not known.keys() & there.keys():
        raise DataError(f"{labels} names none of the {len(there)} pictures in {root}: check its column {_PATH!r}.")
    whose = patients_by(Path(patients), (_PATH,), set(there)) if patients else {}
    return shards.shards(
        [
            ImageRef(name, whose.get(name) or patient or _patient(there[name]) or name, there[name], label)
            for name, (patient, label) in known.items()
            if name in there
        ],
        root,
    )


def classes(labels: Path | None) -> tuple[str, ...]:
    """The names of the table's classes: its columns in their order, or the sorted words of its column `label`.

    Raises:
        DataError: a malformed table, or one without a class.
    """
    return _classes(Path(labels))[0] if labels else ()


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
        unlisted = _pictures(Path(root)).keys() - _labelled(Path(labels)).keys()
        if unlisted:
            said.append(f"{len(unlisted)} pictures are not in {labels} (the first: {min(unlisted)}) and were left out")
        said += shards.empty_classes(cases, classes(labels))
    people = Counter(ref.patient for ref in refs)
    if len(people) == 1 and len(refs) > 1:
        said.append(
            f"all {len(refs)} pictures are of one patient ({next(iter(people))!r}), so all are in one part of the "
            "split; if they are not, say which is whose with --patients"
        )
    return said


def absent_rows(
    root: Path, cases: Iterable[Case], labels: Path | None = None, patients: Path | None = None
) -> dict[str, int]:
    """How many pictures the table of labels lists that are not among `cases`, by the table's name."""
    if labels is None:
        return {}
    here = {ref.id for case in cases for ref in case.images}
    return {Path(labels).name: len(_labelled(Path(labels)).keys() - here)}


def _pictures(root: Path) -> dict[str, Path]:
    """The files named like pictures, and DICOM files without an ending, by their paths below the root."""
    return {
        (folder / name).relative_to(root).as_posix(): folder / name
        for folder, names in walk_files(root)
        for name in names
        if shards.is_picture(name) or ("." not in name and is_dicom(folder / name))
    }


def _patient(path: Path) -> str:
    """The PatientID of a DICOM file; empty for others."""
    return "" if path.suffix.lower() in PLAIN else dicom_facts(path)[0]


def _classes(table: Path) -> tuple[tuple[str, ...], bool]:
    """The names of the classes, and whether they are columns."""
    header = header_of(table)
    columns = tuple(name for name in header if name not in (_PATH, _PATIENT, _LABEL))
    if _LABEL not in header:
        if not columns:
            raise DataError(f"{table} has no class: add a column a class (0 or 1), or one called {_LABEL!r}.")
        return columns, True
    if columns:
        raise DataError(f"{table} has a column {_LABEL!r} and others ({columns[0]!r}, ...): keep one or the other.")
    texts = read_columns(table, (_LABEL,))[0][_LABEL]
    found = sorted({word for text in texts for word in _words(text)})
    if not found:
        raise DataError(f"the column {_LABEL!r} of {table} names no class: fill it in, or leave --labels out.")
    return tuple(found), False


def _words(text: str) -> set[str]:
    return {word.strip() for word in text.split("|") if word.strip()}


def _labelled(table: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Patient (or nothing) and labels of every picture that the table lists, by its path."""
    names, are_columns = _classes(table)
    own = (_PATIENT,) if _PATIENT in header_of(table) else ()
    rows, lines = read_columns(table, (_PATH, *own, *(names if are_columns else (_LABEL,))))
    if "" in rows[_PATH]:
        raise DataError(f"{table}, line {lines[rows[_PATH].index('')]}: the column {_PATH!r} is empty: correct it.")
    paths = [Path(text).as_posix() for text in rows[_PATH]]
    patients = rows[_PATIENT] if own else [""] * len(paths)
    if are_columns:
        labels = list(zip(*(_numbers(table, name, rows[name], lines) for name in names), strict=True))
    else:
        found = [_words(text) for text in rows[_LABEL]]
        labels = [tuple(int(name in words) if words else -1 for name in names) for words in found]
    facts = list(zip(patients, labels, strict=True))
    return {paths[i]: facts[i] for i in shards.without_doubles(table, paths, facts, lines)}


def _numbers(table: Path, name: str, texts: list[str], lines: list[int]) -> list[int]:
    strange = set(texts) - _SAYS.keys()
    if strange:
        i = next(i for i, text in enumerate(texts) if text in strange)
        raise DataError(
            f"{table}, line {lines[i]}: {texts[i]!r} in the column {name!r} is none of 1, 0, -1 and blank: correct it, "
            "or remove the column if it is no class."
        )
    return [_SAYS[text] for text in texts]
