"""Figures of a run as PNG bytes, made to be read at 900 pixels' width.

matplotlib is imported when a figure is drawn, never pyplot; its settings are set inside a figure and put back after it.
Equal input gives equal bytes. Colours are Okabe and Ito's, told apart by colour-blind readers too. `rows` are the lines
of a run's metrics.jsonl; a row without a key is passed over, a value that is not finite is marked, not drawn.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float64, Shaped

from pcrl_cli.pure.froc import RATES, Froc

Rows = Sequence[Mapping[str, Any]]
Figure = Any  # matplotlib.figure.Figure, matplotlib.axes.Axes: names that exist only once matplotlib is imported
Axes = Any

BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9"
COLOURS = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, "#000000")
GREY = "#6b7580"
TILE, GAP = 64, 3  # pixels of a picture's height and of the space between two
LINE = 6 * (TILE + GAP)
WIDTH = 9.0  # inches; with fonts of 10 points this is 900 px at 100 dots an inch

STYLE: Mapping[str, Any] = {
    "font.size": 10.0,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 8.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "grid.color": "#e3e7ea",
    "grid.linewidth": 0.8,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": "black",
    "ytick.labelcolor": "black",
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "figure.constrained_layout.h_pad": 0.09,
    "figure.constrained_layout.w_pad": 0.08,
    "savefig.dpi": 180.0,
}


@dataclass(frozen=True)
class _Panel:
    """One curve over the step: what to draw, and what its title says of the values drawn."""

    key: str
    name: str
    unit: str
    says: Callable[[Float64[np.ndarray, " n"]], str]
    smooth: bool = True
    log: bool = False


def loss_curves(rows: Rows, terms: Sequence[str]) -> bytes:
    """One panel a term: `loss/<term>` over the step, every value thin, their moving average thick.

    The axis is logarithmic where all values are positive and span more than a factor of 20.
    """

    def says(v: Float64[np.ndarray, " n"]) -> str:
        return f"{v[0]:.3g} → {v[-1]:.3g}"

    return _panels([_Panel(f"loss/{t}", t, "loss (no unit)", says, log=True) for t in terms], rows)


def pace_curves(rows: Rows) -> bytes:
    """Learning rate, speed, and the share of time that training waited for data, over the step."""
    panels = [
        _Panel("lr", "learning rate", "learning rate (no unit)", lambda v: f"at most {v.max():.2g}", smooth=False),
        _Panel("samples_per_second", "speed", "samples / s", lambda v: f"{np.median(v):.3g} samples / s"),
        _Panel("data_wait", "waiting for data", "share of time (0 to 1)", lambda v: f"{100 * v.mean():.2g} %"),
    ]
    return _panels(panels, rows)


def collapse_curves(rows: Rows, alarms: Mapping[str, float] | None = None) -> bytes:
    """Effective rank and std of the normalised features over the step: `rank/<name>` and `std/<name>`, all names.

    Args:
        alarms: the value below which a curve is in alarm, by the same keys; drawn dashed in the curve's colour.
    """
    alarms = alarms or {}
    names = sorted({k.split("/", 1)[1] for row in rows for k in row if k.startswith(("rank/", "std/"))})

    def draw(fig: Figure) -> None:
        left, right = fig.subplots(1, 2)
        _watched(left, rows, "rank", names, alarms, "effective rank")
        _watched(right, rows, "std", names, alarms, "std of normalised features")
        handles, labels = left.get_legend_handles_labels()
        if alarms:
            handles.append(left.plot([], [], color=GREY, linestyle="--", linewidth=1.2)[0])
            labels.append("alarm below")
        if handles:
            fig.legend(handles, labels, loc="outside lower center", ncols=min(7, len(labels)))

    return _drawn(4.0, draw)


def roc_curves(curves: Mapping[str, tuple[np.ndarray, np.ndarray, float | None]]) -> bytes:
    """ROC curves by name: (false-positive rates, true-positive rates, AUROC or None)."""

    def draw(fig: Figure) -> None:
        ax = fig.subplots()
        for i, (name, (fpr, tpr, value)) in enumerate(curves.items()):
            ax.plot(fpr, tpr, label=f"{name}: {'no value' if value is None else f'{value:.3f}'}", **_line(i))
        ax.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1.2, label="chance: 0.500")
        ax.set(xlabel="false-positive rate (share of class 0)", ylabel="true-positive rate (share of class 1)")
        ax.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal", anchor="W", title="ROC curve")
        ax.legend(loc="center left", bbox_to_anchor=(1.04, 0.5), title="area under the curve", alignment="left")

    return _drawn(5.0, draw)


def froc_curve(curve: Froc, name: str = "candidates") -> bytes:
    """Sensitivity over false positives per scan, with the seven points whose mean is CPM."""

    def draw(fig: Figure) -> None:
        ax = fig.subplots()
        ax.set_xscale("log", base=2)
        ax.set(xlim=(RATES[0] / 1.12, RATES[-1] * 1.12), ylim=(-0.02, 1.02))
        ax.set_xticks(RATES, ["1/8", "1/4", "1/2", "1", "2", "4", "8"])
        ax.set(xlabel="false positives per scan", ylabel=f"sensitivity (share of {curve.nodules} nodules)")
        if curve.at is None or curve.cpm is None:
            ax.set_title("FROC: no curve")
            _say(ax, curve.reason or "")
            return
        x = np.geomspace(RATES[0], RATES[-1], 600)
        ax.plot(x, np.interp(x, curve.false_positives, curve.sensitivity), color=BLUE)
        ax.plot(list(curve.at), list(curve.at.values()), "o", color=BLUE, markersize=6)
        for rate, value in curve.at.items():
            away = (0, -14 if value > 0.9 else 7)
            ax.annotate(f"{value:.2f}", (rate, value), away, textcoords="offset points", ha="center")
        ax.set_title(f"FROC of {name} over {curve.scans} scans: CPM {curve.cpm:.3f}")

    return _drawn(4.4, draw)


def score_histogram(labels: Shaped[np.ndarray, " n"], scores: Float[np.ndarray, " n"]) -> bytes:
    """How the scores of either class are distributed, each class to 100 %."""
    positive = labels.astype(bool)

    def draw(fig: Figure) -> None:
        ax = fig.subplots()
        low, high = (float(scores.min()), float(scores.max())) if len(scores) else (0.0, 1.0)
        probability = low >= 0 and high <= 1
        edges = np.linspace(*((0.0, 1.0) if probability else (low, max(high, low + 1e-6))), 41)
        for chosen, colour, name in ((~positive, BLUE, "class 0"), (positive, VERMILION, "class 1")):
            part = scores[chosen].astype(np.float64)
            share = 100 * np.histogram(part, edges)[0] / max(1, len(part))
            ax.stairs(share, edges, color=colour, fill=True, alpha=0.25)
            ax.stairs(share, edges, color=colour, linewidth=1.8, label=f"{name} ({len(part)} samples)")
        ax.set(xlabel="predicted probability" if probability else "score", ylabel="share of the class (%)")
        ax.set_title("Scores by true class: the less overlap, the better")
        fig.legend(loc="outside lower center", ncols=2)

    return _drawn(3.8, draw)


def views_figure(pictures: Mapping[str, Float[np.ndarray, "_ _ _ _"]]) -> bytes:
    """Images as the network saw them: by name an array (rows, columns, x, y), one row a sample.

    x goes to the right and y down: with LPS axes the radiological way, the patient's left on the right. A set within
    [0, 1] is shown from 0 to 1, any other between its 1st and 99th percentile.
    """
    mosaics = {name: _mosaic(images) for name, images in pictures.items() if images.size}
    if not mosaics:
        return _drawn(1.5, lambda fig: _say(fig.subplots(), "no pictures were recorded"))
    bands = _bands({name: m.shape[1] for name, m in mosaics.items()})
    widest = max(LINE, *(sum(mosaics[n].shape[1] for n in band) for band in bands))
    heights = [max(mosaics[n].shape[0] for n in band) * (WIDTH - 0.3) / widest + 0.4 for band in bands]

    def draw(fig: Figure) -> None:
        for row, band in zip(np.atleast_1d(fig.subfigures(len(bands), 1, height_ratios=heights)), bands, strict=True):
            widths = [mosaics[n].shape[1] for n in band]
            spare = widest - sum(widths)
            axes = row.subplots(1, len(band) + (spare > 0), width_ratios=widths + [spare] * (spare > 0), squeeze=False)
            for ax in axes[0]:
                ax.set_axis_off()
            for ax, name in zip(axes[0], band, strict=False):
                ax.imshow(mosaics[name], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
                ax.set_title(name, fontsize=10)

    return _drawn(sum(heights), draw)


def _drawn(height: float, draw: Callable[[Figure], None]) -> bytes:
    """Draws on a new figure in our style; nothing of matplotlib's state is left changed."""
    from matplotlib import style
    from matplotlib.figure import Figure as NewFigure

    with style.context(["default", dict(STYLE)]):
        fig = NewFigure(figsize=(WIDTH, height), layout="constrained", facecolor="white")
        draw(fig)
        buffer = io.BytesIO()
        fig.savefig(buffer, format="png", metadata={"Software": None})  # neither version nor date
    return buffer.getvalue()


