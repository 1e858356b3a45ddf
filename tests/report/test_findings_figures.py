"""Figures of several findings: PNGs of the report's width that say what they show, the same every time."""

import io

import numpy as np
import pytest
from matplotlib.image import imread

from pcrl_cli.pure.calibration import calibration
from pcrl_cli.pure.findings import mean_auroc_interval, per_finding
from pcrl_cli.report import figures, findings
from pcrl_cli.report.findings import Look

NAMES = ["Atelectasis", "Cardiomegaly", "Hernia"]


def scored(n=80):
    rng = np.random.default_rng(0)
    labels = (rng.random((n, 3)) < 0.4).astype(np.int8)
    labels[:, 2] = 0
    probabilities = 1 / (1 + np.exp(-(1.5 * labels - 1 + rng.normal(size=(n, 3)))))
    return labels, probabilities


def look(title="case", boxes=((8.0, 4.0, 10.0, 12.0),), hit=True):
    y, x = np.mgrid[:32, :40]
    bump = np.exp(-((y - 9) ** 2 + (x - 12) ** 2) / 40)
    return Look(title, "00000001_000.png", np.clip(0.2 + 0.02 * x, 0, 1), bump, boxes, hit)


def drawn_auroc():
    labels, p = scored()
    return findings.auroc_figure(per_finding(labels, p, NAMES), mean_auroc_interval(labels, p, np.arange(80), n=50))


DRAWN = {
    "auroc": drawn_auroc,
    "reliability": lambda: findings.reliability_figure(calibration(*(a.ravel() for a in scored()))),
    "reliability of nothing": lambda: findings.reliability_figure(calibration(np.zeros(0, np.int8), np.zeros(0))),
    "maps": lambda: findings.activation_figure([look(), look("other", (), None), look("third", hit=False)] * 2),
    "no maps": lambda: findings.activation_figure([]),
}


def pixels(png):
    return imread(io.BytesIO(png), format="png")[..., :3]


@pytest.mark.parametrize("name", DRAWN)
def test_a_figure_is_a_png_that_fills_900_pixels_is_not_blank_and_is_the_same_every_time(name):
    png = DRAWN[name]()
    image = pixels(png)
    assert image.shape[1] == figures.WIDTH * 180 >= 900
    assert 0.001 < (image.min(axis=2) < 0.9).mean() < 0.95
    assert png == DRAWN[name]()


def share_of(image, colour):
    wanted = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return (np.abs(image - wanted).max(axis=2) < 0.02).sum()


def test_a_box_is_drawn_where_it_lies_and_only_if_there_is_one():
    with_box, without = (pixels(findings.activation_figure([look(boxes=b)])) for b in (((8.0, 4.0, 10.0, 12.0),), ()))
    changed = np.argwhere(np.abs(with_box - without).max(axis=2) > 0.3)
    assert len(changed) > 100
    (top, left), (bottom, right) = changed.min(axis=0), changed.max(axis=0)
    assert (right - left) / (bottom - top) == pytest.approx(10 / 12, rel=0.05)


def test_the_peak_is_marked():
    assert share_of(pixels(findings.activation_figure([look()])), figures.SKY) > 50


def test_the_mean_has_another_colour_than_the_findings():
    image = pixels(drawn_auroc())
    assert share_of(image, figures.VERMILION) > 20
    assert share_of(image, figures.BLUE) > 20
