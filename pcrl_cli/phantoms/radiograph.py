"""Phantom chest radiographs in NIH ChestX-ray14's layout: made patients whose 14 findings are drawn as signs.

A patient is a function of (seed, index) alone. Lengths are in half widths of the picture: u from the picture's left to
its right, -1 .. 1, v from top to bottom, in the patient's frame, which each picture holds a little turned, shifted and
scaled. What is drawn is density, air dark and bone bright. At the end every picture gets a mean and a contrast that know
nothing of the findings, so that neither gives them away; the signs have to be seen.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
from jaxtyping import Float32, UInt8

from pcrl_cli.readers.image_io import write_png
from pcrl_cli.readers.nih import CLASSES

VERSION = 1  # to be raised with whatever changes the bytes of a patient
LAST = "Data_Entry_2017.csv"
"""The file that `make` writes last."""
SIDE = 256
"""Rows and columns of a picture."""
BOX_SIDE = 1024
"""The frame of the boxes in `BBox_List_2017.csv`, as in the data set, whatever the files' size."""
MOST_IMAGES = 4
"""Pictures of a patient at most."""
BOXED = {
    "Atelectasis": "Atelectasis", "Cardiomegaly": "Cardiomegaly", "Effusion": "Effusion", "Infiltration": "Infiltrate",
    "Mass": "Mass", "Nodule": "Nodule", "Pneumonia": "Pneumonia", "Pneumothorax": "Pneumothorax",
}  # fmt: skip
"""The findings that the data set has boxes of, and what its list of boxes calls them."""

ENTRY = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],"
)
"""The first line of the table, as the data set has it."""
_BOX = "Image Index,Finding Label,Bbox [x,y,w,h],,,"
_HOW_MANY = (0.3, 0.34, 0.22, 0.14)  # of no finding, one, two, three
_BOX_SHARE = 0.5  # of the findings that can have boxes

Field = Float32[np.ndarray, "v u"]


@dataclass(frozen=True)
class Radiograph:
    """One picture, its findings in the order of the classes, and where those of `BOXED` are: x, y, w, h of `BOX_SIDE`."""

    pixels: UInt8[np.ndarray, "rows columns"]
    findings: tuple[str, ...]
    boxes: dict[str, tuple[float, float, float, float]]


def make(root: Path, patients: int = 40, seed: int = 0, progress: Callable[[int, int], None] | None = None) -> None:
    """Writes `root/images/00000001_000.png` ..., `root/BBox_List_2017.csv` and `root/Data_Entry_2017.csv`.

    The same pictures on every run, and patient i the same for any number of patients. `progress(done, patients)` is
    called after each. Existing files of the same names are replaced, each at once; the tables come last.
    """
    root = Path(root)
    (root / "images").mkdir(parents=True, exist_ok=True)
    boxes, entries = [_BOX], [ENTRY]
    for index in range(patients):
        rng = np.random.default_rng([seed, index])
        age, sex = int(rng.integers(18, 90)), "FM"[int(rng.integers(2))]
        for visit, picture in enumerate(patient(seed, index)):
            name = f"{index + 1:08d}_{visit:03d}.png"
            write_png(picture.pixels, root / "images" / name)
            found = "|".join(sorted(picture.findings)) or "No Finding"
            entries.append(f"{name},{found},{visit},{index + 1},{age},{sex},PA,{SIDE},{SIDE},0.556,0.556,")
            for finding, box in picture.boxes.items():
                boxes.append(f"{name},{BOXED[finding]},{','.join(f'{number:.4f}' for number in box)}")
        if progress:
            progress(index + 1, patients)
    for name, lines in (("BBox_List_2017.csv", boxes), (LAST, entries)):
        temporary = root / f".tmp-{name}"
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
        temporary.replace(root / name)


