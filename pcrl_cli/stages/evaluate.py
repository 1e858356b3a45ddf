"""A fine-tuned run to numbers: AUROC with intervals, FROC and CPM, a row a case, a report."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import BaseModel

from pcrl_cli.core import files
from pcrl_cli.core.case import Case
from pcrl_cli.core.config import validate as validate_settings
from pcrl_cli.core.contract import Architecture, Contract
from pcrl_cli.core.errors import ConfigError, DataError, ThresholdError, UsageError
from pcrl_cli.core.learner import Task
from pcrl_cli.core.listener import Listener
from pcrl_cli.core.names import find
from pcrl_cli.data.cache import Cache
from pcrl_cli.data.volume import Intensity, prepare
from pcrl_cli.engine.run import Run, unseal
from pcrl_cli.engine.tf32 import tf32
from pcrl_cli.engine.trainer import Device, resolve_device
from pcrl_cli.networks.transfer import read_weights
from pcrl_cli.pure.crops import block_at, contains
from pcrl_cli.pure.froc import Froc, ScanFindings, froc
from pcrl_cli.pure.metrics import Interval, clustered_bootstrap, delong
from pcrl_cli.readers import READERS
from pcrl_cli.stages import patients, training
from pcrl_cli.stages.finetune import FinetuneSettings, build_task
from pcrl_cli.stages.predictions import Predictions, predict_blocks, predict_part
from pcrl_cli.stages.report import EVALUATION, evaluation_report
from pcrl_cli.stages.results import Result
from pcrl_cli.stages.weights import unfinished
from pcrl_cli.stages.workspace import Workspace
from pcrl_cli.tasks import TASKS

SplitName = Literal["train", "val", "test", "all"]
FEW = 10
CHUNK = 64
"""Candidates that are cut from a scan at a time, to bound memory."""


class Estimate(BaseModel):
    """A value with its 95 % interval, or null and the reason."""

    value: float | None
    low: float | None
    high: float | None
    reason: str | None = None

    @classmethod
    def of(cls, interval: Interval) -> "Estimate":
        return cls(value=interval.value, low=interval.low, high=interval.high, reason=interval.note)


class FrocResult(BaseModel):
    """Sensitivity at 1/8 .. 8 false positives a scan and their mean, CPM, by LUNA16's rule; or null and the reason."""

    cpm: float | None
    sensitivity_at: dict[str, float] | None
    scans: int
    nodules: int
    reason: str | None


class EvaluateResult(Result):
    schema_name: ClassVar[str] = EVALUATION
    run: Path
    task: str
    cache: Path
    split: str
    start: str
    ratio: float
    scans: int
    patients: int
    candidates: int
    positives: int
    auroc: Estimate
    """Interval by DeLong, which takes candidates as independent."""
    auroc_clustered: Estimate
    """Interval by resampling patients: the one to trust."""
    froc: FrocResult
    overlap: int
    notes: list[str]
    predictions: Path
    report: Path
    evaluation: Path


@dataclass(frozen=True)
class Scored:
    """Everything the numbers come from."""

    predictions: Predictions
    lesions: dict[str, np.ndarray]
    excluded: dict[str, np.ndarray]
    """By case: findings that count neither way."""
    gap: str | None
    """Why FROC is not defined: what of the part is not among the predictions."""


