"""Volumes with masks (LiTS, BraTS, one's own) and pictures, which are volumes of one slice: random crops to train on,
whole scans by sliding window on their own grid to score.

One case is in memory at a time. What was scored is noted case by case, so that an interrupted `pcrl evaluate` goes on.
"""

import csv
import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int16

from pcrl_cli.core import files
from pcrl_cli.core.config import validate as validate_settings
from pcrl_cli.core.errors import ConfigError, DataError
from pcrl_cli.core.learner import Task
from pcrl_cli.core.plan import Grid
from pcrl_cli.data.ahead import CacheOn
from pcrl_cli.data.cache import Cache
from pcrl_cli.data.crops import VolumeCrops
from pcrl_cli.engine.distributed import World
from pcrl_cli.pure.metrics import bootstrap_mean
from pcrl_cli.pure.regions import Agreement, agreement, decided, dice, masks_of, rivals, settled
from pcrl_cli.pure.volumes import label_map, to_native
from pcrl_cli.report import overlays
from pcrl_cli.report.html import Block, Paragraph, Picture, Section
from pcrl_cli.stages import training
from pcrl_cli.stages.workflows import Estimate, Scores, SplitName, Work, more_labels
from pcrl_cli.tasks.base import Segmentation, SegmentationConfig

OPTIONS = ("set",)
UNIT = {2: "pictures", 3: "scans"}
"""What cases of so many axes are called."""
OF_INFERENCE = ("window", "windows", "overlap", "tta", "threshold", "largest_component")
"""Settings of a task that change how it predicts, not what it learned."""
GROUP = "volumes"
IN_PIXELS = "distances are in pixels of the picture's own file, and so is the tolerance of NSD"
SHOWN = 2
"""Cases that the report shows from either end."""
BY_PATIENT = "bootstrap over patients"
QUICK = {"overlap": 0.25, "tta": False}
"""Of the sliding window when an epoch is judged."""
POLICY = (
    "Where a region is neither in the truth nor in the prediction, Dice and NSD are 1 and distances 0. Where it is in one "
    "of them only, Dice and NSD are 0 and the distances are the scan's diagonal, which counts in the means."
)


def metric_names(work: Work) -> tuple[str, ...]:
    """Those of which more is better, which alone can be held against a least value."""
    regional = tuple(f"{name}_{region}" for region in _names(work) for name in ("dice", "nsd"))
    return ("dice", *(("dice_box",) if _box_from_truth(work) else ()), *regional)


def _names(work: Work) -> list[str]:
    """Of the regions: the task's own, or those that the run learned, or the cache's."""
    return list(work.module.REGIONS or work.learned or work.cache.manifest["classes"])


def truth_regions(work: Work) -> dict[str, tuple[int, ...]]:
    """The labels by which the cache's masks hold each region, in the order of the task's regions."""
    own = work.module.REGIONS or training.regions_in(work.cache.manifest)
    return {name: tuple(own[name]) for name in _names(work)}


def _box_from_truth(work: Work) -> bool:
    """Whether the box that training crops come from was made of the mask: of CT, if the task does not say."""
    said = work.module.BOX_FROM_TRUTH
    return bool(work.cache.manifest["modality"] == "ct" if said is None else said)


def _dim(work: Work) -> int:
    return int(work.cache.manifest["dim"])


# ---------------------------------------------------------------------------------------------------- training


def counts(work: Work, patients: Sequence[str]) -> dict[str, int]:
    """Volumes, how many of them have no foreground, and how many are smaller than a crop."""
    _require_regions(work)
    cases = work.cache.cases(patients=patients)
    empty = [case for case in cases if not _has_foreground(work.cache, case)]
    if len(empty) == len(cases):
        raise DataError(
            f"none of the {len(cases)} labelled training {UNIT[_dim(work)]} of {work.cache.path} has foreground, so there is "
            f"nothing to learn; {more_labels(work)}"
        )
    work.settings.learner.window_of(_dim(work))  # a wrong one is told before training
    crop = _stored_size(work.settings.learner.crop_of(_dim(work)))
    shapes = [work.cache.records[case]["arrays"][GROUP]["image"]["shape"][1:] for case in cases]
    small = sum(any(n < size for n, size in zip(shape, crop, strict=True)) for shape in shapes)
    unit = "pictures" if _dim(work) == 2 else "volumes"
    return {unit: len(cases), "without foreground": len(empty), "smaller than a crop, padded": small}


