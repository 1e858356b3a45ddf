"""Abdominal CT phantoms in LiTS's layout: a liver with lesions among other organs, to be segmented.

A patient is a function of (seed, index) alone. Lengths are millimetres in a frame at the middle of the scan, LPS: x to
the patient's left, y to the back, z to the head; the liver lies at negative x. Spacing, contrast phase, noise and the
orientation of the stored axes vary.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float64, UInt8

from pcrl_cli.core.plan import Grid
from pcrl_cli.data.volume import Volume
from pcrl_cli.phantoms.paint import (
    Axes,
    Field,
    axes,
    blend,
    ellipsoid,
    noise,
    texture,
    turned,
    turned_mask,
    waves,
    write_rows,
)
from pcrl_cli.readers.volume_io import write_mask, write_nifti

AIR, FAT, MUSCLE, BONE, MARROW = -1000.0, -100.0, 55.0, 420.0, 170.0  # HU
VERSION = 1  # to be raised with whatever changes the bytes of a patient
LAST = "cases.csv"
"""The file that `make` writes last: what is in each scan."""
FIRST_BATCH = 8  # patients in `Training Batch 1`; the others are in `Training Batch 2`
ORIENTATIONS = (
    np.diag([1.0, 1.0, 1.0]),
    np.diag([-1.0, -1.0, 1.0]),
    np.diag([1.0, 1.0, -1.0]),
    np.array([[1.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]]),  # the slices are coronal
)


@dataclass(frozen=True)
class Phantom:
    """One patient: a scan in HU, and on its grid the mask: 1 liver, 2 lesion."""

    volume: Volume
    mask: UInt8[np.ndarray, "x y z"]
    lesions: int


def make(root: Path, patients: int = 14, seed: int = 0, progress: Callable[[int, int], None] | None = None) -> None:
    """Writes `root/Training Batch N/volume-I.nii.gz`, `segmentation-I.nii.gz` and, last, `root/cases.csv`.

    The same bytes on every run, and patient i the same for any number of patients. `progress(done, patients)` is called
    after each. Existing files of the same names are replaced, each at once.
    """
    rows = []
    for index in range(patients):
        phantom = abdomen(seed, index)
        folder = Path(root) / f"Training Batch {1 if index < FIRST_BATCH else 2}"
        folder.mkdir(parents=True, exist_ok=True)
        write_mask(phantom.mask, phantom.volume, folder / f"segmentation-{index}.nii.gz")
        write_nifti(phantom.volume, folder / f"volume-{index}.nii.gz")
        ml = float(np.prod(phantom.volume.spacing)) / 1000
        liver, lesion = (int((phantom.mask >= k).sum()) * ml for k in (1, 2))
        rows.append((f"volume-{index}", phantom.lesions, f"{liver:.2f}", f"{lesion:.2f}"))
        if progress:
            progress(index + 1, patients)
    write_rows(Path(root) / LAST, ("case", "lesions", "liver_ml", "lesion_ml"), rows)


def abdomen(seed: int, index: int) -> Phantom:
    """Draws patient `index`, about 150 x 120 x 100 mm."""
    rng = np.random.default_rng([seed, index, 0xABD0])
    spacing = np.array([*[rng.uniform(1.5, 2.1)] * 2, rng.uniform(2.0, 3.5)]).round(4)
    size = rng.uniform([140, 112, 88], [160, 126, 108])
    nx, ny, nz = (int(n) for n in np.ceil(size / spacing))
    at = axes((nx, ny, nz), spacing)
    soft, scale = float(spacing.mean()), size / np.array([150.0, 120.0, 100.0])
    liver = _liver(rng, at, scale)
    hu = _body(rng, at, size, scale, soft)
    parenchyma = rng.uniform(85, 120)
    blend(hu, liver, parenchyma + 4 * texture(rng, hu.shape, 5), soft)
    _vessels(rng, hu, liver, at, parenchyma + rng.uniform(30, 60), soft)
    lesions = _lesions(rng, liver, at)
    for depth in lesions:
        blend(hu, np.minimum(depth, liver), parenchyma - rng.uniform(35, 65), soft)
    hu += noise(rng, hu.shape, rng.uniform(8, 18))
    mask = (liver > 0).astype(np.uint8)
    for depth in lesions:
        mask[(depth > 0) & (liver > 0)] = 2
    middle = np.array([*rng.uniform(-20, 20, 2), rng.uniform(-400, 100)])
    grid = Grid((nx, ny, nz), spacing, np.round(middle - (np.array([nx, ny, nz]) - 1) / 2 * spacing, 4), np.eye(3))
    direction = ORIENTATIONS[rng.choice(len(ORIENTATIONS), p=[0.45, 0.25, 0.15, 0.15])]
    stored = np.rint(np.clip(hu, -1024, 3071)).astype(np.int16)
    return Phantom(turned(stored, grid, direction), turned_mask(mask, direction), len(lesions))


def _liver(rng: np.random.Generator, at: Axes, scale: Float64[np.ndarray, "3"]) -> Field:
    """A right lobe and a thinner left one, with lumps; cut from below and towards the back by its neighbours."""
    right = ellipsoid(at, np.array([-30, -4, 6]) * scale, np.array([33, 38, 34]) * scale * rng.uniform(0.85, 1.08, 3))
    left = ellipsoid(at, np.array([4, -22, 14]) * scale, np.array([34, 19, 16]) * scale * rng.uniform(0.8, 1.1, 3))
    edge = at[2] + np.float32(38 * scale[2]) - np.float32(0.35) * at[0]
    depth = np.minimum(np.maximum(right, left) + waves(rng, at, 25.0, 1.5), edge * np.float32(0.9))
    return np.asarray(np.minimum(depth, 6 - _spine(at, scale)), np.float32)


def _spine(at: Axes, scale: Float64[np.ndarray, "3"]) -> np.ndarray:
    """Depth (mm) in the column of vertebrae."""
    return np.float32(15) - np.hypot(at[0], at[1] - np.float32(33 * scale[1]))


def _body(
    rng: np.random.Generator, at: Axes, size: Float64[np.ndarray, "3"], scale: Float64[np.ndarray, "3"], soft: float
) -> Field:
    """Skin, fat, muscle, spine, aorta, spleen, kidneys, a stomach with some air."""
    x, y, _ = at
    hu = np.full(np.broadcast_shapes(*(a.shape for a in at)), AIR, np.float32)
    a, b = 0.475 * size[0], 0.465 * size[1]
    trunk = ((1 - (np.abs(x / a) ** 2.5 + np.abs(y / b) ** 2.5) ** 0.4) * min(a, b)).astype(np.float32) + 0 * hu
    wall = rng.uniform(4, 9)
    for depth, value in ((trunk, FAT), (trunk - wall, MUSCLE), (trunk - wall - 7, FAT + 10)):
        blend(hu, depth, value, soft)
    contrast = rng.uniform(0.8, 1.2)
    organs = [
        (([38, 16, 10], [17, 20, 24]), 60 + 60 * contrast),  # spleen
        (([33, 28, -26], [12, 12, 22]), 60 + 110 * contrast),  # left kidney
        (([-36, 30, -32], [12, 12, 20]), 60 + 110 * contrast),  # right kidney
        (([34, -20, -2], [21, 20, 24]), 25.0),  # stomach
        (([6, 14, 0], [7, 7, 500]), 70 + 90 * contrast),  # aorta
    ]
    for (centre, half), value in organs:
        shift = rng.uniform(-2, 2, 3)
        blend(hu, ellipsoid(at, (np.array(centre) + shift) * scale, np.array(half) * scale), value, soft)
    blend(hu, ellipsoid(at, np.array([34, -31, -2]) * scale, np.array([12, 5, 14]) * scale), AIR + 30, soft)
    spine = _spine(at, scale) + 0 * hu
    blend(hu, spine, BONE, soft)
    blend(hu, spine - 3, MARROW, soft)
    return hu


def _vessels(rng: np.random.Generator, hu: Field, liver: Field, at: Axes, value: float, soft: float) -> None:
    """Bright tubes that fan out in the liver."""
    root = np.array([-8.0, 4.0, -4.0])
    for _ in range(rng.integers(4, 8)):
        way = np.array([-1.0, *rng.normal(0, 0.8, 2)])
        way /= np.linalg.norm(way)
        offset = [a - np.float32(c) for a, c in zip(at, root, strict=True)]
        along = np.clip(sum(o * np.float32(w) for o, w in zip(offset, way, strict=True)), 0, rng.uniform(25, 45))
        away = sum((o - along * np.float32(w)) ** 2 for o, w in zip(offset, way, strict=True))
        tube = np.float32(rng.uniform(1.8, 3.2)) - np.sqrt(away) - along * np.float32(0.03)
        blend(hu, np.minimum(tube, liver), value, soft)


def _lesions(rng: np.random.Generator, liver: Field, at: Axes) -> list[Field]:
    """None to four lumps of 8-28 mm in the liver."""
    inside = np.argwhere(liver > 4)
    found: list[Field] = []
    for _ in range(rng.integers(0, 5) if len(inside) else 0):
        i, j, k = inside[rng.integers(len(inside))]
        centre = np.array([at[0][i, 0, 0], at[1][0, j, 0], at[2][0, 0, k]], np.float64)
        half = rng.uniform(4, 14) * rng.uniform(0.8, 1.2, 3)
        found.append(ellipsoid(at, centre, half) + waves(rng, at, 12.0, 0.5))
    return found
