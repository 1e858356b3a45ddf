"""One's own scans with masks: what `folder` reads, and beside each scan its mask (see `masks`); CT or MR.

A case may have several channels, each a file: CASE_t1.nii.gz and CASE_t2.nii.gz with the modalities t1 and t2.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from pcrl_cli.core.case import Case
from pcrl_cli.core.errors import ConfigError, DataError
from pcrl_cli.data.labelled import Volumes, require_same_grid
from pcrl_cli.data.volume import Volume
from pcrl_cli.readers import folder
from pcrl_cli.readers.headers import suffix
from pcrl_cli.readers.masks import (
    MASK,
    OF_REGION,
    Regions,
    encoded,
    joined,
    labels_in,
    masks_of,
    pair,
    require_masks,
    said_of,
)
from pcrl_cli.readers.tables import require_folder
from pcrl_cli.readers.volume_io import SUFFIXES, read_volume, volume_files

NAME = "folder"
KIND = "masked"
OPTIONS = ("patients", "masks", "regions", "modalities")
CITATION = folder.CITATION
LICENSE = folder.LICENSE
CLASSES: tuple[str, ...] = ()  # those of the masks
MODALITY = "ct"  # unless `--modality mr` says otherwise

_WHAT = "scans (NIfTI, MHD, NRRD or DICOM series)"


def cases(
    root: Path,
    masks: Path,
    regions: object = None,
    patients: Path | None = None,
    modalities: Sequence[str] | None = None,
) -> list[Case]:
    """Every scan below `root` with its mask, as `folder.cases`; what lies below `masks` is no scan.

    A scan without a mask is listed, so that it is refused by name when it is read. modalities: the channels of a case, by the
    ends of their files' names; a channel that is missing is listed too.

    Raises:
        DataError: no folder, no scan, no mask of a scan, two of one; a malformed table.
    """
    root, masks = require_folder(root, _WHAT), Path(masks)
    found = scans(root, masks)
    if not found:
        raise DataError(f"{root} holds no scan outside {masks}: put {_WHAT} there, or give --data DIR.")
    channels = _channels(found, modalities) if modalities else {}
    if modalities:
        found = [replace(scan, name=name) for name, scan in _firsts(channels).items()]
    paired = pair([scan.name for scan in found], masks, lambda path: _is_mask(path, root, masks), ".nii.gz")
    by_path = {scan.path: scan.name for scan in found}
    return [
        replace(
            case,
            files={
                **channels_of(channels.get(by_path[case.path], {}), modalities, case),
                **paired.files[by_path[case.path]],
            },
        )
        for case in folder.as_cases(found, patients)
    ]


def scans(root: Path, masks: Path) -> list[folder.Found]:
    """What lies below the root, but for what lies below the folder of masks if that is another."""
    apart = not folder.is_below(root, masks)
    return [scan for scan in folder.find_scans(root) if not (apart and folder.is_below(scan.path, masks))]


def read(case: Case, regions: Regions) -> Volumes:
    """The channels of a scan, and its mask by stored labels.

    Raises:
        DataError: a file is missing; see `volume_io.read_volume`; a label of no region.
    """
    require_masks(case)
    missing = [path for path in images_of(case).values() if not path.exists()]
    if missing:
        raise DataError(
            f"{missing[0]} is not there, and the other channels of the case are: add it or leave the case out."
        )
    masks = {name: read_volume(path) for name, path in masks_of(case).items()}
    if MASK in masks:
        mask = _with(masks[MASK], encoded(masks[MASK].array, regions, masks[MASK].source))
    else:
        first = next(iter(masks.values()))
        for other in masks.values():
            require_same_grid(first, other)
        mask = _with(first, joined({n.removeprefix(OF_REGION): (v.array, v.source) for n, v in masks.items()}, regions))
    images = {name: read_volume(path) for name, path in images_of(case).items()}
    return Volumes(tuple(images.values()), tuple(images), mask)


def labels_in_file(path: Path) -> set[int]:
    """The labels of a mask but 0, for a data set of which nobody named the regions.

    Raises:
        DataError: see `volume_io.read_volume`, `masks.labels_in`.
    """
    mask = read_volume(path)
    return labels_in(mask.array, mask.source)


def files(case: Case) -> list[Path]:
    """What `read` reads: the files of every channel and of the masks."""
    return [file for path in (*images_of(case).values(), *masks_of(case).values()) for file in volume_files(path)]


def remarks(
    root: Path,
    cases: Iterable[Case],
    masks: Path,
    regions: object = None,
    patients: Path | None = None,
    modalities: Sequence[str] | None = None,
) -> list[str]:
    """Sentences that the user should read: scans without masks, masks without scans, DICOM series all of one patient."""
    listed, where = list(cases), Path(masks)
    found = scans(Path(root), where)
    names = list(_firsts(_channels(found, modalities))) if modalities else [scan.name for scan in found]
    lonely = pair(names, where, lambda path: _is_mask(path, Path(root), where), ".nii.gz").lonely
    return [*said_of(lonely, listed, where), *folder.of_one_patient(listed)]


def images_of(case: Case) -> dict[str, Path]:
    """A case's images by channel; one of no name where it has one."""
    return {name: path for name, path in case.files.items() if name not in masks_of(case)} or {"": case.path}


