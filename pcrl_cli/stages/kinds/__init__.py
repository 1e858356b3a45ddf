"""What differs between kinds of caches while they are prepared, one file each; a reader's KIND names its own."""

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, cast, runtime_checkable

from pydantic import Field

from pcrl_cli.core.case import Case
from pcrl_cli.core.config import Settings
from pcrl_cli.core.plan import CropPlan, Scan
from pcrl_cli.pure.split import Part

KINDS: dict[str, str] = {
    "crops": "pcrl_cli.stages.kinds.crops",
    "volumes": "pcrl_cli.stages.kinds.volumes",
    "masked": "pcrl_cli.stages.kinds.masked",
    "masked_images": "pcrl_cli.stages.kinds.masked_images",
    "images": "pcrl_cli.stages.kinds.images",
}
"""Name -> module, imported on use."""


Noted = dict[str, list[int]]
"""The labels of masks, by path, size and time of change of their files."""


class PrepSettings(Settings):
    """What decides a cache's bytes, besides the scans; every kind adds its own."""

    reader: str
    recipe: str
    seed: int = Field(0, ge=0)


@runtime_checkable
class Kind(Protocol):
    """What `stages.prep` asks of a kind's module."""

    UNIT: str
    """What the data set is a list of, for messages: scans, images."""
    PEAK_BYTES: int
    """Memory that a case may take while it is prepared."""
    SETTINGS: type[PrepSettings]

    def options(self, settings: Any) -> dict[str, Any]:
        """Options of the reader that the settings decide."""

    def plans(self, settings: Any, cases: Sequence[Case]) -> list[CropPlan]: ...

    def check(
        self, settings: Any, origin: Mapping[str, str], reader: ModuleType, plans: Sequence[CropPlan], data: Path
    ) -> None:
        """Refuses settings that would change nothing, or make nonsense, with this data set."""

    def header(self, settings: Any, reader: ModuleType, cases: Sequence[Case]) -> dict[str, Any]:
        """For the manifest: dim, channels, modality, spacing_mm, to_unit, classes, domain."""

    def reading(self, settings: Any, module: str) -> Callable[[Case], Scan]:
        """A picklable function that a worker reads a case with; `module`: the reader's."""

    def parts(self, settings: Any, reader: ModuleType, data: Path) -> Mapping[str, Part] | None:
        """The part of every patient whom the data set's own lists name, if these were asked for."""

    def nbytes(self, settings: Any, plans: Sequence[CropPlan], cases: Sequence[Case]) -> float:
        """About how large the shards of these cases will be."""


def completed(kind: Kind, settings: PrepSettings, reader: ModuleType, given: Mapping[str, Any]) -> PrepSettings:
    """The settings with what the kind takes from the data set and its options, if it does (`complete`)."""
    complete = getattr(kind, "complete", None)
    return cast(PrepSettings, complete(settings, reader, given)) if complete else settings


def settled(
    kind: Kind,
    settings: PrepSettings,
    reader: ModuleType,
    cases: Sequence[Case],
    given: Mapping[str, Any],
    known: Noted,
) -> PrepSettings:
    """The settings with what the kind takes from the listed cases, if it does (`settle`): the labels of masks.

    known: what earlier calls found in files, and what this one finds.
    """
    settle = getattr(kind, "settle", None)
    return cast(PrepSettings, settle(settings, reader, cases, given, known)) if settle else settings


def peak_of(kind: Kind, settings: PrepSettings) -> int:
    """Memory that a case may take, where that depends on the settings (`peak_bytes`)."""
    peak_bytes = getattr(kind, "peak_bytes", None)
    return int(peak_bytes(settings)) if peak_bytes else kind.PEAK_BYTES


def kind_of(reader: ModuleType) -> Kind:
    return cast(Kind, import_module(KINDS[reader.KIND]))