def doubts(work: Work, patients: Sequence[str]) -> list[str]:
    """Which regions are in no mask, by the counts of the records."""
    cases = work.cache.cases(patients=patients)
    there = {label for case in cases for label in work.cache.records[case]["counts"][GROUP]}
    nowhere = [
        name for name, labels in truth_regions(work).items() if not there & {f"label_{label}" for label in labels}
    ]
    if not nowhere:
        return []
    return [
        f"no mask of the {len(cases)} labelled training {UNIT[_dim(work)]} holds {' or '.join(nowhere)}, which "
        f"cannot be learned from them; {more_labels(work)}, or leave the numbers of that aside"
    ]


def source(work: Work, patients: Sequence[str], cache_on: CacheOn, world: World) -> VolumeCrops:
    config, train = work.settings.learner, work.settings.train
    return VolumeCrops(
        work.cache,
        work.cache.cases(patients=patients),
        _stored_size(config.crop_of(_dim(work))),
        train.batch,
        train.seed,
        work.device,
        cache_on,
        pad=work.cache.manifest["pad"],
        foreground=config.foreground,
        crops=config.crops,
        rank=world.rank,
        ranks=world.size,
    )


def can_validate(work: Work) -> tuple[bool, str]:
    if any(_has_foreground(work.cache, case) for case in work.cache.cases("val")):
        return True, (
            "best epoch by validation Dice, in the box that training crops come from, by windows that overlap by a quarter"
        )
    return False, "last epoch: no case of the validation part has foreground, so no epoch can be chosen by it"


def validate(work: Work, task: Task) -> dict[str, float | None]:
    """Mean Dice over regions and cases, and of each region, inside the boxes on the working grid."""
    assert isinstance(task, Segmentation)

    def agreement(case: str) -> list[float]:
        start, size = work.cache.read_box(case, GROUP, "box").tolist()
        image, mask = (work.cache.read_box(case, GROUP, name, start, size) for name in ("image", "mask"))
        p = task.infer(torch.from_numpy(image), task.config.model_copy(update=QUICK)).numpy()
        found = decided(p, task.config.threshold, rivals(list(task.regions.values())))
        return [dice(t, q) for t, q in zip(masks_of(mask, task.regions), found, strict=True)]

    each = np.array(list(work.world.by_case(work.cache.cases("val"), agreement).values()))
    by_region = {f"val_dice_{region}": float(v) for region, v in zip(task.regions, each.mean(axis=0), strict=True)}
    return {"val_dice": float(each.mean()), **by_region}


def _require_regions(work: Work) -> None:
    """The task's labels mean nothing in another data set's masks.

    Raises:
        ConfigError: the cache was prepared with other regions than the task's.
    """
    manifest, own = work.cache.manifest, work.module.REGIONS
    there, wanted = list(manifest["classes"]), _names(work)
    if own is None and not manifest.get("regions"):
        raise ConfigError(
            f"{work.cache.path} was not prepared with --masks; prepare it with `pcrl prep folder --masks DIR`, or give the "
            "data set's own task"
        )
    if (there != wanted) if own else (set(there) != set(wanted)):
        raise ConfigError(
            f"the masks of {work.cache.path} are of {', '.join(there)}, and the task {work.settings.task} is of "
            f"{', '.join(wanted)}; give the cache of its own data set"
        )
    if own and "regions" in manifest:
        raise ConfigError(
            f"{work.cache.path} was prepared with --masks, whose labels are not those of the task {work.settings.task}; "
            "give --task segment, or prepare the data set by its own name"
        )


def _stored_size(size: Sequence[int]) -> tuple[int, int, int]:
    """A crop as it is cut from a cache: of a picture one slice."""
    x, y, z = (*size, 1) if len(size) == 2 else size
    return x, y, z


def _has_foreground(cache: Cache, case: str) -> bool:
    return not cache.records[case]["counts"][GROUP]["without_foreground"]


# ----------------------------------------------------------------------------------------------------- scoring


@dataclass(frozen=True)
class CaseScores:
    """Of one case: agreement by region on the scan's own grid, and Dice inside the training box on the working grid."""

    case: str
    patient: str
    regions: dict[str, Agreement]
    dice_box: float
    padded: bool
    """Smaller than a window along some axis."""

    @property
    def dice(self) -> float:
        return float(np.mean([a.dice for a in self.regions.values()]))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of_json(cls, row: Mapping[str, Any]) -> "CaseScores":
        return cls(**{**row, "regions": {name: Agreement(**values) for name, values in row["regions"].items()}})


