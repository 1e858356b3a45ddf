"""Figures are PNGs 900 px wide or more, the same every time, and leave matplotlib as they found it."""

import io
import subprocess
import sys

import matplotlib
import numpy as np
import pytest
from matplotlib.image import imread

from pcrl_cli.pure.froc import ScanFindings, froc
from pcrl_cli.report import figures
from pcrl_cli.report.figures import _bands, _mosaic, _moving_average, _series


def rows(n=40):
    rng = np.random.default_rng(0)
    made = []
    for step in range(1, n + 1):
        row = {"step": step, "lr": 1e-3, "samples_per_second": 9.0 + rng.normal(), "data_wait": 0.1}
        row |= {"loss/restore": float(np.exp(-step / 5)), "loss/compare": -step / n}
        if step % 5 == 0:
            row |= {"rank/encoder": 9.0, "std/encoder": 0.05, "rank/v1": 40 / step, "std/v1": 0.2 / step}
        made.append(row)
    return made


def curve(nodules=1):
    place = np.array([[0.0, 0, 0, 10]])[:nodules]
    return froc([ScanFindings(np.array([[0.0, 0, 0], [50, 0, 0]]), np.array([0.5, 0.9]), place)])


def views():
    x = np.random.default_rng(0).normal(size=(2, 2, 12, 8))
    return {"x": 1 / (1 + np.exp(-x)), "seen": x, "locals": np.ones((2, 6, 4, 4), dtype=np.float32)}


HALF = np.array([0, 1] * 20)
SCORES = np.linspace(0, 1, 40)
DRAWN = {
    "loss": lambda: figures.loss_curves(rows(), ["restore", "compare", "gone"]),
    "pace": lambda: figures.pace_curves(rows()),
    "collapse": lambda: figures.collapse_curves(rows(), {"rank/v1": 2.0, "std/v1": 0.01}),
    "roc": lambda: figures.roc_curves({"a": (SCORES, SCORES**0.5, 0.67), "b": (np.zeros(0), np.zeros(0), None)}),
    "froc": lambda: figures.froc_curve(curve()),
    "scores": lambda: figures.score_histogram(HALF, SCORES),
    "views": lambda: figures.views_figure(views()),
}


def pixels(png):
    return imread(io.BytesIO(png), format="png")


@pytest.mark.parametrize("name", DRAWN)
def test_a_figure_is_a_png_that_fills_900_pixels_and_is_not_blank(name):
    image = pixels(DRAWN[name]())
    assert image.shape[1] == figures.WIDTH * 180 >= 900
    assert 0.001 < (image[..., :3].min(axis=2) < 0.9).mean() < 0.9
    assert image[..., 3].min() == 1.0  # nothing transparent: dark pages show it as it is


@pytest.mark.parametrize("name", ["loss", "views"])
def test_equal_input_gives_equal_bytes_without_a_date_or_version(name):
    first = DRAWN[name]()
    assert first == DRAWN[name]()
    assert b"tEXt" not in first
    assert b"tIME" not in first


def test_settings_of_matplotlib_are_neither_used_nor_changed():
    expected = DRAWN["scores"]()
    with matplotlib.rc_context({"font.size": 31.0, "axes.facecolor": "red"}):
        before = dict(matplotlib.rcParams)
        assert DRAWN["scores"]() == expected
        assert dict(matplotlib.rcParams) == before


def test_importing_the_report_imports_no_matplotlib_and_drawing_no_pyplot():
    code = (
        "import sys; from pcrl_cli.report import figures, html, paper_numbers; assert 'matplotlib' not in sys.modules;"
        "figures.loss_curves([{'step': 1, 'loss/a': 1.0}], ['a']); assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    "draw",
    [
        lambda: figures.loss_curves([], ["a"]),
        lambda: figures.loss_curves([], []),
        lambda: figures.loss_curves([{"step": 1, "loss/a": None}], ["a"]),
        lambda: figures.loss_curves([{"step": 1, "loss/a": 2.0}], ["a"]),
        lambda: figures.pace_curves([]),
        lambda: figures.collapse_curves([{"step": 1}]),
        lambda: figures.roc_curves({}),
        lambda: figures.froc_curve(curve(0)),
        lambda: figures.score_histogram(np.zeros(0, int), np.zeros(0)),
        lambda: figures.score_histogram(np.ones(3, int), np.full(3, -4.0)),
        lambda: figures.views_figure({}),
        lambda: figures.views_figure({"flat": np.full((1, 1, 5, 5), 7.0)}),
    ],
)
def test_little_or_no_data_still_gives_a_figure(draw):
    assert pixels(draw()).shape[2] == 4


def test_values_that_are_not_finite_are_kept_apart():
    made = [{"step": 1, "a": 1.0}, {"step": 2, "a": None}, {"step": 3}, {"step": 4, "a": float("inf")}]
    step, value, lost = _series([*made, {"step": 5, "a": 2}], "a")
    assert (step.tolist(), value.tolist(), lost.tolist()) == ([1, 5], [1, 2], [2, 4])


def test_moving_average_keeps_constants_and_means_its_window():
    np.testing.assert_allclose(_moving_average(np.full(300, 2.5)), 2.5)
    x = np.random.default_rng(0).normal(size=101)
    smooth = _moving_average(x)
    assert smooth[50] == pytest.approx(x[48:53].mean())
    assert smooth[0] == pytest.approx(x[:3].mean())


def test_views_show_x_to_the_right_and_y_down():
    image = np.zeros((1, 1, 4, 2))
    image[0, 0, 3, 0] = 1.0  # x = 3, y = 0: the top right
    mosaic = _mosaic(image)
    tile = mosaic[: -figures.GAP, : -figures.GAP]
    assert tile.shape == (64, 128)
    assert (tile[:32, 96:] == 1).all()
    assert tile.sum() == 32 * 32
    assert np.isnan(mosaic[-1]).all()


def test_rows_are_samples_and_columns_views():
    tiles = np.arange(6.0).reshape(2, 3, 1, 1) / 10 * np.ones((2, 3, 64, 64))
    step = figures.TILE + figures.GAP
    np.testing.assert_allclose(_mosaic(tiles)[::step, ::step] * 10, [[0, 1, 2], [3, 4, 5]])


def test_only_pictures_outside_the_unit_range_are_stretched():
    half = np.linspace(0.2, 0.6, 100).reshape(1, 1, 10, 10)
    assert np.nanmax(_mosaic(half)) == pytest.approx(0.6)
    assert np.nanmax(_mosaic(half * 100)) == 1.0
    assert np.nanmin(_mosaic(half * 100 - 30)) == 0.0


def test_names_fill_lines_of_six_tiles_in_order():
    tile = figures.TILE + figures.GAP
    widths = {"a": 2 * tile, "b": 2 * tile, "c": 2 * tile, "d": tile, "e": 9 * tile}
    assert _bands(widths) == [["a", "b", "c"], ["d"], ["e"]]
