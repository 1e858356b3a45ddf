"""Chest phantoms in LUNA16's layout: made patients with nodules to find and vessel forks to confuse them with.

A patient is a function of (seed, index) alone. Lengths are millimetres in a frame at the middle of the scan, LPS: x to
the patient's left, y to the back, z to the head. Structures are painted by their depth below an edge, positive inside,
so that borders fade over about a voxel as they do in CT.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32, Float64
from scipy.ndimage import gaussian_filter, zoom

from pcrl_cli.core.case import Points
from pcrl_cli.data.volume import Volume
from pcrl_cli.readers.volume_io import write_mhd

AIR, FAT, MUSCLE, BLOOD, MARROW, BONE = -1000.0, -100.0, 50.0, 45.0, 180.0, 480.0  # HU
VERSION = 1  # to be raised with whatever changes the bytes of a patient
_SIDES = (-1, 1)  # the right lung lies at negative x
LAST = "candidates_V2.csv"
"""The file that `make` writes last."""
_POSITION = "seriesuid,coordX,coordY,coordZ"

Field = Float32[np.ndarray, "x y z"]


@dataclass(frozen=True)
class Phantom:
    """One patient: a scan in HU, its nodules (k, 4) as centre (LPS, mm) and diameter, its candidates."""

    volume: Volume
    lesions: Float64[np.ndarray, "k 4"]
    points: Points


def make(root: Path, patients: int = 40, seed: int = 0, progress: Callable[[int, int], None] | None = None) -> None:
    """Writes `root/subset0/UID.mhd` and `.raw`, `root/annotations.csv` and `root/candidates_V2.csv`.

    The same bytes on every run, and patient i the same for any number of patients. `progress(done, patients)` is called
    after each. Existing files of the same names are replaced, each at once; the tables come last.
    """
    root = Path(root)
    (root / "subset0").mkdir(parents=True, exist_ok=True)
    lesions, candidates = [f"{_POSITION},diameter_mm"], [f"{_POSITION},class"]
    for index in range(patients):
        phantom, uid = chest(seed, index), series_uid(seed, index)
        write_mhd(phantom.volume, root / "subset0" / f"{uid}.mhd")
        lesions += [f"{uid},{_row(nodule)}" for nodule in phantom.lesions]
        rows = zip(phantom.points.world, phantom.points.label, strict=True)
        candidates += [f"{uid},{_row(world)},{label}" for world, label in rows]
        if progress:
            progress(index + 1, patients)
    for name, lines in (("annotations.csv", lesions), (LAST, candidates)):
        temporary = root / f".tmp-{name}"
        temporary.write_text("\n".join(lines) + "\n")
        temporary.replace(root / name)


def _row(numbers: Float64[np.ndarray, " n"]) -> str:
    return ",".join(f"{number:.4f}" for number in numbers)


def series_uid(seed: int, index: int) -> str:
    """A DICOM UID of the form for made-up numbers (2.25 and 128 bits), as long as LUNA16's are."""
    return f"2.25.{int.from_bytes(hashlib.sha256(f'chest/{seed}/{index}'.encode()).digest()[:16])}"


def chest(seed: int, index: int) -> Phantom:
    """Draws patient `index`: its body, its vessels, its nodules, its scanner; at least 128 x 128 x 112 mm."""
    rng = np.random.default_rng([seed, index])
    body = _Body.draw(rng)
    vessels = np.concatenate([_grow(rng, body, side) for side in _SIDES])
    nodules = _place_nodules(rng, body, vessels)
    forks = _pick_forks(rng, body, vessels, nodules)
    hu = _paint(rng, body, vessels, nodules)
    middle = np.array([*rng.uniform(-15, 15, 2), rng.uniform(-320, -180)])
    volume = _scan(rng, body, hu, middle, f"chest phantom {seed}/{index}")
    lesions = np.round(np.array([[*(n.centre + middle), n.diameter] for n in nodules]), 4)
    world = np.concatenate([lesions[:, :3], np.round(forks + middle, 4)])
    label = (np.arange(len(world)) < len(nodules)).astype(np.uint8)
    order = rng.permutation(len(world))
    names = tuple(f"{series_uid(seed, index)}#{i}" for i in range(len(world)))
    return Phantom(volume, lesions, Points(world[order], label[order], names))


