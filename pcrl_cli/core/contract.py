"""What weights promise: the architecture that must match, and the data that may differ but must be reported."""

import hashlib
from collections.abc import Iterable
from typing import Literal

from pcrl_cli.core.config import Settings


class Architecture(Settings):
    """Must be equal for weights to load."""

    dim: int
    encoder: str
    width: int
    poolings: int
    norm: str = "batch"


class Domain(Settings):
    """What the weights saw; a difference is what transfer is, so it is reported, not refused."""

    channels: int
    modality: str
    spacing_mm: float
    intensity: dict[str, float]
    """CT: hu_min, hu_max."""
    normalisation: str
    axis_order: str = "x y z, LPS"


class Patients(Settings):
    """Salted hashes of the patients that were trained on: enough to find a leak, not to name a patient."""

    salt: str = ""
    hashes: tuple[str, ...] = ()

    @classmethod
    def of(cls, names: Iterable[str], salt: str) -> "Patients":
        return cls(salt=salt, hashes=tuple(sorted(_hash(salt, name) for name in names)))

    def seen(self, names: Iterable[str]) -> list[str]:
        """Those of `names` that are among the hashed."""
        known = set(self.hashes)
        return [name for name in names if _hash(self.salt, name) in known]


def _hash(salt: str, name: str) -> str:
    return hashlib.sha256(f"{salt}/{name}".encode()).hexdigest()[:20]


class Contract(Settings):
    """Travels in the metadata of every weights file."""

    schema_: Literal["pcrl.weights/1"] = "pcrl.weights/1"
    architecture: Architecture
    domain: Domain
    patients: Patients = Patients()
    method: str = ""
    recipe: str = ""
    steps: int = 0
    cache: str = ""
    """Fingerprint of the cache trained on."""
    pcrl: str = ""
    """Version that wrote the file."""
