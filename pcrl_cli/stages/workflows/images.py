"""Findings on images or scans (NIH ChestX-ray14, CheXpert, one's own): AUROC a finding and their mean, calibration, maps."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int

from pcrl_cli.core.errors import ConfigError, DataError
from pcrl_cli.core.learner import Task
from pcrl_cli.core.names import plain
from pcrl_cli.data.ahead import CacheOn
from pcrl_cli.data.cache import Cache
from pcrl_cli.data.loader import Loader
from pcrl_cli.engine.distributed import World
from pcrl_cli.pure.calibration import calibration
from pcrl_cli.pure.findings import NOT_KNOWN, Finding, mean_auroc, mean_auroc_interval, per_finding
from pcrl_cli.pure.metrics import Interval, roc_points
from pcrl_cli.pure.pointing import Pointing, covered, point
from pcrl_cli.readers import nih_boxes
from pcrl_cli.report import figures
from pcrl_cli.report.findings import Look, activation_figure, auroc_figure, reliability_figure
from pcrl_cli.report.html import Block, Facts, Picture, Section
from pcrl_cli.report.paper_findings import findings_table
from pcrl_cli.stages.workflows import Estimate, Scores, SplitName, Work, more_labels
from pcrl_cli.tasks.findings import Findings, Plane

OPTIONS: tuple[str, ...] = ()
BATCH = {2: 64, 3: 8}
"""Images predicted at once, by their axes."""
SHOWN = 8
"""Images with boxes in the report; the pointing game is played on all."""


@dataclass(frozen=True)
class Predictions:
    """One row an image, one column a finding; label: 1, 0 or -1, not known."""

    id: list[str]
    patient: list[str]
    label: Int[np.ndarray, "n k"]
    probability: Float[np.ndarray, "n k"]


def metric_names(work: Work) -> tuple[str, ...]:
    """Those of which more is better."""
    pointing = ("pointing",) if _points(work) else ()
    return ("auroc", *map(metric_name, work.learned or work.cache.manifest["classes"]), *pointing)


def _unit(work: Work) -> str:
    """What an item is."""
    return "images" if work.cache.manifest["dim"] == 2 else "scans"


def _points(work: Work) -> bool:
    """Whether there is a pointing game to tell of: on radiographs, or where the data set has boxes."""
    manifest = work.cache.manifest
    listed = manifest["dim"] == 2 and nih_boxes.box_list(Path(manifest["data"])) is not None
    return listed or work.settings.task == "chest"


# ---------------------------------------------------------------------------------------------------- training


def counts(work: Work, patients: Sequence[str]) -> dict[str, int]:
    labels = _labels(work.cache, work.module.GROUP, patients)
    usable = _usable(labels)
    if not usable.any():
        raise DataError(
            f"of the {len(labels)} labelled training {_unit(work)} of {work.cache.path} no finding has both a positive and a "
            f"negative, so there is nothing to learn; raise --ratio or prepare more {_unit(work)}"
        )
    return {
        _unit(work): len(labels),
        "positive labels": int((labels == 1).sum()),
        "findings to learn": int(usable.sum()),
    }


def doubts(work: Work, patients: Sequence[str]) -> list[str]:
    """Which findings are on none of the images, on all of them, or not known of any."""
    labels, names = _labels(work.cache, work.module.GROUP, patients), work.cache.manifest["classes"]
    sides = [{value: int((column == value).sum()) for value in (1, 0)} for column in labels.T]
    lacking = [f"{name} ({_lack(n[1], n[0])})" for name, n in zip(names, sides, strict=True) if not (n[1] and n[0])]
    if not lacking:
        return []
    return [
        f"{len(lacking)} of {len(names)} findings cannot be learned from the {len(labels)} labelled training {_unit(work)}: "
        f"{', '.join(lacking)}; {more_labels(work)}, or leave their numbers aside"
    ]


def source(work: Work, patients: Sequence[str], cache_on: CacheOn, world: World) -> Loader:
    group, arrays, train = work.module.GROUP, work.module.ARRAYS, work.settings.train
    cases = work.cache.cases(patients=patients)
    return Loader(
        work.cache,
        group,
        arrays,
        cases,
        train.batch,
        train.seed,
        work.device,
        cache_on,
        rank=world.rank,
        ranks=world.size,
        rows=work.cache.rows(group, arrays[0], cases, patients),
    )


def can_validate(work: Work) -> tuple[bool, str]:
    usable = _usable(_labels(work.cache, work.module.GROUP, work.cache.split.val))
    if usable.any():
        return True, f"best epoch by validation AUROC, the mean over {int(usable.sum())} of {len(usable)} findings"
    return False, "last epoch: in the validation part no finding has both classes, so no epoch can be chosen by it"


def validate(work: Work, task: Task) -> dict[str, float | None]:
    p = predict_part(work, task, "val")
    return {"val_auroc": mean_auroc(p.label, p.probability)}


def _labels(cache: Cache, group: str, patients: Sequence[str]) -> Int[np.ndarray, "n k"]:
    cases = cache.cases(patients=patients)
    if not cases:
        return np.zeros((0, len(cache.manifest.get("classes", ()))), np.int8)
    return cache.read(group, ("label",), cases, rows=cache.rows(group, "label", cases, patients)).arrays["label"]


def _usable(labels: Int[np.ndarray, "n k"]) -> np.ndarray:
    """Which findings have a positive and a negative."""
    return (labels == 1).any(axis=0) & (labels == 0).any(axis=0)


# -------------------------------------------------------------------------------------------------- predicting


def predict_part(work: Work, task: Task, split: SplitName) -> Predictions:
    """Predicts every image of a part, shards dealt out among the ranks; the task must be in eval mode.

    Its findings are the columns; one that the cache has no labels of is not known for any image.
    """
    classes = _classes(work, task)
    parts = work.world.by_case(work.cache.cases(split), lambda case: _predict(work, task, split, case, classes))
    return _joined(list(parts.values()), len(classes))


def _predict(work: Work, task: Task, split: SplitName, case: str, classes: Sequence[str]) -> Predictions:
    """The part's images of one shard."""
    found = []
    for items in _batches(work, split, case, ("image", "label", "id", "patient")):
        batch = {"image": torch.from_numpy(items["image"]).to(work.device)}
        names, patients = ([name.decode() for name in items[key]] for key in ("id", "patient"))
        labels = _aligned(items["label"].astype(np.int64), work.cache.manifest["classes"], classes)
        found.append(Predictions(names, patients, labels, task.predict(batch).float().cpu().numpy()))
    return _joined(found, len(classes))


