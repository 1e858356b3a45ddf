"""What readers share: folders that have to be there, CSV tables, names that are safe as file names."""

import csv
import hashlib
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from pcrl_cli.core.errors import DataError, blame_reading

if TYPE_CHECKING:
    import pandas as pd

K = TypeVar("K")
PATH = "path"
"""The column that names a file by its path below the data folder."""


def require_folder(root: Path, what: str) -> Path:
    """The folder, if there is something in it.

    Raises:
        DataError: it is missing, a file, or empty.
    """
    root = Path(root)
    if not root.is_dir():
        state = "is not a folder" if root.exists() else "is not there"
    elif not any(root.iterdir()):
        state = "is empty"
    else:
        return root
    raise DataError(f"The data folder {root} {state}: put {what} there, or give --data DIR.")


def walk_files(root: Path) -> Iterator[tuple[Path, list[str]]]:
    """Every folder from `root` down and the names of its files, sorted, without what is hidden."""
    for folder, below, files in os.walk(root):
        below[:] = sorted(name for name in below if not name.startswith("."))
        yield Path(folder), sorted(name for name in files if not name.startswith("."))


def walk(root: Path) -> Iterator[Path]:
    """Every file of `walk_files`."""
    return (here / name for here, names in walk_files(root) for name in names)


def same_name(text: str) -> str:
    """A name as names are compared: with `/` for a backslash, and accents in one piece with their letters, which macOS stores
    apart.
    """
    return unicodedata.normalize("NFC", text.replace("\\", "/"))


def below(root: Path, path: Path) -> str:
    """The path of a file or folder below the root, as ids and tables write it."""
    return same_name(path.relative_to(root).as_posix())


def as_below(root: Path, texts: Iterable[str]) -> list[str]:
    """What a table calls its files, as `below` does: a `./` or the root's own path before one does not count."""
    bases = [f"{same_name(base.as_posix()).rstrip('/')}/" for base in (root.absolute(), root.resolve())]
    found = []
    for text in texts:
        name = PurePosixPath(same_name(text)).as_posix()
        found.append(next((name[len(base) :] or "." for base in bases if f"{name}/".startswith(base)), name))
    return found


def note_name(known: dict[K, Path], key: K, path: Path) -> None:
    """Notes a file under its name.

    Raises:
        DataError: another file has this name, as names are compared.
    """
    other = known.setdefault(key, path)
    if other != path:
        raise DataError(
            f"{other} and {path} differ only in how accents or slashes are stored in their names: rename one of them."
        )


def read_table(path: Path, text: Sequence[str], numbers: Sequence[str] = ()) -> "pd.DataFrame":
    """The named columns of a CSV, text stripped and numbers as finite float64; the index is the row, from 0.

    Raises:
        DataError: no such file, no CSV, a column that is missing, a text that is empty, a number that is none.
    """
    import pandas as pd  # half a second, which workers that read images need not spend

    table = _load(path)
    _require_columns(path, list(table.columns), (*text, *numbers))
    table = table[[*text, *numbers]]
    for name in text:
        table = table.assign(**{name: table[name].str.strip()})
        _refuse(path, table[name].isna() | (table[name] == ""), name, "is empty")
    for name in numbers:
        values = pd.to_numeric(table[name], errors="coerce").astype(np.float64)
        table = table.assign(**{name: values})
        _refuse(path, ~values.abs().lt(np.inf), name, "is not a number")
    return table


def read_columns(path: Path, names: Sequence[str]) -> tuple[dict[str, list[str]], list[int]]:
    """The named columns of a CSV as stripped text, which may be empty, and the line that each row ends on, from 1.

    For large tables whose header is odd: a name like `Size[Width,Height]` may be one quoted cell or two plain ones, rows
    may end in a comma too many, and neither moves a column. Empty lines are passed over.

    Raises:
        DataError: no such file, no CSV, a column that is missing, a row that ends before its last named column.
    """
    with _reading(path, csv.Error), path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        header = [name.strip() for name in next(reader, [])]
        rows, lines = [], []
        for row in reader:
            if row:
                rows.append(row)
                lines.append(reader.line_num)
    if rows and len(rows[0]) > len(header):
        header = [part.strip() for name in header for part in (name.split(",") if "[" in name else [name])]
    _require_columns(path, header, names)
    places = [header.index(name) for name in names]
    width = max(places, default=0) + 1
    short = next((line for row, line in zip(rows, lines, strict=True) if len(row) < width), None)
    if short is not None:
        raise DataError(f"{path}, line {short}: the row ends before its column {header[width - 1]!r}: correct it.")
    return {name: [row[i].strip() for row in rows] for name, i in zip(names, places, strict=True)}, lines