def patient(seed: int, index: int) -> list[Radiograph]:
    """One to four pictures of patient `index`; the body stays, the findings mostly do."""
    rng = np.random.default_rng([seed, index, 1])
    body, findings = _Body.draw(rng), _draw_findings(rng)
    pictures = []
    for _ in range(int(rng.integers(1, MOST_IMAGES + 1))):
        pictures.append(_radiograph(rng, body, findings))
        if rng.random() < 0.4:  # the next one is taken when things have changed
            findings = _draw_findings(rng)
    return pictures


def _draw_findings(rng: np.random.Generator) -> tuple[str, ...]:
    n = int(rng.choice(len(_HOW_MANY), p=_HOW_MANY))
    picked = set(rng.choice(len(CLASSES), n, replace=False).tolist())
    return tuple(name for i, name in enumerate(CLASSES) if i in picked)


@dataclass(frozen=True)
class _Body:
    """What is a patient's own: widths and heights of the parts, and the place of the ribs."""

    width: float
    height: float
    heart: float
    lean: float
    dome: float
    rib_phase: float
    rib_slope: float
    fat: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> "_Body":
        low = [0.92, 0.92, 0.85, -0.03, 0.5, 0.0, 0.3, 0.0]
        return cls(*rng.uniform(low, [1.08, 1.08, 1.1, 0.03, 0.6, 0.16, 0.5, 0.12]).tolist())


@dataclass
class _Canvas:
    """A picture under way.

    u, v: patient coordinates of every pixel. lung: depth below the lung's edge, a side. density: what has been drawn.
    boxes: u, v and half widths of the signs, by finding.
    """

    body: _Body
    u: Field
    v: Field
    lung: dict[int, Field]
    density: Field
    boxes: dict[str, tuple[float, float, float, float]] = field(default_factory=dict)

    def add(self, cover: Field, amount: float, side: int | None = None) -> None:
        """More density where `cover` is, inside the lung of a side if given; as in life it saturates."""
        cover = cover * _edge(self.lung[side]) if side is not None else cover
        self.density += cover * np.float32(amount) * (np.float32(1.05) - self.density)

    def blob(self, u: float, v: float, a: float, b: float) -> Field:
        """Depth below the edge of an ellipse."""
        return (1 - np.sqrt(((self.u - u) / a) ** 2 + ((self.v - v) / b) ** 2)) * np.float32(min(a, b))


def _radiograph(rng: np.random.Generator, body: _Body, findings: tuple[str, ...]) -> Radiograph:
    u, v, place = _frame(rng)
    wide = float(rng.uniform(1.3, 1.55)) if "Cardiomegaly" in findings else 1.0
    flat = float(rng.uniform(0.6, 1.0)) if "Emphysema" in findings else 0.0
    canvas = _anatomy(rng, body, u, v, wide, flat)
    for name in rng.permutation(findings).tolist() if findings else []:
        if name in _SIGNS:
            canvas.boxes[name] = _SIGNS[name](canvas, rng, float(rng.uniform(0.45, 1.0)))
    boxes = {name: _box(canvas.boxes[name], place) for name in findings if name in BOXED and rng.random() < _BOX_SHARE}
    return Radiograph(_exposed(rng, canvas.density), findings, boxes)


Place = tuple[float, float, float, float, float]
"""Angle, scale in u and v, shift in u and v, from the patient's to the picture's coordinates."""


def _frame(rng: np.random.Generator) -> tuple[Field, Field, Place]:
    """The patient's coordinates of every pixel."""
    low = [-0.05, 0.92, 0.92, -0.06, -0.06]
    angle, su, sv, du, dv = rng.uniform(low, [0.05, 1.08, 1.08, 0.06, 0.06]).tolist()
    line = ((np.arange(SIDE, dtype=np.float32) + 0.5) / SIDE * 2 - 1).astype(np.float32)
    x, y = line[None, :] - np.float32(du), line[:, None] - np.float32(dv)
    c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return (c * x + s * y) / np.float32(su), (c * y - s * x) / np.float32(sv), (angle, su, sv, du, dv)