def _joined(parts: Sequence[Predictions], k: int) -> Predictions:
    return Predictions(
        [name for p in parts for name in p.id],
        [patient for p in parts for patient in p.patient],
        np.concatenate([np.zeros((0, k), np.int64), *(p.label for p in parts)]),
        np.concatenate([np.zeros((0, k), np.float32), *(p.probability for p in parts)]),
    )


def _classes(work: Work, task: Task) -> list[str]:
    """The findings that the task learned.

    Raises:
        ConfigError: the cache has labels of none of them.
    """
    learned, there = list(task.stored.classes) if isinstance(task, Findings) else [], work.cache.manifest["classes"]
    if not set(learned) & set(there):
        raise ConfigError(
            f"{work.cache.path} has labels of {', '.join(there)}, and the run learned {', '.join(learned)}: none is "
            "common to both; give a cache with the same names"
        )
    return learned


def _aligned(labels: Int[np.ndarray, "n k"], names: Sequence[str], wanted: Sequence[str]) -> Int[np.ndarray, "n w"]:
    """The columns of these names in this order; -1 where there is none."""
    if list(names) == list(wanted):
        return labels
    out = np.full((len(labels), len(wanted)), NOT_KNOWN, labels.dtype)
    for i, name in enumerate(wanted):
        if name in names:
            out[:, i] = labels[:, list(names).index(name)]
    return out


def _batches(work: Work, split: SplitName, case: str, arrays: Sequence[str]) -> Iterator[dict[str, np.ndarray]]:
    """The part's items of a shard, so many of `BATCH` at a time."""
    cache, group = work.cache, work.module.GROUP
    mine = cache.rows(group, "label", [case], cache.split.part(split))
    step = BATCH[cache.manifest["dim"]]
    for start in range(0, len(mine), step):
        yield cache.read(group, arrays, [case], rows=mine[start : start + step]).arrays


# ------------------------------------------------------------------------------------------------------ scoring