def inference_config(
    config: SegmentationConfig, values: Mapping[str, Any], source: str, known: Sequence[str] = OF_INFERENCE
) -> SegmentationConfig:
    """A task's settings with others of inference.

    values: {"learner": {"tta": True, ...}}. source: where they come from, for messages.

    Raises:
        ConfigError: one of them is not among the known, or does not fit.
    """
    given = values.get("learner", {})
    strange = [key for key in values if key != "learner"]
    strange += [f"learner.{key}" for key in given if key not in known]
    if strange:
        names = ", ".join(f"learner.{name}" for name in known)
        raise ConfigError(f"{strange[0]} (from {source}) changes nothing in a prediction; {names} do")
    return validate_settings(type(config), config.model_dump() | given, dict.fromkeys(given, source))


def score(work: Work, task: Task, split: SplitName, options: Mapping[str, Any]) -> Scores:
    """Dice, HD95, NSD, ASSD and volume difference a region, each the mean over cases with an interval by patient.

    options: set: settings of inference, or tolerance_mm, over the run's own.
    """
    assert isinstance(task, Segmentation)
    _require_regions(work)
    task.config = inference_config(task.config, options.get("set", {}), "--set", (*OF_INFERENCE, "tolerance_mm"))
    cases = work.cache.cases(split)
    if not cases:
        raise DataError(f"the {split} part of {work.cache.path} has no usable case; name another --split")
    scored = list(_all_cases(work, task, cases))
    names = list(task.regions)
    config = task.config
    return Scores(
        metrics=_metrics(work, scored, names),
        headline="dice",
        counts=_counts(scored, _dim(work)),
        csv=_csv(scored, _unit(work)),
        details={
            "window": list(config.window_of(_dim(work))),
            "regions": {name: list(labels) for name, labels in task.regions.items()},
            "unit": _unit(work),
            **{
                key: getattr(config, key)
                for key in ("overlap", "tta", "threshold", "largest_component", "tolerance_mm")
            },
            "empty": {name: _empty(scored, name) for name in names},
            "padded": [s.case for s in scored if s.padded],
        },
        notes=[*_notes(scored, names, _dim(work)), *([IN_PIXELS] if _dim(work) == 2 else [])],
        sections=_sections(work, scored, names),
    )


def _all_cases(work: Work, task: Segmentation, cases: Sequence[str]) -> Iterator[CaseScores]:
    """Case by case; those that an interrupted scoring of the same weights on the same scans had finished are not done again."""
    known = _Notebook(work, task)
    work.listener.begin("scoring whole volumes", len(cases), UNIT[_dim(work)])
    for done, case in enumerate(cases, start=1):
        found = known.get(case)
        if found is None:
            found = score_case(work, task, case)
            known.add(found)
        yield found
        work.listener.advance(done)
    work.listener.end()
    known.discard()


def score_case(work: Work, task: Segmentation, case: str) -> CaseScores:
    """One scan: sliding window on the working grid, back to its own grid, compared there; its overlay to `work.out`."""
    cache, config = work.cache, task.config
    image = cache.read_box(case, GROUP, "image")
    window = _stored_size(config.window_of(_dim(work)))
    probability = task.infer(torch.from_numpy(image)).numpy()
    of_truth = truth_regions(work)
    box_dice = _box_dice(cache, case, task, probability, of_truth)
    grid, native = (Grid.of_row(cache.read_box(case, GROUP, name)) for name in ("grid", "native"))
    predicted = native_regions(probability, grid, native, config, task.regions)
    del probability
    truth = masks_of(cache.read_box(case, GROUP, "native_mask"), of_truth)
    found = {
        name: agreement(t, p, native.spacing, config.tolerance_mm)
        for name, t, p in zip(task.regions, truth, predicted, strict=True)
    }
    small = any(n < size for n, size in zip(image.shape[1:], window, strict=True))
    result = CaseScores(case, cache.records[case]["patient"], found, box_dice, small)
    if work.out is not None:
        _draw(work.out, case, image, grid, native, truth, predicted, list(task.regions), _dim(work))
    return result


def native_regions(
    probability: Float32[np.ndarray, "r x y z"],
    grid: Grid,
    native: Grid,
    config: SegmentationConfig,
    regions: Mapping[str, Sequence[int]],
) -> Bool[np.ndarray, "r i j k"]:
    """Probabilities on the working grid -> the regions on the scan's own, as `evaluate` scores and `predict` writes them.

    What is scored is what a label map can hold: regions without a common label share no voxel.
    """
    labels = [tuple(members) for members in regions.values()]
    found = settled(
        to_native(probability, grid, native, config.threshold, rivals(labels)), labels, config.largest_component
    )
    nested = all(set(inner) < set(outer) for outer, inner in pairwise(labels))
    return found if nested else masks_of(label_map(found, labels), regions)