def _box(sign: tuple[float, float, float, float], place: Place) -> tuple[float, float, float, float]:
    """x, y, width, height of a sign in pixels of `BOX_SIDE`, cut at the picture's border."""
    u, v, a, b = sign
    angle, su, sv, du, dv = place
    corners = np.array([[u + i * a, v + j * b] for i in (-1, 1) for j in (-1, 1)]) * [su, sv]
    c, s = np.cos(angle), np.sin(angle)
    corners = corners @ np.array([[c, s], [-s, c]]) + [du, dv]
    low, high = (np.clip((edge + 1) / 2 * BOX_SIDE, 0, BOX_SIDE) for edge in (corners.min(0), corners.max(0)))
    x, y, width, height = (float(number) for number in (*low, *(high - low)))
    return x, y, width, height


def _exposed(rng: np.random.Generator, density: Field) -> UInt8[np.ndarray, "rows columns"]:
    """Grey levels with noise, and with a mean and a spread that are drawn without a look at the density."""
    mean, spread = float(rng.uniform(105, 150)), float(rng.uniform(46, 58))
    grey = (density - density.mean()) / density.std() * np.float32(spread) + np.float32(mean)
    grey += rng.standard_normal(grey.shape, np.float32) * np.float32(rng.uniform(2, 5))
    grey += np.float32(mean) - np.clip(grey, 0, 255).mean()
    return np.rint(np.clip(grey, 0, 255)).astype(np.uint8)


# ------------------------------------------------------------------------------------------------------- anatomy


def _anatomy(rng: np.random.Generator, body: _Body, u: Field, v: Field, wide: float, flat: float) -> _Canvas:
    """A healthy chest; `wide` stretches the heart, `flat` (0 .. 1) inflates the lungs and flattens the diaphragm."""
    lung = {side: _lung(body, u, v, side, flat) for side in (-1, 1)}
    across, along = (u / np.float32(0.98)) ** 2, (v / np.float32(1.5)) ** 2
    torso = _edge((1 - across**2 - along**2) * np.float32(0.3), 0.1)
    density = np.float32(0.56 + body.fat) * torso + np.float32(0.06) * _smooth(rng, 5)
    inside = np.maximum(_edge(lung[-1]), _edge(lung[1]))
    air = np.float32(0.2 - 0.09 * flat) + np.float32(0.03) * _smooth(rng, 24)
    density += inside * (air - density)
    canvas = _Canvas(body, u, v, lung, density.astype(np.float32))
    _bones(canvas)
    _vessels(canvas, rng)
    _heart(canvas, wide)
    return canvas


def _lung(body: _Body, u: Field, v: Field, side: int, flat: float) -> Field:
    """Depth below one lung's edge: half an egg on the dome of the diaphragm."""
    across = (u - np.float32(side * 0.43 * body.width)) / np.float32((0.33 + 0.03 * flat) * body.width)
    along = (v - np.float32(0.25)) / np.float32((1.06 + 0.06 * flat) * body.height)
    egg = (1 - np.sqrt(across**2 + along**2)) * np.float32(0.33)
    top = np.float32(body.dome + 0.1 * flat + (0.04 if side > 0 else 0.0))
    dome = top + np.float32(0.22 * (1 - 0.8 * flat)) * across**2 - v
    return np.minimum(egg, dome)


def _bones(canvas: _Canvas) -> None:
    """Ribs that fall to the sides behind and rise in front, collar bones, the spine."""
    body, away = canvas.body, np.abs(canvas.u)
    wall = _edge(np.float32(0.86 * body.width) - away, 0.08) * _edge(np.float32(0.75) - canvas.v, 0.3)
    for slope, amount, phase in ((body.rib_slope, 0.12, 0.0), (-0.6 * body.rib_slope, 0.06, 0.08)):
        fall = canvas.v - np.float32(slope) * away * (np.float32(1.4) - away) * 2
        along = np.mod((fall + np.float32(body.rib_phase + phase)) / np.float32(0.16), 1)
        canvas.add(_edge(np.float32(0.2) - np.abs(along - np.float32(0.5)), 0.2) * wall, amount)
    collar = np.float32(0.035) - np.abs(canvas.v + np.float32(0.72) + np.float32(0.25) * (away - np.float32(0.3)))
    canvas.add(_edge(collar, 0.03) * _edge(np.float32(0.75) - away, 0.1), 0.25)
    canvas.add(_edge(np.float32(0.1) - away, 0.05), 0.3)


