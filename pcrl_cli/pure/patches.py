"""A view as a grid of patches, and which of them tell and which are to be foretold (contrastive predictive coding)."""

import math
from itertools import product

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

Grid = tuple[int, ...]


def patchify(x: Float[Tensor, "b c *space"], grid: Grid, overlap: bool = False) -> Float[Tensor, "b n c *patch"]:
    """The view's patches, first axis slowest; with `overlap` they are twice as large and overlap by half.

    What the grid does not fill at an axis's end is left out.
    """
    for i, (g, n) in enumerate(zip(grid, x.shape[2:], strict=True)):
        step = n // (g + overlap)
        x = x.unfold(2 + i, step * (1 + overlap), step).narrow(2 + i, 0, g)
    d = len(grid)
    return x.movedim(1, 1 + d).flatten(1, d)


def unpatchify(patches: Float[Tensor, "b n c *patch"], grid: Grid) -> Float[Tensor, "b c *space"]:
    """The view that these patches, which do not overlap, were cut from."""
    d, (b, _, c, *size) = len(grid), patches.shape
    x = patches.reshape(b, *grid, c, *size)
    axes = [0, 1 + d]
    for i in range(d):
        axes += [1 + i, 2 + d + i]
    return x.permute(axes).reshape(b, c, *(g * n for g, n in zip(grid, size, strict=True)))


def context_rows(grid: Grid, skip: int) -> int:
    """Rows of the first axis that tell: half of those that are not skipped, the smaller half."""
    return (grid[0] - skip) // 2


def context_indices(grid: Grid, skip: int = 0) -> Int[np.ndarray, "anchors terms"]:
    """Of every column (an anchor) the patches that tell, from the widest row to the patch itself.

    An inverted pyramid: in the last telling row the column alone, a row before (2 x 1 + 1)^(d-1) patches round it, and
    so on; columns beyond the grid's edge are mirrored. 4 x 4 x 4: 10 terms; 7 rows: 35.
    """
    rows = context_rows(grid, skip)
    table = []
    for column in product(*(range(n) for n in grid[1:])):
        terms = []
        for row in range(rows):
            reach = rows - 1 - row
            for offset in product(range(-reach, reach + 1), repeat=len(column)):
                place = [_mirrored(c + o, n) for c, o, n in zip(column, offset, grid[1:], strict=True)]
                terms.append(int(np.ravel_multi_index((row, *place), grid)))
        table.append(terms)
    return np.array(table, dtype=np.int64)


def target_indices(grid: Grid, skip: int = 0) -> Int[np.ndarray, "anchors steps"]:
    """Of every column the patches to foretell, from near to far."""
    first = context_rows(grid, skip) + skip
    columns = np.arange(math.prod(grid[1:]))
    return columns[:, None] + np.arange(first, grid[0]) * len(columns)


def _mirrored(i: int, n: int) -> int:
    """The place within 0 .. n - 1 that i is a mirror image of, edges not repeated."""
    period = max(2 * (n - 1), 1)
    i %= period
    return i if i < n else period - i
