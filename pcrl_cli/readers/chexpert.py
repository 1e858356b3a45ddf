"""CheXpert: 224,316 chest radiographs, frontal and lateral, of 65,240 patients with 14 observations from the reports.

    train.csv, valid.csv        Path, Frontal/Lateral, and a column an observation: 1, 0, -1 (uncertain) or blank
    train/patient00001/study1/view1_frontal.jpg

`root` is the folder of the tables or the one above it, `CheXpert-v1.0-small` or another.
"""

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pcrl_cli.core.case import Case, ImageRef
from pcrl_cli.core.errors import DataError
from pcrl_cli.core.plan import Pictures
from pcrl_cli.readers import shards
from pcrl_cli.readers.image_io import Aspect
from pcrl_cli.readers.shards import OfficialPart
from pcrl_cli.readers.tables import read_columns, require_folder

NAME = "chexpert"
CITATION = (
    "Irvin et al., CheXpert: a large chest radiograph dataset with uncertainty labels and expert comparison, AAAI 2019"
)
LICENSE = "Stanford University School of Medicine CheXpert Dataset Research Use Agreement (non-commercial)"
CLASSES = (
    "No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema", "Consolidation",
    "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture", "Support Devices",
)  # fmt: skip
MODALITY = "xray"
KIND = "images"
OPTIONS = ("uncertain", "view", "official_split")
TABLES: dict[OfficialPart, str] = {"train": "train.csv", "test": "valid.csv"}
"""`official_split`: whom the radiologists labelled is the test part; the official test images are not published."""

Uncertain = Literal["zero", "one", "ignore"]
View = Literal["frontal", "lateral", "all"]

_WHAT = "CheXpert (train.csv, valid.csv and the folders train and valid that they name)"
_SAYS = {"1": 1, "1.0": 1, "0": 0, "0.0": 0, "": 0}
_UNSURE: dict[Uncertain, int] = {"zero": 0, "one": 1, "ignore": -1}
_PATIENT = re.compile(r"(?:^|/)(patient\d+)/")
_SIDE, _PATH = "Frontal/Lateral", "Path"


def cases(root: Path, uncertain: Uncertain = "zero", view: View = "all", official_split: bool = False) -> list[Case]:
    """Shards of the images that are both listed and there, by their ids: their paths from `train/` or `valid/` on.

    uncertain: what -1 in the tables becomes: 0, 1, or -1, which the loss leaves out. A blank is 0. view: which images;
    the paper's number of them is of both. Rows that repeat another are read once, and missing images are counted by
    `absent_rows`; nobody looks for images that no table lists.

    Raises:
        DataError: no folder, no table, no image of it; a value that is none of 1, 0, -1 and blank; a path without a
            patient; two rows, of one table or of both, that say different things of one image; with official_split a
            patient in both tables.
    """
    root = _home(require_folder(root, _WHAT))
    refs = _listed(root, uncertain, view)
    here = [ref for ref in refs if os.path.isfile(ref.path)]  # noqa: PTH113 - a quarter of a million of them
    if not here:
        what = f"{view} images" if view != "all" else "images"
        raise DataError(f"{root} holds none of the {len(refs)} {what} that its tables list: put {_WHAT} there.")
    listed = shards.shards(here, root)
    if official_split:
        official_parts(root, listed)
    return listed


def read(case: Case, size: int, aspect: Aspect = "stretch") -> Pictures:
    """The images of a shard; see `shards.read_shard`."""
    return shards.read_shard(case, size, aspect)


def files(case: Case) -> list[Path]:
    """What `read` reads."""
    return shards.shard_files(case)


def official_parts(root: Path, cases: Iterable[Case]) -> dict[str, OfficialPart]:
    """test for the patients of valid.csv, train for those of train.csv.

    Raises:
        DataError: a patient is in both.
    """
    here = {ref.id for case in cases for ref in case.images}
    listed = {part: _refs(_home(Path(root)) / name, "zero", "all") for part, name in TABLES.items()}
    parts = {part: [ref for ref in refs if ref.id in here] for part, refs in listed.items()}
    return shards.parts_of_patients(parts, " and ".join(TABLES.values()))


