"""One's own 3D scans with masks to whole volumes, for segmentation; the regions are those of the masks."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import Field

from pcrl_cli.core.case import Case
from pcrl_cli.core.errors import ConfigError, DataError, PcrlError
from pcrl_cli.core.plan import CropPlan, Labelled, Scan
from pcrl_cli.data.labelled import Preparation, label
from pcrl_cli.pure.split import Part
from pcrl_cli.pure.volumes import WholeVolumes
from pcrl_cli.readers import masks
from pcrl_cli.stages.kinds import Noted, PrepSettings
from pcrl_cli.stages.kinds.volumes import PEAK_BYTES as PEAK_BYTES
from pcrl_cli.stages.kinds.volumes import described, foretold, refuse_others

UNIT = "scans"


class MaskedSettings(PrepSettings):
    """modalities: the channels of a case, by the ends of their files' names; none: a case is one file or DICOM series.

    regions: the labels, as they are in the masks' files, that make up each; from `--regions`, or of what is there.
    """

    prepare: Preparation = Preparation()
    modalities: tuple[str, ...] | None = None
    regions: dict[str, tuple[int, ...]] = Field(default_factory=dict)
    volumes: WholeVolumes = Field(default=WholeVolumes())


SETTINGS = MaskedSettings


def complete(settings: MaskedSettings, reader: ModuleType, given: Mapping[str, Any]) -> MaskedSettings:
    """Raises:
    ConfigError: a channel is named twice; one CT scan has several; what `--regions` says cannot be.
    """
    names = reader.chosen(settings.modalities)
    if names and len(names) > 1 and settings.prepare.modality == "ct":
        raise ConfigError(
            f"--modalities {','.join(names)} are channels of MR, and the scans count as CT; add --modality mr, or leave it out"
        )
    if given.get("regions") is not None:
        masks.parsed(given["regions"])  # what is wrong is said before any file is looked at
    return settings.model_copy(update={"modalities": names})


def settle(settings: Any, reader: ModuleType, cases: Sequence[Case], given: Mapping[str, Any], known: Noted) -> Any:
    """The settings with the regions; where nobody named them, every label that is found in a mask is one."""
    regions = masks.regions_for(cases, given.get("regions"), lambda: found_labels(reader, cases, known))
    return settings.model_copy(update={"regions": regions})


def found_labels(reader: ModuleType, cases: Sequence[Case], known: Noted) -> set[int]:
    """Of all masks that can be read; what a file held is taken from `known` as long as it has not changed."""
    found, noted = set[int](), dict(known)
    known.clear()
    for path in (path for case in cases for path in masks.masks_of(case).values()):
        try:
            facts = path.stat()
        except OSError:
            continue  # reading the case will say what is wrong
        key = f"{path.resolve()}|{facts.st_size}|{facts.st_mtime_ns}"
        try:
            labels = noted[key] if key in noted else sorted(reader.labels_in_file(path))
        except PcrlError:
            continue
        known[key] = labels
        found.update(labels)
    return found


def options(settings: MaskedSettings) -> dict[str, Any]:
    return {} if settings.modalities is None else {"modalities": settings.modalities}


def plans(settings: MaskedSettings, cases: Sequence[Case]) -> list[CropPlan]:
    return [settings.volumes]


def check(
    settings: MaskedSettings, origin: Mapping[str, str], reader: ModuleType, plans: Sequence[CropPlan], data: Path
) -> None:
    """Raises:
    ConfigError: an option is of the other modality; regions in a setting.
    """
    refuse_others(settings.prepare.modality, origin)
    refuse_regions(origin)


def refuse_regions(origin: Mapping[str, str]) -> None:
    """Raises:
    ConfigError: regions were set, where an option names them.
    """
    if any(key.partition(".")[0] == "regions" and layer in ("flags", "--set") for key, layer in origin.items()):
        raise ConfigError("regions come from --regions, or from the masks; leave the setting out")


def header(settings: MaskedSettings, reader: ModuleType, cases: Sequence[Case]) -> dict[str, Any]:
    names = settings.modalities or (settings.prepare.modality,)
    return described(settings.prepare, names) | of_regions(settings.regions)


def of_regions(regions: masks.Regions) -> dict[str, Any]:
    """What the manifest says of them: their names, the stored labels of each, and what the files hold for these."""
    stored = masks.stored_regions(regions)
    return {
        "classes": list(stored),
        "regions": {name: list(labels) for name, labels in stored.items()},
        "label_values": masks.label_values(regions),
    }


def reading(settings: MaskedSettings, module: str) -> Callable[[Case], Scan]:
    return partial(read_masked, module, settings.prepare, settings.regions)


def parts(settings: MaskedSettings, reader: ModuleType, data: Path) -> Mapping[str, Part] | None:
    return None


def nbytes(settings: MaskedSettings, plans: Sequence[CropPlan], cases: Sequence[Case]) -> float:
    """By the headers; a DICOM series, which has none for all of it, is not counted."""
    images = [[c.files[name] for name in settings.modalities] if settings.modalities else [c.path] for c in cases]
    return foretold(settings.prepare, settings.volumes, images)


def read_masked(module: str, how: Preparation, regions: masks.Regions, case: Case) -> Labelled:
    """One case with its mask; runs in a worker process."""
    found = import_module(module).read(case, regions)
    if how.modality == "ct" and len(found.images) > 1:
        raise DataError(f"{case.path} has several channels, and a CT scan has one: give --modality mr.")
    return label(found, how)