def _box_dice(
    cache: Cache,
    case: str,
    task: Segmentation,
    probability: Float32[np.ndarray, "r x y z"],
    of_truth: Mapping[str, Sequence[int]] | None = None,
) -> float:
    """Mean over regions inside the box that training crops come from, of the same prediction on the working grid.

    of_truth: the labels of the cache's masks, if they are not the task's.
    """
    start, size = cache.read_box(case, GROUP, "box").tolist()
    mask, labels = cache.read_box(case, GROUP, "mask", start, size), list(task.regions.values())
    whole = settled(decided(probability, task.config.threshold, rivals(labels)), labels, task.config.largest_component)
    part = whole[(slice(None), *(slice(a, a + n) for a, n in zip(start, size, strict=True)))]
    return float(np.mean([dice(t, p) for t, p in zip(masks_of(mask, of_truth or task.regions), part, strict=True)]))


class _Notebook:
    """What an evaluation has finished, one JSON line a case; removed at its end. Without a folder nothing is kept."""

    def __init__(self, work: Work, task: Segmentation) -> None:
        self.cache, self.out, self.path = work.cache, work.out, work.out / ".cases.jsonl" if work.out else None
        weights = hashlib.sha256()
        for value in task.state_dict().values():
            weights.update(value.cpu().numpy().tobytes())
        self.key = files.fingerprint([task.config.model_dump(mode="json"), work.device.type, weights.hexdigest()])
        self.rows = dict(self._read())

    def get(self, case: str) -> CaseScores | None:
        """A case's scores; None where it has none or its overlay, which the report shows, is gone."""
        if self.out is None or not _overlay_path(self.out, case).is_file():
            return None
        row = self.rows.get((self.key, case, self.cache.records[case]["sha256"]))
        return CaseScores.of_json(row) if row is not None else None

    def add(self, found: CaseScores) -> None:
        if self.path is None:
            return
        line = {"key": self.key, "shard": self.cache.records[found.case]["sha256"], "scores": found.to_json()}
        with files.blame_machine(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    def discard(self) -> None:
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def _read(self) -> Iterator[tuple[tuple[str, str, str], dict[str, Any]]]:
        """Whole lines; a torn last one is passed over."""
        if self.path is None or not self.path.exists():
            return
        for text in self.path.read_text("utf-8").splitlines():
            try:
                line = json.loads(text)
                yield (line["key"], line["scores"]["case"], line["shard"]), line["scores"]
            except (ValueError, KeyError, TypeError):
                continue


# ----------------------------------------------------------------------------------------------------- results


def _metrics(work: Work, scored: Sequence[CaseScores], names: Sequence[str]) -> dict[str, Estimate]:
    patients = np.array([s.patient for s in scored])

    def mean(values: Sequence[float]) -> Estimate:
        return Estimate.of(bootstrap_mean(np.array(values, np.float64), patients), BY_PATIENT)

    metrics = {"dice": mean([s.dice for s in scored])}
    if _box_from_truth(work):
        metrics["dice_box"] = mean([s.dice_box for s in scored])
    for name in names:
        found = [s.regions[name] for s in scored]
        metrics |= {
            f"dice_{name}": mean([a.dice for a in found]),
            f"hd95_{name}": mean([a.hd95_mm for a in found]),
            f"nsd_{name}": mean([a.nsd for a in found]),
            f"assd_{name}": mean([a.assd_mm for a in found]),
            f"ravd_{name}": mean([abs(a.rvd_percent) for a in found]),
        }
    return metrics


def _counts(scored: Sequence[CaseScores], dim: int) -> dict[str, int]:
    empty = sum(all(a.true_ml == 0 for a in s.regions.values()) for s in scored)
    return {
        UNIT[dim]: len(scored),
        "without foreground": empty,
        "smaller than a window, padded": sum(s.padded for s in scored),
    }


def _empty(scored: Sequence[CaseScores], name: str) -> dict[str, int]:
    """By the policy's cases: nowhere, missed, invented."""
    found = [(s.regions[name].true_ml > 0, s.regions[name].predicted_ml > 0) for s in scored]
    return {
        "in neither": found.count((False, False)),
        "missed": found.count((True, False)),
        "invented": found.count((False, True)),
    }


def _notes(scored: Sequence[CaseScores], names: Sequence[str], dim: int) -> list[str]:
    notes = []
    for name in names:
        empty = _empty(scored, name)
        if any(empty.values()):
            said = ", ".join(f"{n} {what}" for what, n in empty.items() if n)
            notes.append(
                f"{name} of {len(scored)} {UNIT[dim]}: {said}; such {UNIT[dim]} count as the policy for empty masks says"
            )
    padded = sum(s.padded for s in scored)
    if padded:
        notes.append(f"{padded} of {len(scored)} {UNIT[dim]} are smaller than a window and were padded")
    return notes


def _unit(work: Work) -> str:
    """Of distances."""
    return "px" if _dim(work) == 2 else "mm"


def _csv(scored: Sequence[CaseScores], unit: str) -> bytes:
    """A row a case: Dice over all regions and in the box, then everything a region; of pictures in pixels."""
    buffer = io.StringIO()
    names = list(scored[0].regions)
    fields = {field: (field, 1) for field in Agreement.__dataclass_fields__}
    if unit == "px":
        fields = {
            field.replace("_mm", "_px").replace("_ml", "_px"): (field, 1000 if field.endswith("_ml") else 1)
            for field in fields
        }
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["case", "patient", "dice", "dice_box", *(f"{field}_{name}" for name in names for field in fields)])
    for s in scored:
        values = [getattr(s.regions[name], field) * times for name in names for field, times in fields.values()]
        writer.writerow([s.case, s.patient, *(f"{v:.6g}" for v in (s.dice, s.dice_box, *values))])
    return buffer.getvalue().encode()


