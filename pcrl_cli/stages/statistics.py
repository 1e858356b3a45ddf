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
from pcrl_cli.stages.workflows.images import metric_name

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

        `label` and `probability`: AUROC; `label X` and `probability X`: the mean of those, or for metric `auroc_x` that
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
    findings = [f for f in findings if metric in ("auroc", metric_name(f))]
    if not findings:
        return None
    return compare.average(
        [compare.known_only(_numbers(rows, f"label {f}"), _numbers(rows, f"probability {f}")) for f in findings]
    )


def _numbers(rows: Sequence[Mapping[str, str]], column: str) -> Float64[np.ndarray, " n"]:
    """NaN where the file is empty."""
    return np.array([float(row[column]) if row[column] else np.nan for row in rows])


@dataclass(frozen=True)
class Row:
    """Of a method at a ratio, by the place of the seed among those that were asked for.

    values: of the seeds that are done. replicates: the same in every replicate; None: no pairing is possible.
    """

    values: Mapping[int, float]
    replicates: Mapping[int, Float64[np.ndarray, " r"]] | None
    patients: tuple[str, ...]
    seeds: int

    @property
    def complete(self) -> bool:
        return len(self.values) == self.seeds

    def mean(self, seeds: Sequence[int]) -> float:
        return float(np.mean([self.values[i] for i in seeds]))


@dataclass(frozen=True)
class Comparison:
    """`first` minus `second` at a labelled ratio, over the seeds that both have.

    seeds: how many these are. adjusted: p after Holm over all comparisons of the table.
    """

    ratio: float
    first: str
    second: str
    kind: str
    seeds: int
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
            found = {i: predicted[cell] for i, cell in enumerate(cells) if cell in predicted}
            by_seed = {i: p.value for i, p in found.items() if p.value is not None}
            values = tuple(by_seed.values())
            reason = next((failed[cell] for cell in cells if cell in failed), None)
            limits = None
            if values:
                scored = {i: found[i] for i in by_seed}
                patients = tuple(sorted(set(next(iter(scored.values())).patients)))
                replicated = _replicated(scored, patients, drawn, replicates)
                limits = compare.interval(np.mean(list(replicated.values()), axis=0)) if replicated else None
                rows[method, ratio] = Row(by_seed, replicated, patients, len(cells))
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
    found: Mapping[int, Predicted], patients: tuple[str, ...], drawn: dict[tuple[str, ...], Any], n: int
) -> dict[int, Float64[np.ndarray, " r"]] | None:
    """Every seed's value in every replicate; the same patients give the same draws to every method and ratio."""
    if len(patients) < 2:
        return None
    if patients not in drawn:
        drawn[patients] = compare.draws(len(patients), n, SEED)
    place = {patient: i for i, patient in enumerate(patients)}
    parts = {}
    for i, p in found.items():
        if p.scorer is None or set(p.patients) != set(patients):
            return None
        member = np.array([place[patient] for patient in p.patients], dtype=np.int64)
        parts[i] = compare.replicates(p.scorer, member, drawn[patients])
    return parts


def compared(
    rows: Rows, entries: Mapping[str, Mapping[float, Entry]], scratch: str, focus: str
) -> tuple[list[Comparison], list[str]]:
    """Every method against training from scratch, and the focus against the best of the others, with Holm's correction.

    A pair is compared over the seeds that both have; which method is best is told by those alone that have all.
    """
    pairs, found, notes = [], list[Comparison](), list[str]()
    ratios = dict.fromkeys(ratio for _, ratio in rows)
    for ratio in ratios:
        there = {m: row for (m, r), row in rows.items() if r == ratio}
        pairs += [
            (ratio, m, scratch, "against training from scratch") for m in there if m != scratch and scratch in there
        ]
        others = {m: entries[m][ratio].mean for m, row in there.items() if m not in (scratch, focus) and row.complete}
        partial = [m for m, row in there.items() if m not in (scratch, focus) and not row.complete]
        if focus in there and others:
            best = max(others, key=lambda m: others[m] or 0.0)
            pairs.append((ratio, focus, best, "against the best of the others"))
        if focus in there and partial:
            notes.append(
                f"{', '.join(partial)} at {100 * ratio:g} %: seeds are missing, so not among the best of the others"
            )
    for ratio, first, second, kind in pairs:
        a, b = rows[first, ratio], rows[second, ratio]
        seeds = sorted(a.values.keys() & b.values.keys())
        where = f"{first} and {second} at {100 * ratio:g} %"
        if not seeds:
            notes.append(f"{where}: no seed that both have: not compared")
            continue
        if len(seeds) < max(a.seeds, b.seeds):
            notes.append(f"{where}: over {len(seeds)} of {max(a.seeds, b.seeds)} seeds, which both have")
        difference = a.mean(seeds) - b.mean(seeds)
        if a.replicates is None or b.replicates is None or a.patients != b.patients:
            notes.append(f"{where}: not the same patients, or a metric without samples: no interval")
            found.append(Comparison(ratio, first, second, kind, len(seeds), difference, None, None, None))
            continue
        x, y = (np.mean([row[i] for i in seeds], axis=0) for row in (a.replicates, b.replicates))
        d = compare.between(difference, x, y)
        found.append(Comparison(ratio, first, second, kind, len(seeds), d.value, d.low, d.high, d.p))
    adjusted = compare.holm({str(i): c.p for i, c in enumerate(found) if c.p is not None})
    if len(entries) and not found:
        notes.append(f"nothing is compared: no cell of {scratch} or of {focus} and another method is done")
    return [replace(c, adjusted=adjusted.get(str(i))) for i, c in enumerate(found)], notes
