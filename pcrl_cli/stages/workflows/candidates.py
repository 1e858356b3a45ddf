"""Candidates of a detection task (LUNA16): cached blocks to AUROC with intervals, FROC and CPM."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from pcrl_cli.core.case import Case
from pcrl_cli.core.errors import DataError
from pcrl_cli.core.learner import Task
from pcrl_cli.data.ahead import CacheOn
from pcrl_cli.data.cache import Cache
from pcrl_cli.data.loader import Loader
from pcrl_cli.data.volume import Intensity, prepare
from pcrl_cli.engine.distributed import World
from pcrl_cli.pure.crops import block_at, contains
from pcrl_cli.pure.froc import Froc, ScanFindings, froc
from pcrl_cli.pure.metrics import auroc, clustered_bootstrap, delong, roc_points
from pcrl_cli.readers import READERS
from pcrl_cli.report import figures
from pcrl_cli.report.html import Picture, Section
from pcrl_cli.stages.workflows import Estimate, Scores, SplitName, Work

OPTIONS = ("all_candidates",)
BATCH = 32
CHUNK = 64
"""Candidates that are cut from a scan at a time, to bound memory."""


@dataclass(frozen=True)
class Predictions:
    """One row a candidate, in the order of the cases."""

    id: list[str]
    case: list[str]
    patient: list[str]
    label: Int[np.ndarray, " n"]
    probability: Float[np.ndarray, " n"]
    world: Float64[np.ndarray, "n 3"]


@dataclass(frozen=True)
class Scored:
    """Everything the numbers come from."""

    predictions: Predictions
    lesions: dict[str, np.ndarray]
    excluded: dict[str, np.ndarray]
    """By case: findings that count neither way."""
    gap: str | None
    """Why FROC is not defined: what of the part is not among the predictions."""


METRICS = ("auroc", "auroc_clustered", "cpm")


def metric_names(work: Work) -> tuple[str, ...]:
    return METRICS


# ---------------------------------------------------------------------------------------------------- training


def counts(work: Work, patients: Sequence[str]) -> dict[str, int]:
    labels = _labels(work, work.cache.cases(patients=patients))
    return {"nodules": int(labels.sum()), "others": int((labels == 0).sum())}


def doubts(work: Work, patients: Sequence[str]) -> list[str]:
    """None: of the only class both sides are there, or `counts` refuses."""
    return []


def source(work: Work, patients: Sequence[str], cache_on: CacheOn, world: World) -> Loader:
    module, settings, train = work.module, work.settings, work.settings.train
    cases = work.cache.cases(patients=patients)
    labels = _labels(work, cases)
    return Loader(
        work.cache,
        module.GROUP,
        module.ARRAYS,
        cases,
        train.batch,
        train.seed,
        work.device,
        cache_on,
        order=lambda epoch: module.epoch_order(labels, settings.learner, train.seed, epoch),
        rank=world.rank,
        ranks=world.size,
    )


def can_validate(work: Work) -> tuple[bool, str]:
    cache, group = work.cache, work.module.GROUP
    cases = cache.cases("val")
    labels = cache.read(group, ("label",), cases).arrays["label"] if cases else np.zeros(0, np.uint8)
    if len(np.unique(labels)) == 2:
        return True, "best epoch by validation AUROC"
    return False, "last epoch: the validation part lacks candidates of one class, so no epoch can be chosen by it"


def validate(work: Work, task: Task) -> dict[str, float | None]:
    cache, group = work.cache, work.module.GROUP
    parts = work.world.by_case(cache.cases("val"), lambda case: predict_part(task, cache, group, [case], work.device))
    p = _join(list(parts.values()))
    return {"val_auroc": auroc(p.label, p.probability)}


def _labels(work: Work, cases: Sequence[str]) -> np.ndarray:
    cache = work.cache
    labels = cache.read(work.module.GROUP, ("label",), cases).arrays["label"] if cases else np.zeros(0, np.uint8)
    if len(np.unique(labels)) < 2:
        raise DataError(
            f"the {len(cases)} labelled training scans of {cache.path} have {int(labels.sum())} nodules and "
            f"{int((labels == 0).sum())} others, so there is nothing to learn; raise --ratio or prepare more scans"
        )
    return labels


# -------------------------------------------------------------------------------------------------- predicting


def decoded(ids: np.ndarray) -> list[str]:
    """Names as text; a cache stores them as UTF-8 bytes."""
    return [name.decode() if isinstance(name, bytes) else str(name) for name in ids]


def predict_part(
    task: Task, cache: Cache, group: str, cases: Sequence[str], device: torch.device, batch: int = BATCH
) -> Predictions:
    """Predicts every cached candidate of some cases; the task must be in eval mode."""
    parts = []
    for case in cases:
        items = cache.read(group, ("blocks", "label", "id", "world"), [case]).arrays
        n = len(items["label"])
        parts.append(
            Predictions(
                decoded(items["id"]),
                [case] * n,
                [cache.records[case]["patient"]] * n,
                items["label"].astype(np.int64),
                predict_blocks(task, items["blocks"], device, batch),
                items["world"],
            )
        )
    return _join(parts)


def predict_blocks(task: Task, blocks: np.ndarray, device: torch.device, batch: int = BATCH) -> Float[np.ndarray, " n"]:
    """(n, 1, side, side, side) as stored -> (n,) probabilities."""
    done = [task.predict({"blocks": rows})[:, 0].float().cpu().numpy() for rows in _batches(blocks, device, batch)]
    return np.concatenate(done) if done else np.zeros(0, np.float32)


def _batches(blocks: np.ndarray, device: torch.device, batch: int) -> Iterator[Tensor]:
    for start in range(0, len(blocks), batch):
        yield torch.from_numpy(blocks[start : start + batch]).to(device)


def _join(parts: Sequence[Predictions]) -> Predictions:
    return Predictions(
        [x for p in parts for x in p.id],
        [x for p in parts for x in p.case],
        [x for p in parts for x in p.patient],
        np.concatenate([p.label for p in parts]) if parts else np.zeros(0, np.int64),
        np.concatenate([p.probability for p in parts]) if parts else np.zeros(0, np.float32),
        np.concatenate([p.world for p in parts]) if parts else np.zeros((0, 3)),
    )


# ------------------------------------------------------------------------------------------------------ scoring


def score(work: Work, task: Task, split: SplitName, options: Mapping[str, Any]) -> Scores:
    """AUROC over candidates; FROC and CPM where every candidate of the part was scored.

    options: all_candidates: also those that are not cached, from the raw scans.
    """
    scored = (_score_all if options.get("all_candidates") else _score_cached)(work, task, split)
    p, scores = scored.predictions, scored.predictions.probability.astype(np.float64)
    curve = _froc(scored)
    cpm = curve.cpm if curve else None
    reason = (curve.reason if curve else scored.gap) if cpm is None else None
    metrics = {
        "auroc": Estimate.of(delong(p.label, scores), "DeLong, candidates as independent"),
        "auroc_clustered": Estimate.of(
            clustered_bootstrap(p.label, scores, np.array(p.patient)), "bootstrap over patients"
        ),
        "cpm": Estimate(value=cpm, reason=reason),
    }
    return Scores(
        metrics=metrics,
        headline="auroc_clustered",
        counts={
            "scans": len(scored.lesions),
            "candidates": len(p.label),
            "nodules among them": int(p.label.sum()),
            "annotated nodules": curve.nodules if curve else sum(map(len, scored.lesions.values())),
        },
        csv=_csv(p),
        details={
            "sensitivity_at": {f"{k:g}": v for k, v in curve.at.items()} if curve and curve.at else None,
        },
        notes=_froc_notes(work.cache),
        sections=_sections(p, scores, curve),
    )


def _sections(p: Predictions, scores: Float64[np.ndarray, " n"], curve: Froc | None) -> list[Section]:
    """ROC and FROC curves, scores by class."""
    sections, points = [], roc_points(p.label, scores)
    if points is not None:
        roc = figures.roc_curves({"this run": (points.fpr, points.tpr, auroc(p.label, scores))})
        sections.append(Section("ROC curve", [Picture(roc, "Receiver operating characteristic over candidates.")]))
    if curve is not None and curve.cpm is not None:
        caption = "Sensitivity over false positives a scan, LUNA16's rule."
        sections.append(Section("FROC curve", [Picture(figures.froc_curve(curve), caption)]))
    if len(p.label):
        image = figures.score_histogram(p.label, scores)
        sections.append(Section("Scores", [Picture(image, "Predicted probabilities of both classes.")]))
    return sections


def _froc_notes(cache: Cache) -> list[str]:
    """What LUNA16's rule needs and the data set lacked."""
    if cache.manifest.get("excluded_findings", True):
        return []
    return [
        "annotations_excluded.csv was not there: findings that LUNA16 ignores count as false positives in FROC and CPM"
    ]


