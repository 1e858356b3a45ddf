"""What each stage shows in its report.html; `pcrl report` joins runs."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd

from pcrl_cli.core import files
from pcrl_cli.core.config import leaves
from pcrl_cli.core.errors import ConfigError, IntegrityError, UsageError
from pcrl_cli.engine.run import Run
from pcrl_cli.pure.metrics import roc_points
from pcrl_cli.report import figures
from pcrl_cli.report.html import (
    Block,
    Cell,
    Facts,
    Missing,
    Notes,
    Paragraph,
    Picture,
    Report,
    Section,
    Table,
    write_report,
)
from pcrl_cli.report.paper_numbers import TASKS as PAPER_TASKS
from pcrl_cli.report.paper_numbers import beside
from pcrl_cli.stages.results import Result

if TYPE_CHECKING:
    from pcrl_cli.stages.evaluate import EvaluateResult
    from pcrl_cli.stages.finetune import FinetuneResult
    from pcrl_cli.stages.pretrain import PretrainResult

Rows = list[dict[str, Any]]
REPORT_MARK = '<meta name="generator" content="pcrl">'
EVALUATION = "pcrl.evaluate/1"


class ReportResult(Result):
    schema_name: ClassVar[str] = "pcrl.report/1"
    report: Path
    runs: list[Path]


def pretrain_report(run: Run, result: "PretrainResult", pictures: dict[str, np.ndarray]) -> None:
    """Losses, collapse statistics, speed, and the views as the network saw them."""
    outcome = result.outcome
    facts: dict[str, Cell] = {
        "patients": result.patients,
        "samples an epoch": result.samples,
        "parameters": result.parameters,
        "encoder starts from": result.start,
        "steps": outcome["steps"],
        "minutes": outcome["seconds"] / 60,
        "samples a second": outcome["samples_per_second"],
        "share of time waiting for data": outcome["data_wait"],
        "cache": result.residency,
    }
    sections = [
        Section("Run", [Facts(facts), Notes(outcome["alarms"], "warning")]),
        *training_sections(run.rows()),
        Section(
            "Views as the network saw them",
            [
                Picture(
                    figures.views_figure(pictures),
                    "Four samples (of volumes the mid slices): x, the target, moved; x', the corrupted input; the "
                    "restorations of x1' from each scale after training; and the local views.",
                )
            ],
        ),
        _settings_section(run),
    ]
    write_report(result.report, Report("Pre-training", str(run.folder), sections))


def finetune_report(run: Run, result: "FinetuneResult") -> None:
    facts: dict[str, Cell] = {
        "task": result.task,
        "start": result.start,
        "labelled patients": result.labelled_patients,
        "share of the training patients": result.ratio,
        **result.labels,
        "kept": result.kept,
    }
    best = result.best_validation
    facts[f"best validation {result.metric}"] = Missing(result.kept) if best is None else best
    blocks: list[Block] = [Facts(facts), Notes(result.notes, "warning")]
    if result.transfer:
        blocks.append(_transfer_table(result.transfer))
    sections = [
        Section("Run", blocks),
        *training_sections(run.rows()),
        _settings_section(run),
    ]
    write_report(result.report, Report(f"Fine-tuning: {result.task}", str(run.folder), sections))


def evaluation_report(result: "EvaluateResult", details: Sequence[Section], metric: str) -> None:
    """The numbers, beside the paper's where it has some for the task, and what the task shows besides."""
    header = ["metric", "value", "95 % from", "to", "interval"]
    rows: list[list[Cell]] = [[name, *_cells(e), e.interval] for name, e in result.metrics.items()]
    facts: dict[str, Cell] = {
        "run": str(result.run),
        "start": result.start,
        "cache": str(result.cache),
        "part": result.split,
        "patients": result.patients,
        **result.counts,
    }
    sections = [Section("Result", [Table(header, rows), Notes(result.notes, "warning"), Facts(facts)])]
    if result.task in PAPER_TASKS:
        value = result.metrics[metric].value
        tables = [beside(result.task, result.ratio, {"this run": value}, n) for n in PAPER_TASKS[result.task]]
        blocks = [Table(t.header, t.rows, t.note, t.own, digits=1) for t in tables]
        sections.append(Section("Beside the paper", blocks))
    write_report(
        result.report, Report(f"Evaluation: {result.task}", f"{result.run}, {result.split} part", [*sections, *details])
    )


