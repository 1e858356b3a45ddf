"""3D scans to crop pairs, to blocks round candidates where the data set has some (LUNA16), and where a table labels them
(one's own scans) to whole scans of one size.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import Field

from pcrl_cli.core.case import Case
from pcrl_cli.core.errors import ConfigError
from pcrl_cli.core.plan import CropPlan, Prepared, Scan
from pcrl_cli.data.volume import Intensity, prepare
from pcrl_cli.pure.crops import CandidateBlocks, CropPairs, WholeScan
from pcrl_cli.pure.split import Part
from pcrl_cli.stages.kinds import PrepSettings

UNIT = "scans"
PEAK_BYTES = 2_500_000_000
"""A case of 512 x 512 x 700 voxels at its peak: as read, as float32, resampled to 1 mm."""
FILE_BYTES = 10_000
"""What a shard holds besides its arrays, about: names, shapes, where the pieces lie."""


class CropSettings(PrepSettings):
    """whole: of labelled scans; its classes are taken from the table."""

    spacing_mm: float = Field(1.0, gt=0)
    intensity: Intensity = Intensity()
    pairs: CropPairs = CropPairs()
    candidates: CandidateBlocks = CandidateBlocks()
    whole: WholeScan = WholeScan()


SETTINGS = CropSettings


def complete(settings: CropSettings, reader: ModuleType, given: Mapping[str, Any]) -> CropSettings:
    """The settings with the classes of the table of labels, where one is given."""
    classes = tuple(reader.classes(given["labels"])) if given.get("labels") and hasattr(reader, "classes") else ()
    return settings.model_copy(update={"whole": settings.whole.model_copy(update={"classes": classes})})


def options(settings: CropSettings) -> dict[str, Any]:
    return {}


def plans(settings: CropSettings, cases: Sequence[Case]) -> list[CropPlan]:
    """Pairs unless none are asked for; candidates where the data set has some; whole scans where they have labels."""
    there: dict[CropPlan, bool] = {
        settings.pairs: settings.pairs.pairs > 0,
        settings.candidates: any(case.points is not None for case in cases),
        settings.whole: bool(settings.whole.classes),
    }
    return [plan for plan, wanted in there.items() if wanted]


def check(
    settings: CropSettings, origin: Mapping[str, str], reader: ModuleType, plans: Sequence[CropPlan], data: Path
) -> None:
    """Raises:
    ConfigError: options of candidates or of whole scans where there are none; MR values for a data set of CT; nothing is
        left to cut.
    """
    modality = settings.intensity.modality
    if modality != reader.MODALITY and reader.NAME != "folder":
        raise ConfigError(
            f"{reader.NAME} is a data set of {reader.MODALITY.upper()} scans; leave --modality {modality} out"
        )
    typed = sorted(
        key for key, layer in origin.items() if key.startswith("candidates.") and layer in ("flags", "--set")
    )
    if typed and settings.candidates not in plans:
        option = "--negatives" if typed == ["candidates.negatives"] else typed[0]
        raise ConfigError(f"{data} lists no candidates that {option} could apply to; leave it out")
    whole = sorted(key for key, layer in origin.items() if key.startswith("whole.") and layer in ("flags", "--set"))
    if "whole.classes" in whole:
        raise ConfigError("classes come from --labels; leave whole.classes out")
    if whole and settings.whole not in plans:
        raise ConfigError(f"{whole[0]} is of scans with labels; give them with --labels, or leave it out")
    if not plans:
        raise ConfigError("--pairs 0 leaves nothing to prepare; give --labels, or ask for pairs")


def header(settings: CropSettings, reader: ModuleType, cases: Sequence[Case]) -> dict[str, Any]:
    window, labelled = settings.intensity, bool(settings.whole.classes)
    recorded = settings.model_dump(mode="json", exclude=None if labelled else {"whole"})
    return {
        "settings": recorded,  # what changes nothing is left out, so that other caches stay what they are
        **({"classes": list(settings.whole.classes), "size": list(settings.whole.shape)} if labelled else {}),
        "dim": 3,
        "channels": 1,
        "modality": window.modality,
        "spacing_mm": settings.spacing_mm,
        "to_unit": [window.store_scale, window.store_offset],
        "intensity": {"hu_min": window.hu_min, "hu_max": window.hu_max} if window.modality == "ct" else {},
        "normalisation": "z-score of each view, from [0, 1]",
        "excluded_findings": any(case.excluded is not None for case in cases),
    }


def reading(settings: CropSettings, module: str) -> Callable[[Case], Scan]:
    return partial(read_prepared, module, settings.intensity, settings.spacing_mm)


def parts(settings: CropSettings, reader: ModuleType, data: Path) -> Mapping[str, Part] | None:
    return None


def nbytes(settings: CropSettings, plans: Sequence[CropPlan], cases: Sequence[Case]) -> float:
    """By the shapes that the plans cut; candidates that lie outside their scan are counted too."""
    a_case = FILE_BYTES
    if settings.pairs in plans:
        a_case += settings.pairs.pairs * settings.pairs.pair_bytes
    if settings.whole in plans:
        a_case += settings.whole.scan_bytes
    blocks = 0
    if settings.candidates in plans:
        labels = [case.points.label for case in cases if case.points is not None]
        sample = settings.candidates.negatives
        blocks = sum(int(label.sum()) + min(sample, int((label == 0).sum())) for label in labels)
    return float(a_case * len(cases) + blocks * settings.candidates.block_bytes)


def read_prepared(module: str, intensity: Intensity, spacing_mm: float, case: Case) -> Prepared:
    """One case, as crops are cut from it; runs in a worker process."""
    return prepare(import_module(module).read(case), intensity, spacing_mm)
