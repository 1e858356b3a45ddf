"""Masks beside one's own scans or pictures: which belongs to which, and what their labels are called.

A mask belongs to the scan of the same path below its own folder, without the ending and without `_seg`, `-mask`, `_label`
and the like. Where no path fits, these are tried in turn: every sub-folder holds one region (liver/case.nii.gz,
tumour/case.nii.gz), and regions may overlap; a name that one scan and one mask have; a folder a case, with its mask or one
mask a region.

Regions by name are lists of labels (`WT=1+2+4,TC=1+4,ET=4`). A cache holds 8 bits a voxel: labels as they are in the files
where they fit, else numbered in their order; of sub-folders one bit a region.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Num, UInt8

from pcrl_cli.core.case import Case, ImageRef
from pcrl_cli.core.config import NO_YAML
from pcrl_cli.core.errors import ConfigError, DataError
from pcrl_cli.readers.folder import is_mask
from pcrl_cli.readers.headers import suffix
from pcrl_cli.readers.tables import below, safe_ids, safe_name, walk_files

MASK, OF_REGION = "mask", "mask/"
"""Names of a case's files: its mask, or that of one region."""
IGNORED = "ignored"
"""The region of labels that are known and count as background."""
MAX_LABEL = 254  # 255 stands for "beyond the scan"
MAX_FOLDERS, MAX_REGIONS, MAX_FOUND = 7, 60, 60

Item = TypeVar("Item", Case, ImageRef)
Regions = dict[str, tuple[int, ...]]
"""The labels, as they are in the files, that make up each region."""

_SUFFIX = re.compile(r"(?<=[^ _./-])[ _.-]*(seg|segmentation|masks?|labels?|gt)$", re.IGNORECASE)
_CHANNEL = re.compile(r"_0000$")  # nnU-Net's mark of a scan's only channel
_NAME = re.compile(r"\w[\w.-]*")


@dataclass(frozen=True)
class Paired:
    """files: of each scan, masks by their names in a case; lonely: masks without a scan, below their folder."""

    files: dict[str, dict[str, Path]]
    lonely: tuple[str, ...]


# ------------------------------------------------------------------------------------------------------ pairing


def pair(scans: Sequence[str], folder: Path, wanted: Callable[[Path], bool], ending: str) -> Paired:
    """The masks of scans by their paths below the data folder, without endings.

    wanted: which files of the folder are masks at all. ending: of the masks, to name those that are missing.

    Raises:
        DataError: no folder, no mask that belongs to a scan, or two of one scan.
    """
    found = _masks_in(folder, wanted)
    single = _by_path(scans, found)
    if not single:
        layers = _layers(scans, found)
        if layers:
            return _of_layers(scans, found, layers, lambda layer, scan: folder / layer / f"{scan}{ending}")
        single = _by_name(scans, found)
    if not single:
        places = _by_folder(scans, found)
        if any(len(masks) > 1 for _, masks in places.values()):
            names = sorted({name for _, masks in places.values() for name in masks})
            layers = {name: {s: masks[name] for s, (_, masks) in places.items() if name in masks} for name in names}
            return _of_layers(
                scans, found, layers, lambda layer, scan: folder / places.get(scan, (scan, {}))[0] / f"{layer}{ending}"
            )
        single = {scan: next(iter(masks.values())) for scan, (_, masks) in places.items()}
    if not single:
        some = f" ({next(iter(found))}, ...)" if found else ""
        raise DataError(
            f"no mask in {folder}{some} has the name of a scan ({scans[0]}, ...): name masks as their scans, with _seg or the "
            "like at the end if you want, or put those of each region into a sub-folder of its own."
        )
    used = set(single.values())
    files = {scan: {MASK: found[single[scan]] if scan in single else folder / f"{scan}{ending}"} for scan in scans}
    return Paired(files, tuple(sorted(name for name in found if name not in used)))


def _masks_in(folder: Path, wanted: Callable[[Path], bool]) -> dict[str, Path]:
    """Every mask by its path below the folder, without its ending."""
    if not folder.is_dir():
        raise DataError(f"The folder of masks {folder} is not there: give --masks DIR.")
    found: dict[str, Path] = {}
    for here, names in walk_files(folder):
        for path in (here / name for name in names):
            if not wanted(path):
                continue
            name = _key(folder, path)
            if name in found:
                raise DataError(f"{found[name]} and {path} are masks of one name: remove one of them.")
            found[name] = path
    return found


def _key(folder: Path, path: Path) -> str:
    text = below(folder, path)
    return text[: -len(suffix(path)) or None]


