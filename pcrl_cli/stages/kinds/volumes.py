"""3D scans with masks to whole volumes, for segmentation (LiTS, BraTS)."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from pydantic import Field, model_validator

from pcrl_cli.core.case import Case
from pcrl_cli.core.errors import ConfigError, DataError
from pcrl_cli.core.names import find
from pcrl_cli.core.plan import CropPlan, Labelled, Scan
from pcrl_cli.data.labelled import Preparation, label
from pcrl_cli.pure.split import Part
from pcrl_cli.pure.volumes import WholeVolumes
from pcrl_cli.readers import READERS
from pcrl_cli.readers.volume_io import read_grid
from pcrl_cli.stages.kinds import PrepSettings

UNIT = "scans"
PEAK_BYTES = 3_000_000_000
"""A case of 512 x 512 x 700 voxels at its peak, measured: as read, resampled to 1 mm in float32, rounded, in the shard."""
BRAIN_SHARE = 0.4  # of a skull-stripped MR scan's voxels, about, that its brain's box holds


class VolumeSettings(PrepSettings):
    """modalities: the MR sequences that are read; all that the data set has by default."""

    prepare: Preparation = Preparation()
    modalities: tuple[str, ...] | None = None
    volumes: WholeVolumes = Field(default=WholeVolumes())

    @model_validator(mode="before")
    @classmethod
    def _modality(cls, values: Any) -> Any:
        """What is not said is the data set's own; sequences are in the order in which they are read, all of them unsaid.

        Raises:
            ConfigError: the data set has no such sequence, or one is named twice.
        """
        if isinstance(values, dict) and values.get("reader") in READERS:
            reader = find("data set", values["reader"], READERS)
            own = {"modality": reader.MODALITY}
            prepare = values.get("prepare", {})
            values = values | {"prepare": own | dict(prepare)} if isinstance(prepare, Mapping) else values
            if values.get("modalities") is not None and hasattr(reader, "chosen"):  # one spelling of what is one cache
                named = tuple(reader.chosen(values["modalities"]))
                values = values | {"modalities": None if named == reader.chosen(None) else named}
        return values


SETTINGS = VolumeSettings


def options(settings: VolumeSettings) -> dict[str, Any]:
    return {} if settings.modalities is None else {"modalities": settings.modalities}


def plans(settings: VolumeSettings, cases: Sequence[Case]) -> list[CropPlan]:
    return [settings.volumes]


def check(
    settings: VolumeSettings, origin: Mapping[str, str], reader: ModuleType, plans: Sequence[CropPlan], data: Path
) -> None:
    """Raises:
    ConfigError: the modality is not the data set's, or an option is of the other modality.
    """
    modality = settings.prepare.modality
    if modality != reader.MODALITY:
        raise ConfigError(
            f"{reader.NAME} is a data set of {reader.MODALITY.upper()} scans; leave prepare.modality={modality} out"
        )
    refuse_others(modality, origin)


def refuse_others(modality: str, origin: Mapping[str, str]) -> None:
    """Raises:
    ConfigError: a setting of the other modality was asked for.
    """
    other = ("normalise",) if modality == "ct" else ("hu_min", "hu_max", "margin")
    for name in other:
        if origin.get(f"prepare.{name}") in (
            "flags",
            "--set",
        ):  # a file or a recipe may hold what another data set needs
            raise ConfigError(f"prepare.{name} changes nothing for {modality.upper()} scans; leave it out")


def header(settings: VolumeSettings, reader: ModuleType, cases: Sequence[Case]) -> dict[str, Any]:
    return described(settings.prepare, channel_names(reader, settings.modalities))


def described(how: Preparation, names: Sequence[str]) -> dict[str, Any]:
    """What the manifest says of images that were prepared so; names: of their channels."""
    window = f"HU {how.hu_min:g} to {how.hu_max:g} to [0, 1]"
    return {
        "dim": 3,
        "channels": len(names),
        "channel_names": list(names),
        "modality": how.modality,
        "spacing_mm": how.spacing_mm,
        "to_unit": list(how.to_unit),
        "pad": how.pad,
        "intensity": {"hu_min": how.hu_min, "hu_max": how.hu_max} if how.modality == "ct" else {},
        "normalisation": window if how.modality == "ct" else f"{how.normalise} of each sequence, 0 outside the brain",
    }


def reading(settings: VolumeSettings, module: str) -> Callable[[Case], Scan]:
    return partial(read_labelled, module, settings.prepare)


def parts(settings: VolumeSettings, reader: ModuleType, data: Path) -> Mapping[str, Part] | None:
    return None


def nbytes(settings: VolumeSettings, plans: Sequence[CropPlan], cases: Sequence[Case]) -> float:
    """By the headers: two bytes a voxel and channel on the working grid; masks shrink to almost nothing."""
    ct = settings.prepare.modality == "ct"
    images = [[c.path] if ct else [path for name, path in c.files.items() if name != "mask"] for c in cases]
    return foretold(settings.prepare, settings.volumes, images)


def foretold(how: Preparation, volumes: WholeVolumes, images: Sequence[Sequence[Path]]) -> float:
    """Bytes of a cache, about. images: those of each case."""
    found = [(bytes_of(how, paths), len(paths)) for paths in images]
    return float(sum(n + volumes.bytes_beside(n / 2 / channels) for n, channels in found))


def bytes_of(how: Preparation, images: Sequence[Path]) -> float:
    """Of one case, by the header of its first image."""
    try:
        grid = read_grid(images[0])
    except DataError:
        return 0.0  # reading it will say what is wrong
    voxels = float(np.prod(grid.shape))
    if how.spacing_mm is not None:
        voxels *= float(np.prod(grid.spacing)) / how.spacing_mm**3
    return 2 * voxels * len(images) * (1 if how.modality == "ct" else BRAIN_SHARE)


def channel_names(reader: ModuleType, modalities: tuple[str, ...] | None) -> tuple[str, ...]:
    """Of a case's images, in their order."""
    return tuple(reader.chosen(modalities)) if "modalities" in reader.OPTIONS else (reader.MODALITY,)


def read_labelled(module: str, how: Preparation, case: Case) -> Labelled:
    """One case with its mask; runs in a worker process."""
    return label(import_module(module).read(case), how)
