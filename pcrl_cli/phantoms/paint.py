"""What phantoms of volumes with masks are painted with: structures by their depth below an edge, positive inside, so that
borders fade over about a voxel as they do in a scanner.
"""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Float64, Num, UInt8
from scipy.ndimage import gaussian_filter, zoom

from pcrl_cli.core.files import write_atomic
from pcrl_cli.core.plan import Grid
from pcrl_cli.data.volume import Volume, as_filed

Field = Float32[np.ndarray, "x y z"]
Axes = tuple[np.ndarray, np.ndarray, np.ndarray]
Point = Float64[np.ndarray, "3"]


def axes(shape: Sequence[int], spacing: Point) -> Axes:
    """x, y and z (mm) of the voxel centres from the middle of the grid, to be broadcast."""
    lines = [((np.arange(n) - (n - 1) / 2) * s).astype(np.float32) for n, s in zip(shape, spacing, strict=True)]
    x, y, z = (line.reshape([-1 if i == axis else 1 for i in range(3)]) for axis, line in enumerate(lines))
    return x, y, z


def ellipsoid(at: Axes, centre: Point, half: Point) -> Field:
    """Depth (mm) below the surface of an ellipsoid with these half axes (mm); exact on the surface."""
    scaled = zip(at, centre, half, strict=True)
    r2 = sum(((a - np.float32(c)) / np.float32(h)) ** 2 for a, c, h in scaled)
    return ((1 - np.sqrt(r2)) * np.float32(half.min())).astype(np.float32)


def waves(rng: np.random.Generator, at: Axes, size_mm: float, height_mm: float) -> Field:
    """A smooth random surface that lumps of about size_mm rise and sink in, by height_mm."""
    k, phase = rng.normal(0, 1 / size_mm, (4, 3)).astype(np.float32) * 3, rng.uniform(0, 6.3, 4).astype(np.float32)
    total = sum(np.sin(a * at[0] + b * at[1] + c * at[2] + p) for (a, b, c), p in zip(k, phase, strict=True))
    return np.asarray(total * np.float32(height_mm / 2), np.float32)


def texture(rng: np.random.Generator, shape: Sequence[int], cells: int) -> Field:
    """Standard normal numbers on a coarse lattice, linear between them."""
    coarse = rng.standard_normal([cells] * 3, np.float32)
    return np.asarray(zoom(coarse, np.array(shape) / cells, order=1), np.float32)


def noise(rng: np.random.Generator, shape: Sequence[int], sigma: float) -> Field:
    """What a scanner adds: a little blurred, deviation `sigma`."""
    blurred = gaussian_filter(rng.standard_normal(list(shape), np.float32), 0.6)
    return np.asarray(blurred * np.float32(sigma / blurred.std()), np.float32)


def blend(values: Field, depth: Num[np.ndarray, "x y z"], value: float | np.ndarray, soft: float) -> None:
    """Paints a structure, in place; its border fades over `soft` mm."""
    cover = np.clip(0.5 + depth / np.float32(soft), 0, 1).astype(np.float32)
    values += cover * (np.float32(value) - values)


def turned(array: Num[np.ndarray, "x y z"], grid: Grid, direction: Float64[np.ndarray, "3 3"]) -> Volume:
    """The upright voxels as a scanner of another orientation would store them, every one at its place.

    direction: a signed permutation, of the file's axes.
    """
    filed = as_filed(array, direction)
    order = [int(np.argmax(np.abs(direction[:, axis]))) for axis in range(3)]  # the world axis of each of the file's
    spacing = grid.spacing[order]
    far = np.where(direction.sum(axis=1) < 0, np.array(grid.shape) - 1, 0) * grid.spacing
    stored = np.ascontiguousarray(filed)
    return Volume(
        stored if stored.dtype == np.int16 else stored.astype(np.float32), spacing, grid.origin + far, direction
    )


def turned_mask(mask: UInt8[np.ndarray, "x y z"], direction: Float64[np.ndarray, "3 3"]) -> UInt8[np.ndarray, "i j k"]:
    return np.ascontiguousarray(as_filed(mask, direction))


def write_rows(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A CSV, whole or not there."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([header, *rows])
    write_atomic(path, text.getvalue().encode())