def _score_cached(work: Work, task: Task, split: SplitName) -> Scored:
    """The cached candidates of a part."""
    cache, group = work.cache, work.module.GROUP
    cases = cache.cases(split)
    predictions = predict_part(task, cache, group, cases, work.device)
    lesions = {case: _rows(cache, group, "lesions", case) for case in cases}
    excluded = {case: _rows(cache, group, "excluded", case) for case in cases}
    counts = [cache.records[case]["counts"][group] for case in cases]
    complete = all(c["cached_0"] == c["candidates_0"] for c in counts)
    gap = None if complete else "not all candidates of this part are cached; use --all-candidates"
    return Scored(predictions, lesions, excluded, _refused(cache, split) or gap)


def _rows(cache: Cache, group: str, array: str, case: str) -> np.ndarray:
    """A (k, 4) array of one case; of none where the cache does not hold it."""
    if array not in cache.records[case]["arrays"].get(group, {}):
        return np.zeros((0, 4))
    return cache.read(group, (array,), [case]).arrays[array]


def _refused(cache: Cache, split: SplitName) -> str | None:
    """Scans of the part that could not be prepared are missing from nodules and scans alike."""
    part = set(cache.split.part(split))
    gone = [r["case"] for r in cache.manifest.get("refused", []) if r["patient"] in part]
    return f"{len(gone)} scans of this part could not be prepared ({gone[0]}, ...)" if gone else None