def _vessels(canvas: _Canvas, rng: np.random.Generator) -> None:
    """The roots of the lungs, and vessels as rays that thin out."""
    for side in (-1, 1):
        u, v = side * 0.2, -0.02
        canvas.add(_edge(canvas.blob(u, v, 0.1, 0.14), 0.15), 0.3)
        du, dv = canvas.u - np.float32(u), canvas.v - np.float32(v)
        far = np.hypot(du, dv)
        turn = np.arctan2(dv, np.abs(du)) * np.float32(rng.uniform(7, 10)) + np.float32(6) * far
        rays = np.clip(np.cos(turn + np.float32(rng.uniform(0, 6.3))) * 3 - 2, 0, 1)
        canvas.add(rays * np.clip(1 - far / np.float32(0.5), 0, 1), 0.22, side)


def _heart(canvas: _Canvas, wide: float) -> None:
    """The heart, more of it to the picture's right, and the vessels above it."""
    body = canvas.body
    a, b = 0.27 * body.heart * wide, 0.3 * body.heart * (0.5 + 0.5 * wide)
    u, v = 0.09 + body.lean + 0.04 * (wide - 1), body.dome - 0.72 * b
    canvas.add(_edge(canvas.blob(u, v, a, b), 0.05), 0.55)
    canvas.add(_edge(canvas.blob(0.03 + body.lean, -0.32, 0.13, 0.4), 0.08), 0.35)
    if wide > 1:
        canvas.boxes["Cardiomegaly"] = (u, v, a, b)


# --------------------------------------------------------------------------------------------------------- signs

Sign = tuple[float, float, float, float]
"""u, v of the middle of what was drawn, and its half widths."""


def _side(rng: np.random.Generator) -> int:
    return int(rng.choice((-1, 1)))


def _spot(rng: np.random.Generator, low: float, high: float) -> tuple[int, float, float]:
    """A side and a place in its lung, v between low and high."""
    side = _side(rng)
    return side, side * float(rng.uniform(0.32, 0.56)), float(rng.uniform(low, high))


def _atelectasis(canvas: _Canvas, rng: np.random.Generator, strength: float) -> Sign:
    """Two or three thin plates one above another, low in a lung."""
    side, u, v = _spot(rng, 0.2, 0.38)
    tilt = float(rng.uniform(-0.35, 0.35))
    along = _edge(np.float32(0.2) - np.abs(canvas.u - np.float32(u)), 0.06)
    for i in range(int(rng.integers(2, 4))):
        line = np.abs(canvas.v - np.float32(v + 0.075 * i) - np.float32(tilt) * (canvas.u - np.float32(u)))
        canvas.add(_edge(np.float32(0.016) - line, 0.016) * along, 0.35 + 0.4 * strength, side)
    return u, v + 0.075, 0.22, 0.15


def _effusion(canvas: _Canvas, rng: np.random.Generator, strength: float) -> Sign:
    """Water at the bottom of a lung, higher at the wall."""
    side = _side(rng)
    level = np.float32(canvas.body.dome - 0.05 - 0.3 * strength)
    climb = np.float32(0.5) * np.clip(np.float32(side) * canvas.u - np.float32(0.4), 0, 1)
    canvas.add(_edge(canvas.v - level + climb, 0.04), 0.55 + 0.25 * strength, side)
    bottom = canvas.body.dome + 0.2
    top = float(level) - 0.12
    return side * 0.43, (top + bottom) / 2, 0.34, (bottom - top) / 2


def _infiltration(canvas: _Canvas, rng: np.random.Generator, strength: float) -> Sign:
    """Faint patches."""
    side, u, v = _spot(rng, -0.25, 0.3)
    patches = np.clip(_smooth(rng, 20) + np.float32(0.3), 0, 1)
    canvas.add(_edge(canvas.blob(u, v, 0.24, 0.3), 0.2) * patches, 0.25 + 0.3 * strength, side)
    return u, v, 0.24, 0.3


