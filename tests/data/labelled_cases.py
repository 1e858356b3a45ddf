"""Made scans with masks for tests."""

from itertools import permutations, product

import numpy as np

from pcrl_cli.core.plan import Grid
from pcrl_cli.data.labelled import Volumes
from pcrl_cli.data.volume import Volume
from pcrl_cli.phantoms.paint import turned, turned_mask

AXES = [
    np.eye(3)[list(order)] * np.array(sign)
    for order in permutations(range(3))
    for sign in product((1.0, -1.0), repeat=3)
]
"""All 48 orientations."""


def grid(shape=(12, 15, 9), spacing=(1.5, 1.25, 2.5)) -> Grid:
    return Grid(shape, np.array(spacing, float), np.array([-20.0, 5.0, -300.0]), np.eye(3))


def ct(direction=None, shape=(12, 15, 9), spacing=(1.5, 1.25, 2.5), seed=0, box=((4, 5, 3), (9, 11, 7))) -> Volumes:
    """A scan of noise whose foreground fills a box; its voxels lie in the same places in every orientation."""
    rng = np.random.default_rng(seed)
    place, axes = grid(shape, spacing), np.eye(3) if direction is None else direction
    array = rng.integers(-1200, 900, shape).astype(np.int16)
    mask = np.zeros(shape, np.uint8)
    mask[tuple(slice(a, b) for a, b in zip(*box, strict=True))] = 1
    mask[box[0]] = 2
    return Volumes((turned(array, place, axes),), ("ct",), _mask(mask, place, axes))


def mr(direction=None, shape=(10, 12, 8), spacing=(1.0, 1.0, 1.0), sequences=2, seed=0) -> Volumes:
    """Sequences that are 0 but in a box, the brain."""
    rng = np.random.default_rng(seed)
    place, axes = grid(shape, spacing), np.eye(3) if direction is None else direction
    images = []
    for k in range(sequences):
        array = np.zeros(shape, np.int16)
        array[2:8, 1:10, 3:7] = rng.integers(1 + 100 * k, 900, (6, 9, 4))
        images.append(turned(array, place, axes))
    mask = np.zeros(shape, np.uint8)
    mask[4:6, 4:8, 4:6] = 2
    mask[5, 5, 5], mask[5, 6, 5] = 1, 4
    return Volumes(tuple(images), ("flair", "t1ce")[:sequences], _mask(mask, place, axes))


def _mask(mask: np.ndarray, place: Grid, axes: np.ndarray) -> Volume:
    volume = turned(mask.astype(np.int16), place, axes)
    np.testing.assert_array_equal(volume.array, turned_mask(mask, axes))
    return volume
