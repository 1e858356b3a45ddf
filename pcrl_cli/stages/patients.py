"""Who was trained on: what weights remember of patients, and how they are recognised in another cache.

A patient is known by the data set's name and the patient's, and by the voxels of each scan, since the same scan may come
through another reader or another table of patients.
"""

from collections.abc import Iterable, Sequence, Set

from pcrl_cli.core.contract import Patients
from pcrl_cli.data.cache import Cache
from pcrl_cli.data.copies import Held, held_in, of_one_value

UNKNOWN = (
    "whom the weights saw is unknown (they were imported): that they saw validation or test patients can't be ruled out"
)


def hashed(cache: Cache, patients: Sequence[str], salt: str, selected: Sequence[str] = ()) -> Patients:
    """The salted hashes of patients that were trained on, and of those that an epoch was selected by."""
    chosen_by = [*_names(cache, selected), *_scans(cache, selected)]
    return Patients.of(_names(cache, patients), salt, scans=_scans(cache, patients), selected=chosen_by)


def seen(known: Patients, cache: Cache, patients: Iterable[str], selected_too: bool = False) -> list[str]:
    """Those of a cache's patients that are known by name or by one of their scans."""
    reader = cache.manifest["reader"]["name"]
    wanted = list(patients)
    by_name = set(known.among({patient: [_name(reader, patient)] for patient in wanted}, selected_too))
    by_scan = _by_scan(known, cache, set(wanted) - by_name, selected_too)
    return [patient for patient in wanted if patient in by_name or patient in by_scan]


def _by_scan(known: Patients, cache: Cache, patients: Set[str], selected_too: bool) -> set[str]:
    """Those that are known by a scan of more than one value: empty ones are equal by nature, whosever they are."""
    owned = _owned(cache, patients)
    common = set(known.among({scan: [_scan(scan)] for scan, _ in owned}, selected_too))
    found = [held for scan, held in owned if scan in common]
    blank = of_one_value(cache, found)
    return {held.patient for held in found if held not in blank}


def _names(cache: Cache, patients: Sequence[str]) -> list[str]:
    """With the data set's name, since patients such as `case1` are not unique."""
    reader = cache.manifest["reader"]["name"]
    return [_name(reader, patient) for patient in patients]


def _scans(cache: Cache, patients: Sequence[str]) -> list[str]:
    return [_scan(scan) for scan, _ in _owned(cache, set(patients))]


def _owned(cache: Cache, patients: Set[str]) -> list[tuple[str, Held]]:
    """The scans of these patients, each with its id."""
    return [pair for record in cache.manifest["cases"] for pair in held_in(record) if pair[1].patient in patients]


def _name(reader: str, patient: str) -> str:
    return f"{reader}:{patient}"


def _scan(scan_id: str) -> str:
    return f"scan:{scan_id}"
