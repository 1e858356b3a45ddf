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
from pcrl_cli.readers.tables import below, of_one_patient, patients_by, require_folder, same_name
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
    channels = _channels(found, modalities) if modalities else {name: {"": case} for name, case in found.items()}
    own = ids(list(channels)) if modalities else [case.id for case in found.values()]
    whose = _patients(root, dict(zip(own, (list(c.values()) for c in channels.values()), strict=True)), patients)
    paired = pair(list(channels), masks, lambda path: _is_mask(path, root, masks), ".nii.gz")
    listed = []
    for (name, members), case_id in zip(channels.items(), own, strict=True):
        files = {**_in_order(members, modalities), **paired.files[name]}
        listed.append(Case(case_id, whose[case_id], next(iter(members.values())).path, files=files))
    return sorted(listed, key=lambda case: case.id)


def scans(root: Path, masks: Path) -> dict[str, Case]:
    """What lies below the root, but for what lies below the folder of masks if that is another: path without ending -> case.

    Raises:
        DataError: two differ in their endings only.
    """
    apart = not is_below(root, masks)
    return without_endings(
        (_name(case, root), case) for case in folder.cases(root) if not (apart and is_below(case.path, masks))
    )


def _patients(root: Path, cases: Mapping[str, Sequence[Case]], table: Path | None) -> dict[str, str]:
    """The patient of each case: whom the table names for it or one of its channels, else whom these themselves do.

    cases: the scans that are the channels of each, by the case's id, which is its own patient where nobody names one.

    Raises:
        DataError: a malformed table; two patients of one case.
    """
    names = {
        own: {own, *(name for scan in scans for name in (scan.id, folder.where_of(scan.path, root)))}
        for own, scans in cases.items()
    }
    listed = patients_by(Path(table), folder.KEYS, set().union(*names.values()), root) if table else {}
    result = {}
    for own, scans in cases.items():
        people = {listed[name] for name in names[own] if name in listed}
        people = people or {scan.patient for scan in scans if scan.patient != scan.id}
        if len(people) > 1:
            raise DataError(
                f"the channels of {own} are of the patients {' and '.join(sorted(people)[:2])}: correct "
                f"{table or 'their headers'}, or leave the case out."
            )
        result[own] = next(iter(people), own)
    return result


def _name(case: Case, root: Path) -> str:
    """The path of a scan's file below the root without its ending, or of a DICOM series' folder."""
    if case.path == root:  # one series in the root itself
        return same_name(root.resolve().name)
    where = below(root, case.path)
    return where if case.path.is_dir() else where[: -len(suffix(case.path)) or None]


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
    names = list(_channels(found, modalities) if modalities else found)
    lonely = pair(names, where, lambda path: _is_mask(path, Path(root), where), ".nii.gz").lonely
    return [*said_of(lonely, listed, where), *of_one_patient((case.patient for case in listed), "scans")]


def images_of(case: Case) -> dict[str, Path]:
    """A case's images by channel; one of no name where it has one."""
    return {name: path for name, path in case.files.items() if name not in masks_of(case)} or {"": case.path}


def _in_order(found: Mapping[str, Case], modalities: Sequence[str] | None) -> dict[str, Path]:
    """The files of a case's channels in the order of these; of what is missing the name that it would have."""
    if not modalities:
        return {}
    name, first = next(iter(found.items()))
    ending = suffix(first.path)
    stem = first.path.name[: -len(ending) or None][: -len(name) - 1]
    return {
        channel: found[channel].path if channel in found else first.path.with_name(f"{stem}_{channel}{ending}")
        for channel in modalities
    }


def chosen(modalities: Sequence[str] | None) -> tuple[str, ...] | None:
    """The channels that are named, as they are.

    Raises:
        ConfigError: one is named twice, or none.
    """
    names = tuple(name.strip() for name in modalities or ())
    if modalities is not None and (not names or "" in names or len(set(names)) < len(names)):
        raise ConfigError(f"--modalities {','.join(names)} has to name different ends of files, such as t1,t2")
    return names or None


def _channels(found: Mapping[str, Case], modalities: Sequence[str]) -> dict[str, dict[str, Case]]:
    """Case -> channel -> scan, of the files that end in `_CHANNEL`; a case has one file a channel."""
    result: dict[str, dict[str, Case]] = {}
    for name, case in found.items():
        for channel in modalities:
            if name.lower().endswith(f"_{channel.lower()}"):
                members = result.setdefault(name[: -len(channel) - 1], {})
                other = members.setdefault(channel, case)
                if other is not case:
                    raise DataError(f"{other.path} and {case.path} are both {channel} of one case: remove one of them.")
    if not result:
        raise DataError(
            f"no scan ends in {' or '.join(f'_{name}' for name in modalities)} ({next(iter(found))}, ...): name channels as "
            "the files do with --modalities, or leave it out."
        )
    return result


def _is_mask(path: Path, root: Path, masks: Path) -> bool:
    return suffix(path) in SUFFIXES and is_mask_for(path, root, masks)


def _with(grid: Volume, labels: UInt8[np.ndarray, "x y z"]) -> Volume:
    return replace(grid, array=labels.astype(np.int16))
