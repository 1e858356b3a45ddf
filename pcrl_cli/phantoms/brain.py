"""Brain MR phantoms in the layout of BraTS 2018: four sequences of a skull-stripped brain with a tumour.

A patient is a function of (seed, index) alone. Lengths are millimetres in a frame at the middle of the scan, LPS. A high
grade tumour (HGG) has a necrotic middle (label 1), an enhancing rim (4) and oedema round it (2); a low grade one (LGG) a
core that does not enhance (1) and less oedema. Every patient and sequence has its own unit of intensity and bias field.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int16, UInt8

from pcrl_cli.core.plan import Grid
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

VERSION = 1  # to be raised with whatever changes the bytes of a patient
LAST = "cases.csv"
"""The file that `make` writes last: what is in each scan."""
SHAPE = (80, 96, 72)  # voxels of 1 mm
NECROSIS, OEDEMA, ENHANCING = 1, 2, 4
TISSUE = {  # relative intensity of fluid, grey, white matter, necrosis, oedema, enhancing rim
    "flair": (0.15, 1.1, 0.95, 0.6, 1.9, 1.5),
    "t1": (0.4, 1.0, 1.4, 0.55, 0.85, 0.95),
    "t1ce": (0.4, 1.0, 1.4, 0.55, 0.85, 2.4),
    "t2": (2.3, 1.4, 1.05, 2.1, 2.0, 1.5),
}
_FLIPPED = np.diag([-1.0, -1.0, 1.0])


@dataclass(frozen=True)
class Phantom:
    """One patient, upright: its sequences by name, 0 outside the brain, and the labels."""

    name: str
    grade: str
    sequences: dict[str, Int16[np.ndarray, "x y z"]]
    mask: UInt8[np.ndarray, "x y z"]
    flipped: bool


def make(root: Path, patients: int = 14, seed: int = 0, progress: Callable[[int, int], None] | None = None) -> None:
    """Writes `root/HGG/CASE/CASE_{flair,t1,t1ce,t2,seg}.nii.gz`, LGG alike and, last, `root/cases.csv`.

    The same bytes on every run, and patient i the same for any number of patients. `progress(done, patients)` is called
    after each. Existing files of the same names are replaced, each at once.
    """
    rows = []
    for index in range(patients):
        phantom = brain(seed, index)
        folder = Path(root) / phantom.grade / phantom.name
        folder.mkdir(parents=True, exist_ok=True)
        grid = Grid(SHAPE, np.ones(3), np.array([0.0, -float(SHAPE[1] - 1), 0.0]), np.eye(3))
        direction = _FLIPPED if phantom.flipped else np.eye(3)
        for what, voxels in phantom.sequences.items():
            volume = turned(voxels, grid, direction)
            write_nifti(volume, folder / f"{phantom.name}_{what}.nii.gz")
        write_mask(turned_mask(phantom.mask, direction), volume, folder / f"{phantom.name}_seg.nii.gz")
        rows.append((phantom.name, phantom.grade, *(int((phantom.mask == k).sum()) for k in (1, 2, 4))))
        if progress:
            progress(index + 1, patients)
    write_rows(Path(root) / LAST, ("case", "grade", "necrosis_mm3", "oedema_mm3", "enhancing_mm3"), rows)


def brain(seed: int, index: int) -> Phantom:
    """Draws patient `index`; one in four is of low grade, and one in four is stored the other way round."""
    rng = np.random.default_rng([seed, index, 0xB4A1])
    at = axes(SHAPE, np.ones(3))
    grade = "LGG" if index % 4 == 3 else "HGG"
    half = np.array([33.0, 41.0, 30.0]) * rng.uniform(0.92, 1.06, 3)
    inside = ellipsoid(at, np.zeros(3), half) + waves(rng, at, 30.0, 0.8)
    tissue = _tissue(rng, at, inside, half)
    tumour, rim, core = _tumour(rng, at, inside, grade)
    tissue |= {"necrosis": core, "oedema": tumour, "enhancing": rim}
    mask = np.zeros(SHAPE, np.uint8)
    mask[(tumour > 0) & (inside > 0)] = OEDEMA
    if grade == "HGG":
        mask[(rim > 0) & (inside > 0)] = ENHANCING
    mask[(core > 0) & (inside > 0)] = NECROSIS
    sequences = {what: _sequence(rng, tissue, inside, TISSUE[what], grade) for what in TISSUE}
    return Phantom(f"Brats18_PCRL{seed}_{index}_1", grade, sequences, mask, index % 4 == 1)


def _tissue(rng: np.random.Generator, at: Axes, inside: Field, half: np.ndarray) -> dict[str, Field]:
    """Depths (mm) of white matter under a folded cortex, and of two ventricles."""
    white = inside - np.float32(rng.uniform(3.5, 5)) + waves(rng, at, 5.0, 1.6)
    reach = np.array([0.13, 0.4, 0.2]) * half * rng.uniform(0.8, 1.3)
    sides = [ellipsoid(at, np.array([side * 0.17, 0.05, 0.08]) * half, reach) for side in (-1, 1)]
    return {"white": white, "fluid": np.maximum(*sides) + waves(rng, at, 10.0, 0.4)}


def _tumour(rng: np.random.Generator, at: Axes, inside: Field, grade: str) -> tuple[Field, Field, Field]:
    """Depths (mm) of the whole tumour, of what the rim encloses with itself, and of the core within it."""
    spots = np.argwhere(inside > 8)
    i, j, k = spots[rng.integers(len(spots))]
    centre = np.array([at[0][i, 0, 0], at[1][0, j, 0], at[2][0, 0, k]], np.float64)
    radius, stretch = rng.uniform(8, 19), rng.uniform(0.8, 1.2, 3)
    whole = ellipsoid(at, centre, radius * stretch) + waves(rng, at, 9.0, 0.1 * radius)
    share = rng.uniform(0.5, 0.75)
    outer = ellipsoid(at, centre, share * radius * stretch) + waves(rng, at, 8.0, 0.05 * radius)
    thick = rng.uniform(1.5, 0.35 * share * radius + 1.6) if grade == "HGG" else 0.0
    return whole, outer, np.asarray(outer - np.float32(thick), np.float32)


def _sequence(
    rng: np.random.Generator, tissue: dict[str, Field], inside: Field, values: tuple[float, ...], grade: str
) -> Int16[np.ndarray, "x y z"]:
    """One sequence: tissues, texture, a bias field and noise in a unit of its own; at least 1 in the brain, 0 outside."""
    fluid, grey, white, necrosis, oedema, enhancing = values
    image = np.full(SHAPE, grey, np.float32)
    blend(image, tissue["white"], white, 1.5)
    blend(image, tissue["fluid"], fluid, 1.5)
    blend(image, tissue["oedema"], oedema, 2.0)
    if grade == "HGG":
        blend(image, tissue["enhancing"], enhancing, 1.5)
    blend(image, tissue["necrosis"], necrosis, 1.5)
    image *= 1 + 0.06 * texture(rng, SHAPE, 4) + 0.02 * texture(rng, SHAPE, 12)
    image += noise(rng, SHAPE, rng.uniform(0.03, 0.07))
    image *= np.float32(rng.uniform(150, 700))
    return np.where(inside > 0, np.clip(np.rint(image), 1, 32767), 0).astype(np.int16)