def _panels(panels: Sequence[_Panel], rows: Rows) -> bytes:
    """Panels in lines of at most three."""
    if not panels:
        return _drawn(1.5, lambda fig: _say(fig.subplots(), "no curves to draw"))
    columns = min(len(panels), 3)
    lines = -(-len(panels) // columns)

    def draw(fig: Figure) -> None:
        axes = fig.subplots(lines, columns, squeeze=False).ravel()
        for ax, panel in zip(axes, panels, strict=False):
            _curve(ax, rows, panel)
        for ax in axes[len(panels) :]:
            ax.set_axis_off()

    return _drawn(3.1 * lines + (0.6 if columns == 1 else 0.0), draw)


def _curve(ax: Axes, rows: Rows, panel: _Panel) -> None:
    """Raw values thin, their moving average thick, lost ones as crosses at the foot."""
    step, value, lost = _series(rows, panel.key)
    ax.set(xlabel="step", ylabel=panel.unit, title=panel.name)
    if len(step) == 0:
        _say(ax, "no finite value" if len(lost) else "not recorded")
        return
    shown = _moving_average(value) if panel.smooth else value
    ax.plot(step, value, color=SKY, linewidth=0.7, alpha=0.7)
    ax.plot(step, shown, color=BLUE, marker="o" if len(step) < 3 else "")
    ax.set_title(f"{panel.name}: {panel.says(shown)}")
    if panel.log and value.min() > 0 and value.max() > 20 * value.min():
        _log_y(ax, value)
    if len(lost):
        ax.plot(lost, np.full(len(lost), 0.03), "x", color=VERMILION, transform=ax.get_xaxis_transform())
        ax.text(0.98, 0.95, f"× {len(lost)} not finite", color=VERMILION, transform=ax.transAxes, ha="right", va="top")


def _log_y(ax: Axes, value: Float64[np.ndarray, " n"]) -> None:
    """A logarithmic y axis labelled in plain numbers, at 2 and 5 as well where there are few decades."""
    from matplotlib.ticker import LogLocator, NullLocator

    ax.set_yscale("log")
    few = value.max() < 300 * value.min()
    ax.yaxis.set_minor_locator(LogLocator(subs=(2, 5)) if few else NullLocator())
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_formatter("{x:g}")


def _watched(ax: Axes, rows: Rows, kind: str, names: Sequence[str], alarms: Mapping[str, float], label: str) -> None:
    """Curves with their alarm thresholds; the title names those that end below."""
    low = []
    for i, name in enumerate(names):
        key = f"{kind}/{name}"
        step, value, _ = _series(rows, key)
        ax.plot(step, value, label=name, marker="." if len(step) < 30 else "", **_line(i))
        if key in alarms:
            ax.axhline(alarms[key], linewidth=1.2, linestyle="--", color=_line(i)["color"], alpha=0.8)
            if len(value) and value[-1] < alarms[key]:
                low.append(name)
    ax.set(xlabel="step", ylabel=f"{label} (no unit)")
    shown = [_series(rows, f"{kind}/{n}")[1] for n in names]
    values = np.concatenate(shown) if shown else np.zeros(0)
    if not len(values):
        _say(ax, "not recorded")
    elif values.min() > 0:
        _log_y(ax, np.append(values, [alarms[k] for k in alarms if k.startswith(f"{kind}/")]))
    verdict = f": alarm for {', '.join(low)}" if low else ": above the alarm" if alarms and len(values) else ""
    ax.set_title(("Effective rank" if kind == "rank" else "Spread") + verdict)


def _series(
    rows: Rows, key: str
) -> tuple[Float64[np.ndarray, " n"], Float64[np.ndarray, " n"], Float64[np.ndarray, " k"]]:
    """Steps and values of a key, and the steps at which it was null or not finite."""
    pairs = [(row["step"], np.nan if row[key] is None else row[key]) for row in rows if key in row]
    step, value = np.array(pairs, dtype=np.float64).reshape(-1, 2).T
    finite: Bool[np.ndarray, " m"] = np.isfinite(value)
    return step[finite], value[finite], step[~finite]


def _moving_average(value: Float64[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
    """Centred, over a twenty-fifth of the curve; the window is cut at the ends."""
    reach = len(value) // 50
    total = np.concatenate([[0.0], np.cumsum(value)])
    i = np.arange(len(value))
    low, high = np.maximum(i - reach, 0), np.minimum(i + reach + 1, len(value))
    return (total[high] - total[low]) / (high - low)


def _line(i: int) -> dict[str, Any]:
    """Colours first, then other strokes."""
    return {"color": COLOURS[i % len(COLOURS)], "linestyle": ("-", "-.", (0, (1, 1)))[i // len(COLOURS) % 3]}


def _say(ax: Axes, text: str) -> None:
    """A sentence where a curve would be."""
    ax.grid(False)
    ax.set_yticks([])
    ax.text(0.5, 0.5, text, transform=ax.transAxes, ha="center", va="center", color=GREY)


def _mosaic(images: Float[np.ndarray, "r c x y"]) -> Float64[np.ndarray, "h w"]:
    """The tiles in a grid, scaled to about the same height by repeating pixels; the gaps are NaN, that is, white."""
    tiles = _unit(images.astype(np.float64)).transpose(0, 1, 3, 2)
    times = max(1, round(TILE / tiles.shape[2]))
    tiles = tiles.repeat(times, axis=2).repeat(times, axis=3)
    framed = np.pad(tiles, ((0, 0), (0, 0), (0, GAP), (0, GAP)), constant_values=np.nan)
    r, c, h, w = framed.shape
    return framed.transpose(0, 2, 1, 3).reshape(r * h, c * w)


def _unit(images: Float64[np.ndarray, "r c x y"]) -> Float64[np.ndarray, "r c x y"]:
    low, high = np.nanmin(images), np.nanmax(images)
    if low >= 0 and high <= 1:
        return images
    low, high = np.nanpercentile(images, [1, 99])
    return np.clip((images - low) / max(high - low, 1e-12), 0, 1)


def _bands(widths: Mapping[str, int]) -> list[list[str]]:
    """Names in lines of at most six tiles, where a name alone has no more."""
    bands: list[list[str]] = [[]]
    for name, width in widths.items():
        if bands[-1] and sum(widths[n] for n in bands[-1]) + width > LINE:
            bands.append([])
        bands[-1].append(name)
    return bands
