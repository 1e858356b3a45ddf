"""Training, validation and test patients: a function of the seed and the patients, and nothing else."""

import hashlib
import math
from collections.abc import Iterable, Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict

from pcrl_cli.core.case import Part as Part
from pcrl_cli.core.errors import ConfigError

PARTS: tuple[Part, ...] = ("train", "val", "test")


class Split(BaseModel):
    """Who is where. Patients found later are added; none ever moves.

    order: the training patients in the order in which labels are given out: a larger ratio contains the smaller ones.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int
    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]
    order: tuple[str, ...]

    def part(self, name: Part | Literal["all"]) -> tuple[str, ...]:
        """The patients of one part, sorted; `all` joins the three."""
        if name == "all":
            return tuple(sorted(self.train + self.val + self.test))
        return {"train": self.train, "val": self.val, "test": self.test}[name]

    def first(self, ratio: float) -> tuple[str, ...]:
        """The first ceil(ratio * n) training patients of the order.

        Raises:
            ConfigError: the ratio is not in (0, 1].
        """
        if not 0.0 < ratio <= 1.0:
            raise ConfigError(f"the ratio of labelled patients must be over 0 and at most 1, not {ratio}: set --ratio")
        return self.order[: math.ceil(round(ratio * len(self.order), 9))]  # 0.07 * 100 is 7, not 7.000000000000001


def split(
    patients: Iterable[str], seed: int, existing: Split | None = None, given: Mapping[str, Part] | None = None
) -> Split:
    """70 % train, 10 % val, 20 % test; from three patients on each part has at least one.

    Patients are ordered by sha256("SEED:PATIENT"). With an `existing` split every patient of it stays where it is (also
    one that is no longer there), and each new one goes to the part that lacks most.

    Args:
        given: parts that the data set's own lists decide. Where these name no validation patient, a tenth of the
            listed training patients, the last of the order, validate.

    Raises:
        ConfigError: the existing split was made with another seed, or has a patient in another part than `given`.
    """
    if existing is not None and existing.seed != seed:
        raise ConfigError(
            f"the patients are split with seed {existing.seed} already, not {seed}: "
            f"use --seed {existing.seed}, or prepare into another folder"
        )
    parts: dict[Part, list[str]] = {name: list(existing.part(name)) if existing else [] for name in PARTS}
    known = {patient for part in parts.values() for patient in part}
    new = sorted(set(patients) - known, key=lambda patient: (_key(seed, patient), patient))
    fixed = _with_validation(new, given or {})
    moved = [p for name in PARTS for p in parts[name] if given and not _agrees(name, given.get(p))]
    if moved:
        raise ConfigError(
            f"{len(moved)} patients (the first: {moved[0]}) are in another part than the data set's lists say: "
            "prepare into another folder"
        )
    target = _sizes(len(known) + len(new))
    order = list(existing.order) if existing else []
    for patient in new:
        lacking = max(PARTS, key=lambda name: target[name] - len(parts[name]))
        part = fixed.get(patient, lacking)
        parts[part].append(patient)
        if part == "train":
            order.append(patient)
    train, val, test = (tuple(sorted(parts[name])) for name in PARTS)
    return Split(seed=seed, train=train, val=val, test=test, order=tuple(order))


def _with_validation(ordered: list[str], given: Mapping[str, Part]) -> dict[str, Part]:
    """The given parts; a tenth of the training patients validate where no list names who does."""
    fixed = {patient: given[patient] for patient in ordered if patient in given}
    if given and "val" not in given.values():
        train = [patient for patient in ordered if fixed.get(patient) == "train"]
        fixed |= dict.fromkeys(train[len(train) - len(train) // 10 :], "val")
    return fixed


def _agrees(part: Part, listed: Part | None) -> bool:
    """Whether a patient may stay in a part: those who validate may come from the training list."""
    return listed is None or part == listed or (part == "val" and listed == "train")


def _sizes(n: int) -> dict[Part, int]:
    """How many patients each part should have; of one or two patients the first trains and the second tests."""
    test = max((2 * n + 5) // 10, 1) if n >= 2 else 0
    val = max((n + 5) // 10, 1) if n >= 3 else 0
    return {"train": n - val - test, "val": val, "test": test}


def _key(seed: int, patient: str) -> bytes:
    return hashlib.sha256(f"{seed}:{patient}".encode()).digest()
