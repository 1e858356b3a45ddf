"""Scans or pictures of one cache that hold the same image: whoever is trained on under one name may be tested on under another.

They are found by the ids of their voxels in the records, so that only where two are equal a shard is opened: images of one
value, such as empty tiles, are equal by nature and no copies.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from pcrl_cli.data.cache import Cache, Record
from pcrl_cli.pure.split import PARTS

HOLDS = (("images", "image"), ("volumes", "image"), ("pairs", "globals"), ("candidates", "blocks"))
"""Where a cached image is looked at, the first that there is: group, array."""
AT_ONCE = 256
"""Images of a shard that are looked at together."""


class Held(NamedTuple):
    """A scan or picture of a cache. row: in its shard's arrays, of pictures; part: `-` where the split has none for it."""

    name: str
    patient: str
    part: str
    case: str
    row: int


@dataclass(frozen=True)
class Copies:
    """same: those that hold the same image as another one; the images come one after the other, in the order of the shards.

    other_patients, other_parts: those of them whose image is of several patients, or in several parts of the split.
    """

    same: tuple[tuple[Held, ...], ...] = ()

    @property
    def other_patients(self) -> tuple[tuple[Held, ...], ...]:
        return tuple(group for group in self.same if len({held.patient for held in group}) > 1)

    @property
    def other_parts(self) -> tuple[tuple[Held, ...], ...]:
        return tuple(group for group in self.same if len({held.part for held in group}) > 1)

    @property
    def counts(self) -> dict[str, int]:
        """How many scans or pictures each of the three are."""
        return {name: _count(getattr(self, name)) for name in ("same", "other_patients", "other_parts")}

    def told(self, unit: str, what_to_do: str) -> list[str]:
        """One sentence, or none where there are no copies. unit: scans, pictures."""
        if not self.same:
            return []
        text = f"{_count(self.same)} {unit} are the same as another one"
        if self.other_parts:
            one, other = _apart(self.other_parts[0])
            return [
                f"{text}, and {_count(self.other_parts)} of them lie in different parts of the split (the first: {one.name} in "
                f"{one.part}, {other.name} in {other.part}), by which every score would flatter: {what_to_do}"
            ]
        if self.other_patients:
            one, other = self.other_patients[0][:2]
            n = _count(self.other_patients)
            return [
                f"{text}, {n} of them under different patients (the first: {one.name} and {other.name}): {what_to_do}"
            ]
        one, other = self.same[0][:2]
        return [
            f"{text} (the first: {one.name} and {other.name}), always of one patient: nothing leaks, but it counts twice; remove "
            "one unless that is meant"
        ]


def copies_in(cache: Cache) -> Copies:
    """Those of a cache. A scan of several sequences is a copy if one of its sequences is."""
    records = cache.manifest["cases"]
    times = Counter[str]()
    for record in records:  # of a scan with several sequences, each is counted once
        times.update(record["items"]["scan_id"] if "items" in record else set(record.get("scan_ids", ())))
    several = {scan for scan, n in times.items() if n > 1}
    if not several:
        return Copies()
    part = {patient: name for name in PARTS for patient in cache.split.part(name)}
    found = defaultdict[str, dict[str, Held]](dict)
    for record in records:
        for scan, held in held_in(record, part):
            if scan in several:
                found[scan].setdefault(held.name, held)
    groups = dict.fromkeys(tuple(group.values()) for group in found.values() if len(group) > 1)
    blank = of_one_value(cache, [group[0] for group in groups])
    return Copies(tuple(group for group in groups if group[0] not in blank))


def held_in(record: Record, part: Mapping[str, str] = MappingProxyType({})) -> Iterator[tuple[str, Held]]:
    """Each scan id of a record with what it is of. part: of patients."""
    if "items" not in record:
        patient = record["patient"]
        held = Held(record["case"], patient, part.get(patient, "-"), record["case"], 0)
        yield from ((scan, held) for scan in record.get("scan_ids", ()))
        return
    items = record["items"]
    for row, (name, patient, scan) in enumerate(zip(items["id"], items["patient"], items["scan_id"], strict=True)):
        yield scan, Held(name, patient, part.get(patient, "-"), record["case"], row)


def of_one_value(cache: Cache, some: Iterable[Held]) -> set[Held]:
    """Those whose cached image has one value only."""
    by_case = defaultdict[str, list[Held]](list)
    for held in some:
        by_case[held.case].append(held)
    return {held for case, there in by_case.items() for held in _blank_in(cache, case, there)}


def _blank_in(cache: Cache, case: str, there: Sequence[Held]) -> Iterator[Held]:
    arrays = cache.records[case]["arrays"]
    place = next(((group, name) for group, name in HOLDS if name in arrays.get(group, {})), None)
    if place is None:
        return
    if "items" not in cache.records[case]:
        if _is_flat(cache, case, *place):
            yield from there
        return
    for start in range(0, len(there), AT_ONCE):
        some = there[start : start + AT_ONCE]
        rows = np.array([held.row for held in some], np.int64)
        images = cache.read(*place[:1], place[1:], [case], rows=rows).arrays[place[1]].reshape(len(some), -1)
        yield from (held for held, flat in zip(some, np.ptp(images, axis=1) == 0, strict=True) if flat)


def _is_flat(cache: Cache, case: str, group: str, array: str) -> bool:
    """Whether all that is cached of a scan has one value: a plane in the middle is read first, the rest if that has one."""
    shape = cache.records[case]["arrays"][group][array]["shape"]
    if not shape[0]:
        return False
    middle = cache.read_box(case, group, array, [*(0 for _ in shape[1:-1]), shape[-1] // 2], [*shape[1:-1], 1])
    return bool(np.ptp(middle) == 0 and np.ptp(cache.read_box(case, group, array)) == 0)


def _apart(group: Sequence[Held]) -> tuple[Held, Held]:
    """Two in different parts, one of them of the training part if there is one."""
    ordered = sorted(group, key=lambda held: (*PARTS, "-").index(held.part))  # stable: shards' order within a part
    return ordered[0], next(held for held in reversed(ordered) if held.part != ordered[0].part)


def _count(groups: Sequence[Sequence[Held]]) -> int:
    return len({held.name for group in groups for held in group})