def _by_path(scans: Sequence[str], found: Mapping[str, Path]) -> dict[str, str]:
    """Scan -> mask, both by name, where the paths are equal but for what masks are called besides."""
    stripped: dict[str, list[str]] = {}
    for name in found:
        stripped.setdefault(_SUFFIX.sub("", name), []).append(name)
    result: dict[str, str] = {}
    for scan in scans:
        for name in dict.fromkeys((scan, _CHANNEL.sub("", scan))):
            if name in found:
                result[scan] = name
                break
            fits = stripped.get(name, [])
            if len(fits) > 1:
                raise DataError(f"{found[fits[0]]} and {found[fits[1]]} are both masks of {scan}: remove one of them.")
            if fits:
                result[scan] = fits[0]
                break
    return result


def _by_name(scans: Sequence[str], found: Mapping[str, Path]) -> dict[str, str]:
    """The same by the last part of the paths alone, where that is of one scan and of one mask."""
    last = {scan: PurePosixPath(_CHANNEL.sub("", scan)).name for scan in scans}
    names = {name: _SUFFIX.sub("", PurePosixPath(name).name) for name in found}
    of_scans, of_masks = Counter(last.values()), Counter(names.values())
    mask_of = {stem: name for name, stem in names.items() if of_masks[stem] == 1}
    return {scan: mask_of[stem] for scan, stem in last.items() if of_scans[stem] == 1 and stem in mask_of}


def _by_folder(scans: Sequence[str], found: Mapping[str, Path]) -> dict[str, tuple[str, dict[str, str]]]:
    """Scan -> the folder of its masks and these by their own names: a folder called as the scan, or the folder of the scan
    where no other scan is in it.
    """
    inside: dict[str, dict[str, str]] = {}
    for name in found:
        place, _, last = name.rpartition("/")
        if place:
            inside.setdefault(place, {})[_SUFFIX.sub("", last)] = name
    beside = Counter(scan.rpartition("/")[0] for scan in scans)
    result = {}
    for scan in scans:
        above = scan.rpartition("/")[0]
        for place in (_CHANNEL.sub("", scan), *([above] if beside[above] == 1 else [])):
            if place in inside:
                result[scan] = (place, inside[place])
                break
    return result


def _layers(scans: Sequence[str], found: Mapping[str, Path]) -> dict[str, dict[str, str]]:
    """Sub-folder -> scan -> mask, of the sub-folders that have masks of scans."""
    inside: dict[str, dict[str, Path]] = {}
    for name, path in found.items():
        layer, _, rest = name.partition("/")
        if rest:
            inside.setdefault(layer, {})[rest] = path
    paired = {layer: _by_path(scans, masks) for layer, masks in sorted(inside.items())}
    return {layer: {s: f"{layer}/{m}" for s, m in pairs.items()} for layer, pairs in paired.items() if pairs}


def _of_layers(
    scans: Sequence[str],
    found: Mapping[str, Path],
    layers: Mapping[str, dict[str, str]],
    missing: Callable[[str, str], Path],
) -> Paired:
    """layers: region -> scan -> mask. missing: where the mask of a region and a scan would be."""
    if len(layers) > MAX_FOLDERS:
        raise DataError(
            f"there are masks of {len(layers)} regions ({', '.join(list(layers)[:3])}, ...), each in files of its own, and "
            f"{MAX_FOLDERS} can overlap in one cache: join regions that do not overlap into masks of several labels, or give "
            "fewer."
        )
    names = {layer: safe_name(layer) for layer in layers}
    if len(set(names.values())) < len(names):
        raise DataError(f"the regions {', '.join(names)} have names that differ in signs only: rename one of them.")
    files = {
        scan: {
            f"{OF_REGION}{names[layer]}": found[pairs[scan]] if scan in pairs else missing(layer, scan)
            for layer, pairs in layers.items()
        }
        for scan in scans
    }
    used = {mask for pairs in layers.values() for mask in pairs.values()}
    return Paired(files, tuple(sorted(name for name in found if name not in used)))


def ids(names: Sequence[str]) -> list[str]:
    """Of different paths without endings, as `tables.safe_ids`."""
    return safe_ids(names, [f"{name} 1" for name in names])


def is_below(path: Path, folder: Path) -> bool:
    """Whether a path is a folder or lies below it, wherever links lead."""
    return path.resolve().is_relative_to(folder.resolve())


def without_endings(named: Iterable[tuple[str, Item]]) -> dict[str, Item]:
    """Scans or pictures by their names without endings.

    Raises:
        DataError: two differ in their endings only.
    """
    found: dict[str, Item] = {}
    for name, item in named:
        other = found.setdefault(name, item)
        if other is not item:
            raise DataError(f"{other.path} and {item.path} differ in their endings only: rename or remove one of them.")
    return found


def is_mask_for(path: Path, root: Path, masks: Path) -> bool:
    """Of image files: beside what lies below the root what is named like a mask; in a folder of their own all but that."""
    if root.resolve() == masks.resolve():
        return is_mask(path)
    return not (is_below(root, masks) and is_below(path, root)) or is_mask(path)