def training_sections(rows: Rows) -> list[Section]:
    """The loss terms, the features' health, speed."""
    if not rows:
        return []
    terms = sorted({k.removeprefix("loss/") for row in rows for k in row if k.startswith("loss/")})
    sections = [Section("Losses", [Picture(figures.loss_curves(rows, terms), "Every loss term at every step.")])]
    validated = [row for row in rows if any(k.startswith(("val_", "probe/")) for k in row)]
    if validated:
        names = sorted({k for row in validated for k in row if k.startswith(("val_", "probe/"))})
        table = [[row["step"] + 1, *(row.get(name) for name in names)] for row in validated]
        sections.append(Section("Validation", [Table(["after step", *names], table[-40:])]))
    if any(k.startswith("rank/") for row in rows for k in row):
        caption = (
            "Effective rank of the features and std of the L2-normalised features before any batch norm, with the "
            "thresholds under which three checks on end raise an alarm."
        )
        sections.append(Section("Is it learning?", [Picture(figures.collapse_curves(rows, _alarms(rows)), caption)]))
    sections.append(Section("Pace", [Picture(figures.pace_curves(rows), "Learning rate, speed, waiting for data.")]))
    return sections


def _alarms(rows: Rows) -> dict[str, float]:
    """The thresholds that the checks used."""
    found: dict[str, float] = {}
    for row in rows:
        for kind in ("rank", "std"):
            found |= {
                f"{kind}/{k.removeprefix(f'{kind}_min/')}": v for k, v in row.items() if k.startswith(f"{kind}_min/")
            }
    return found


def _cells(estimate: Any) -> list[Cell]:
    missing = Missing(estimate.reason or "")
    return [v if v is not None else missing for v in (estimate.value, estimate.low, estimate.high)]


def _transfer_table(transfer: dict[str, Any]) -> Table:
    kinds = ("loaded", "missing", "unexpected", "wrong_shape", "not_encoder", "adapted", "differences")
    rows: list[list[Cell]] = [
        [kind.replace("_", " "), len(transfer[kind]), "; ".join(transfer[kind][:6]) if kind != "loaded" else ""]
        for kind in kinds
        if kind in transfer
    ]
    return Table(
        ["keys", "number", "which"], rows, f"{100 * transfer['share']:.1f} % of the encoder's values were loaded."
    )


def _settings_section(run: Run) -> Section:
    rows: list[list[Cell]] = [[key, str(value)] for key, value in leaves(run.record["settings"])]
    return Section("Settings", [Table(["setting", "value"], rows, "config.yaml; `--config` with it repeats the run.")])


def join_reports(runs: Sequence[Path], out: Path, overwrite: bool = False) -> ReportResult:
    """One page for many runs: their evaluations in a table, losses and curves of each.

    Raises:
        ConfigError: a folder is no run.
    """
    if out.exists() and not overwrite and REPORT_MARK not in out.read_text("utf-8", errors="replace")[:2000]:
        raise UsageError(f"{out} exists and is no report of pcrl; name another --out, or --overwrite")
    if not runs:
        raise ConfigError("there is no run to report on; give run folders")
    opened = [Run.load(folder) for folder in runs]
    header = ["run", "task", "start", "labels", "part", "metric", "value", "from", "to"]
    rows, curves = [], {}
    for run in opened:
        for path in sorted(run.folder.glob("evaluation/*/evaluation.json")):
            e = _evaluation(path)
            name, part = e["headline"], path.parent.name
            m = e["metrics"][name]
            limits = [m["value"], m["low"], m["high"]]
            rows.append([run.folder.name, e["task"], e["start"], e["ratio"], part, name.replace("_", " "), *limits])
            points = _points_of(path.parent / "predictions.csv")
            if points is not None:
                curves[f"{run.folder.name} {part}"] = (points.fpr, points.tpr, m["value"])
    first: list[Block] = (
        [Table(header, rows, "Intervals: 95 %, bootstrap over patients.")]
        if rows
        else [Paragraph("No evaluation yet.")]
    )
    sections = [Section("Evaluations", first)]
    if curves:
        sections.append(Section("ROC curves", [Picture(figures.roc_curves(curves), "All evaluations.")]))
    for run in opened:
        for section in training_sections(run.rows()):
            sections.append(Section(f"{run.folder.name}: {section.heading}", section.blocks))
    with files.blame_machine(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    write_report(out, Report("Runs", f"{len(opened)} runs", sections))
    return ReportResult(report=out, runs=list(runs))


def _evaluation(path: Path) -> dict[str, Any]:
    """An evaluation.json.

    Raises:
        IntegrityError: it is torn. ConfigError: it is of another schema.
    """
    e = files.read_json(path)
    if not isinstance(e, dict) or e.get("schema") != EVALUATION:
        raise ConfigError(f"{path} is not of schema {EVALUATION}; run `pcrl evaluate` again")
    return e


def _points_of(path: Path) -> Any:
    """ROC points of predictions of one class; None where there are others, or one class only."""
    try:
        table = pd.read_csv(path)
        if not {"label", "probability"} <= set(table.columns):
            return None
        label, probability = table["label"].to_numpy(np.int64), table["probability"].to_numpy(np.float64)
    except (OSError, ValueError):  # pandas' own errors are ValueErrors
        raise IntegrityError(f"{path} is missing or torn; run `pcrl evaluate` again") from None
    return roc_points(label, probability) if len(table) else None