def channels_of(found: Mapping[str, Path], modalities: Sequence[str] | None, case: Case) -> dict[str, Path]:
    """The files of a case's channels in their order; of what is missing the name that it would have."""
    if not modalities:
        return {}
    name, path = next(iter(found.items()))
    ending = suffix(path)
    stem = path.name[: -len(ending) or None][: -len(name) - 1]
    return {channel: found.get(channel, path.with_name(f"{stem}_{channel}{ending}")) for channel in modalities}


def chosen(modalities: Sequence[str] | None) -> tuple[str, ...] | None:
    """The channels that are named, as they are.

    Raises:
        ConfigError: one is named twice, or none.
    """
    names = tuple(name.strip() for name in modalities or ())
    if modalities is not None and (not names or "" in names or len(set(names)) < len(names)):
        raise ConfigError(f"--modalities {','.join(names)} has to name different ends of files, such as t1,t2")
    return names or None


def _channels(found: Sequence[folder.Found], modalities: Sequence[str]) -> dict[str, dict[str, Path]]:
    """Case -> channel -> file, of the files that end in `_CHANNEL`; a case has one file a channel."""
    result: dict[str, dict[str, Path]] = {}
    for scan in found:
        for channel in modalities:
            if scan.name.lower().endswith(f"_{channel.lower()}"):
                result.setdefault(scan.name[: -len(channel) - 1], {})[channel] = scan.path
    if not result:
        raise DataError(
            f"no scan ends in {' or '.join(f'_{name}' for name in modalities)} ({found[0].name}, ...): name channels as "
            "the files do with --modalities, or leave it out."
        )
    return result


def _firsts(channels: Mapping[str, Mapping[str, Path]]) -> dict[str, folder.Found]:
    """A case's first file, as the scan that stands for it."""
    paths = {name: next(iter(files.values())) for name, files in channels.items()}
    return {name: folder.Found(name, path, name) for name, path in paths.items()}


def _is_mask(path: Path, root: Path, masks: Path) -> bool:
    """Beside the scans, what is named like a mask; in a folder of their own, every image that is not below the scans'."""
    if suffix(path) not in SUFFIXES:
        return False
    if root.resolve() == masks.resolve():
        return folder.is_mask(path)
    return not (folder.is_below(root, masks) and folder.is_below(path, root)) or folder.is_mask(path)


def _with(grid: Volume, labels: UInt8[np.ndarray, "x y z"]) -> Volume:
    return replace(grid, array=labels.astype(np.int16))
