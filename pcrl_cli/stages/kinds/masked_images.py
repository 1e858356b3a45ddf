"""One's own pictures with masks to a cache of whole pictures, for segmentation in 2D."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import Field

from pcrl_cli.core.case import Case
from pcrl_cli.core.errors import PcrlError
from pcrl_cli.core.plan import CropPlan, Labelled, Scan
from pcrl_cli.data.pictures import PicturePreparation, label_picture, prepare_picture
from pcrl_cli.pure.split import Part
from pcrl_cli.pure.volumes import WholeVolumes
from pcrl_cli.readers import masks
from pcrl_cli.readers.image_io import read_whole
from pcrl_cli.stages.kinds import PrepSettings
from pcrl_cli.stages.kinds.masked import of_regions, refuse_regions
from pcrl_cli.stages.kinds.masked import settle as settle

UNIT = "pictures"
PEAK_BYTES = 900_000_000
"""The largest picture that is decoded, 67 megapixels: in grey, in float32, its mask as stored and as labels."""
LOOKED_AT = 5
"""Pictures, evenly from the list, by which the size of a cache is foretold."""


class MaskedImageSettings(PrepSettings):
    """regions: the labels, as they are in the masks' files, that make up each; from `--regions`, or of what is there."""

    prepare: PicturePreparation = PicturePreparation()
    regions: dict[str, tuple[int, ...]] = Field(default_factory=dict)
    volumes: WholeVolumes = Field(default=WholeVolumes())


SETTINGS = MaskedImageSettings


def complete(settings: MaskedImageSettings, reader: ModuleType, given: Mapping[str, Any]) -> MaskedImageSettings:
    """Raises:
    ConfigError: what `--regions` says cannot be.
    """
    if given.get("regions") is not None:
        masks.parsed(given["regions"])
    return settings


def options(settings: MaskedImageSettings) -> dict[str, Any]:
    return {}


def plans(settings: MaskedImageSettings, cases: Sequence[Case]) -> list[CropPlan]:
    return [settings.volumes]


def check(
    settings: MaskedImageSettings, origin: Mapping[str, str], reader: ModuleType, plans: Sequence[CropPlan], data: Path
) -> None:
    """Raises:
    ConfigError: regions in a setting.
    """
    refuse_regions(origin)


def header(settings: MaskedImageSettings, reader: ModuleType, cases: Sequence[Case]) -> dict[str, Any]:
    how = settings.prepare
    return {
        "dim": 2,
        "channels": 1,
        "modality": how.modality,
        "spacing_mm": None,
        "size": how.size,
        "to_unit": list(how.to_unit),
        "pad": how.pad,
        "intensity": {"grey_levels": 256},
        "normalisation": "ImageNet's mean and standard deviation, from [0, 1]",
    } | of_regions(settings.regions)


def reading(settings: MaskedImageSettings, module: str) -> Callable[[Case], Scan]:
    return partial(read_masked, module, settings.prepare, settings.regions)


def parts(settings: MaskedImageSettings, reader: ModuleType, data: Path) -> Mapping[str, Part] | None:
    return None


def nbytes(settings: MaskedImageSettings, plans: Sequence[CropPlan], cases: Sequence[Case]) -> float:
    """By some of the pictures: two bytes a pixel of what they become, and what is stored beside."""
    pixels = [
        found for case in cases[:: -(-len(cases) // LOOKED_AT) or 1] if (found := _pixels(case, settings.prepare))
    ]
    usual = sum(pixels) / len(pixels) if pixels else 0.0  # reading them will say what is wrong
    return len(cases) * (2 * usual + settings.volumes.bytes_beside(usual))


def _pixels(case: Case, how: PicturePreparation) -> float:
    """Of a prepared picture; 0 where it cannot be read."""
    try:
        shape = read_whole(case.path).pixels.shape
    except PcrlError:
        return 0.0
    return float(math.prod(shape)) / max(1.0, max(shape) / how.size if how.size else 1.0) ** 2


def read_masked(module: str, how: PicturePreparation, regions: masks.Regions, case: Case) -> Labelled:
    """One picture with its mask; runs in a worker process."""
    picture, mask = import_module(module).read(case, regions)
    imaged = prepare_picture(picture.pixels, how, str(case.path), picture.scan_id)
    return label_picture(imaged, mask, str(case.path), str(next(iter(masks.masks_of(case).values()))))
