"""What weights promise: the architecture that must match, and the data that may differ but must be reported."""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from pydantic import Field

from pcrl_cli.core.config import Settings

WIDEST, DEEPEST = 4096, 16
"""Bounds of what a file may ask for, so that its sizes can be counted before anything is allocated."""


class Architecture(Settings):
    """Must be equal for weights to load."""

    dim: int
    encoder: str
    width: int = Field(ge=1, le=WIDEST)
    poolings: int = Field(ge=1, le=DEEPEST)
    norm: str = "batch"


class Domain(Settings):
    """What the weights saw; a difference is what transfer is, so it is reported, not refused."""

    channels: int = Field(ge=1, le=WIDEST)
    modality: str
    spacing_mm: float | None
    """None for images that have no scale, such as radiographs at one size."""
    intensity: dict[str, float]
    """CT: hu_min, hu_max."""
    normalisation: str
    axis_order: str = "x y z, LPS"
    channel_names: tuple[str, ...] = ()
    """In their order, such as MR sequences; none where nobody wrote them down."""

    def differences(self, now: "Domain") -> list[tuple[str, Any, Any]]:
        """(what, here, there); names of channels differ only where both are known."""
        a, b = self.model_dump(mode="json"), now.model_dump(mode="json")
        unknown = {"channel_names"} if not (self.channel_names and now.channel_names) else set()
        return [(key, a[key], b[key]) for key in a if a[key] != b[key] and key not in unknown]


class Patients(Settings):
    """Salted hashes of the patients that were trained on: enough to find a leak, not to name a patient."""

    salt: str = ""
    hashes: tuple[str, ...] = ()
    """One a patient, of the data set's and the patient's name."""
    scans: tuple[str, ...] = ()
    """One a scan, of its voxels: the same scan is recognised in another data set's clothes."""
    selected: tuple[str, ...] = ()
    """Of patients and scans by which the epoch to keep was chosen."""
    unknown: bool = False
    """Others were seen too, and nobody wrote down whom (imported weights): a leak can be found, and never ruled out."""

    @classmethod
    def of(cls, names: Iterable[str], salt: str, scans: Iterable[str] = (), selected: Iterable[str] = ()) -> "Patients":
        def hashes(values: Iterable[str]) -> tuple[str, ...]:
            return tuple(sorted({_hash(salt, value) for value in values}))

        return cls(salt=salt, hashes=hashes(names), scans=hashes(scans), selected=hashes(selected))

    def knows(self, names: Iterable[str], selected_too: bool = False) -> bool:
        """Whether one of these names of one patient or of their scans is among the hashed."""
        return bool(self.among({"": names}, selected_too))

    def among(self, names: Mapping[str, Iterable[str]], selected_too: bool = False) -> list[str]:
        """Those patients, of their own and their scans' names by patient, of whom one name is among the hashed."""
        known = {*self.hashes, *self.scans, *(self.selected if selected_too else ())}
        return [patient for patient, own in names.items() if any(_hash(self.salt, name) in known for name in own)]

    def joined(self, other: "Patients") -> "Patients":
        """Both; the salts must be equal."""
        assert self.salt == other.salt, "hashes of two salts cannot be joined"
        fields = ("hashes", "scans", "selected")
        return Patients(
            salt=self.salt,
            unknown=self.unknown or other.unknown,
            **{name: tuple(sorted({*getattr(self, name), *getattr(other, name)})) for name in fields},
        )


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
    encoder_at: str = ""
    """Prefix of the encoder's tensors in a checkpoint, such as `net.encoder.`; an export has none."""
    cache: str = ""
    """Fingerprint of the cache trained on."""
    pcrl: str = ""
    """Version that wrote the file."""
