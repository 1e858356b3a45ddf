"""Radiographs to grey squares of one size, some thousand a shard (NIH ChestX-ray14, CheXpert, one's own folders)."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, cast

import numpy as np
from pydantic import Field

from pcrl_cli.core.case import Case
from pcrl_cli.core.config import Settings
from pcrl_cli.core.errors import ConfigError
from pcrl_cli.core.names import find
from pcrl_cli.core.plan import CropPlan, Drawn, Pictures, Scan
from pcrl_cli.pure.split import Part
from pcrl_cli.readers import READERS
from pcrl_cli.readers.image_io import Aspect
from pcrl_cli.stages.kinds import PrepSettings

UNIT = "images"
PEAK_BYTES = 800_000_000
"""A shard of 2048 images of 256 x 256 at its peak; see `peak_bytes`."""
BESIDE = 150
"""Bytes of an image in a shard besides its pixels and labels, about."""
OF_SOME_READERS = ("uncertain", "view", "official_split")
"""Settings that only some data sets understand; the reader's OPTIONS say which."""
GREY = (1 / 255, 0.0)
"""What brings stored grey levels to [0, 1]."""


class ImageSettings(PrepSettings):
    """What decides the bytes of a cache of images.

    size: rows and columns. aspect: see `image_io.Aspect`. uncertain, view: of CheXpert. official_split: parts by the data
    set's own lists.
    classes: what the labels are of; taken from the data set.
    """

    size: int = Field(256, ge=8, le=1024)
    aspect: Aspect = "stretch"
    uncertain: Literal["zero", "one", "ignore"] = "zero"
    view: Literal["frontal", "lateral", "all"] = "all"
    official_split: bool = False
    classes: tuple[str, ...] = ()


SETTINGS = ImageSettings


class ImageStack(Settings):
    """The plan of a cache of images: all of a shard as they are, with their labels."""

    classes: tuple[str, ...] = ()

    @property
    def group(self) -> str:
        return "images"

    def draw(self, scan: Pictures, case: Case, rng: np.random.Generator) -> Drawn:
        """`image` (n, 1, s, s) uint8, `label` (n, k) int8, `id` and `patient` (n,) UTF-8 bytes."""
        arrays = {"image": scan.image, "label": scan.label, "id": _bytes(scan.id), "patient": _bytes(scan.patient)}
        counts = Counter({"kept": len(scan.id), "unreadable": len(scan.bad)})
        for name, column in zip(self.classes, scan.label.T, strict=True):
            counts[f"with {name}"] = int((column == 1).sum())
            if (column < 0).any():
                counts[f"unknown {name}"] = int((column < 0).sum())
        return Drawn(arrays, counts)


def _bytes(words: Sequence[str]) -> np.ndarray:
    encoded = [word.encode() for word in words]
    return np.array(encoded, f"S{max([1, *map(len, encoded)])}")


def complete(settings: ImageSettings, reader: ModuleType, given: Mapping[str, Any]) -> ImageSettings:
    """The settings with the classes of the data set or of its table of labels."""
    classes = reader.classes(given.get("labels")) if hasattr(reader, "classes") else reader.CLASSES
    return settings.model_copy(update={"classes": tuple(classes)})


def peak_bytes(settings: ImageSettings) -> int:
    """Memory of a shard of 2048 images: as read, as an HDF5 file in memory and as its bytes; and the interpreter."""
    return int(4.5 * 2048 * settings.size**2) + 200_000_000


def options(settings: ImageSettings) -> dict[str, Any]:
    known = find("data set", settings.reader, READERS).OPTIONS
    return {name: getattr(settings, name) for name in OF_SOME_READERS if name in known}


def plans(settings: ImageSettings, cases: Sequence[Case]) -> list[CropPlan]:
    return [ImageStack(classes=settings.classes)]


def check(
    settings: ImageSettings, origin: Mapping[str, str], reader: ModuleType, plans: Sequence[CropPlan], data: Path
) -> None:
    """Raises:
    ConfigError: a setting that this data set has no use for; classes, which are the data set's.
    """
    typed = {key for key, layer in origin.items() if layer in ("flags", "--set")}
    for name in OF_SOME_READERS:
        if name in typed and name not in reader.OPTIONS:
            raise ConfigError(f"--{name.replace('_', '-')} is not for the reader {reader.NAME}; leave it out")
    if "classes" in typed:
        raise ConfigError("classes come from the data set or from --labels; leave the setting out")


def header(settings: ImageSettings, reader: ModuleType, cases: Sequence[Case]) -> dict[str, Any]:
    return {
        "dim": 2,
        "channels": 1,
        "modality": reader.MODALITY,
        "spacing_mm": None,  # one size in pixels, whatever the films' was
        "size": settings.size,
        "classes": list(settings.classes),
        "to_unit": list(GREY),
        "intensity": {"grey_levels": 256},
        "normalisation": "ImageNet's mean and standard deviation, from [0, 1]",
    }


def reading(settings: ImageSettings, module: str) -> Callable[[Case], Scan]:
    return partial(read_pictures, module, settings.size, settings.aspect)


def parts(settings: ImageSettings, reader: ModuleType, data: Path) -> Mapping[str, Part] | None:
    if not settings.official_split:
        return None
    return cast(Mapping[str, Part], reader.official_parts(data, reader.cases(data, **options(settings))))


def nbytes(settings: ImageSettings, plans: Sequence[CropPlan], cases: Sequence[Case]) -> float:
    """A byte a pixel, one a label, and what names an image and says where its piece of the file lies."""
    each = settings.size**2 + len(settings.classes) + BESIDE
    return float(sum(len(case.images) for case in cases) * each)


def read_pictures(module: str, size: int, aspect: Aspect, case: Case) -> Pictures:
    """The images of one shard; runs in a worker process."""
    return cast(Pictures, import_module(module).read(case, size, aspect))
