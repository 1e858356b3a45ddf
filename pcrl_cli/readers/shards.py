"""What readers of 2D data sets share: listing images quickly, cutting the list into shards, reading a shard."""

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from pcrl_cli.core.case import Case, ImageRef
from pcrl_cli.core.errors import DataError
from pcrl_cli.core.plan import Pictures
from pcrl_cli.readers.image_io import SUFFIXES, Aspect, read_image

LARGEST, SMALLEST, WANTED = 2048, 64, 64
"""Images in a shard at most and at least, and how many shards there should be, so that many processes have work."""

OfficialPart = Literal["train", "test"]


def shard_size(images: int) -> int:
    """Images a shard: a power of two, 64 .. 2048, so that there are 64 shards or more where there are images enough.

    A function of the whole listing alone, so that every process cuts alike: NIH's 112,120 images lie in 110 shards of
    1024, CheXpert's 223,648 in 110 of 2048, 500 images in 8 of 64.
    """
    size = SMALLEST
    while size < LARGEST and images >= 2 * size * WANTED:
        size *= 2
    return size


def shards(refs: Iterable[ImageRef], root: Path) -> list[Case]:
    """The images in the order of their ids, cut into cases `images-00000`, `images-00001`, ..."""
    ordered = sorted(refs, key=lambda ref: ref.id)
    size = shard_size(len(ordered))
    return [
        Case(f"images-{i // size:05d}", "", root, images=tuple(ordered[i : i + size]))
        for i in range(0, len(ordered), size)
    ]


def read_shard(case: Case, size: int, aspect: Aspect = "stretch") -> Pictures:
    """The images of a shard in its order; those that cannot be read are in `bad`, with the reason, and nowhere else.

    Raises:
        MachineError: a file may not be read, or the disk or mount fails.
    """
    image = np.zeros((len(case.images), 1, size, size), np.uint8)
    kept: list[ImageRef] = []
    bad, scan_ids = dict[str, str](), list[str]()
    for ref in case.images:
        try:
            picture = read_image(ref.path, size, aspect)
        except DataError as error:
            bad[ref.id] = str(error)
            continue
        image[len(kept), 0] = picture.pixels
        kept.append(ref)
        scan_ids.append(picture.scan_id)
    width = len(case.images[0].label) if case.images else 0
    label = np.array([ref.label for ref in kept], np.int8).reshape(len(kept), width)
    names, patients = tuple(ref.id for ref in kept), tuple(ref.patient for ref in kept)
    return Pictures(
        image=image[: len(kept)], id=names, patient=patients, label=label, bad=bad, scan_ids=tuple(scan_ids)
    )


def shard_files(case: Case) -> list[Path]:
    """The files of a shard's images."""
    return [ref.path for ref in case.images]


def pictures_in(folders: Iterable[Path]) -> dict[str, Path]:
    """Every image file directly in these folders, by its name; hidden files are passed over.

    Raises:
        DataError: two folders hold files of one name.
    """
    found: dict[str, Path] = {}
    for folder in folders:
        with os.scandir(folder) as entries:
            for entry in entries:
                if not is_picture(entry.name) or not entry.is_file():
                    continue
                if entry.name in found:
                    raise DataError(f"{found[entry.name]} and {folder / entry.name} have one name: remove one of them.")
                found[entry.name] = folder / entry.name
    return found


def is_picture(name: str) -> bool:
    """Whether a file is named like a PNG, JPEG or DICOM image."""
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def without_doubles(
    path: Path, ids: Sequence[str], facts: Sequence[tuple[object, ...]], lines: Sequence[int]
) -> list[int]:
    """The first row of every image; rows that only repeat one are left out (see `doubles`).

    Raises:
        DataError: two rows of one image differ in its facts (patient, labels).
    """
    first: dict[str, int] = {}
    for i, name in enumerate(ids):
        j = first.setdefault(name, i)
        if facts[j] != facts[i]:
            raise DataError(
                f"{path} says two things of {name} (lines {lines[j]} and {lines[i]}): correct or remove one of them."
            )
    return list(first.values())


def empty_classes(cases: Iterable[Case], classes: Sequence[str]) -> list[str]:
    """A sentence on the classes that no image, or scan, has, if there are some."""
    positive, unit = Counter[str](), "scan"
    for case in cases:
        unit = "image" if case.images else unit
        for owned in case.images or (case,):
            positive.update(name for name, value in zip(classes, owned.label, strict=True) if value == 1)
    empty = [name for name in classes if not positive[name]]
    if not empty:
        return []
    which = ", ".join(empty)
    return [f"no {unit} has {which}, so nothing can be learnt or measured of {'it' if len(empty) == 1 else 'them'}"]


def parts_of_patients(parts: Mapping[OfficialPart, Iterable[ImageRef]], where: str) -> dict[str, OfficialPart]:
    """The official part of every patient.

    Raises:
        DataError: a patient is in two parts, so that a model would be tested on whom it was trained on.
    """
    result: dict[str, OfficialPart] = {}
    for part, refs in parts.items():
        for ref in refs:
            if result.setdefault(ref.patient, part) != part:
                raise DataError(
                    f"the patient {ref.patient} is in two of the official parts (of {where}; one image is {ref.id}): "
                    "correct the lists, or leave --official-split out."
                )
    return result
