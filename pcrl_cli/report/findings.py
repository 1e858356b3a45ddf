"""Figures of a classifier of several findings: AUROCs with intervals, reliability, where the network looks."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from pcrl_cli.pure.calibration import Calibration
from pcrl_cli.pure.findings import Finding
from pcrl_cli.pure.metrics import Interval
from pcrl_cli.pure.pointing import Box, peak
from pcrl_cli.report.figures import BLUE, GREY, SKY, VERMILION, Axes, Figure, _drawn, _say

COLUMNS = 4


@dataclass(frozen=True)
class Look:
    """One image, the map of one finding over it, and the boxes that readers drew.

    image: in [0, 1], rows downwards. map: any range, the same grid. boxes: in the image's pixels.
    """

    finding: str
    name: str
    image: Float[np.ndarray, "h w"]
    map: Float[np.ndarray, "h w"]
    boxes: tuple[Box, ...]
    hit: bool | None = None
    """Whether the map's peak lies in a box; None where there is no box."""


def auroc_figure(findings: Sequence[Finding], mean: Interval) -> bytes:
    """AUROC of every finding as a dot with its interval, and the mean below; one without a value says so."""
    rows = [(f.name, f.auroc, f"{f.positive} of {f.positive + f.negative}") for f in findings]
    rows.append(("mean", mean, ""))

    def draw(fig: Figure) -> None:
        ax = fig.subplots()
        for y, (_, interval, counted) in enumerate(rows):
            colour = VERMILION if y == len(rows) - 1 else BLUE
            if interval.value is None:
                ax.text(0.5, y, "  one class only: no AUROC", va="center", color=GREY)
            else:
                low, high = (interval.value if v is None else v for v in (interval.low, interval.high))
                ax.plot([low, high], [y, y], color=colour, linewidth=2, solid_capstyle="round", alpha=0.6)
                ax.plot(interval.value, y, "o", color=colour, markersize=6)
                ax.text(1.02, y, f"{interval.value:.3f}", va="center", transform=ax.get_yaxis_transform())
            ax.text(1.10, y, counted, va="center", color=GREY, transform=ax.get_yaxis_transform())
        ax.text(1.10, -1.0, "positive", va="center", color=GREY, transform=ax.get_yaxis_transform())
        ax.axvline(0.5, color=GREY, linestyle=":", linewidth=1.2)
        ax.set_yticks(range(len(rows)), [name for name, _, _ in rows])
        ax.set(
            xlabel="AUROC with 95 % interval; dotted: chance", ylim=(len(rows) - 0.4, -1.4), title="AUROC by finding"
        )
        ax.set_xlim(*_limits([i for _, i, _ in rows]))

    return _drawn(1.3 + 0.28 * len(rows), draw)


def _limits(intervals: Sequence[Interval]) -> tuple[float, float]:
    there = [v for i in intervals for v in (i.value, i.low, i.high) if v is not None]
    return max(0.0, min([0.5, *there]) - 0.03), min(1.0, max([0.7, *there]) + 0.03)


def reliability_figure(measured: Calibration, name: str = "all findings") -> bytes:
    """Observed share over predicted probability, one dot a bin, and how many samples each bin holds."""

    def draw(fig: Figure) -> None:
        left, right = fig.subplots(1, 2)
        left.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1.2, label="perfectly calibrated")
        there = measured.count > 0
        left.plot(measured.predicted[there], measured.observed[there], "o-", color=BLUE, markersize=6, label=name)
        left.set(xlabel="predicted probability (mean of the bin)", ylabel="share of positives in the bin")
        left.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal", anchor="W")
        left.legend(loc="upper left")
        right.set(xlabel="predicted probability", ylabel="samples in the bin")
        if measured.ece is None:
            left.set_title("Reliability: no samples")
            _say(right, "no samples")
            return
        left.set_title(f"Reliability: ECE {measured.ece:.3f}, Brier {measured.brier:.3f}")
        right.stairs(measured.count, measured.edges, color=SKY, fill=True, alpha=0.6)
        right.stairs(measured.count, measured.edges, color=BLUE, linewidth=1.4)
        right.set_yscale("log")
        right.set(xlim=(-0.02, 1.02), ylim=(0.8, None), title=f"{int(measured.count.sum())} predictions")

    return _drawn(4.4, draw)


def activation_figure(looks: Sequence[Look]) -> bytes:
    """Images in rows of four, the upper part of each map in colour over it, boxes white, the peak a cross.

    A map is shown from its middle value (invisible) to its maximum; what is below is no evidence for the finding.
    """
    if not looks:
        return _drawn(1.5, lambda fig: _say(fig.subplots(), "no image of this split has a box"))
    lines = -(-len(looks) // COLUMNS)

    def draw(fig: Figure) -> None:
        axes = fig.subplots(lines, COLUMNS, squeeze=False).ravel()
        for ax in axes:
            ax.set_axis_off()
        for ax, look in zip(axes, looks, strict=False):
            _look(ax, look)

    return _drawn(2.7 * lines, draw)


def _look(ax: Axes, look: Look) -> None:
    from matplotlib.patches import Rectangle

    h, w = look.image.shape
    extent = (0, w, h, 0)  # pixel i covers [i, i + 1)
    ax.imshow(look.image, cmap="gray", vmin=0, vmax=1, extent=extent)
    middle, top = np.median(look.map), look.map.max()
    strength = np.clip((look.map - middle) / max(top - middle, 1e-12), 0, 1)
    ax.imshow(strength, cmap="inferno", vmin=0, vmax=1, alpha=0.75 * strength, extent=extent)
    for left, up, width, height in look.boxes:
        ax.add_patch(Rectangle((left, up), width, height, fill=False, edgecolor="white", linewidth=1.6))
    row, column = peak(look.map)
    ax.plot(column + 0.5, row + 0.5, "x", color=SKY, markersize=9, markeredgewidth=2.2)
    ax.set(xlim=(0, w), ylim=(h, 0))
    mark = "" if look.hit is None else ": hit" if look.hit else ": miss"
    ax.set_title(look.finding + mark, fontsize=9, pad=15)
    ax.text(0, 1.015, look.name, fontsize=7.5, color=GREY, transform=ax.transAxes, va="bottom")
