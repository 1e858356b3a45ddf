"""Words in CT or MR scans: read again from the raw files, since crop pairs hold no whole scan."""

from pathlib import Path
from typing import Any

import numpy as np

from pcrl_cli.core.case import Case
from pcrl_cli.core.errors import ConfigError
from pcrl_cli.core.names import find
from pcrl_cli.core.plan import Prepared
from pcrl_cli.data.cache import Cache
from pcrl_cli.pure.words import Thumbnails, Words
from pcrl_cli.readers import READERS
from pcrl_cli.stages.corpora import Making, Members, word_names
from pcrl_cli.stages.kinds import kind_of, peak_of


def defaults(source: Cache) -> dict[str, Any]:
    """Those of the settings' models are of CT."""
    return {}


class Corpus:
    """See `corpora.Corpus`."""

    def __init__(self, source: Cache, patients: tuple[str, ...], data: Path | None) -> None:
        manifest = source.manifest
        name = manifest["reader"]["name"]
        self.reader = find("data set", name, READERS)
        kind = kind_of(self.reader)
        settings = kind.SETTINGS.model_validate(manifest["settings"])
        given = {key: Path(v) if isinstance(v, str) else v for key, v in manifest["options"].items()}
        self.root = Path(data or manifest["data"])
        if not self.root.is_dir():
            raise ConfigError(f"the scans of {source.path} are no more in {self.root}; say with --data where they are")
        wanted = set(source.cases(patients=patients))
        cases = [c for c in self.reader.cases(self.root, **given | kind.options(settings)) if c.id in wanted]
        if not cases:
            raise ConfigError(
                f"{self.root} holds none of the training scans of {source.path}; say with --data where they are"
            )
        self.cases = {case.id: case for case in sorted(cases, key=lambda case: case.id)}
        self.patients = tuple(sorted({case.patient for case in cases}))
        self.reading, self.peak_bytes = kind.reading(settings, READERS[name]), peak_of(kind, settings)

    def members(self, folder: Path, shape: tuple[int, ...], make: Making) -> Members:
        cache = self._make(list(self.cases.values()), Thumbnails(shape=shape), folder, make, 0)
        names = cache.cases("train")
        shapes = cache.read("thumbnails", ("shape",), names).arrays["shape"].astype(np.int64)
        owners = cache.owners("thumbnails", "image", names)
        return Members(cache, "thumbnails", names, np.arange(len(names)), names, tuple(owners), shapes)

    def whole(self, name: str) -> tuple[np.ndarray, float]:
        scan = self.reading(self.cases[name])
        assert isinstance(scan, Prepared)
        return scan.values, scan.background

    def cut(self, plan: Words, folder: Path, words: int, make: Making) -> Cache:
        return self._make([self.cases[name] for name in plan.instances], plan, folder, make, words)

    def _make(self, cases: list[Case], plan: Thumbnails | Words, folder: Path, make: Making, words: int) -> Cache:
        facts = {"scans": len(cases), "classes": word_names(words)}
        return make(cases, self.reading, plan, folder, self.reader.files, self.root, self.peak_bytes, **facts)
