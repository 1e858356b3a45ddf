"""LUNA16: chest CT as `subset*/SERIESUID.mhd` and three tables: `annotations.csv`, nodules; `candidates_V2.csv`,
candidates; `annotations_excluded.csv`, findings that the challenge's score ignores.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from pcrl_cli.core.case import Case, Points
from pcrl_cli.core.errors import DataError
from pcrl_cli.data.volume import Volume
from pcrl_cli.readers.tables import patients_by, read_table, require_folder, safe_name
from pcrl_cli.readers.volume_io import read_volume, volume_files

NAME = "luna"
KIND = "crops"
OPTIONS: tuple[str, ...] = ("patients", "candidates")
CITATION = (
    "Setio et al., Validation, comparison, and combination of algorithms for automatic detection of pulmonary nodules "
    "in computed tomography images: the LUNA16 challenge, Medical Image Analysis 42, 2017; Armato et al., The Lung "
    "Image Database Consortium (LIDC) and Image Database Resource Initiative (IDRI), Medical Physics 38, 2011"
)
LICENSE = "CC BY 4.0 (LUNA16); CC BY 3.0 (the scans, LIDC-IDRI)"
CLASSES = ("non-nodule", "nodule")
MODALITY = "ct"

_WHAT = "LUNA16 (its subset folders, annotations.csv and candidates_V2.csv)"
_POSITION = ("coordX", "coordY", "coordZ")
_NODULES, _EXCLUDED = "annotations.csv", "annotations_excluded.csv"


def cases(root: Path, patients: Path | None = None, candidates: Path | None = None) -> list[Case]:
    """Every scan in `root/subset*` and directly in `root`, sorted by series UID, which is its id.

    A series counts as a patient of its own, unless `patients`, a CSV with the columns seriesuid and patient, names
    another. Candidates come from `candidates`, else from candidates_V2.csv or candidates.csv where one is there, and
    are called UID#ROW, by their row in that table from 0; lesions come from annotations.csv and excluded findings from
    annotations_excluded.csv, where these are there.

    Raises:
        DataError: no folder, nothing in it, no scan, one series twice, or a malformed table.
    """
    root = require_folder(root, _WHAT)
    scans = _scans(root)
    patient_of = patients_by(Path(patients), ("seriesuid",), set(scans)) if patients else {}
    candidate_file = _candidate_file(root, candidates)
    points = _points(candidate_file, scans) if candidate_file else {}
    lesions, excluded = (_findings(root / name, scans) for name in (_NODULES, _EXCLUDED))
    return [
        Case(uid, patient_of.get(uid, uid), path, points.get(uid), lesions.get(uid), excluded.get(uid))
        for uid, path in sorted(scans.items())
    ]


def read(case: Case) -> Volume:
    """The scan in HU.

    Raises:
        DataError: see `volume_io.read_volume`.
    """
    return read_volume(case.path)


def files(case: Case) -> list[Path]:
    """What `read` reads: the header and the file of voxels that it names."""
    return volume_files(case.path)


def absent_rows(
    root: Path, cases: Iterable[Case], patients: Path | None = None, candidates: Path | None = None
) -> dict[str, int]:
    """Rows of each table that belong to scans which are not among `cases`, by the table's file name.

    The official tables name all 888 scans, so with fewer of them on disk this is ordinary: no bad cases.
    """
    tables = (_candidate_file(Path(root), candidates), Path(root) / _NODULES, Path(root) / _EXCLUDED)
    here = {case.id for case in cases}
    return {
        table.name: int((~read_table(table, ["seriesuid"])["seriesuid"].isin(here)).sum())
        for table in tables
        if table and table.is_file()
    }


def _scans(root: Path) -> dict[str, Path]:
    scans: dict[str, Path] = {}
    for path in sorted([*root.glob("*.mhd"), *root.glob("subset*/*.mhd")]):
        if path.name.startswith("."):
            continue
        if path.stem in scans:
            raise DataError(f"{scans[path.stem]} and {path} are the same series: remove one of them.")
        if safe_name(path.stem) != path.stem:
            raise DataError(f"{path} is not named by a series UID (letters, digits and ._-): rename it.")
        scans[path.stem] = path
    if not scans:
        raise DataError(f"{root} holds no subset*/*.mhd or *.mhd: put {_WHAT} there, or give --data DIR.")
    return scans


def _candidate_file(root: Path, given: Path | None) -> Path | None:
    if given is not None:
        return Path(given)
    return next((root / n for n in ("candidates_V2.csv", "candidates.csv") if (root / n).is_file()), None)


def _points(path: Path, uids: Iterable[str]) -> dict[str, Points]:
    """The candidates of each scan; a scan without rows has none of them, but is listed."""
    table = read_table(path, ["seriesuid"], [*_POSITION, "class"])
    odd = ~table["class"].isin([0, 1])
    if odd.any():
        raise DataError(
            f"{path}, line {int(odd.to_numpy().argmax()) + 2}: the column 'class' is neither 0 nor 1: correct it."
        )
    groups = _by_scan(table)
    return {uid: _points_of(uid, groups.get(uid, table.iloc[:0])) for uid in uids}


def _points_of(uid: str, rows: pd.DataFrame) -> Points:
    world = rows[list(_POSITION)].to_numpy(np.float64)
    return Points(world, rows["class"].to_numpy(np.uint8), tuple(f"{uid}#{row}" for row in rows.index))


def _findings(path: Path, uids: Iterable[str]) -> dict[str, np.ndarray]:
    """Centre and diameter of each scan's findings; empty where there is no such table."""
    if not path.is_file():
        return {}
    columns = [*_POSITION, "diameter_mm"]
    table = read_table(path, ["seriesuid"], columns)
    groups = _by_scan(table)
    return {uid: groups.get(uid, table.iloc[:0])[columns].to_numpy(np.float64) for uid in uids}


def _by_scan(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    return {str(uid): rows for uid, rows in table.groupby("seriesuid", sort=False)}
