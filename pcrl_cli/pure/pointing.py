"""The pointing game (Zhang et al. 2018): does a map's peak lie in the box that a reader drew?"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

Box = tuple[float, float, float, float]
"""left, top, width, height in the map's pixels; pixel i covers [i, i + 1)."""


@dataclass(frozen=True)
class Pointing:
    """hits of n maps, and how many hits a peak at a uniformly random place would have had on average."""

    hits: int
    n: int
    by_chance: float

    @property
    def share(self) -> float | None:
        return self.hits / self.n if self.n else None

    def joined(self, other: "Pointing") -> "Pointing":
        return Pointing(self.hits + other.hits, self.n + other.n, self.by_chance + other.by_chance)


def peak(map_: Float[np.ndarray, "h w"]) -> tuple[int, int]:
    """(row, column) of the largest value; of several, such as the flat rim of an enlarged map, the most central one."""
    low, high = float(map_.min()), float(map_.max())
    places = np.argwhere(map_ >= high - 1e-6 * (high - low))
    nearest = np.argmin(((places - places.mean(axis=0)) ** 2).sum(axis=1))
    return int(places[nearest, 0]), int(places[nearest, 1])


def hits(map_: Float[np.ndarray, "h w"], boxes: Sequence[Box]) -> bool:
    """Whether the centre of the peak's pixel lies in one of the boxes."""
    row, column = peak(map_)
    return any(
        left <= column + 0.5 < left + width and top <= row + 0.5 < top + height for left, top, width, height in boxes
    )


def covered(shape: tuple[int, ...], boxes: Sequence[Box]) -> Bool[np.ndarray, "h w"]:
    """Which pixels of a map of this shape have their centre in a box."""
    at_row, at_column = np.arange(shape[0])[:, None] + 0.5, np.arange(shape[1]) + 0.5
    found = np.zeros(shape, dtype=bool)
    for left, top, width, height in boxes:
        found |= (at_row >= top) & (at_row < top + height) & (at_column >= left) & (at_column < left + width)
    return found


def point(map_: Float[np.ndarray, "h w"], boxes: Sequence[Box]) -> Pointing:
    """The game for one map and the boxes of its finding; a box is cut at the map's border."""
    return Pointing(int(hits(map_, boxes)), 1, float(covered(map_.shape, boxes).mean()))