def evaluate(
    run: Path | None = None,
    cache: Path | None = None,
    *,
    task: str | None = None,
    split: SplitName = "test",
    all_candidates: bool = False,
    workspace: Workspace | None = None,
    device: Device = "auto",
    listener: Listener | None = None,
) -> EvaluateResult:
    """Scores a fine-tuned run on a part of its cache, or of another one (an external test).

    Args:
        run: defaults to the newest finished run of the task. cache: defaults to the one it was trained on.
        all_candidates: read the candidates that are not cached from the raw scans.

    Raises:
        ConfigError: the run saw patients of the part, which would be a leak.
    """
    listener, workspace, where = listener or Listener(), workspace or Workspace(), resolve_device(device)
    if run is None and task is None:
        raise UsageError(
            "say which: `pcrl evaluate --task luna` for the newest run of the task, or `pcrl evaluate RUN`"
        )
    folder = run or workspace.find_run("finetune", task)
    opened_run = Run.load(folder)
    settings = _settings(opened_run, folder, task)
    own = _own_cache(opened_run, needed=cache is None)
    opened = training.open_verified(cache or own, workspace.root / "runs" / ".verified.json")
    module = find("task", settings.task, TASKS)
    training.require_group(opened, module.GROUP, f"task {settings.task}")
    external = opened.path.resolve() != own
    same = training.manifest_digest(opened) == opened_run.record["cache_fingerprint"]
    contract = read_weights(opened_run.weights_path()).contract
    notes = _leaks(contract, opened, split, settings, external and not same) + _differences(contract, opened)
    notes += unfinished(folder) + _few(opened, split) + _froc_notes(opened)
    if not external and not same:
        notes.append(f"{own} has changed since the run was trained on it")
    model = _load(opened_run, settings, opened).to(where).eval()
    with tf32(False):  # the same numbers on every card
        scored = (
            _score_all(model, opened, module.GROUP, split, where, listener)
            if all_candidates
            else _score(model, opened, module.GROUP, split, where)
        )
    name = f"{split}-{opened.path.name}" if external else split
    out = folder / "evaluation" / (f"{name}-all" if all_candidates else name)
    result, curve = _result(folder, out, opened_run, settings, opened, split, scored, notes)
    with files.blame_machine(out):
        out.mkdir(parents=True, exist_ok=True)
    files.write_atomic(result.predictions, _csv(scored.predictions))
    files.write_json(result.evaluation, result.to_json())
    evaluation_report(result, scored.predictions, curve)
    for note in notes:
        listener.warn(note)
    return result


def _settings(run: Run, folder: Path, task: str | None) -> FinetuneSettings:
    if run.record["verb"] != "finetune":
        raise ConfigError(
            f"{folder} is a {run.record['verb']} run, which predicts nothing; give a run of `pcrl finetune`"
        )
    found = run.record["settings"]["task"]
    if task is not None and task != found:
        raise ConfigError(f"{folder} is of task {found}, not {task}; leave --task out or give another run")
    module = find("task", found, TASKS)
    return validate_settings(FinetuneSettings[module.Config], run.record["settings"])  # type: ignore[name-defined]


def _load(run: Run, settings: FinetuneSettings, cache: Cache) -> Task:
    """The run's best or last weights, hash checked."""
    checkpoint = unseal(run.weights_path().parent)
    model = build_task(settings, Architecture.model_validate(run.record["architecture"]), cache)
    model.load_state_dict(checkpoint.model)
    return model


def _own_cache(run: Run, needed: bool) -> Path:
    """The cache that the run was trained on; of its name in the same workspace where that was copied or renamed.

    Raises:
        ConfigError: training never began, so there is nothing to evaluate; or the cache is needed and gone.
    """
    if "cache" not in run.record or not run.checkpoints:
        raise ConfigError(f"{run.folder} holds no weights yet; run its `pcrl finetune` command again to go on")
    path = Path(run.record["cache"])
    moved = run.folder.resolve().parent.parent / "cache" / path.name
    if not path.exists() and moved.exists():
        return moved
    if needed and not path.exists():
        raise ConfigError(
            f"the cache of {run.folder}, {path}, is gone; give its new place: pcrl evaluate {run.folder} CACHE"
        )
    return path


def _differences(contract: Contract, cache: Cache) -> list[str]:
    """Where the cache's images differ from what the run was trained on."""
    saw, now = contract.domain.model_dump(), training.domain_of(cache).model_dump()
    return [
        f"{key}: the run was trained on {saw[key]}, {cache.path} has {now[key]}" for key in saw if saw[key] != now[key]
    ]


