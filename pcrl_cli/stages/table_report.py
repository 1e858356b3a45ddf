"""What a table leaves in its folder: CSV, LaTeX, Markdown, JSON, and a page with curves and comparisons."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pcrl_cli.core import files
from pcrl_cli.report.comparison import Entry, as_csv, efficiency_curves, latex, percent
from pcrl_cli.report.html import Block, Cell, Facts, Missing, Notes, Paragraph, Picture, Report, Section, write_report
from pcrl_cli.report.html import Table as HtmlTable
from pcrl_cli.report.markdown import markdown
from pcrl_cli.report.paper_numbers import TABLES

if TYPE_CHECKING:
    from pcrl_cli.stages.table import TableResult, TableSpec

NAMES = {
    "c2l": "C2L",
    "cpc3d": "3D-CPC",
    "genesis": "MG",
    "pcrlv1": "PCRLv1",
    "pcrlv2": "PCRLv2",
    "rubik": "Cube++",
    "simsiam": "SimSiam",
    "transvw": "TransVW",
}
"""Methods by the names that the paper's tables give them."""
Printed = Mapping[str, Mapping[float, float]]


def printed_numbers(spec: "TableSpec") -> dict[str, dict[float, float]]:
    """The paper's own numbers of the spec's rows, at its own ratios."""
    if spec.paper_table is None:
        return {}
    paper = TABLES[spec.paper_table]
    found = {}
    for name, arm in spec.methods.items():
        known = arm.printed or (name if name in paper.values else NAMES.get(arm.method or "", name))
        if known in paper.values:
            found[name] = dict(zip(paper.ratios, paper.values[known], strict=True))
    return found


def write_table(result: "TableResult", spec: "TableSpec") -> None:
    """table.json, .csv, .tex and .md, and report.html; every worker may write them, the last one's are whole."""
    entries = {m: {float(r): _entry(e) for r, e in cells.items()} for m, cells in result.entries.items()}
    printed = printed_numbers(spec)
    files.write_json(result.out / "table.json", result.to_json())
    files.write_atomic(result.csv, as_csv(entries))
    caption = f"{spec.name}: {result.metric} x 100 on the {spec.split} part, mean and SD over {len(spec.seeds)} seeds"
    files.write_atomic(result.latex, latex(entries, spec.ratios, caption, printed).encode())
    page = Report(f"Table {spec.name}", caption, _sections(result, spec, entries, printed, caption))
    files.write_atomic(result.out / "table.md", markdown(page).encode())
    write_report(result.report, page)


def _entry(values: Mapping[str, object]) -> Entry:
    return Entry(**{**values, "values": tuple(values["values"])})  # type: ignore[arg-type]


def _sections(
    result: "TableResult",
    spec: "TableSpec",
    entries: Mapping[str, Mapping[float, Entry]],
    printed: Printed,
    caption: str,
) -> list[Section]:
    blocks: list[Block] = [_main(spec, entries, printed, caption)]
    if printed and spec.paper_table is not None:
        text = TABLES[spec.paper_table].setting
        blocks.append(
            Paragraph(
                f"Rows `printed`: the paper's Table {spec.paper_table}, {text}. Your data, their number and their split "
                "differ from the paper's: compare the order of the methods, not the values."
            )
        )
    warnings = [f"{name} failed: {reason}" for name, reason in result.failed.items()]
    if result.missing:
        more = " ..." if len(result.missing) > 8 else ""
        warnings.append(
            f"{len(result.missing)} of {result.cells} cells are not done: {', '.join(result.missing[:8])}{more}"
        )
    if len(spec.seeds) < 3:
        warnings.append(f"{len(spec.seeds)} seeds: a standard deviation over so few says little")
    blocks.append(Notes(warnings, "warning"))
    curves = efficiency_curves(entries, result.metric, printed)
    shown = "Mean over seeds; the band is the 95 % interval over patients. Dotted: the paper's own numbers."
    return [
        Section("Results", blocks),
        Section("Label efficiency", [Picture(curves, shown)]),
        Section("Comparisons", [*_comparisons(result), Notes(result.notes, "note")]),
        Section("Cost", [_costs(result)]),
        Section(
            "Settings", [Facts({"cells": result.cells, "done": result.done, "split": spec.split, "task": spec.task})]
        ),
    ]


def _main(spec: "TableSpec", entries: Mapping[str, Mapping[float, Entry]], printed: Printed, caption: str) -> HtmlTable:
    """In the paper's layout: a row a method, a column a labelled share."""
    rows: list[list[Cell]] = []
    own = []
    for name, cells in entries.items():
        own += [len(rows)] if name == spec.focus else []
        rows.append([name, *(_cell(cells.get(r)) for r in spec.ratios)])
        if name in printed:
            rows.append(
                [f"{name}, printed", *(f"{printed[name][r]:.1f}" if r in printed[name] else "–" for r in spec.ratios)]
            )
    return HtmlTable(["method", *(percent(r) for r in spec.ratios)], rows, caption, own)


def _cell(entry: Entry | None) -> Cell:
    if entry is None:
        return Missing("not asked for")
    if entry.mean is None:
        return entry.text() if entry.failed else Missing("not done")
    limits = (
        f" [{100 * entry.low:.1f}, {100 * entry.high:.1f}]" if entry.low is not None and entry.high is not None else ""
    )
    return entry.text() + limits


def _comparisons(result: "TableResult") -> list[Block]:
    if not result.comparisons:
        return [Paragraph("There is nothing to compare.")]
    rows: list[list[Cell]] = []
    for c in result.comparisons:
        limits: Cell = (
            f"[{100 * c['low']:+.1f}, {100 * c['high']:+.1f}]" if c["low"] is not None else Missing("no pairing")
        )
        rows.append(
            [
                percent(c["ratio"]),
                f"{c['first']} - {c['second']}",
                c["kind"],
                c["seeds"],
                f"{100 * c['value']:+.1f}",
                limits,
                c["p"],
                c["adjusted"],
            ]
        )
    header = ["labels", "difference", "why", "seeds", "x 100", "95 % interval", "p", "p (Holm)"]
    return [
        HtmlTable(header, rows, "Paired bootstrap over patients of the mean over seeds; Holm over all rows.", digits=4)
    ]


def _costs(result: "TableResult") -> HtmlTable:
    names = [
        "pretrain_hours",
        "finetune_hours",
        "pretrain_samples",
        "finetune_samples",
        "passes a step",
        "voxels a step",
    ]
    rows: list[list[Cell]] = [
        [method, *(costs.get(n, Missing("no pre-training is finished")) for n in names), costs["device"]]
        for method, costs in result.costs.items()
    ]
    header = ["method", *(n.replace("_", ", ").replace("pretrain", "pre-training") for n in names), "device"]
    return HtmlTable(
        header, rows, "Hours of wall clock on the named device, and samples that were seen, all cells.", digits=3
    )
