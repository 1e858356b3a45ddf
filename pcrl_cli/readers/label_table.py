"""A table of labels of one's own images or scans, as `prep folder --labels` reads it.

The table is a CSV with a column that names the image (`path`, below the data folder; of scans also `case`, the id), maybe
`patient`, maybe `part`, and one of

    a column a class     1 present, 0 absent, -1 or blank not known
    label                names of classes, several joined by |; a blank says that nothing is known

Of two classes that exclude each other, such as benign and malignant, one column `malignant` says all; the column `label`
makes a class of every word.

    part                 train, val or test: the user's own split, of every row or of none
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast, get_args

from pcrl_cli.core.case import Case, Part
from pcrl_cli.core.errors import DataError
from pcrl_cli.core.names import plain
from pcrl_cli.readers.shards import without_doubles
from pcrl_cli.readers.tables import PATH, as_below, header_of, read_columns

CASE = "case"
_PATIENT, _LABEL, _PART = "patient", "label", "part"
_SAYS = {"1": 1, "1.0": 1, "0": 0, "0.0": 0, "-1": -1, "-1.0": -1, "": -1}


@dataclass(frozen=True)
class Row:
    """What a table says of one image: patient (empty: nothing), labels as in `case.ImageRef`, part (empty: nothing)."""

    patient: str
    label: tuple[int, ...]
    part: Part | None = None


@dataclass(frozen=True)
class LabelTable:
    """A table of labels that was read. key: the column that names the image; rows: by what it says there."""

    key: str
    classes: tuple[str, ...]
    rows: Mapping[str, Row]


def read_labels(table: Path, root: Path, keys: Sequence[str] = (PATH,)) -> LabelTable:
    """What a table says of every image that it lists. Paths are of files below the root, as in `tables.below`.

    keys: columns that may name the image; the first that the table has counts.

    Raises:
        DataError: a malformed table, one without a class, or two rows of one image that differ.
    """
    header = header_of(table)
    key = key_of(header, keys)
    names, are_columns = _classes(table, header, key)
    own = tuple(name for name in (_PATIENT, _PART) if name in header)
    rows, lines = read_columns(table, (key, *own, *(names if are_columns else (_LABEL,))))
    if "" in rows[key]:
        raise DataError(f"{table}, line {lines[rows[key].index('')]}: the column {key!r} is empty: correct it.")
    ids = as_below(root, rows[key]) if key == PATH else rows[key]
    patients = rows.get(_PATIENT, [""] * len(ids))
    parts = _parts(table, rows[_PART], lines) if _PART in own else [None] * len(ids)
    if are_columns:
        labels = list(zip(*(_numbers(table, name, rows[name], lines) for name in names), strict=True))
    else:
        found = [_words(text) for text in rows[_LABEL]]
        labels = [tuple(int(name in words) if words else -1 for name in names) for words in found]
    facts = list(zip(patients, labels, parts, strict=True))
    kept = without_doubles(table, ids, facts, lines)
    return LabelTable(key, names, {ids[i]: Row(patients[i], labels[i], parts[i]) for i in kept})


def classes_of(table: Path, keys: Sequence[str] = (PATH,)) -> tuple[str, ...]:
    """The names of the table's classes: its columns in their order, or the sorted words of its column `label`.

    Raises:
        DataError: a malformed table, or one without a class.
    """
    header = header_of(table)
    return _classes(table, header, key_of(header, keys))[0]


def key_of(header: Sequence[str], keys: Sequence[str]) -> str:
    """The column that names the image; the first possible one where the table has none, for the message."""
    return next((key for key in keys if key in header), keys[0])


def require_one_part(cases: Iterable[Case], table: Path) -> None:
    """Refuses a split that has a patient twice, so that a model would be tested on whom it was trained on.

    Raises:
        DataError: a patient is in two parts.
    """
    where: dict[str, str] = {}
    for owned in (owned for case in cases for owned in (case.images or (case,))):
        if owned.part is not None and where.setdefault(owned.patient, owned.part) != owned.part:
            raise DataError(
                f"{table} has the patient {owned.patient} in the parts {where[owned.patient]} and {owned.part} (one image "
                f"is {owned.id}): correct the column {_PART!r}, or remove it."
            )


def _classes(table: Path, header: Sequence[str], key: str) -> tuple[tuple[str, ...], bool]:
    """The names of the classes, and whether they are columns."""
    for name in header:
        own = name.strip().lower()
        if name != own and own in (PATH, CASE, _PATIENT, _PART, _LABEL):
            raise DataError(f"{table} has a column {name!r}: write it {own!r}, or name the class otherwise.")
    columns = tuple(name for name in header if name not in (key, _PATIENT, _PART, _LABEL))
    _require_different(table, columns)
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
    _require_different(table, found)
    return tuple(found), False


def _require_different(table: Path, names: Iterable[str]) -> None:
    """Metrics are called by the letters and digits of a class.

    Raises:
        DataError: two classes have the same.
    """
    known: dict[str, str] = {}
    for name in names:
        other = known.setdefault(plain(name), name)
        if other != name:
            raise DataError(
                f"{table} has classes {other!r} and {name!r}, which differ in signs only: rename one of them."
            )


def _words(text: str) -> set[str]:
    return {word.strip() for word in text.split("|") if word.strip()}


def _numbers(table: Path, name: str, texts: list[str], lines: list[int]) -> list[int]:
    strange = set(texts) - _SAYS.keys()
    if strange:
        i = next(i for i, text in enumerate(texts) if text in strange)
        raise DataError(
            f"{table}, line {lines[i]}: {texts[i]!r} in the column {name!r} is none of 1, 0, -1 and blank: correct it, "
            "or remove the column if it is no class."
        )
    return [_SAYS[text] for text in texts]


def _parts(table: Path, texts: list[str], lines: list[int]) -> list[Part | None]:
    """Of every row; none where the whole column is blank."""
    if not any(texts):
        return [None] * len(texts)
    for text, line in zip(texts, lines, strict=True):
        if text not in get_args(Part):
            what = f"{text!r}" if text else "a blank"
            raise DataError(
                f"{table}, line {line}: {what} in the column {_PART!r} is none of train, val and test: correct it, or "
                "remove the column, and the patients are split at random."
            )
    return [cast(Part, text) for text in texts]