def _leaks(contract: Contract, cache: Cache, split: SplitName, settings: FinetuneSettings, external: bool) -> list[str]:
    """Patients of the part that pre-training or fine-tuning saw; the rule of `finetune`, for external tests too.

    external: the cache is not the run's own, where the parts `train` and `all` hold its patients by definition, and
    `val` those that chose the epoch.

    Raises:
        ConfigError: there are some, and the run was not made with --allow-overlap.
    """
    known, names = contract.patients, cache.split.part(split)
    if split in ("train", "all") and not external:
        return [
            f"the {split} part holds patients that the run was trained on: these numbers say nothing about new patients"
        ]
    chosen = ["the epoch was chosen by this part, so its numbers are optimistic"]
    notes = chosen if split == "val" and not external and known.selected else []
    seen = patients.seen(known, cache, names, selected_too=external)
    if not seen:
        return notes
    text = (
        f"{len(seen)} of {len(names)} patients of the {split} part of {cache.path} were trained on, or chose the epoch"
    )
    if settings.allow_overlap:
        return [*notes, f"{text}: a leak, allowed by --allow-overlap"]
    raise ConfigError(
        f"{text}, so the score would be a leak; evaluate on another part, or fine-tune with --allow-overlap"
    )


def _few(cache: Cache, split: SplitName) -> list[str]:
    """A bootstrap over a handful of patients has too few ways to be drawn."""
    n = len(cache.patients(split))
    return (
        [f"{n} patients: the interval by patient says little, and no comparison with the paper does"] if n < FEW else []
    )


def _froc_notes(cache: Cache) -> list[str]:
    """What LUNA16's rule needs and the data set lacked."""
    if cache.manifest.get("excluded_findings", True):
        return []
    return [
        "annotations_excluded.csv was not there: findings that LUNA16 ignores count as false positives in FROC and CPM"
    ]


def _score(task: Task, cache: Cache, group: str, split: SplitName, device: torch.device) -> Scored:
    """The cached candidates of a part."""
    cases = cache.cases(split)
    predictions = predict_part(task, cache, group, cases, device)
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


def _score_all(
    task: Task, cache: Cache, group: str, split: SplitName, device: torch.device, listener: Listener
) -> Scored:
    """Every candidate of a part, cut from the raw scans, one scan in memory at a time."""
    m = cache.manifest
    reader = import_module(READERS[m["reader"]["name"]])
    options = {"patients": m["patients_csv"], "candidates": m["candidates_csv"]}
    found = {c.id: c for c in reader.cases(Path(m["data"]), **{k: Path(v) for k, v in options.items() if v})}
    wanted = cache.cases(split)
    missing = [case for case in wanted if case not in found]
    if missing:
        raise DataError(
            f"--all-candidates needs the raw scans, and {m['data']} lacks {len(missing)} of "
            f"{len(wanted)}; leave it out or put them back"
        )
    intensity = Intensity.model_validate(m["settings"]["intensity"])
    side = int(m["settings"]["candidates"]["side_mm"])
    listener.begin("scoring all candidates", len(wanted), "scans")
    parts, lesions, excluded = [], dict[str, np.ndarray](), dict[str, np.ndarray]()
    for done, name in enumerate(wanted, start=1):
        parts.append(_score_scan(task, reader.read(found[name]), found[name], intensity, m["spacing_mm"], side, device))
        lesions[name] = _or_none(found[name].lesions)
        excluded[name] = _or_none(found[name].excluded)
        listener.advance(done)
    listener.end()
    return Scored(_join(parts), lesions, excluded, _refused(cache, split))


def _or_none(findings: np.ndarray | None) -> np.ndarray:
    return findings if findings is not None else np.zeros((0, 4))