def remarks(
    root: Path,
    cases: Iterable[Case],
    uncertain: Uncertain = "zero",
    view: View = "all",
    official_split: bool = False,
) -> list[str]:
    """Sentences that the user should read: repeated rows, observations that nobody has."""
    said = []
    for table in _tables(_home(Path(root))):
        paths = read_columns(table, (_PATH,))[0][_PATH]
        if len(paths) > len(set(paths)):
            said.append(f"{len(paths) - len(set(paths))} rows of {table.name} repeat another and were read once")
    return [*said, *shards.empty_classes(cases, CLASSES)]


def absent_rows(
    root: Path,
    cases: Iterable[Case],
    uncertain: Uncertain = "zero",
    view: View = "all",
    official_split: bool = False,
) -> dict[str, int]:
    """How many images of the view each table lists that are not among `cases`, by the table's name."""
    here = {ref.id for case in cases for ref in case.images}
    tables = _tables(_home(Path(root)))
    return {table.name: len({ref.id for ref in _refs(table, "zero", view)} - here) for table in tables}


def _home(root: Path) -> Path:
    """The folder of the tables."""
    inner = [root, *sorted(path for path in root.glob("CheXpert*") if path.is_dir())]
    return next((folder for folder in inner if _tables(folder, needed=False)), root)


def _tables(root: Path, needed: bool = True) -> list[Path]:
    found = [root / name for name in TABLES.values() if (root / name).is_file()]
    if needed and not found:
        raise DataError(f"{root} holds neither {' nor '.join(TABLES.values())}: put {_WHAT} there, or give --data DIR.")
    return found


def _listed(root: Path, uncertain: Uncertain, view: View) -> list[ImageRef]:
    """What both tables say of every image of the view, once each."""
    found: dict[str, ImageRef] = {}
    for ref in (ref for table in _tables(root) for ref in _refs(table, uncertain, view)):
        first = found.setdefault(ref.id, ref)
        if (first.patient, first.label) != (ref.patient, ref.label):
            raise DataError(
                f"{' and '.join(TABLES.values())} of {root} say two things of {ref.id}: correct or remove one of the rows."
            )
    return list(found.values())


def _refs(table: Path, uncertain: Uncertain, view: View) -> list[ImageRef]:
    """What a table says of every image of the view, once each."""
    rows, lines = read_columns(table, (_PATH, _SIDE, *CLASSES))
    _refuse_views(table, rows[_SIDE], lines)
    says = {**_SAYS, "-1": _UNSURE[uncertain], "-1.0": _UNSURE[uncertain]}
    labels = zip(*(_numbers(table, name, rows[name], lines, says) for name in CLASSES), strict=True)
    refs = [_ref(table, *row) for row in zip(rows[_PATH], labels, lines, strict=True)]
    facts = [(ref.patient, ref.label) for ref in refs]
    kept = shards.without_doubles(table, [ref.id for ref in refs], facts, lines)
    return [refs[i] for i in kept if view in ("all", rows[_SIDE][i].lower())]


def _refuse_views(table: Path, sides: list[str], lines: list[int]) -> None:
    strange = {side for side in sides if side.lower() not in ("frontal", "lateral")}
    if strange:
        i = next(i for i, side in enumerate(sides) if side in strange)
        raise DataError(f"{table}, line {lines[i]}: {sides[i]!r} is neither Frontal nor Lateral: correct it.")


def _numbers(table: Path, name: str, texts: list[str], lines: list[int], says: dict[str, int]) -> list[int]:
    strange = set(texts) - says.keys()
    if strange:
        i = next(i for i, text in enumerate(texts) if text in strange)
        raise DataError(
            f"{table}, line {lines[i]}: {texts[i]!r} in the column {name!r} is none of 1, 0, -1 and blank: correct it."
        )
    return [says[text] for text in texts]


def _ref(table: Path, path: str, label: tuple[int, ...], line: int) -> ImageRef:
    """The id is the path without the folder of the data set, `CheXpert-v1.0-small` or whatever it was called."""
    first, _, rest = path.partition("/")
    name = rest if first.lower().startswith("chexpert") else path
    patient = _PATIENT.search(name)
    if patient is None or ".." in name.split("/"):
        raise DataError(f"{table}, line {line}: {path!r} names no patient's image (.../patient00001/...): correct it.")
    return ImageRef(name, patient[1], table.parent / name, label)