@dataclass(frozen=True)
class _Body:
    """A trunk and the grid that it is scanned on; `size` is the field of view in mm."""

    size: Float64[np.ndarray, "3"]
    spacing: Float64[np.ndarray, "3"]
    shape: tuple[int, int, int]
    lung_hu: float
    heart: float
    rib_phase: float
    rib_slope: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> "_Body":
        spacing = np.array([*[rng.uniform(1.2, 1.6)] * 2, rng.uniform(1.5, 2.5)]).round(4)
        shape = np.ceil(rng.uniform([172, 142, 126], [200, 162, 150]) / spacing).astype(int)
        lung_hu, heart = rng.uniform(-880, -810), rng.uniform(0.9, 1.15)
        phase, slope = rng.uniform(0, 22), rng.uniform(0.2, 0.45)
        nx, ny, nz = (int(n) for n in shape)
        return cls(shape * spacing, spacing, (nx, ny, nz), lung_hu, heart, phase, slope)

    @property
    def soft(self) -> float:
        """The width (mm) over which borders fade."""
        return float(self.spacing.mean())

    def axes(self) -> list[Float32[np.ndarray, "x y z"]]:
        """x, y and z (mm) of the voxel centres, to be broadcast."""
        lines = [
            ((np.arange(n) - (n - 1) / 2) * s).astype(np.float32) for n, s in zip(self.shape, self.spacing, strict=True)
        ]
        return [line.reshape([-1 if i == axis else 1 for i in range(3)]) for axis, line in enumerate(lines)]

    def ellipse(self, x: np.ndarray, y: np.ndarray, width: float, depth: float) -> np.ndarray:
        """Depth (mm) below a rounded rectangle with half axes given as shares of the field of view."""
        a, b = width * self.size[0], depth * self.size[1]
        return (1 - (np.abs(x / a) ** 2.5 + np.abs(y / b) ** 2.5) ** 0.4) * min(a, b)

    def lung(self, side: int, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        """Depth (mm) in one lung: half an egg that stands on the dome of the diaphragm, less the heart."""
        width, depth, height = self.size
        u, v = (x - side * 0.225 * width) / (0.175 * width), y / (0.33 * depth)
        egg = (1 - np.sqrt(u**2 + v**2 + ((z + 0.3 * height) / (0.74 * height)) ** 2)) * 0.175 * width
        dome = z + height * (0.42 - 0.14 * np.exp(-(u**2) - v**2))
        return np.minimum(np.minimum(egg, dome), -self.heart_depth(x, y, z))

    def heart_depth(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        width, depth, height = self.size
        u, v = (x - 0.06 * width) / (0.17 * width), (y + 0.11 * depth) / (0.2 * depth)
        w = (z + 0.17 * height + 0.2 * x) / (0.24 * height)
        return (self.heart - np.sqrt(u**2 + v**2 + w**2)) * 0.17 * width


@dataclass(frozen=True)
class _Nodule:
    """centre (mm), diameter (mm), half axes relative to the mean radius, density (HU), lobulation."""

    centre: Float64[np.ndarray, "3"]
    diameter: float
    stretch: Float64[np.ndarray, "3"]
    hu: float
    waves: Float64[np.ndarray, "3 4"]


_VESSEL = np.dtype([("start", float, 3), ("end", float, 3), ("radius", float), ("forks", bool)])
"""One straight piece of a vessel; `forks`: it divides at its end."""


def _grow(rng: np.random.Generator, body: _Body, side: int) -> np.ndarray:
    """The vessels of one lung: five trunks from its root that divide in two until they are thin or reach the wall."""
    hilum = np.array([side * 0.075, 0.04, 0.0]) * body.size
    aims = np.array([[0.3, 0, 1], [0.6, -0.7, 0.3], [1, 0.1, 0.1], [0.6, 0.8, -0.2], [0.5, 0.3, -1]]) * [side, 1, 1]
    open_ends = [(hilum, aim + rng.normal(0, 0.15, 3), rng.uniform(3.0, 4.4)) for aim in aims]
    grown = []
    while open_ends:
        start, way, radius = open_ends.pop()
        way = way / np.linalg.norm(way)
        end = start + way * rng.uniform(3.0, 5.0) * (2.5 + 0.5 * radius)
        inside = float(body.lung(side, *end[:, None])[0]) > radius + 1
        thin = radius < 0.9
        grown.append((start, end, radius, inside and not thin))
        if inside and not thin:
            open_ends += _divide(rng, end, way, radius)
    return np.array(grown, _VESSEL)


def _divide(rng: np.random.Generator, at: np.ndarray, way: np.ndarray, radius: float) -> list[tuple]:
    """Two branches to opposite sides, the thinner one at the wider angle."""
    aside = np.cross(way, rng.normal(size=3))
    aside /= np.linalg.norm(aside)
    wide, narrow = rng.uniform(0.6, 1.1), rng.uniform(0.25, 0.5)
    thick, thin = rng.uniform(0.78, 0.9), rng.uniform(0.6, 0.8)
    return [(at, way + narrow * aside, radius * thick), (at, way - wide * aside, radius * thin)]


def _distance(points: Float64[np.ndarray, "n 3"], vessels: np.ndarray) -> Float64[np.ndarray, "n v"]:
    """From every point to the wall of every vessel (mm), negative inside it."""
    along = vessels["end"] - vessels["start"]
    offset = points[:, None] - vessels["start"]
    share = np.clip((offset * along).sum(-1) / (along**2).sum(-1), 0, 1)
    return np.linalg.norm(offset - share[..., None] * along, axis=-1) - vessels["radius"]


def _place_nodules(rng: np.random.Generator, body: _Body, vessels: np.ndarray) -> list[_Nodule]:
    """Two to six nodules of 4-20 mm in the lungs, apart from each other and not inside a large vessel."""
    placed: list[_Nodule] = []
    for _ in range(rng.integers(2, 7)):
        diameter = float(np.round(4 + 16 * rng.beta(1.2, 2.2), 3))
        spots = rng.uniform(-0.5, 0.5, (600, 3)) * body.size
        wall = np.maximum(*(body.lung(side, *spots.T) for side in _SIDES))
        spots = spots[(wall > 0.4 * diameter + 1) & _apart(spots, [n.centre for n in placed], 26.0)]
        clear = _distance(spots, vessels[vessels["radius"] > 1.2]).min(1) > 0.3 * diameter
        spots = spots[clear] if clear.any() else spots
        if len(spots):
            placed.append(_nodule(rng, spots[0], diameter))
    return placed


def _nodule(rng: np.random.Generator, centre: np.ndarray, diameter: float) -> _Nodule:
    """Most are solid; of those above 7 mm some are of ground glass."""
    glass = diameter > 7 and rng.random() < 0.25
    hu = rng.uniform(-520, -250) if glass else rng.uniform(-60, 60)
    stretch = rng.uniform(0.85, 1.15, 3)
    waves = np.concatenate([rng.normal(0, 1, (3, 3)), rng.uniform(0, 6.3, (3, 1))], axis=1)
    return _Nodule(centre, diameter, stretch / np.prod(stretch) ** (1 / 3), hu, waves)


def _pick_forks(
    rng: np.random.Generator, body: _Body, vessels: np.ndarray, nodules: list[_Nodule]
) -> Float64[np.ndarray, "m 3"]:
    """Two to four times as many forks, and some plain vessel points, as there are nodules; away from nodules."""
    wanted = int(np.ceil(len(nodules) * rng.uniform(2, 4)))
    forks = vessels["end"][vessels["forks"] & (vessels["radius"] > 1.3)]
    middles = (vessels["start"] + vessels["end"])[vessels["radius"] > 1.5] / 2
    spots = np.concatenate([rng.permutation(forks), rng.permutation(middles)[: len(forks) // 4]])
    spots = rng.permutation(spots) + rng.normal(0, 0.4, spots.shape)
    wall = np.maximum(*(body.lung(side, *spots.T) for side in _SIDES))
    far = np.all([np.linalg.norm(spots - n.centre, axis=1) > n.diameter / 2 + 9 for n in nodules], axis=0)
    picked: list[np.ndarray] = []
    for spot in spots[(wall > 3) & far]:
        if len(picked) < wanted and _apart(spot[None], picked, 7.0).all():
            picked.append(spot)
    return np.array(picked).reshape(-1, 3)


def _apart(spots: Float64[np.ndarray, "n 3"], others: list[np.ndarray], gap: float) -> Bool[np.ndarray, " n"]:
    """Which spots lie at least `gap` mm from all others."""
    return np.all(
        [np.linalg.norm(spots - other, axis=1) >= gap for other in others] or [np.ones(len(spots), bool)], axis=0
    )


def _paint(rng: np.random.Generator, body: _Body, vessels: np.ndarray, nodules: list[_Nodule]) -> Field:
    """The patient in HU, as a scanner with noise sees it."""
    hu = _trunk(body)
    in_lung = np.maximum(*(_cover(body, body.lung(side, *body.axes())) for side in _SIDES))
    texture = zoom(rng.normal(0, 1, [9, 8, 9]).astype(np.float32), np.array(body.shape) / [9, 8, 9], order=1)
    _, y, _ = body.axes()
    _blend(hu, in_lung, body.lung_hu + 70 * y / body.size[1] + 22 * texture)
    lumen = np.zeros(body.shape, np.float32)
    for vessel in vessels:
        _paint_tube(lumen, body, vessel["start"], vessel["end"], vessel["radius"])
    _blend(hu, lumen * in_lung, BLOOD)
    _paint_airways(hu, body)
    for nodule in nodules:
        _paint_nodule(hu, body, nodule, in_lung)
    sharp = rng.standard_normal(body.shape, np.float32)
    hu += gaussian_filter(sharp, (0.6, 0.6, 0.3)) * rng.uniform(40, 75)  # smoothing leaves about 0.4 of it
    return np.clip(hu, -1024, 3071)


def _trunk(body: _Body) -> Field:
    """Fat under the skin, muscle, slanted ribs in a ring round the chest, the heart, a spine of vertebrae and discs."""
    x, y, z = body.axes()
    flat = np.full((*body.shape[:2], 1), AIR, np.float32)
    skin = body.ellipse(x, y, 0.48, 0.465)
    _blend(flat, _cover(body, skin), FAT)
    _blend(flat, _cover(body, skin - 7), MUSCLE)
    hu = np.repeat(flat, body.shape[2], axis=2)
    ring = 3.5 - np.abs(body.ellipse(x, y, 0.425, 0.375))
    along = (z + body.rib_slope * y + body.rib_phase) % 22
    _blend(hu, _cover(body, np.minimum(ring, 4 - np.abs(along - 11))), BONE)
    _blend(hu, _cover(body, body.heart_depth(x, y, z)), BLOOD)
    off_spine = np.hypot(x, y - 0.325 * body.size[1])
    vertebra = 8.5 - np.abs((z + body.rib_phase) % 22 - 11)
    _blend(hu, _cover(body, np.minimum(13 - off_spine, vertebra)), BONE)
    _blend(hu, _cover(body, np.minimum(10.5 - off_spine, vertebra - 2)), MARROW)
    return hu


def _paint_airways(hu: Field, body: _Body) -> None:
    """The windpipe and its two main branches."""
    fork, top = np.array([0, 0.05, 0.08]) * body.size, np.array([0, 0.02, 0.6]) * body.size
    lumen = np.zeros(body.shape, np.float32)
    _paint_tube(lumen, body, top, fork, 7.5)
    for side in _SIDES:
        _paint_tube(lumen, body, fork, np.array([side * 0.12, 0.07, -0.04]) * body.size, 4.5)
    _blend(hu, lumen, AIR + 15)


def _paint_tube(lumen: Field, body: _Body, start: np.ndarray, end: np.ndarray, radius: float) -> None:
    """Raises `lumen` to what a straight tube covers of each voxel."""
    box, (x, y, z) = _near(body, np.minimum(start, end), np.maximum(start, end), radius + body.soft)
    along = (end - start).astype(np.float32)
    x, y, z = x - np.float32(start[0]), y - np.float32(start[1]), z - np.float32(start[2])
    share = np.clip((x * along[0] + y * along[1] + z * along[2]) / (along @ along), 0, 1)
    square = (x - share * along[0]) ** 2 + (y - share * along[1]) ** 2 + (z - share * along[2]) ** 2
    np.maximum(lumen[box], _cover(body, np.float32(radius) - np.sqrt(square)), out=lumen[box])


def _paint_nodule(hu: Field, body: _Body, nodule: _Nodule, in_lung: Field) -> None:
    """A ball, a little stretched and lobulated; it ends at the lung's wall."""
    radius = nodule.diameter / 2
    box, axes = _near(body, nodule.centre, nodule.centre, 1.4 * radius + body.soft)
    u, v, w = ((a - c) / (radius * s) for a, c, s in zip(axes, nodule.centre, nodule.stretch, strict=True))
    bumps = sum(np.sin(1.5 * (k[0] * u + k[1] * v + k[2] * w) + k[3]) for k in nodule.waves)
    depth = (1 + 0.04 * bumps - np.sqrt(u**2 + v**2 + w**2)) * radius
    part = hu[box]
    _blend(part, _cover(body, depth) * in_lung[box], np.maximum(part, np.float32(nodule.hu)))


def _near(
    body: _Body, low: np.ndarray, high: np.ndarray, margin: float
) -> tuple[tuple[slice, ...], list[Float32[np.ndarray, "x y z"]]]:
    """The voxels round a box (mm), as slices and as coordinates to be broadcast."""
    half = (np.array(body.shape) - 1) / 2
    first = np.clip(np.floor((low - margin) / body.spacing + half), 0, body.shape).astype(int)
    last = np.clip(np.ceil((high + margin) / body.spacing + half) + 1, 0, body.shape).astype(int)
    box = tuple(slice(int(a), int(b)) for a, b in zip(first, last, strict=True))
    x, y, z = body.axes()
    return box, [x[box[0]], y[:, box[1]], z[:, :, box[2]]]


def _cover(body: _Body, depth: np.ndarray) -> np.ndarray:
    """The share of a voxel that a structure covers, from the depth (mm) of the voxel's centre below its surface."""
    return np.clip(0.5 + depth / body.soft, 0, 1, dtype=np.float32, casting="same_kind")


def _blend(hu: np.ndarray, cover: np.ndarray, value: np.ndarray | float) -> None:
    hu += cover * (value - hu)


def _scan(rng: np.random.Generator, body: _Body, hu: Field, middle: np.ndarray, source: str) -> Volume:
    """Stores the patient as int16; one in six lies the other way round in memory, as some of LUNA16's scans do."""
    half = (np.array(body.shape) - 1) / 2 * body.spacing
    sign = np.array([-1.0, -1.0, 1.0]) if rng.random() < 1 / 6 else np.ones(3)
    array = np.rint(hu).astype(np.int16)[:: int(sign[0]), :: int(sign[1])]
    origin = np.round(middle - sign * half, 4)
    return Volume(array, body.spacing, origin, np.diag(sign), source)
