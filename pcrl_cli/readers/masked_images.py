"""One's own radiographs or other pictures with masks: PNG, JPEG and DICOM files, and a PNG mask of each (see `masks`)."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from pcrl_cli.core.case import Case, ImageRef
from pcrl_cli.core.errors import DataError
from pcrl_cli.readers import folder, image_folder
from pcrl_cli.readers.headers import suffix
from pcrl_cli.readers.image_io import PLAIN, Picture, read_labels, read_whole
from pcrl_cli.readers.masks import (
    MASK,
    OF_REGION,
    Regions,
    encoded,
    ids,
    is_below,
    is_mask_for,
    joined,
    labels_in,
    masks_of,
    pair,
    require_masks,
    said_of,
    without_endings,
)
from pcrl_cli.readers.tables import of_one_patient, require_folder

NAME = "folder"
KIND = "masked_images"
OPTIONS = ("patients", "masks", "regions")
CITATION = folder.CITATION
LICENSE = folder.LICENSE
CLASSES: tuple[str, ...] = ()  # those of the masks
MODALITY = "xray"

_WHAT = "pictures (PNG, JPEG or single DICOM files)"


def cases(root: Path, masks: Path, regions: object = None, patients: Path | None = None) -> list[Case]:
    """Every picture below `root` with its mask, one a case; what lies below `masks` is no picture.

    Ids, patients and pictures without a mask as in `masked_folder`.

    Raises:
        DataError: no folder, no picture, no mask of a picture, two of one; a malformed table.
    """
    root, masks = require_folder(root, _WHAT), Path(masks)
    found = pictures(root, masks, patients)
    if not found:
        raise DataError(f"{root} holds no picture outside {masks}: put {_WHAT} there, or give --data DIR.")
    paired = pair(list(found), masks, lambda path: _is_mask(path, root, masks), ".png")
    listed = [
        Case(own, ref.patient, ref.path, files=paired.files[name])
        for own, (name, ref) in zip(ids(list(found)), found.items(), strict=True)
    ]
    return sorted(listed, key=lambda case: case.id)


def pictures(root: Path, masks: Path, patients: Path | None = None) -> dict[str, ImageRef]:
    """What lies below the root, but for what lies below the folder of masks, or beside the pictures is named like masks: path
    without ending -> picture.

    Raises:
        DataError: two differ in their endings only.
    """
    apart = not is_below(root, masks)
    refs = (ref for case in image_folder.cases(root, patients=patients) for ref in case.images)
    return without_endings(
        (ref.id[: -len(suffix(ref.path)) or None], ref)
        for ref in refs
        if not (is_below(ref.path, masks) if apart else folder.is_mask(ref.path))
    )


def read(case: Case, regions: Regions) -> tuple[Picture, UInt8[np.ndarray, "rows columns"]]:
    """The picture, and its mask by stored labels.

    Raises:
        DataError: a mask is missing; see `image_io.read_image`; a label of no region; masks of several sizes.
    """
    require_masks(case)
    found = {name: (read_labels(path), str(path)) for name, path in masks_of(case).items()}
    if MASK in found:
        mask = encoded(found[MASK][0], regions, found[MASK][1])
    else:
        (first, source), *others = found.values()
        for other, where in others:
            if other.shape != first.shape:
                raise DataError(f"{where} and {source} are of different sizes: resample one or leave the case out.")
        mask = joined({name.removeprefix(OF_REGION): value for name, value in found.items()}, regions)
    return read_whole(case.path), mask


def labels_in_file(path: Path) -> set[int]:
    """The labels of a mask but 0.

    Raises:
        DataError: see `image_io.read_labels`.
    """
    return labels_in(read_labels(path), str(path))


def files(case: Case) -> list[Path]:
    """What `read` reads."""
    return [path for path in (case.path, *masks_of(case).values()) if path.is_file()]


def remarks(
    root: Path, cases: Iterable[Case], masks: Path, regions: object = None, patients: Path | None = None
) -> list[str]:
    """Sentences that the user should read: pictures without masks, masks without pictures, all of one patient."""
    listed, where, root = list(cases), Path(masks), Path(root)
    names = list(pictures(root, where))
    lonely = pair(names, where, lambda path: _is_mask(path, root, where), ".png").lonely
    return [*said_of(lonely, listed, where, "pictures"), *of_one_patient((case.patient for case in listed), "pictures")]


def _is_mask(path: Path, root: Path, masks: Path) -> bool:
    return path.name.lower().endswith(PLAIN) and is_mask_for(path, root, masks)
