"""A table of methods: label-efficiency curves, LaTeX, CSV. Values in [0, 1] are shown times 100, as in the paper."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pcrl_cli.report.figures import _drawn, _line

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Entry:
    """A cell of the table: mean and standard deviation over seeds, 95 % interval over patients; or why there is none.

    values: of each seed that is done. failed: what became of those that ended with an error.
    """

    mean: float | None
    sd: float | None
    low: float | None
    high: float | None
    values: tuple[float, ...]
    seeds: int
    failed: str | None = None

    @property
    def complete(self) -> bool:
        return len(self.values) == self.seeds

    def text(self) -> str:
        """76.6 ± 0.4, and (2/5) where only so many seeds are done; `fail` where all broke down; a dash: not done."""
        if self.mean is None:
            return "fail" if self.failed else "–"
        done = "" if self.complete else f" ({len(self.values)}/{self.seeds})"
        return f"{100 * self.mean:.1f}" + (f" ± {100 * self.sd:.1f}" if self.sd is not None else "") + done


Entries = Mapping[str, Mapping[float, Entry]]
"""By method and labelled ratio."""


def percent(ratio: float) -> str:
    return f"{100 * ratio:.3g} %"


def efficiency_curves(entries: Entries, metric: str, printed: Mapping[str, Mapping[float, float]]) -> bytes:
    """The metric over the labelled share, a line a method with its interval; thin and dotted: the paper's own numbers."""

    def draw(fig: "Figure") -> None:
        ax = fig.subplots()
        for i, (name, cells) in enumerate(entries.items()):
            there = {r: e for r, e in cells.items() if e.mean is not None}
            x, y = [100 * r for r in there], [100 * e.mean for e in there.values() if e.mean is not None]
            style = _line(i)
            ax.plot(x, y, marker="o", label=name, **style)
            ends = [
                (100 * r, 100 * e.low, 100 * e.high)
                for r, e in there.items()
                if e.low is not None and e.high is not None
            ]
            if ends:
                x, low, high = (list(v) for v in zip(*ends, strict=True))
                ax.fill_between(x, low, high, alpha=0.12, color=style.get("color"), linewidth=0)
            paper = printed.get(name, {})
            if paper:
                shown = [(100 * r, v) for r, v in sorted(paper.items())]
                ax.plot(*zip(*shown, strict=True), linestyle=":", linewidth=0.9, color=style.get("color"))
        ax.set(xlabel="labelled patients, %", ylabel=f"{metric} x 100")
        ax.set_title("label efficiency")
        if entries:
            ax.legend(loc="lower right", fontsize=8)

    return _drawn(3.8, draw)


def latex(entries: Entries, ratios: Sequence[float], caption: str, printed: Mapping[str, Mapping[float, float]]) -> str:
    """A booktabs table, the best of every column in bold, of entries with all seeds; the paper's own numbers in grey below."""
    best = {
        r: max((e.mean or -1.0 for cells in entries.values() if (e := cells.get(r)) and e.complete), default=-1.0)
        for r in ratios
    }
    lines = [
        "% needs booktabs and xcolor",
        "\\begin{table}",
        f"\\caption{{{_escaped(caption)}}}",
        f"\\begin{{tabular}}{{l{'c' * len(ratios)}}}",
        "\\toprule",
        " & ".join(["method", *(_escaped(percent(r)) for r in ratios)]) + " \\\\",
        "\\midrule",
    ]
    for name, cells in entries.items():
        row = []
        for r in ratios:
            entry = cells.get(r)
            text = entry.text().replace(" ± ", " $\\pm$ ").replace("–", "--") if entry else "--"
            top = entry is not None and entry.complete and entry.mean == best[r]
            row.append(f"\\textbf{{{text}}}" if top else text)
        lines.append(" & ".join([_escaped(name), *row]) + " \\\\")
        if printed.get(name):
            own = [f"\\textcolor{{gray}}{{{printed[name][r]:.1f}}}" if r in printed[name] else "" for r in ratios]
            lines.append(" & ".join(["\\quad printed", *own]) + " \\\\")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", "\\end{table}", ""])


def _escaped(text: str) -> str:
    return "".join(f"\\{c}" if c in "%&_#${}" else c for c in text)


def as_csv(entries: Entries) -> bytes:
    """A row a method and ratio."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["method", "ratio", "mean", "sd", "low", "high", "seeds", "asked for", "failed", "values"])
    for name, cells in entries.items():
        for ratio, e in cells.items():
            numbers = ["" if v is None else f"{v:.6g}" for v in (e.mean, e.sd, e.low, e.high)]
            values = " ".join(f"{v:.6g}" for v in e.values)
            writer.writerow([name, f"{ratio:g}", *numbers, len(e.values), e.seeds, e.failed or "", values])
    return buffer.getvalue().encode()