def _score_all(work: Work, task: Task, split: SplitName) -> Scored:
    """Every candidate of a part, cut from the raw scans, one scan in memory at a time."""
    cache, m, listener = work.cache, work.cache.manifest, work.listener
    reader = import_module(READERS[m["reader"]["name"]])
    options = {name: Path(value) for name, value in m["options"].items()}
    found = {c.id: c for c in reader.cases(Path(m["data"]), **options)}
    wanted = cache.cases(split)
    missing = [case for case in wanted if case not in found]
    if missing:
        raise DataError(
            f"--all-candidates needs the raw scans, and {m['data']} lacks {len(missing)} of "
            f"{len(wanted)}; leave it out or put them back"
        )
    listener.begin("scoring all candidates", len(wanted), "scans")
    parts, lesions, excluded = [], dict[str, np.ndarray](), dict[str, np.ndarray]()
    for done, name in enumerate(wanted, start=1):
        parts.append(_score_scan(work, task, reader.read(found[name]), found[name]))
        lesions[name] = _or_none(found[name].lesions)
        excluded[name] = _or_none(found[name].excluded)
        listener.advance(done)
    listener.end()
    return Scored(_join(parts), lesions, excluded, _refused(cache, split))


def _or_none(findings: np.ndarray | None) -> np.ndarray:
    return findings if findings is not None else np.zeros((0, 4))


def _score_scan(work: Work, task: Task, volume: Any, case: Case) -> Predictions:
    points, m = case.points, work.cache.manifest
    if points is None:
        return Predictions([], [], [], np.zeros(0, np.int64), np.zeros(0, np.float32), np.zeros((0, 3)))
    scan = prepare(volume, Intensity.model_validate(m["settings"]["intensity"]), m["spacing_mm"])
    inside = np.flatnonzero(contains(scan, points.world))
    side = int(m["settings"]["candidates"]["side_mm"])
    done = []
    for start in range(0, len(inside), CHUNK):
        blocks = np.stack([block_at(scan, points.world[i], side)[None] for i in inside[start : start + CHUNK]])
        done.append(predict_blocks(task, blocks, work.device))
    return Predictions(
        [points.id[i] for i in inside],
        [case.id] * len(inside),
        [case.patient] * len(inside),
        points.label[inside].astype(np.int64),
        np.concatenate(done) if done else np.zeros(0, np.float32),
        points.world[inside],
    )


def _froc(scored: Scored) -> Froc | None:
    """Over all scans of the part, only where every candidate was scored."""
    if scored.gap is not None:
        return None
    p, case = scored.predictions, np.array(scored.predictions.case)
    scans = []
    for name, lesions in scored.lesions.items():
        rows = case == name if len(case) else np.zeros(0, bool)
        scans.append(
            ScanFindings(p.world[rows], p.probability[rows].astype(np.float64), lesions, scored.excluded[name])
        )
    return froc(scans)


def _csv(p: Predictions) -> bytes:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["id", "case", "patient", "x_mm", "y_mm", "z_mm", "label", "probability"])
    for row in zip(p.id, p.case, p.patient, p.world.tolist(), p.label.tolist(), p.probability.tolist(), strict=True):
        writer.writerow([*row[:3], *(f"{v:.4f}" for v in row[3]), row[4], f"{row[5]:.9g}"])
    return buffer.getvalue().encode()