def masks_of(case: Case) -> dict[str, Path]:
    """A case's masks by their names in it."""
    return {name: path for name, path in case.files.items() if name == MASK or name.startswith(OF_REGION)}


def require_masks(case: Case) -> None:
    """Raises:
    DataError: a mask of the case is missing.
    """
    missing = [path for path in masks_of(case).values() if not path.exists()]
    if missing:
        raise DataError(f"{case.path} has no mask ({missing[0]}): add it, or leave the scan out.")


def said_of(lonely: Sequence[str], cases: Iterable[Case], folder: Path, unit: str = "scans") -> list[str]:
    """Sentences on scans without a mask, and the reverse."""
    said = []
    without = [case.id for case in cases if any(not path.exists() for path in masks_of(case).values())]
    if without:
        said.append(f"{len(without)} {unit} have no mask in {folder} (the first: {without[0]}) and are left out")
    if lonely:
        said.append(
            f"{len(lonely)} masks in {folder} are of none of the {unit} (the first: {lonely[0]}) and were passed over"
        )
    return said


# ------------------------------------------------------------------------------------------------------- labels


def parsed(given: str | Path | Mapping[str, Sequence[int]]) -> Regions:
    """The regions that `--regions` names: `WT=1+2+4,ET=4`, a YAML file of such lists, or a mapping.

    Raises:
        ConfigError: none of these, no region, a name or a label that cannot be one.
    """
    what: Mapping[Any, Any] = given if isinstance(given, Mapping) else _read(given)
    regions: Regions = {}
    for name, labels in what.items():
        listed = labels if isinstance(labels, list | tuple) else str(labels).split("+")
        try:
            numbers = [int(str(label).strip()) for label in listed]
        except ValueError:
            raise ConfigError(
                f"--regions: {labels!r} of {name} are no labels; write whole numbers, such as {name}=1+2"
            ) from None
        if not _NAME.fullmatch(str(name)):
            raise ConfigError(f"--regions: {name!r} is no name; use letters, digits, _, - and .")
        if not numbers or min(numbers) < 1 or len(set(numbers)) < len(numbers):
            raise ConfigError(
                f"--regions: the labels of {name} have to be different and above 0, which is the background"
            )
        regions[str(name)] = tuple(numbers)
    ignored, named = set(regions.get(IGNORED, ())), {n for k, v in regions.items() if k != IGNORED for n in v}
    if not named:
        raise ConfigError(f"--regions names no region; write for example --regions liver=1+2,tumour=2, not {given!r}")
    if ignored & named:
        raise ConfigError(f"--regions: the label {min(ignored & named)} is ignored and in a region; choose one")
    return _bounded(regions)


def _read(given: str | Path) -> Mapping[Any, Any]:
    text = str(given)
    if "=" in text:
        pairs = [part.partition("=") for part in text.split(",") if part.strip()]
        names = [name.strip() for name, _, _ in pairs]
        if len(set(names)) < len(names):
            raise ConfigError(f"--regions {text} names a region twice; name each once")
        return {name: labels for name, (_, _, labels) in zip(names, pairs, strict=True)}
    import yaml

    try:
        found = yaml.safe_load(Path(text).read_text("utf-8"))
    except (OSError, *NO_YAML) as error:
        why = str(error).partition("\n")[0] or type(error).__name__
        raise ConfigError(
            f"--regions {text} is neither NAME=LABEL+LABEL,... nor a YAML file ({why}); correct it"
        ) from None
    if not isinstance(found, dict):
        raise ConfigError(f"{text} holds no regions; expected lines such as 'liver: [1, 2]'")
    return found


def _bounded(regions: Regions) -> Regions:
    labels = {n for members in regions.values() for n in members}
    if len(regions) > MAX_REGIONS or len(labels) > MAX_LABEL:
        raise ConfigError(
            f"{len(regions)} regions of {len(labels)} labels are more than the {MAX_REGIONS} regions of {MAX_LABEL} labels that "
            "one network is trained for; name those that matter with --regions"
        )
    return regions


def regions_for(
    cases: Sequence[Case], given: str | Path | Mapping[str, Sequence[int]] | None, found: Callable[[], set[int]]
) -> Regions:
    """What is segmented: the sub-folders, the regions that were given, or each label that is `found` in a mask.

    Raises:
        ConfigError: regions were given, and sub-folders name them. DataError: masks without a label, or with so many that they
            are none.
    """
    layers = [name.removeprefix(OF_REGION) for name in cases[0].files if name.startswith(OF_REGION)]
    if layers:
        if len(layers) == 1:
            _require_one_label(cases, layers[0], given, found)
        if given is not None:
            raise ConfigError(
                "--regions is for masks of several labels; here folders or files name the regions: leave it out"
            )
        return {name: tuple(n for n in range(1, 2 ** len(layers)) if n >> k & 1) for k, name in enumerate(layers)}
    if given is not None:
        return parsed(given)
    labels = sorted(found())
    if not labels:
        raise DataError("no mask has a label: every voxel of every mask is 0; check what --masks names.")
    if len(labels) > MAX_FOUND:
        raise DataError(
            f"the masks hold {len(labels)} different labels, which is more like an image: check what --masks names, or name the "
            "labels that matter with --regions."
        )
    return {str(label): (label,) for label in labels}