def _mass(canvas: _Canvas, rng: np.random.Generator, strength: float) -> Sign:
    """A large round shadow with waves on its edge."""
    side, u, v = _spot(rng, -0.4, 0.25)
    radius = 0.1 + 0.06 * float(rng.random())
    bumps = np.float32(0.012) * np.sin(9 * np.arctan2(canvas.v - np.float32(v), canvas.u - np.float32(u)))
    canvas.add(_edge(canvas.blob(u, v, radius, radius) + bumps, 0.02), 0.35 + 0.3 * strength, side)
    return u, v, radius, radius


def _nodule(canvas: _Canvas, rng: np.random.Generator, strength: float) -> Sign:
    """A small round shadow."""
    side, u, v = _spot(rng, -0.45, 0.3)
    radius = 0.03 + 0.025 * float(rng.random())
    canvas.add(_edge(canvas.blob(u, v, radius, radius), 0.015), 0.4 + 0.3 * strength, side)
    return u, v, radius, radius


def _pneumonia(canvas: _Canvas, rng: np.random.Generator, strength: float) -> Sign:
    """One lobe in haze, with dark branching airways in it."""
    side, u, v = _spot(rng, 0.05, 0.35)
    haze = _edge(canvas.blob(u, v, 0.24, 0.22), 0.12)
    du, dv = canvas.u - np.float32(side * 0.2), canvas.v - np.float32(0.02)
    airways = np.clip(np.cos(np.arctan2(dv, np.abs(du)) * 22) * 3 - 2, 0, 1)
    canvas.add(haze * (1 - np.float32(0.8) * airways), 0.4 + 0.3 * strength, side)
    return u, v, 0.24, 0.22


def _pneumothorax(canvas: _Canvas, rng: np.random.Generator, strength: float) -> Sign:
    """The lung has left the wall: black without vessels outside of a fine line."""
    side = _side(rng)
    gap = np.float32(0.06 + 0.09 * strength)
    u, v = side * 0.43 * canvas.body.width, 0.25
    shrunk = canvas.blob(u, v, 0.33, 1.06) - gap
    outside = np.clip(side * (canvas.u - np.float32(u)) * 6 + np.float32(0.5), 0, 1)
    outside = np.maximum(outside, _edge(np.float32(-0.35) - canvas.v, 0.1)) * _edge(-shrunk, 0.02)
    canvas.density -= outside * _edge(canvas.lung[side]) * (canvas.density - np.float32(0.05)) * np.float32(0.85)
    line = _edge(np.float32(0.007) - np.abs(shrunk), 0.01)
    canvas.add(line * _edge(side * (canvas.u - np.float32(u)), 0.1), 0.5, side)
    return side * 0.55, -0.2, 0.24, 0.6


def _consolidation(canvas: _Canvas, rng: np.random.Generator, strength: float) -> Sign:
    """A dense even wedge with straight borders, its point at the root of the lung."""
    side, u, v = _spot(rng, -0.35, 0.2)
    away = np.float32(side) * canvas.u - np.float32(0.2)
    middle = np.abs(canvas.v - np.float32(v) * away / np.float32(0.25))
    wedge = np.minimum(np.float32(0.06) + np.float32(0.35) * away - middle, np.float32(0.45) - away)
    canvas.add(_edge(wedge, 0.02) * _edge(away, 0.02), 0.5 + 0.3 * strength, side)
    return u, v, 0.22, 0.2