def _score_scan(
    task: Task, volume: Any, case: Case, intensity: Intensity, spacing_mm: float, side: int, device: torch.device
) -> Predictions:
    points = case.points
    if points is None:
        return Predictions([], [], [], np.zeros(0, np.int64), np.zeros(0, np.float32), np.zeros((0, 3)))
    scan = prepare(volume, intensity, spacing_mm)
    inside = np.flatnonzero(contains(scan, points.world))
    done = []
    for start in range(0, len(inside), CHUNK):
        blocks = np.stack([block_at(scan, points.world[i], side)[None] for i in inside[start : start + CHUNK]])
        done.append(predict_blocks(task, blocks, device))
    return Predictions(
        [points.id[i] for i in inside],
        [case.id] * len(inside),
        [case.patient] * len(inside),
        points.label[inside].astype(np.int64),
        np.concatenate(done) if done else np.zeros(0, np.float32),
        points.world[inside],
    )


def _join(parts: Sequence[Predictions]) -> Predictions:
    return Predictions(
        [x for p in parts for x in p.id],
        [x for p in parts for x in p.case],
        [x for p in parts for x in p.patient],
        np.concatenate([p.label for p in parts]) if parts else np.zeros(0, np.int64),
        np.concatenate([p.probability for p in parts]) if parts else np.zeros(0, np.float32),
        np.concatenate([p.world for p in parts]) if parts else np.zeros((0, 3)),
    )


def _result(
    folder: Path,
    out: Path,
    run: Run,
    settings: FinetuneSettings,
    cache: Cache,
    split: SplitName,
    scored: Scored,
    notes: list[str],
) -> tuple[EvaluateResult, Froc | None]:
    p = scored.predictions
    scores = p.probability.astype(np.float64)
    auroc = Estimate.of(delong(p.label, scores))
    clustered = Estimate.of(clustered_bootstrap(p.label, scores, np.array(p.patient)))
    curve = _froc(scored)
    found = (
        FrocResult(
            cpm=curve.cpm,
            sensitivity_at={f"{k:g}": v for k, v in curve.at.items()} if curve.at else None,
            scans=curve.scans,
            nodules=curve.nodules,
            reason=curve.reason,
        )
        if curve
        else FrocResult(
            cpm=None,
            sensitivity_at=None,
            scans=len(scored.lesions),
            nodules=sum(map(len, scored.lesions.values())),
            reason=scored.gap,
        )
    )
    result = EvaluateResult(
        run=folder,
        task=settings.task,
        cache=cache.path,
        split=split,
        start=run.record["start"],
        ratio=settings.ratio,
        scans=len(scored.lesions),
        patients=len(set(p.patient)),
        candidates=len(p.label),
        positives=int(p.label.sum()),
        auroc=auroc,
        auroc_clustered=clustered,
        froc=found,
        overlap=sum(v for k, v in run.record["overlap"].items() if k in ("val", "test")),
        notes=notes,
        predictions=out / "predictions.csv",
        report=out / "report.html",
        evaluation=out / "evaluation.json",
    )
    return result, curve


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
        writer.writerow([*row[:3], *(f"{v:.4f}" for v in row[3]), row[4], f"{row[5]:.6g}"])
    return buffer.getvalue().encode()


METRICS = ("auroc", "cpm")


def check_thresholds(fail_under: Mapping[str, float]) -> None:
    """Refuses an unknown metric or a value outside [0, 1], before any work is done."""
    for name, least in fail_under.items():
        if name not in METRICS or not 0 <= least <= 1:
            raise UsageError(f"--fail-under is {' or '.join(METRICS)}, and a number from 0 to 1, not {name}={least:g}")


def require(result: EvaluateResult, fail_under: Mapping[str, float]) -> None:
    """Holds a written result against least values.

    Args:
        fail_under: metric -> least value; metrics are auroc and cpm.

    Raises:
        UsageError: an unknown metric. ThresholdError: a metric is under its threshold, or null.
    """
    check_thresholds(fail_under)
    values = {"auroc": (result.auroc.value, result.auroc.reason), "cpm": (result.froc.cpm, result.froc.reason)}
    for name, least in fail_under.items():
        value, reason = values[name]
        if value is None:
            raise ThresholdError(
                f"{name} is null ({reason}), so --fail-under {name}={least:g} is not met; results are in {result.evaluation}"
            )
        if value < least:
            raise ThresholdError(f"{name} is {value:.4f}, under {least:g}; results are in {result.evaluation}")