def score(work: Work, task: Task, split: SplitName, options: Mapping[str, Any]) -> Scores:
    """AUROC of every finding and their mean, calibration, and the pointing game where the data set has boxes."""
    names, root, unit = _classes(work, task), Path(work.cache.manifest["data"]), _unit(work)
    points = _points(work)  # first: a damaged list is told before an hour's work
    listed, boxes = (nih_boxes.box_list(root), nih_boxes.boxes(root)) if points else (None, {})
    p = predict_part(work, task, split)
    scores = p.probability.astype(np.float64)
    findings = per_finding(p.label, scores, names)
    mean = mean_auroc_interval(p.label, scores, np.array(p.patient))
    measured = calibration(p.label.ravel(), scores.ravel())
    played, by_finding, looks, cut_off = _point(work, task, split, names, boxes)
    metrics = {"auroc": Estimate.of(mean, "bootstrap over patients")}
    metrics |= {metric_name(f.name): Estimate.of(f.auroc, f"DeLong, {unit} as independent") for f in findings}
    nothing = "no label is known" if measured.ece is None else None
    metrics["ece"] = Estimate(value=measured.ece, reason=nothing)
    metrics["brier"] = Estimate(value=measured.brier, reason=nothing)
    if points:
        reason = None if played.n else _why_no_boxes(root, listed, cut_off)
        metrics["pointing"] = Estimate(value=played.share, reason=reason)
    return Scores(
        metrics=metrics,
        headline="auroc",
        counts={
            unit: len(p.id),
            f"{unit} with a finding": int((p.label == 1).any(axis=1).sum()),
            "findings in the mean": sum(f.auroc.value is not None for f in findings),
            "findings": len(names),
        },
        csv=_csv(p, names),
        details={
            "findings": {
                f.name: {"positive": f.positive, "negative": f.negative, "unknown": f.unknown} for f in findings
            },
            "left_out_of_the_mean": [f.name for f in findings if f.auroc.value is None],
            **(_pointing(played, by_finding, cut_off) if points else {}),
        },
        notes=_notes(findings, split) + _cut_off_note(cut_off),
        sections=[
            *_curves(work, p, scores, findings, metrics["auroc"]),
            Section("Calibration", [Picture(reliability_figure(measured), "Predicted probabilities, all findings.")]),
            *_maps(played, by_finding, looks),
        ],
    )


def metric_name(finding: str) -> str:
    """auroc_pleural_thickening of Pleural_Thickening."""
    return "auroc_" + plain(finding)


def _pointing(played: Pointing, by_finding: Mapping[str, Pointing], cut_off: int) -> dict[str, Any]:
    return {
        "pointing": {name: {"hits": g.hits, "boxes": g.n} for name, g in by_finding.items()},
        "pointing_by_chance": played.by_chance / played.n if played.n else None,
        "pointing_left_out": cut_off,
    }


def _notes(findings: Sequence[Finding], split: SplitName) -> list[str]:
    left_out = [f"{f.name} ({_lacks(f)})" for f in findings if f.auroc.value is None]
    if not left_out:
        return []
    there = len(findings) - len(left_out)
    return [
        f"the mean AUROC is over {there} of {len(findings)} findings; the {split} part has one class only of: "
        + ", ".join(left_out)
    ]


def _why_no_boxes(root: Path, listed: Path | None, cut_off: int) -> str:
    if listed is None:
        return f"no list of boxes ({' or '.join(nih_boxes.NAMES)}) in {root}"
    return "every box of this part lies in the cut-off rim" if cut_off else "no image of this part has a box"


def _cut_off_note(cut_off: int) -> list[str]:
    said = f"{cut_off} findings with boxes only in the rim that the network does not see are not in the pointing game"
    return [said] if cut_off else []


def _lacks(finding: Finding) -> str:
    return _lack(finding.positive, finding.negative)


def _lack(positive: int, negative: int) -> str:
    if not positive + negative:
        return "no label"
    lacking = [name for name, n in (("positive", positive), ("negative", negative)) if not n]
    return f"no {' and no '.join(lacking)}"