def _edema(canvas: _Canvas, rng: np.random.Generator, strength: float) -> Sign:
    """Wings of haze at the roots of both lungs, and short lines at the walls."""
    lines = np.clip(np.sin(canvas.v * 110 + np.float32(rng.uniform(0, 6.3))) * 2 - 1, 0, 1)
    for side in (-1, 1):
        wing = np.clip(1 - np.hypot((canvas.u - np.float32(side * 0.25)) / 0.3, canvas.v / np.float32(0.4)), 0, 1)
        canvas.add(wing.astype(np.float32), 0.6 + 0.4 * strength, side)
        near_wall = _edge(np.float32(side) * canvas.u - np.float32(0.58), 0.04) * _edge(canvas.v - np.float32(0.1), 0.1)
        canvas.add(near_wall * lines, 0.3 * strength, side)
    return 0.0, 0.0, 0.55, 0.4


def _fibrosis(canvas: _Canvas, rng: np.random.Generator, strength: float) -> Sign:
    """A net of fine lines, most at the bottom and the walls of both lungs."""
    a, b = (np.float32(rng.uniform(60, 80)) for _ in range(2))
    net = np.maximum(np.sin(a * (canvas.u + canvas.v)), np.sin(b * (canvas.u - canvas.v)))
    net = np.clip(net * 2 - 1, 0, 1) * np.clip(canvas.v + np.float32(0.45), 0, 1)
    for side in (-1, 1):
        canvas.add(net, 0.25 + 0.3 * strength, side)
    return 0.0, 0.3, 0.75, 0.4


def _thickening(canvas: _Canvas, rng: np.random.Generator, strength: float) -> Sign:
    """A band along the wall of one lung."""
    side = _side(rng)
    band = np.float32(0.02 + 0.035 * strength) - canvas.lung[side]
    middle = float(rng.uniform(-0.25, 0.2))
    where = _edge(np.float32(0.4) - np.abs(canvas.v - np.float32(middle)), 0.1)
    outer = _edge(np.float32(side) * canvas.u - np.float32(0.5), 0.1)
    canvas.add(_edge(band, 0.015) * where * outer, 0.5 + 0.3 * strength, side)
    return side * 0.68, middle, 0.12, 0.4


def _hernia(canvas: _Canvas, rng: np.random.Generator, strength: float) -> Sign:
    """Behind the heart a round shadow with a bubble of air and a level in it."""
    u, v = float(rng.uniform(-0.08, 0.08)), canvas.body.dome - 0.12
    radius = 0.13 + 0.07 * strength
    canvas.add(_edge(canvas.blob(u, v, radius, radius), 0.02), 0.5)
    bubble = _edge(canvas.blob(u, v, 0.8 * radius, 0.8 * radius), 0.02) * _edge(np.float32(v) - canvas.v, 0.015)
    canvas.density -= bubble * np.float32(0.75) * (canvas.density - np.float32(0.1))
    return u, v, radius, radius


_SIGNS: dict[str, Callable[[_Canvas, np.random.Generator, float], Sign]] = {
    "Atelectasis": _atelectasis,
    "Effusion": _effusion,
    "Infiltration": _infiltration,
    "Mass": _mass,
    "Nodule": _nodule,
    "Pneumonia": _pneumonia,
    "Pneumothorax": _pneumothorax,
    "Consolidation": _consolidation,
    "Edema": _edema,
    "Fibrosis": _fibrosis,
    "Pleural_Thickening": _thickening,
    "Hernia": _hernia,
}
"""How a finding is drawn; Cardiomegaly and Emphysema are drawn with the anatomy."""


def _edge(depth: Field, soft: float = 0.025) -> Field:
    """0 outside, 1 inside, and between them over `soft` where the depth is about 0."""
    return np.clip(depth / np.float32(soft) + np.float32(0.5), 0, 1).astype(np.float32, copy=False)


def _smooth(rng: np.random.Generator, n: int) -> Field:
    """Noise of deviation about 0.7 without detail finer than 1/n of the picture."""
    matrix = _upsampling(n)
    return matrix @ rng.standard_normal((n, n), np.float32) @ matrix.T


@cache
def _upsampling(n: int) -> Float32[np.ndarray, "side n"]:
    """Linear interpolation of n points to the picture's side."""
    at = np.linspace(0, n - 1, SIDE)
    return np.maximum(0, 1 - np.abs(at[:, None] - np.arange(n)[None, :])).astype(np.float32)
