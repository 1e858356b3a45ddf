"""From the predictions of a table's cells to its entries and comparisons; paired over patients, averaged over seeds."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from pcrl_cli.pure import compare
from pcrl_cli.pure.compare import Scorer
from pcrl_cli.report.comparison import Entry

SEED = 0x7AB1E
CLOSE = 5e-4
"""By how much the statistic of a file of predictions may differ from the metric that was reported: digits in the file."""


@dataclass(frozen=True)
class Predicted:
    """One cell's scored samples. patients: of each sample. scorer: of the metric; None: it has none by patient."""

    value: float | None
    patients: tuple[str, ...]
    scorer: Scorer | None

    @classmethod
    def read(cls, path: Path, metric: str, value: float | None) -> "Predicted":
        """A file of predictions, whatever the task: a row a sample, and a column `patient`.

        `label` and `probability`: AUROC; `label X` and `probability X`: the mean of those, or for metric `auroc X` that
        one; a column of the metric's name: its mean. A metric that is none of these has no comparison.
        """
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        patients = tuple(row["patient"] for row in rows)
        scorer = _scorer(rows, metric) if rows else None
        if scorer is not None and value is not None:
            own = compare.value_of(scorer, len(rows))
            if own is None or abs(own - value) > CLOSE:
                scorer = None
        return cls(value, patients, scorer)


def _scorer(rows: Sequence[Mapping[str, str]], metric: str) -> Scorer | None:
    columns = rows[0].keys()
    if metric in columns:
        return compare.mean_scorer(_numbers(rows, metric))
    if {"label", "probability"} <= columns and metric.startswith("auroc"):
        return compare.auroc_scorer(_numbers(rows, "label"), _numbers(rows, "probability"))
    findings = [
        c.removeprefix("label ") for c in columns if c.startswith("label ") and f"probability {c[6:]}" in columns
    ]
    if findings and metric == "auroc":
        return compare.average(
            [compare.known_only(_numbers(rows, f"label {f}"), _numbers(rows, f"probability {f}")) for f in findings]
        )
    return None


def _numbers(rows: Sequence[Mapping[str, str]], column: str) -> Float64[np.ndarray, " n"]:
    """NaN where the file is empty."""
    return np.array([float(row[column]) if row[column] else np.nan for row in rows])


@dataclass(frozen=True)
class Row:
    """Of a method at a ratio: the mean over its seeds, and the same in every replicate; None: no pairing is possible."""

    mean: float
    replicates: Float64[np.ndarray, " r"] | None
    patients: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """`first` minus `second` at a labelled ratio; adjusted: p after Holm over all comparisons of the table."""

    ratio: float
    first: str
    second: str
    kind: str
    value: float
    low: float | None
    high: float | None
    p: float | None
    adjusted: float | None = None


Rows = dict[tuple[str, float], Row]


def entries_of(
    predicted: Mapping[Any, Predicted],
    wanted: Mapping[str, Mapping[float, Sequence[Any]]],
    failed: Mapping[Any, str],
    replicates: int,
) -> tuple[dict[str, dict[float, Entry]], Rows]:
    """Entries by method and ratio, and what comparisons are made of. wanted: the cells of each entry, a seed each.

    failed: why, by cell.
    """
    entries: dict[str, dict[float, Entry]] = {}
    rows: Rows = {}
    drawn: dict[tuple[str, ...], Any] = {}
    for method, by_ratio in wanted.items():
        entries[method] = {}
        for ratio, cells in by_ratio.items():
            found = [predicted[cell] for cell in cells if cell in predicted]
            values = tuple(p.value for p in found if p.value is not None)
            reason = next((failed[cell] for cell in cells if cell in failed), None)
            limits = None
            if values:
                mean = float(np.mean(values))
                replicated = _replicated(found, drawn, replicates)
                limits = compare.interval(replicated) if replicated is not None else None
                rows[method, ratio] = Row(mean, replicated, tuple(sorted(set(found[0].patients))))
            entries[method][ratio] = Entry(
                mean=float(np.mean(values)) if values else None,
                sd=float(np.std(values, ddof=1)) if len(values) > 1 else None,
                low=limits[0] if limits else None,
                high=limits[1] if limits else None,
                values=values,
                seeds=len(cells),
                failed=reason,
            )
    return entries, rows


def _replicated(
    found: Sequence[Predicted], drawn: dict[tuple[str, ...], Any], n: int
) -> Float64[np.ndarray, " r"] | None:
    """The mean over seeds in every replicate; the same patients give the same draws to every method and ratio."""
    patients = tuple(sorted(set(found[0].patients)))
    if len(patients) < 2:
        return None
    if patients not in drawn:
        drawn[patients] = compare.draws(len(patients), n, SEED)
    place = {patient: i for i, patient in enumerate(patients)}
    parts = []
    for p in found:
        if p.scorer is None or set(p.patients) != set(patients):
            return None
        member = np.array([place[patient] for patient in p.patients], dtype=np.int64)
        parts.append(compare.replicates(p.scorer, member, drawn[patients]))
    return np.mean(parts, axis=0)


def compared(
    rows: Rows, entries: Mapping[str, Mapping[float, Entry]], scratch: str, focus: str
) -> tuple[list[Comparison], list[str]]:
    """Every method against training from scratch, and the focus against the best of the others, with Holm's correction."""
    pairs = []
    ratios = dict.fromkeys(ratio for _, ratio in rows)
    for ratio in ratios:
        there = {m: entries[m][ratio].mean for m, r in rows if r == ratio}
        pairs += [
            (ratio, m, scratch, "against training from scratch") for m in there if m != scratch and scratch in there
        ]
        others = {m: mean for m, mean in there.items() if m not in (scratch, focus)}
        if focus in there and others:
            best = max(others, key=lambda m: others[m] or 0.0)
            pairs.append((ratio, focus, best, "against the best of the others"))
    found, notes = [], []
    for ratio, first, second, kind in pairs:
        a, b = rows[first, ratio], rows[second, ratio]
        if a.replicates is None or b.replicates is None or a.patients != b.patients:
            notes.append(
                f"{first} and {second} at {100 * ratio:g} %: not the same patients, or a metric without samples: no interval"
            )
            found.append(Comparison(ratio, first, second, kind, a.mean - b.mean, None, None, None))
            continue
        d = compare.between(a.mean - b.mean, a.replicates, b.replicates)
        found.append(Comparison(ratio, first, second, kind, d.value, d.low, d.high, d.p))
    adjusted = compare.holm({str(i): c.p for i, c in enumerate(found) if c.p is not None})
    if len(entries) and not found:
        notes.append(f"nothing is compared: no cell of {scratch} or of {focus} and another method is done")
    return [replace(c, adjusted=adjusted.get(str(i))) for i, c in enumerate(found)], notes
