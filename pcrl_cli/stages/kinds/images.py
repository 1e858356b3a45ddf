"""Radiographs to grey squares of one size, some thousand a shard (NIH ChestX-ray14, CheXpert, one's own folders)."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
from pydantic import Field

from pcrl_cli.core.case import Case
from pcrl_cli.core.config import Settings
from pcrl_cli.core.errors import ConfigError
from pcrl_cli.core.plan import CropPlan, Drawn, Pictures, Scan
from pcrl_cli.pure.split import Part
from pcrl_cli.stages.kinds import PrepSettings

UNIT = "images"
OF_SOME_READERS = ("uncertain", "view", "official_split")
"""Settings that only some data sets understand; the reader's OPTIONS say which."""
MAX_SIDE = 1024


class ImageSettings(PrepSettings):
    """What decides the bytes of a cache of images.

    size: rows and columns. aspect: stretch makes both sides the square's, as 2D pipelines commonly do; pad keeps the
    proportions and adds black. uncertain, view: of CheXpert. official_split: by the data set's own lists.
    """

    size: int = Field(256, ge=8, le=MAX_SIDE)
    aspect: Literal["stretch", "pad"] = "stretch"
    uncertain: Literal["zero", "one", "ignore"] = "zero"
    view: Literal["frontal", "lateral", "all"] = "all"
    official_split: bool = False


SETTINGS = ImageSettings


class ImageStack(Settings):
    """All images of a shard as they are, with their labels.

    classes: what the columns of the labels mean; also counted.
    """

    classes: tuple[str, ...] = ()

    @property
    def group(self) -> str:
        return "images"

    def draw(self, scan: Pictures, case: Case, rng: np.random.Generator) -> Drawn:
        """`image` (n, 1, s, s) uint8, `label` (n, k) int8, `id` and `patient` (n,) UTF-8 bytes."""
        arrays = {
            "image": scan.image,
            "label": scan.label,
            "id": _bytes(scan.id),
            "patient": _bytes(scan.patient),
        }
        counts = Counter({"kept": len(scan.id), "unreadable": len(scan.bad)})
        for name, column in zip(self.classes, scan.label.T, strict=True):
            counts[f"with {name}"] = int((column == 1).sum())
            if (column < 0).any():
                counts[f"{name} not known"] = int((column < 0).sum())
        return Drawn(arrays, counts)


def options(settings: ImageSettings, reader: ModuleType) -> dict[str, Any]:
    return {name: getattr(settings, name) for name in OF_SOME_READERS if name in reader.OPTIONS}


def plans(settings: ImageSettings, classes: Sequence[str]) -> list[CropPlan]:
    return [ImageStack(classes=tuple(classes))]


def check(settings: ImageSettings, origin: Mapping[str, str], reader: ModuleType) -> None:
    """Raises:
    ConfigError: a setting that this data set has no use for.
    """
    for name in OF_SOME_READERS:
        if name in origin and name not in reader.OPTIONS and origin[name] != "environment":
            raise ConfigError(f"--{name.replace('_', '-')} is not for the reader {reader.NAME}; leave it out")


def _bytes(words: Sequence[str]) -> np.ndarray:
    encoded = [word.encode() for word in words]
    return np.array(encoded, f"S{max([1, *map(len, encoded)])}")


def read_pictures(module: str, size: int, aspect: str, case: Case) -> Pictures:
    """The images of one shard; runs in a worker process."""
    return import_module(module).read(case, size, aspect)  # type: ignore[no-any-return]
