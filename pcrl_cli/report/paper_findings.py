"""The paper's AUROCs of the single findings (Tables 4 and 6), to stand beside a user's own, in the paper's order.

Times 100, as printed: of training from scratch (TS), ImageNet (IN, Table 6) and PCRLv2. In Table 6 the differences of
the methods are almost the same for all findings, so that its means say more than its single numbers.
"""

from collections.abc import Mapping, Sequence

from pcrl_cli.core.findings import NIH
from pcrl_cli.pure.findings import Finding
from pcrl_cli.report.html import Cell, Missing, Table

Printed = Mapping[tuple[float, str], tuple[float, ...]]
"""(labelling ratio, method) -> one number a finding."""

PRINTED: Mapping[int, Printed] = {
    4: {
        (0.05, "TS"): (58.8, 72.0, 68.8, 51.5, 63.8, 49.2, 57.4, 67.4, 61.5, 71.0, 62.7, 58.1, 60.0, 63.1),
        (0.05, "PCRLv2"): (75.7, 81.0, 80.3, 64.0, 76.8, 68.7, 70.7, 83.2, 77.5, 87.8, 79.2, 72.5, 73.2, 81.8),
        (0.1, "TS"): (65.8, 77.6, 74.4, 57.1, 69.4, 54.8, 63.0, 72.9, 68.3, 78.8, 68.2, 64.3, 66.4, 72.5),
        (0.1, "PCRLv2"): (77.2, 84.3, 84.4, 67.4, 77.5, 68.9, 71.6, 84.4, 77.8, 89.0, 79.3, 76.1, 74.0, 82.4),
        (0.2, "TS"): (68.9, 80.7, 77.5, 60.2, 73.6, 58.7, 66.2, 76.1, 71.7, 82.9, 72.2, 69.0, 68.7, 74.7),
        (0.2, "PCRLv2"): (78.1, 87.2, 85.9, 68.2, 80.5, 69.9, 72.5, 85.3, 80.4, 89.2, 83.1, 77.5, 77.0, 83.5),
        (0.3, "TS"): (70.6, 81.9, 79.1, 61.6, 75.5, 60.7, 68.8, 78.3, 72.7, 84.3, 74.1, 70.3, 70.9, 78.9),
        (0.3, "PCRLv2"): (78.4, 87.6, 86.6, 69.6, 82.8, 72.0, 74.0, 86.2, 81.0, 89.9, 84.4, 79.5, 79.0, 84.6),
        (0.4, "TS"): (72.6, 83.6, 81.5, 62.9, 77.3, 63.3, 70.1, 80.3, 74.9, 85.5, 76.4, 72.5, 73.0, 81.8),
        (0.4, "PCRLv2"): (78.7, 87.8, 87.0, 69.8, 83.2, 72.5, 74.7, 86.3, 81.2, 90.2, 84.9, 80.0, 79.4, 85.0),
    },
    6: {
        (0.1, "TS"): (67.6, 63.3, 76.8, 57.5, 71.5, 61.8, 64.2, 76.2, 69.8, 80.2, 72.4, 62.8, 68.0, 61.1),
        (0.1, "IN"): (73.3, 68.7, 81.6, 63.0, 76.6, 67.3, 70.0, 81.3, 75.6, 85.9, 78.5, 68.6, 72.5, 65.9),
        (0.1, "PCRLv2"): (76.8, 72.0, 85.6, 66.8, 80.2, 71.0, 74.0, 84.8, 78.9, 89.8, 82.2, 72.6, 76.2, 69.7),
        (0.2, "TS"): (71.8, 73.1, 78.4, 59.6, 72.5, 64.5, 66.6, 77.7, 71.7, 82.0, 75.5, 69.8, 68.9, 68.2),
        (0.2, "IN"): (75.9, 78.3, 82.9, 64.2, 77.8, 68.8, 70.7, 83.0, 76.4, 87.2, 80.0, 75.3, 73.9, 73.1),
        (0.2, "PCRLv2"): (79.0, 81.3, 85.9, 67.3, 80.8, 72.1, 74.0, 86.0, 79.4, 90.3, 83.1, 78.4, 76.7, 76.6),
        (0.3, "TS"): (71.7, 79.7, 79.9, 60.5, 76.5, 68.4, 66.8, 79.2, 72.8, 83.4, 76.9, 71.4, 70.5, 71.3),
        (0.3, "IN"): (77.2, 84.6, 84.3, 66.2, 80.8, 73.0, 72.3, 84.0, 78.0, 88.5, 82.0, 76.8, 75.3, 76.0),
        (0.3, "PCRLv2"): (79.1, 86.4, 86.2, 68.0, 82.8, 74.8, 74.3, 86.0, 80.0, 90.3, 84.1, 78.6, 77.2, 79.2),
        (0.4, "TS"): (72.6, 80.0, 81.0, 62.5, 76.9, 69.2, 68.0, 80.7, 74.7, 85.1, 79.5, 74.0, 71.0, 79.8),
        (0.4, "IN"): (76.7, 84.2, 84.3, 66.3, 80.7, 73.6, 72.3, 84.7, 78.5, 88.6, 83.4, 77.4, 75.0, 79.7),
        (0.4, "PCRLv2"): (79.2, 86.6, 86.9, 68.9, 83.0, 75.8, 74.6, 87.2, 80.8, 90.9, 85.8, 79.7, 77.6, 83.4),
        (0.5, "TS"): (75.2, 82.0, 82.0, 64.5, 79.6, 71.8, 71.3, 82.9, 75.8, 86.6, 80.9, 76.1, 75.5, 80.3),
        (0.5, "IN"): (77.2, 84.5, 84.4, 66.6, 81.4, 73.6, 73.0, 84.6, 78.2, 89.1, 82.7, 77.9, 77.3, 82.0),
        (0.5, "PCRLv2"): (80.0, 87.4, 87.3, 69.6, 84.1, 76.4, 76.1, 87.4, 81.0, 91.8, 85.9, 81.0, 80.4, 86.1),
        (1, "TS"): (77.7, 86.1, 85.1, 67.7, 84.2, 73.3, 73.9, 84.9, 78.7, 89.4, 85.4, 79.4, 78.5, 87.6),
        (1, "IN"): (77.8, 86.3, 84.7, 67.3, 83.6, 73.0, 74.1, 84.9, 78.8, 89.5, 85.7, 79.6, 78.2, 87.0),
        (1, "PCRLv2"): (80.7, 89.3, 87.9, 70.5, 87.0, 76.4, 77.0, 87.9, 82.0, 92.5, 88.6, 82.6, 81.3, 91.6),
    },
}