def _require_one_label(cases: Sequence[Case], layer: str, given: object, found: Callable[[], set[int]]) -> None:
    """A folder that is the only one is more likely to hold all masks than those of one region.

    Raises:
        DataError: its masks have several labels. ConfigError: regions of them are given.
    """
    first = cases[0].files[f"{OF_REGION}{layer}"]
    where = next(folder for folder in first.parents if safe_name(folder.name) == layer)
    if given is not None:
        raise ConfigError(
            f"--masks has one folder below it, {layer}, which counts as a region; for --regions give --masks {where}"
        )
    labels = sorted(found())
    if len(labels) > 1:
        raise DataError(
            f"--masks has one folder below it, {layer}, which would be one region, and its masks have the labels {labels[0]}, "
            f"{labels[1]}{', ...' * (len(labels) > 2)}: give --masks {where}, and each label is a region."
        )


def codes(regions: Regions) -> dict[int, int]:
    """What a cache stores for each label of a mask's file: the label, or its number where labels exceed 8 bits."""
    labels = sorted({n for members in regions.values() for n in members})
    ignored = set(regions.get(IGNORED, ()))
    kept = [label for label in labels if label not in ignored]
    stored = dict(zip(kept, kept if kept[-1] <= MAX_LABEL else range(1, len(kept) + 1), strict=True))
    return stored | dict.fromkeys(ignored, 0)


def stored_regions(regions: Regions) -> Regions:
    """The same regions by what is stored, without what is ignored."""
    code = codes(regions)
    return {name: tuple(code[n] for n in members) for name, members in regions.items() if name != IGNORED}


def label_values(regions: Regions) -> dict[str, int]:
    """What the files hold for each stored label, where that is another number."""
    return {str(code): label for label, code in codes(regions).items() if code not in (0, label)}


def labels_in(array: Num[np.ndarray, "*s"], source: str) -> set[int]:
    """The labels of a mask but 0.

    Raises:
        DataError: a value is negative or no whole number.
    """
    found = set[float]()
    for plane in array.transpose(np.argsort([-abs(stride) for stride in array.strides])):
        found.update(np.unique(plane[plane != 0]).tolist())
    odd = sorted(value for value in found if not (value > 0 and value == int(value)))
    if odd:
        raise DataError(
            f"{source} holds the value {odd[0]:g}, and the labels of a mask are whole numbers from 0 on: convert it or leave "
            "the case out.",
            slug="bad_values",
        )
    return {int(value) for value in found}


def encoded(array: Num[np.ndarray, "*s"], regions: Regions, source: str) -> UInt8[np.ndarray, "*s"]:
    """A mask's labels as a cache stores them.

    Raises:
        DataError: it holds a label of no region.
    """
    found, code = labels_in(array, source), codes(regions)
    strange = sorted(found - code.keys())
    if strange:
        listed = ", ".join(map(str, strange[:10])) + ", ..." * (len(strange) > 10)
        raise DataError(
            f"{source} holds the labels {listed}, which are in no region: name them with --regions (background: "
            f"{IGNORED}={strange[0]}), correct the mask or leave the case out.",
            slug="bad_values",
        )
    if all(code[label] == label for label in found):
        return array.astype(np.uint8)
    out = np.zeros_like(array, np.uint8)
    for label in found:
        out[array == label] = code[label]
    return out


def joined(masks: Mapping[str, tuple[Num[np.ndarray, "*s"], str]], regions: Regions) -> UInt8[np.ndarray, "*s"]:
    """Masks of one region each (with their file, for messages), one bit a region in the order of the regions.

    Raises:
        DataError: one holds more than one label.
    """
    out: np.ndarray | None = None
    for k, name in enumerate(regions):
        array, source = masks[name]
        found = sorted(labels_in(array, source))
        if len(found) > 1:
            raise DataError(
                f"{source} holds the labels {found[0]} and {found[1]}, and a mask beside those of other regions is 0 and one "
                "other value: correct it or leave the case out.",
                slug="bad_values",
            )
        bit = (array != 0).astype(np.uint8) << np.uint8(k)
        out = bit if out is None else out | bit
    assert out is not None
    return out
