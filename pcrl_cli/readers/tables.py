"""What readers share: folders that have to be there, CSV tables, names that are safe as file names."""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from pcrl_cli.core.errors import DataError, blame_reading


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


def walk(root: Path) -> Iterator[Path]:
    """Every file below a folder, sorted within each folder; what is hidden is passed over."""
    for folder, below, files in os.walk(root):
        below[:] = sorted(name for name in below if not name.startswith("."))
        yield from (Path(folder) / name for name in sorted(files) if not name.startswith("."))


def read_table(path: Path, text: Sequence[str], numbers: Sequence[str] = ()) -> pd.DataFrame:
    """The named columns of a CSV, text stripped and numbers as finite float64; the index is the row, from 0.

    Raises:
        DataError: no such file, no CSV, a column that is missing, a text that is empty, a number that is none.
    """
    table = _load(path)
    missing = [name for name in (*text, *numbers) if name not in table.columns]
    if missing:
        raise DataError(
            f"{path} lacks the column {missing[0]!r} (it has {', '.join(table.columns)}): correct its first line."
        )
    table = table[[*text, *numbers]]
    for name in text:
        table = table.assign(**{name: table[name].str.strip()})
        _refuse(path, table[name].isna() | (table[name] == ""), name, "is empty")
    for name in numbers:
        values = pd.to_numeric(table[name], errors="coerce").astype(np.float64)
        table = table.assign(**{name: values})
        _refuse(path, ~values.abs().lt(np.inf), name, "is not a number")
    return table


def _load(path: Path) -> pd.DataFrame:
    """A CSV as text."""
    try:
        with blame_reading(path):
            return pd.read_csv(path, dtype=str, skipinitialspace=True, encoding="utf-8-sig", keep_default_na=False)
    except FileNotFoundError:
        raise DataError(f"The table {path} is not there: check its path.") from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError, OSError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise DataError(f"{path} is not a readable CSV table ({reason}): copy it again or correct it.") from None


def _refuse(path: Path, bad: "pd.Series[bool]", name: str, what: str) -> None:
    if bad.any():
        line = int(bad.to_numpy().argmax()) + 2
        raise DataError(f"{path}, line {line}: the column {name!r} {what}: correct it or remove the line.")


def patients_by(path: Path, keys: Sequence[str], known: set[str]) -> dict[str, str]:
    """The patient of every scan that a CSV names: the columns are `patient` and one of `keys`.

    Raises:
        DataError: as `read_table`; one scan with two patients; a table that names nothing of what is `known`.
    """
    key = next((key for key in keys if key in _load(path).columns), keys[0])
    table = read_table(path, (key, "patient")).drop_duplicates()
    doubled = table[table[key].duplicated()]
    if len(doubled):
        raise DataError(f"{path} gives {doubled[key].iloc[0]} two patients: correct it.")
    patients = {str(name): str(patient) for name, patient in zip(table[key], table["patient"], strict=True)}
    if not known & patients.keys():
        raise DataError(f"{path} names none of the scans that were found: check its column {key!r}.")
    return patients


def safe_name(name: str) -> str:
    """The name with everything but [A-Za-z0-9._-] replaced by `_`, not starting with a dot."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name).lstrip(".") or "_"
