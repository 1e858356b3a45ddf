"""What visual words are found in: the scans or the images of a cache's training patients, one file each."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Protocol, cast, runtime_checkable

import numpy as np
from jaxtyping import Int

from pcrl_cli.core.case import Case
from pcrl_cli.core.errors import ConfigError
from pcrl_cli.core.files import write_atomic
from pcrl_cli.core.listener import Listener
from pcrl_cli.core.plan import CropPlan, Scan
from pcrl_cli.data.build import build as build_cache
from pcrl_cli.data.cache import Cache, open_cache
from pcrl_cli.pure.words import Words

CORPORA = {"crops": "pcrl_cli.stages.corpora.scans", "images": "pcrl_cli.stages.corpora.images"}
"""By the kind of cache. Name -> module, imported on use."""
KEPT = (
    "kind", "dim", "channels", "modality", "spacing_mm", "to_unit", "intensity", "normalisation", "excluded_findings",
    "recipe", "reader", "data", "options", "pcrl",
)  # fmt: skip
"""What a cache of words says as the cache that it was made for."""

Jobs = int | Literal["auto"]


@dataclass(frozen=True)
class Members:
    """Who may belong to a word, one row a scan or image, and where a describer finds them.

    rows: of the joined `group/image` of these cases. shapes: of the whole scans, where corners lie.
    """

    cache: Cache
    group: str
    cases: tuple[str, ...]
    rows: Int[np.ndarray, " n"]
    names: tuple[str, ...]
    patients: tuple[str, ...]
    shapes: Int[np.ndarray, "n d"]


@dataclass(frozen=True)
class Making:
    """How caches of a discovery are made. mark: fingerprint of all that decides them. set_aside: written in them."""

    source: Cache
    mark: str
    set_aside: float
    jobs: Jobs
    listener: Listener

    def __call__(
        self,
        cases: Sequence[Case],
        reading: Callable[[Case], Scan],
        plan: CropPlan,
        folder: Path,
        files: Callable[[Case], list[Path]],
        root: Path,
        peak_bytes: int,
        **header: Any,
    ) -> Cache:
        """One array group of these cases as a cache with the source's split."""
        manifest, split = self.source.manifest, self.source.split
        facts = {key: manifest[key] for key in KEPT if key in manifest}
        facts |= {"groups": [plan.group], "discovered": self.mark, "set_aside": self.set_aside}
        facts |= {"settings": manifest["settings"] | {"discovered": self.mark}} | header
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "split.json").exists():
            write_atomic(folder / "split.json", (self.source.path / "split.json").read_bytes())
        self.listener.begin(f"cutting {plan.group}", len(cases), "scans" if manifest["dim"] == 3 else "shards")
        try:
            build_cache(
                cases,
                reading,
                [plan],
                folder,
                facts,
                jobs=self.jobs,
                seed=split.seed,
                progress=lambda done, total, case, status: self.listener.advance(done),
                patients=split.part("all"),
                root=root,
                files=files,
                peak_bytes=peak_bytes,
            )
        finally:
            self.listener.end()
        return open_cache(folder)


@runtime_checkable
class Corpus(Protocol):
    """The scans or images of a cache's training patients but those set aside."""

    patients: tuple[str, ...]

    def members(self, folder: Path, shape: tuple[int, ...], make: Making) -> Members:
        """All who may belong to a word, ready for the describer; `folder`: for what has to be written for that."""

    def whole(self, name: str) -> tuple[np.ndarray, float]:
        """A scan or image, and the value under which there is no body."""

    def cut(self, plan: Words, folder: Path, words: int, make: Making) -> Cache:
        """The cubes of all its instances as a cache."""


def corpus_of(source: Cache, patients: Sequence[str], data: Path | None) -> Corpus:
    """These patients of a cache of crop pairs or images. data: where the raw scans are now, if they were moved.

    Raises:
        ConfigError: the scans are not there.
    """
    return cast(Corpus, _module(source).Corpus(source, tuple(patients), data))


def defaults(source: Cache) -> dict[str, Any]:
    """The settings of `pcrl discover` that depend on what words are found in.

    Raises:
        ConfigError: there is nothing of the kind in the cache.
    """
    return cast(dict[str, Any], _module(source).defaults(source))


def _module(source: Cache) -> Any:
    kind, groups = source.manifest["kind"], source.groups
    if kind not in CORPORA or not {"pairs", "images"} & set(groups):
        raise ConfigError(
            f"{source.path} is a cache of {kind} with {', '.join(groups)}; words are found in a cache of crop pairs or of "
            "images"
        )
    return import_module(CORPORA[kind])


def word_names(n: int) -> list[str]:
    """The classes of a cache of words."""
    return [f"word {i}" for i in range(n)]
