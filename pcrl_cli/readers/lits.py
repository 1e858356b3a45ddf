"""LiTS: abdominal CT as `volume-N.nii` with `segmentation-N.nii` (or .nii.gz), in the official `Training Batch` folders or
in any others. Labels: 1 liver and 2 tumour, both of which are liver here.
"""

import re
from collections.abc import Iterable
from pathlib import Path

from pcrl_cli.core.case import Case
from pcrl_cli.core.errors import DataError
from pcrl_cli.data.labelled import Volumes, require_labels
from pcrl_cli.readers.tables import patients_by, require_folder, walk
from pcrl_cli.readers.volume_io import read_volume

NAME = "lits"
KIND = "volumes"
CITATION = "Bilic et al., The Liver Tumor Segmentation Benchmark (LiTS), Medical Image Analysis 84, 2023"
LICENSE = "CC BY-NC-SA 4.0"
CLASSES = ("liver",)
MODALITY = "ct"
OPTIONS = ("patients",)
LABELS = (0, 1, 2)

_WHAT = "LiTS (volume-N.nii and segmentation-N.nii)"
_FILE = re.compile(r"(?P<what>volume|segmentation)-(?P<number>\d+)\.nii(\.gz)?", re.IGNORECASE)


def cases(root: Path, patients: Path | None = None) -> list[Case]:
    """Every scan below `root`, in the order of its number; its id is volume-N.

    A scan counts as a patient of its own, unless `patients`, a CSV with the columns case (the id) and patient, names
    another. A mask without its scan, or the reverse, is listed, so that it is refused by name when it is read.

    Raises:
        DataError: no folder, nothing in it, no scan, two files of one number, or a malformed table.
    """
    root = require_folder(root, _WHAT)
    found: dict[str, dict[str, Path]] = {"volume": {}, "segmentation": {}}
    for path in walk(root):
        if match := _FILE.fullmatch(path.name):
            what, number = match["what"].lower(), str(int(match["number"]))
            if other := found[what].get(number):
                raise DataError(f"{other} and {path} are both the {what} of number {number}: remove one of them.")
            found[what][number] = path
    numbers = sorted({*found["volume"], *found["segmentation"]}, key=int)
    if not numbers:
        raise DataError(f"{root} holds no volume-N.nii or volume-N.nii.gz: put {_WHAT} there, or give --data DIR.")
    ids = {f"volume-{number}" for number in numbers}
    patient_of = patients_by(Path(patients), ("case",), ids) if patients else {}
    return [_case(n, found["volume"].get(n), found["segmentation"].get(n), patient_of) for n in numbers]


def read(case: Case) -> Volumes:
    """The scan in HU and its mask.

    Raises:
        DataError: one of them is missing; see `volume_io.read_volume`; a label that is not documented.
    """
    for what, path in (("mask", case.path), ("scan", case.files["mask"])):
        if not path.exists():
            there = case.files["mask"] if what == "mask" else case.path
            raise DataError(
                f"{there} has no {'scan' if what == 'mask' else 'mask'} ({path.name}): add it or leave it out."
            )
    mask = read_volume(case.files["mask"])
    require_labels(mask, LABELS)
    return Volumes((read_volume(case.path),), ("ct",), mask)


def files(case: Case) -> list[Path]:
    """What `read` reads: the scan and its mask."""
    return [path for path in (case.path, case.files["mask"]) if path.is_file()]


def remarks(root: Path, cases: Iterable[Case]) -> list[str]:
    """Sentences that the user should read: scans of the challenge's test part, which has no masks."""
    tests = sum(path.name.lower().startswith("test-volume-") for path in walk(Path(root)))
    return [f"{tests} test-volume files have no masks and were passed over"] if tests else []


def _case(number: str, image: Path | None, mask: Path | None, patient_of: dict[str, str]) -> Case:
    name = f"volume-{number}"
    there = image or mask
    assert there is not None
    ending = there.name[there.name.index(".") :]
    image = image or there.with_name(f"volume-{number}{ending}")
    mask = mask or there.with_name(f"segmentation-{number}{ending}")
    return Case(name, patient_of.get(name, name), image, files={"mask": mask})