def findings_table(findings: Sequence[Finding], ratio: float, paper: bool = True) -> Table:
    """A row a finding: this run's AUROC, interval and positives, and the paper's rows at the nearest printed ratio.

    The paper's columns are there only for the fourteen findings that it prints, and where they are asked for.
    """
    known = paper and {f.name for f in findings} <= set(NIH)
    columns = _columns(ratio) if known else {}
    order = sorted(findings, key=lambda f: NIH.index(f.name)) if known else findings
    header = ["finding", "this run", "95 % from", "to", "positive", "negative", *columns]
    rows: list[list[Cell]] = []
    for f in order:
        printed = [values[NIH.index(f.name)] for values in columns.values()]
        rows.append([f.name, *_of(f), f.positive, f.negative, *printed])
    return Table(header, rows, _caption(columns, ratio), digits=1)


def _columns(ratio: float) -> dict[str, tuple[float, ...]]:
    """Paper columns by their heading."""
    columns = {}
    for number, printed in PRINTED.items():
        nearest = min({r for r, _ in printed}, key=lambda r: abs(r - ratio))
        for (r, method), values in printed.items():
            if r == nearest:
                columns[f"{method}, Table {number}, {100 * r:g} %"] = values
    return columns


def _of(finding: Finding) -> list[Cell]:
    reason = finding.auroc.note or "not defined"
    values = (finding.auroc.value, finding.auroc.low, finding.auroc.high)
    return [Missing(reason) if v is None else 100 * v for v in values]


def _caption(columns: Mapping[str, object], ratio: float) -> str:
    ours = f"AUROC x 100, intervals by DeLong; this run used {100 * ratio:.3g} % of the labels."
    if not columns:
        return ours
    return (
        f"{ours} The paper's columns are at the nearest ratio that it prints; its data and split differ, so compare "
        "orders, not values, and of Table 6 the means rather than single findings."
    )