def _curves(
    work: Work, p: Predictions, scores: np.ndarray, findings: Sequence[Finding], mean: Estimate
) -> list[Section]:
    """AUROC by finding as a picture, as a table in the paper's order, and the ROC curves."""
    shown = auroc_figure(findings, Interval(mean.value, mean.low, mean.high, mean.reason))
    curves = {}
    for k, finding in enumerate(findings):
        known = p.label[:, k] != NOT_KNOWN
        points = roc_points(p.label[known, k], scores[known, k])
        none = np.zeros(0), np.zeros(0), None
        curves[finding.name] = none if points is None else (points.fpr, points.tpr, finding.auroc.value)
    blocks: list[Block] = [
        Picture(shown, "AUROC by finding; the mean's interval is by patient."),
        findings_table(findings, work.settings.ratio, paper=work.settings.task == "chest"),
    ]
    return [
        Section("Findings", blocks),
        Section("ROC curves", [Picture(figures.roc_curves(curves), "Receiver operating characteristic by finding.")]),
    ]


# --------------------------------------------------------------------------------------------------- activation


Boxes = Mapping[tuple[str, str], Sequence[nih_boxes.Box]]
Played = tuple[Pointing, dict[str, Pointing], list[Look], int]


def _point(work: Work, task: Task, split: SplitName, names: Sequence[str], boxes: Boxes) -> Played:
    """The pointing game on every image of the part that has boxes: altogether, by finding, and pictures to show.

    Last, how many findings of an image are left out because the network sees nothing of their boxes: no map can hit them.
    """
    total, by_finding, looks, cut_off = Pointing(0, 0, 0.0), dict[str, Pointing](), list[Look](), 0
    wanted = {image for image, finding in boxes if finding in names}
    if not wanted or not isinstance(task, Findings) or not isinstance(task.look, Plane):
        return total, by_finding, looks, cut_off
    for items in (items for case in work.cache.cases(split) for items in _batches(work, split, case, ("image", "id"))):
        ids = [name.decode() for name in items["id"]]
        rows = [i for i, name in enumerate(ids) if name in wanted]
        if not rows:
            continue
        batch = {"image": torch.from_numpy(items["image"][rows]).to(work.device)}
        maps = task.activation(batch).float().cpu().numpy()
        seen = task.centre_unit(batch)[:, 0].float().cpu().numpy()
        for row, map_, image in zip(rows, maps, seen, strict=True):
            for k, finding in enumerate(names):
                drawn = boxes.get((ids[row], finding), [])
                if not drawn:
                    continue
                placed = tuple(_placed(box, task.look) for box in drawn)
                if not covered(map_[k].shape, placed).any():
                    cut_off += 1
                    continue
                game = point(map_[k], placed)
                total = total.joined(game)
                by_finding[finding] = by_finding.get(finding, Pointing(0, 0, 0.0)).joined(game)
                if len(looks) < SHOWN:
                    looks.append(Look(finding, ids[row], image, map_[k], placed, bool(game.hits)))
    return total, by_finding, looks, cut_off


def _placed(box: nih_boxes.Box, look: Plane) -> tuple[float, float, float, float]:
    """Shares of the whole image -> pixels of the centre that the network sees."""
    cut = (look.resize - look.side) // 2
    left, top, width, height = (share * look.resize for share in box)
    return left - cut, top - cut, width, height


def _maps(played: Pointing, by_finding: Mapping[str, Pointing], looks: Sequence[Look]) -> list[Section]:
    if not played.n:
        return []
    caption = (
        "Class activation maps of a finding over the image, the readers' boxes in white, the map's peak as a cross. The "
        "pointing game counts the peaks that lie in a box."
    )
    facts = {name: f"{g.hits} of {g.n}" for name, g in by_finding.items()}
    facts["all"] = f"{played.hits} of {played.n}; a random place would hit {played.by_chance:.2g}"
    return [Section("Where it looks", [Picture(activation_figure(looks), caption), Facts(facts)])]


def _csv(p: Predictions, names: Sequence[str]) -> bytes:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["id", "patient", *(f"label {n}" for n in names), *(f"probability {n}" for n in names)])
    for row in zip(p.id, p.patient, p.label.tolist(), p.probability.tolist(), strict=True):
        writer.writerow([row[0], row[1], *("" if v == NOT_KNOWN else v for v in row[2]), *(f"{v:.9g}" for v in row[3])])
    return buffer.getvalue().encode()
