"""BraTS: brain MR as `HGG/CASE/CASE_{flair,t1,t1ce,t2,seg}.nii.gz`, and LGG alike; skull-stripped, one 1 mm grid a case.

Labels: 1 necrosis (BraTS 2013: necrosis alone, 3 the rest of the core that does not enhance), 2 oedema, 4 enhancing. The
regions overlap: whole tumour, tumour core, enhancing tumour.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from pcrl_cli.core.case import Case
from pcrl_cli.core.errors import ConfigError, DataError
from pcrl_cli.data.labelled import Volumes, require_labels
from pcrl_cli.readers.tables import patients_by, require_folder, safe_name, walk
from pcrl_cli.readers.volume_io import read_volume

NAME = "brats"
KIND = "volumes"
CITATION = (
    "Menze et al., The Multimodal Brain Tumor Image Segmentation Benchmark (BRATS), IEEE Transactions on Medical Imaging "
    "34, 2015; Bakas et al., Advancing The Cancer Genome Atlas glioma MRI collections with expert segmentation labels "
    "and radiomic features, Scientific Data 4, 2017; Bakas et al., arXiv:1811.02629, 2018"
)
LICENSE = "the challenge's terms: research use, cite the papers"
CLASSES = ("WT", "TC", "ET")
MODALITY = "mr"
OPTIONS = ("patients", "modalities")
LABELS = (0, 1, 2, 3, 4)
MODALITIES = ("flair", "t1", "t1ce", "t2")

_WHAT = "BraTS (folders HGG/CASE and LGG/CASE with CASE_flair.nii.gz and so on)"
_FILE = re.compile(r"(?P<stem>.+)_(?P<what>flair|t1|t1ce|t2|seg)\.nii(\.gz)?", re.IGNORECASE)
_VISIT = re.compile(r"(?P<patient>brats_[a-z0-9]+_pat\d+|brats1[789]_\w+?_\w+)_\d+", re.IGNORECASE)
"""The names of BraTS 2013 to 2015 and 2017 to 2019; the last number is a visit."""


def cases(root: Path, patients: Path | None = None, modalities: Sequence[str] | None = None) -> list[Case]:
    """Every folder below `root` that holds files of a case, sorted by its name, which is the case's id.

    modalities: which sequences are read, always in the order of `MODALITIES`; all four by default. A sequence or a mask
    that is missing is listed, so that the case is refused by name when it is read. A case counts as a patient of its
    own, but for names such as brats_2013_pat0001_1, whose last number is a visit; unless `patients`, a CSV with the
    columns case (the id) and patient, names another.

    Raises:
        ConfigError: there is no such modality, or one is named twice.
        DataError: no folder, nothing in it, no case, one name twice, one file twice, or a malformed table.
    """
    wanted = chosen(modalities)
    root = require_folder(root, _WHAT)
    found: dict[Path, dict[str, Path]] = {}
    for path in walk(root):
        if match := _FILE.fullmatch(path.name):
            there, what = found.setdefault(path.parent, {}), match["what"].lower()
            if what in there:
                raise DataError(f"{there[what]} and {path} are both the {what} of one case: remove one of them.")
            there[what] = path
    if not found:
        raise DataError(f"{root} holds no CASE_flair.nii.gz or the like: put {_WHAT} there, or give --data DIR.")
    names: dict[str, Path] = {}
    for folder in sorted(found):
        name = safe_name(folder.name)
        if other := names.get(name):
            raise DataError(f"{other} and {folder} are cases of one name: rename or remove one of them.")
        names[name] = folder
    patient_of = patients_by(Path(patients), ("case",), set(names)) if patients else {}
    return [
        Case(name, patient_of.get(name) or _patient(name), folder, files=_files(folder, found[folder], wanted))
        for name, folder in sorted(names.items())
    ]


def read(case: Case) -> Volumes:
    """The sequences and the mask.

    Raises:
        DataError: one of them is missing; see `volume_io.read_volume`; a label that is not documented.
    """
    names = tuple(name for name in case.files if name != "mask")
    missing = [path.name for path in case.files.values() if not path.exists()]
    if missing:
        hint = (
            "" if missing == [case.files["mask"].name] else "; name the sequences that all cases have with --modalities"
        )
        raise DataError(f"{case.path} lacks {', '.join(missing)}: add what is missing or leave the case out{hint}.")
    mask = read_volume(case.files["mask"])
    require_labels(mask, LABELS)
    return Volumes(tuple(read_volume(case.files[name]) for name in names), names, mask)


def files(case: Case) -> list[Path]:
    """What `read` reads: the sequences and the mask."""
    return [path for path in case.files.values() if path.is_file()]


def find_sequences(folder: Path) -> dict[str, Path]:
    """The files of one case's folder by sequence, for a case without a mask."""
    matches = ((path, _FILE.fullmatch(path.name)) for path in sorted(folder.iterdir()))
    return {match["what"].lower(): path for path, match in matches if match and match["what"].lower() in MODALITIES}


def chosen(modalities: Sequence[str] | None) -> tuple[str, ...]:
    """The sequences to read, in the order of `MODALITIES`; all where none are named.

    Raises:
        ConfigError: there is no such modality, or one is named twice.
    """
    if modalities is None:
        return MODALITIES
    names = [name.strip().lower() for name in modalities]
    strange = [name for name in names if name not in MODALITIES]
    if strange or not names:
        what = f"there is no modality {strange[0]!r}" if strange else "no modality is named"
        raise ConfigError(f"{what}; --modalities takes some of {','.join(MODALITIES)}")
    if len(set(names)) < len(names):
        raise ConfigError(f"--modalities {','.join(names)} names one of them twice; name each once")
    return tuple(name for name in MODALITIES if name in names)


def _files(folder: Path, found: dict[str, Path], wanted: Iterable[str]) -> dict[str, Path]:
    """By sequence, then `mask`; of what is missing the name that it would have."""
    example = next(iter(found.values()))
    match = _FILE.fullmatch(example.name)
    assert match is not None
    ending = example.name[match.end("what") :]
    named = {what: found.get(what, folder / f"{match['stem']}_{what}{ending}") for what in (*wanted, "seg")}
    return {("mask" if what == "seg" else what): path for what, path in named.items()}


def _patient(name: str) -> str:
    match = _VISIT.fullmatch(name)
    return match["patient"] if match else name