def _draw(
    out: Path,
    case: str,
    image: np.ndarray,
    grid: Grid,
    native: Grid,
    truth: Bool[np.ndarray, "r x y z"],
    predicted: Bool[np.ndarray, "r x y z"],
    names: Sequence[str],
    dim: int,
) -> None:
    """The case's overlay, on its own grid; a picture as it hangs: its columns run to the right."""

    def look(k: int) -> np.ndarray:
        found = slice_on(image[0], grid, native, k)
        return found.T if dim == 2 else found

    if dim == 2:
        truth, predicted = truth.transpose(0, 2, 1, 3), predicted.transpose(0, 2, 1, 3)
    found = overlays.slices_of(look, truth, predicted, native.spacing)
    if dim == 2:
        found = [replace(s, says=f"{case}, all of the picture") for s in found]
    path = _overlay_path(out, case)
    with files.blame_machine(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    files.write_atomic(path, overlays.overlay(found, names))


def slice_on(image: Int16[np.ndarray, "x y z"], grid: Grid, native: Grid, k: int) -> Int16[np.ndarray, "i j"]:
    """Slice k of the scan's own grid by the nearest voxels of the working grid; 0 beyond it."""
    shift = native.direction.T @ (native.origin - grid.origin)
    at = [
        np.rint((i * native.spacing[axis] + shift[axis]) / grid.spacing[axis]).astype(np.int64)
        for axis, i in enumerate((np.arange(native.shape[0]), np.arange(native.shape[1]), np.array([k])))
    ]
    x, y, z = (np.clip(index, 0, n - 1) for index, n in zip(at, image.shape, strict=True))
    inside = [np.abs(index - held) <= 1 for index, held in zip(at, (x, y, z), strict=True)]  # a voxel more is rounding
    found = image[np.ix_(x, y, z)][..., 0]
    return np.where(inside[0][:, None] & inside[1] & inside[2], found, 0).astype(np.int16)


def _overlay_path(out: Path, case: str) -> Path:
    return out / "overlays" / f"{case}.png"


def _sections(work: Work, scored: Sequence[CaseScores], names: Sequence[str]) -> list[Section]:
    values = {name: {s.case: s.regions[name].dice for s in scored} for name in names}
    blocks: list[Block] = [
        Picture(overlays.dice_plot(values), "Dice of every case on its own grid."),
        Paragraph(POLICY),
    ]
    sections = [Section("Cases", blocks)]
    if work.out is None:
        return sections
    order = sorted(scored, key=lambda s: (s.dice, s.case))
    few = order if len(order) <= 2 * SHOWN else [*order[:SHOWN], *order[-SHOWN:]]
    shown: list[Block] = [
        Picture(_overlay_path(work.out, s.case).read_bytes(), f"{s.case}: Dice {s.dice:.3f}") for s in few
    ]
    which = "all cases" if len(few) == len(order) else f"the {SHOWN} worst and the {SHOWN} best of {len(order)} cases"
    return [
        *sections,
        Section("Overlays", [Paragraph(f"Of {which}; overlays/ beside this page has every case."), *shown]),
    ]