def header_of(path: Path) -> list[str]:
    """The names of a CSV's columns.

    Raises:
        DataError: no such file, no CSV, or one whose columns something other than a comma divides.
    """
    header = [str(name) for name in _load(path, rows=0).columns]
    _require_commas(path, header)
    return header


def _require_columns(path: Path, header: Sequence[str], names: Sequence[str]) -> None:
    missing = [name for name in names if name not in header]
    if missing:
        _require_commas(path, header)
        has = ", ".join(name for name in header if name) or "no column"
        raise DataError(f"{path} lacks the column {missing[0]!r} (it has {has}): correct its first line.")


def _require_commas(path: Path, header: Sequence[str]) -> None:
    for sign, name in ((";", "semicolons"), ("\t", "tabs")):
        if len(header) == 1 and sign in header[0]:
            raise DataError(f"{path} has {name} between its columns: save it as a CSV with commas.")


def _load(path: Path, rows: int | None = None) -> "pd.DataFrame":
    """A CSV as text; its first `rows` only, if given."""
    import pandas as pd

    with _reading(path, pd.errors.ParserError, pd.errors.EmptyDataError):
        return pd.read_csv(
            path, dtype=str, skipinitialspace=True, encoding="utf-8-sig", keep_default_na=False, nrows=rows
        )


@contextmanager
def _reading(path: Path, *malformed: type[Exception]) -> Iterator[None]:
    """Within it a CSV is read. malformed: what its reader raises for what is none."""
    unreadable: tuple[type[Exception], ...] = (*malformed, OSError)
    try:
        with blame_reading(path):
            yield
    except FileNotFoundError:
        raise DataError(f"The table {path} is not there: check its path.") from None
    except UnicodeDecodeError:
        raise DataError(f"{path} is not in UTF-8: save it as CSV in UTF-8.") from None
    except unreadable as error:
        reason = str(error).strip().splitlines()[-1]
        raise DataError(f"{path} is not a readable CSV table ({reason}): copy it again or correct it.") from None


def _refuse(path: Path, bad: "pd.Series[bool]", name: str, what: str) -> None:
    if bad.any():
        line = int(bad.to_numpy().argmax()) + 2
        raise DataError(f"{path}, line {line}: the column {name!r} {what}: correct it or remove the line.")


def patients_by(path: Path, keys: Sequence[str], known: set[str], root: Path | None = None) -> dict[str, str]:
    """The patient of every scan that a CSV names: the columns are `patient` and one of `keys`.

    root: the data folder; a column `path` is of files below it, as in `below`.

    Raises:
        DataError: as `read_table`; one scan with two patients; a table that names nothing of what is `known`.
    """
    header = header_of(path)
    key = next((key for key in keys if key in header), keys[0])
    table = read_table(path, (key, "patient"))
    patients: dict[str, str] = {}
    texts = [str(text) for text in table[key]]
    names = as_below(root, texts) if root is not None and key == PATH else texts
    for name, patient in zip(names, table["patient"], strict=True):
        if patients.setdefault(name, str(patient)) != patient:
            raise DataError(f"{path} gives {name} two patients: correct it.")
    if not known & patients.keys():
        raise DataError(f"{path} names none of the scans that were found: check its column {key!r}.")
    return patients


def safe_name(name: str) -> str:
    """The name with everything but [A-Za-z0-9._-] replaced by `_`, not starting with a dot."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name).lstrip(".") or "_"


LONGEST_ID = 120


def safe_ids(names: Sequence[str], unique: Sequence[str]) -> list[str]:
    """Ids of paths without endings, safe as file names.

    unique: one a path, of which an id has 8 hexadecimal digits of a hash where it would be another's, or too long.
    """
    plain = [safe_name("-".join(PurePosixPath(name).parts)) for name in names]
    count = Counter(name.lower() for name in plain)
    return [
        f"{name[:LONGEST_ID]}-{hashlib.sha256(own.encode()).hexdigest()[:8]}"
        if count[name.lower()] > 1 or len(name) > LONGEST_ID
        else name
        for name, own in zip(plain, unique, strict=True)
    ]


def of_one_patient(patients: Iterable[str], unit: str) -> list[str]:
    """A sentence, if several scans or pictures are all of one patient. patients: whose each is."""
    people = Counter(patients)
    if len(people) != 1 or people.total() == 1:
        return []
    return [
        f"all {people.total()} {unit} are of one patient ({next(iter(people))!r}), so all are in one part of the split; if "
        "they are not, say which is whose with --patients"
    ]
