"""NIH ChestX-ray14: 112,120 frontal chest radiographs of 30,805 patients with 14 findings taken from the reports.

images/*.png or images_001/images/*.png ... images_012/images/*.png
Data_Entry_2017.csv or Data_Entry_2017_v2020.csv
train_val_list.txt, test_list.txt        the official parts, for `official_split`
"""

from collections.abc import Iterable
from pathlib import Path

from pcrl_cli.core.case import Case, ImageRef
from pcrl_cli.core.errors import DataError, blame_reading
from pcrl_cli.core.findings import NIH
from pcrl_cli.core.plan import Pictures
from pcrl_cli.readers import shards
from pcrl_cli.readers.image_io import Aspect
from pcrl_cli.readers.shards import OfficialPart
from pcrl_cli.readers.tables import read_columns, require_folder

NAME = "nih"
CITATION = (
    "Wang et al., ChestX-ray8: hospital-scale chest X-ray database and benchmarks on weakly-supervised classification "
    "and localization of common thorax diseases, CVPR 2017; NIH Clinical Center"
)
LICENSE = "free use; acknowledge the NIH Clinical Center and cite the paper"
CLASSES = NIH
MODALITY = "xray"
KIND = "images"
OPTIONS = ("official_split",)
ENTRIES = ("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv")
LISTS: dict[OfficialPart, str] = {"train": "train_val_list.txt", "test": "test_list.txt"}

_WHAT = "ChestX-ray14 (images/ or images_001 ... images_012, and Data_Entry_2017.csv)"
_COLUMNS = ("Image Index", "Finding Labels", "Patient ID")
_NOTHING = "No Finding"


def cases(root: Path, official_split: bool = False) -> list[Case]:
    """Shards of the images that are both listed and there, in the order of their names, which are their ids.

    Rows that repeat another are read once. Missing images are counted by `absent_rows`, unlisted ones by `remarks`.
    official_split: checks the two official lists, from which `official_parts` tells the part of each patient.

    Raises:
        DataError: no folder, no table, no image of it; an unknown finding; two rows that say different things of one
            image; with official_split a missing list, an image in none, or a patient in both.
    """
    root = require_folder(root, _WHAT)
    refs, there = _refs(root), _pictures(root)
    here = [ImageRef(ref.id, ref.patient, there[ref.id], ref.label) for ref in refs if ref.id in there]
    if not here:
        raise DataError(f"{root} holds none of the {len(refs)} images that its table lists: put {_WHAT} there.")
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
    """train (the list of training and validation) or test of every patient, by the two official lists.

    Raises:
        DataError: a list is missing, an image is in none, or a patient is in both.
    """
    lists = {part: _names(Path(root) / name) for part, name in LISTS.items()}
    refs = [ref for case in cases for ref in case.images]
    lost = [ref.id for ref in refs if not any(ref.id in names for names in lists.values())]
    if lost:
        raise DataError(
            f"{len(lost)} images are in neither {LISTS['train']} nor {LISTS['test']} of {root} (the first: {lost[0]}): "
            "copy the lists again, or leave --official-split out."
        )
    both = {part: [ref for ref in refs if ref.id in names] for part, names in lists.items()}
    return shards.parts_of_patients(both, " and ".join(LISTS.values()))


def remarks(root: Path, cases: Iterable[Case], official_split: bool = False) -> list[str]:
    """Sentences that the user should read: unlisted images, repeated rows, findings that nobody has."""
    said, cases = [], list(cases)
    rows, lines = read_columns(_table(Path(root)), _COLUMNS)
    unlisted = _pictures(Path(root)).keys() - set(rows["Image Index"])
    if unlisted:
        said.append(
            f"{len(unlisted)} images are not in {_table(Path(root)).name} (the first: {min(unlisted)}), so nobody knows "
            "whose they are; they were left out"
        )
    repeated = len(lines) - len(set(rows["Image Index"]))
    if repeated:
        said.append(f"{repeated} rows of {_table(Path(root)).name} repeat another and were read once")
    return [*said, *shards.empty_classes(cases, CLASSES)]


def absent_rows(root: Path, cases: Iterable[Case], official_split: bool = False) -> dict[str, int]:
    """How many images the table lists that are not among `cases`, by the table's name."""
    here = {ref.id for case in cases for ref in case.images}
    table = _table(Path(root))
    return {table.name: len(set(read_columns(table, _COLUMNS)[0]["Image Index"]) - here)}


def _refs(root: Path) -> list[ImageRef]:
    """What the table says of every image; the paths are names yet."""
    path = _table(root)
    rows, lines = read_columns(path, _COLUMNS)
    ids, findings, patients = (rows[name] for name in _COLUMNS)
    for name, values in rows.items():
        if "" in values:
            line = lines[values.index("")]
            raise DataError(f"{path}, line {line}: the column {name!r} is empty: correct it or remove the line.")
    labels = _labels(path, findings, lines)
    facts = [(patient, labels[text]) for patient, text in zip(patients, findings, strict=True)]
    kept = shards.without_doubles(path, ids, facts, lines)
    return [ImageRef(ids[i], patients[i], Path(ids[i]), labels[findings[i]]) for i in kept]


def _labels(path: Path, findings: list[str], lines: list[int]) -> dict[str, tuple[int, ...]]:
    """A 0 or 1 for each finding, by the text of the table's cell.

    Raises:
        DataError: a word that is no finding, or `No Finding` beside one.
    """
    labels: dict[str, tuple[int, ...]] = {}
    for text in dict.fromkeys(findings):
        words = {word.strip() for word in text.split("|")}
        unknown = sorted(words - {*CLASSES, _NOTHING})
        if unknown or (_NOTHING in words and len(words) > 1):
            what = f"{unknown[0]!r} is no finding" if unknown else f"{text!r} contradicts itself"
            line = lines[findings.index(text)]
            raise DataError(
                f"{path}, line {line}: {what} (the findings are {', '.join(CLASSES)} and {_NOTHING}): correct it."
            )
        labels[text] = tuple(int(name in words) for name in CLASSES)
    return labels


def _table(root: Path) -> Path:
    path = next((root / name for name in ENTRIES if (root / name).is_file()), None)
    if path is None:
        raise DataError(f"{root} holds no {ENTRIES[1]}: put {_WHAT} there, or give --data DIR.")
    return path


def _pictures(root: Path) -> dict[str, Path]:
    """The image files by their names."""
    folders = [root / "images", *sorted(root.glob("images_*/images"))]
    return shards.pictures_in(folder for folder in folders if folder.is_dir())


def _names(path: Path) -> set[str]:
    """The lines of an official list."""
    try:
        with blame_reading(path):
            return set(path.read_text(encoding="utf-8-sig").split())
    except FileNotFoundError:
        raise DataError(f"{path} is not there: put it there, or leave --official-split out.") from None
    except (UnicodeDecodeError, OSError) as error:
        raise DataError(f"{path} cannot be read as a list of names ({error}): copy it again.") from None
