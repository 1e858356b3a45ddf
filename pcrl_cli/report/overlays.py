"""Segmentations beside the truth: axial slices with the most and the least overlap, and every case's Dice.

Seen as radiologists see them: the patient's right is on the left, the front on top. Colours are Okabe and Ito's; regions
are also told apart by what contains what, the difference by its words below.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float64, Num

from pcrl_cli.report.figures import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILION, Axes, Figure, _drawn

REGION_COLOURS = (SKY, ORANGE, PURPLE, GREEN)
MISSED, INVENTED = VERMILION, BLUE
MARKERS = "osD^"
FILL = 0.45  # opacity of a mask over the image
LEGEND = 8  # names a row
NAMED = 40  # cases up to which each is named below the plot


@dataclass(frozen=True)
class Slice:
    """One axial slice.

    says: what it is, for its title. image: in [0, 1]. truth, predicted: a mask a region, those inside others last.
    mm: size of a pixel along x and y.
    """

    says: str
    image: Float[np.ndarray, "x y"]
    truth: Bool[np.ndarray, "r x y"]
    predicted: Bool[np.ndarray, "r x y"]
    mm: tuple[float, float]


def most_and_least(
    truth: Bool[np.ndarray, "r x y z"], predicted: Bool[np.ndarray, "r x y z"]
) -> tuple[tuple[int, float], tuple[int, float]] | None:
    """(slice, Dice) with the most and with the least overlap, among those where truth or prediction has anything.

    The Dice of a slice is the mean over the regions that are in it; of equal ones the slice that shows the most is taken.
    None where nothing is anywhere.
    """
    both = np.count_nonzero(truth & predicted, axis=(1, 2))  # r z
    total = np.count_nonzero(truth, axis=(1, 2)) + np.count_nonzero(predicted, axis=(1, 2))
    there = total > 0
    if not there.any():
        return None
    each = np.divide(2 * both, total, out=np.zeros(total.shape), where=there)
    shown = np.flatnonzero(there.any(axis=0))
    dice = each.sum(axis=0)[shown] / there.sum(axis=0)[shown]
    size = total.sum(axis=0)[shown]
    best, worst = np.lexsort((size, dice))[-1], np.lexsort((-size, dice))[0]
    return (int(shown[best]), float(dice[best])), (int(shown[worst]), float(dice[worst]))


def slices_of(
    image: Callable[[int], Num[np.ndarray, "x y"]],
    truth: Bool[np.ndarray, "r x y z"],
    predicted: Bool[np.ndarray, "r x y z"],
    spacing: Float[np.ndarray, "3"],
) -> list[Slice]:
    """The slices with the most and the least overlap; one if they are the same, none where nothing is anywhere.

    Args:
        image: slice k, in any range: its percentiles 1 and 99 become black and white.
    """
    found = most_and_least(truth, predicted)
    if found is None:
        return []
    names = ("most overlap", "least overlap")
    picked = {k: (name, dice) for name, (k, dice) in reversed(list(zip(names, found, strict=True)))}
    mm = (float(spacing[0]), float(spacing[1]))
    rows = [
        Slice(
            f"{name} (slice {k}, Dice {dice:.2f})",
            unit(image(k)),
            truth[..., k].copy(),
            predicted[..., k].copy(),
            mm,
        )
        for k, (name, dice) in picked.items()
    ]
    return rows[::-1]


def unit(image: Num[np.ndarray, "x y"]) -> Float64[np.ndarray, "x y"]:
    """Percentiles 1 and 99 to 0 and 1."""
    low, high = np.percentile(image, [1, 99])
    return np.clip((image.astype(np.float64) - low) / max(float(high - low), 1e-12), 0, 1)


def overlay(slices: Sequence[Slice], regions: Sequence[str]) -> bytes:
    """A row a slice: the image, the truth over it, the prediction over it, and what was missed or invented."""
    if not slices:
        return _drawn(1.5, lambda fig: _nothing(fig))
    columns = ("image", "truth", "prediction", "difference")
    shape = max(s.image.shape[1] * s.mm[1] / (s.image.shape[0] * s.mm[0]) for s in slices)

    def draw(fig: Figure) -> None:
        rows = fig.subfigures(len(slices), 1, squeeze=False)[:, 0]
        for row, s in zip(rows, slices, strict=True):
            row.suptitle(s.says, fontsize=10.5, fontweight="bold", x=0.01, ha="left")
            axes = row.subplots(1, len(columns))
            for ax, name in zip(axes, columns, strict=True):
                ax.imshow(s.image.T, cmap="gray", vmin=0, vmax=1, aspect=s.mm[1] / s.mm[0])
                ax.set_axis_off()
                ax.set_title(name, fontsize=10, fontweight="normal", loc="center")
            for ax, masks in zip(axes[1:3], (s.truth, s.predicted), strict=True):
                for i, (mask, colour) in enumerate(zip(masks, _colours(len(masks)), strict=True)):
                    _paint(ax, mask, colour, without=np.asarray(masks[i + 1 :].any(axis=0)))
            _paint(axes[3], (s.truth & ~s.predicted).any(axis=0), MISSED)
            _paint(axes[3], (s.predicted & ~s.truth).any(axis=0), INVENTED)
            for ax in axes:  # an outline round the whole slice would widen it
                ax.set(xlim=(-0.5, s.image.shape[0] - 0.5), ylim=(s.image.shape[1] - 0.5, -0.5))
        _legend(fig, regions)

    return _drawn((9.0 / 4 * shape + 0.55) * len(slices) + 0.4, draw)


def dice_plot(dice: Mapping[str, Mapping[str, float]]) -> bytes:
    """Dice of every case, a mark a region, cases in the order of their mean: region -> case -> value."""
    cases = {case for values in dice.values() for case in values}
    mean = {c: float(np.mean([v[c] for v in dice.values() if c in v])) for c in cases}
    order = sorted(cases, key=lambda c: (mean[c], c))

    def draw(fig: Figure) -> None:
        ax = fig.subplots()
        for i, (region, values) in enumerate(dice.items()):
            at = [k for k, case in enumerate(order) if case in values]
            found = [values[order[k]] for k in at]
            label = f"{region}: mean {np.mean(found):.3f}" if found else region
            colour = (BLUE, ORANGE, PURPLE, GREEN)[i % 4]
            ax.plot(at, found, MARKERS[i % 4], color=colour, markersize=6, label=label, clip_on=False)
        ax.set(ylim=(0, 1), xlim=(-0.5, max(len(order), 1) - 0.5), ylabel="Dice (0 to 1)")
        if len(order) <= NAMED:
            ax.set_xticks(
                range(len(order)),
                order,
                rotation=30 if len(order) > 4 else 0,
                ha="right" if len(order) > 4 else "center",
            )
        else:
            ax.set_xlabel("case, by its mean Dice")
        ax.set_title(f"Dice of {len(order)} cases, from the worst to the best")
        fig.legend(loc="outside lower center", ncols=4)

    return _drawn(4.2, draw)


def _colours(n: int) -> list[str]:
    return [REGION_COLOURS[i % len(REGION_COLOURS)] for i in range(n)]


def _paint(
    ax: Axes, mask: Bool[np.ndarray, "x y"], colour: str, without: Bool[np.ndarray, "x y"] | None = None
) -> None:
    """Fills a mask, but for what `without` fills in another colour, and draws its whole outline."""
    from matplotlib.colors import to_rgb

    if not mask.any():
        return
    layer = np.zeros((*mask.T.shape, 4))
    filled = mask if without is None else mask & ~without
    layer[..., :3], layer[..., 3] = to_rgb(colour), FILL * filled.T
    ax.imshow(layer, aspect=ax.get_aspect(), interpolation="nearest")
    framed = np.pad(mask.T.astype(float), 1)
    x, y = np.arange(-1, mask.shape[0] + 1), np.arange(-1, mask.shape[1] + 1)
    ax.contour(x, y, framed, levels=[0.5], colors=[colour], linewidths=1.0)


def _legend(fig: Figure, regions: Sequence[str]) -> None:
    from matplotlib.patches import Patch

    named = [*zip(regions, _colours(len(regions)), strict=True), ("missed", MISSED), ("invented", INVENTED)]
    fig.legend(
        handles=[Patch(color=c, label=name) for name, c in named],
        loc="outside lower center",
        ncols=min(len(named), LEGEND),
    )


def _nothing(fig: Figure) -> None:
    ax = fig.subplots()
    ax.set_axis_off()
    ax.text(0.5, 0.5, "nothing to see: neither truth nor prediction has a voxel", ha="center", va="center", color=GREY)
