"""Resizing a crop by one small matrix an axis.

The same linear map as scikit-image's `resize(order=1, anti_aliasing=True, mode="reflect")`: where an axis shrinks by
f > 1 a Gaussian with sigma = (f - 1) / 2 first, then linear interpolation at half-pixel centres. Both steps are
separable, so they fold into one matrix an axis, and a crop costs three matrix products.
"""

from functools import lru_cache

import numpy as np
from jaxtyping import Float, Float64, Int

TRUNCATE = 4.0  # the Gaussian is cut off at this many standard deviations


@lru_cache(maxsize=256)
def resize_matrix(n_in: int, n_out: int) -> Float64[np.ndarray, "n_out n_in"]:
    """The matrix that resizes an axis of n_in voxels to n_out; rows sum to 1; read-only, because it is shared."""
    factor = n_in / n_out
    centres = (np.arange(n_out) + 0.5) * factor - 0.5
    low = np.floor(centres).astype(np.int64)
    weight = centres - low
    linear = np.zeros((n_out, n_in))
    rows = np.arange(n_out)
    np.add.at(linear, (rows, _mirrored(low, n_in)), 1.0 - weight)
    np.add.at(linear, (rows, _mirrored(low + 1, n_in)), weight)
    matrix = linear @ _gaussian(n_in, (factor - 1.0) / 2.0)
    matrix.setflags(write=False)
    return matrix


def resize(values: Float[np.ndarray, "*s"], shape: tuple[int, ...]) -> Float64[np.ndarray, "*t"]:
    """`values` (two or three axes) on a grid of another shape over the same extent, computed in float64."""
    if values.ndim == 2:
        return resize(values[None], (1, *shape))[0]
    out = np.ascontiguousarray(values, dtype=np.float64)
    for axis in (2, 1, 0):
        if out.shape[axis] != shape[axis]:
            out = _along(out, axis, resize_matrix(out.shape[axis], shape[axis]))
    return out


def _along(
    values: Float64[np.ndarray, "x y z"], axis: int, matrix: Float64[np.ndarray, "n_out n_in"]
) -> Float64[np.ndarray, "a b c"]:
    if axis == 2:
        return values @ matrix.T
    if axis == 1:
        return matrix @ values
    return (matrix @ values.reshape(len(values), -1)).reshape(len(matrix), *values.shape[1:])


def _mirrored(index: Int[np.ndarray, "*s"], n: int) -> Int[np.ndarray, "*s"]:
    """Indices beyond an axis, mirrored at the centres of its first and last voxel."""
    if n == 1:
        return np.zeros_like(index)
    wrapped = index % (2 * n - 2)
    return np.minimum(wrapped, 2 * n - 2 - wrapped)


def _gaussian(n: int, sigma: float) -> Float64[np.ndarray, "n n"]:
    """The smoothing of an axis as a matrix; the identity where sigma is not positive."""
    radius = int(TRUNCATE * sigma + 0.5) if sigma > 0 else 0
    offsets = np.arange(-radius, radius + 1)
    kernel = np.exp(-0.5 * (offsets / sigma) ** 2) if radius else np.ones(1)
    kernel /= kernel.sum()
    matrix = np.zeros((n, n))
    rows = np.arange(n)
    for offset, weight in zip(offsets, kernel, strict=True):
        np.add.at(matrix, (rows, _mirrored(rows + offset, n)), weight)
    return matrix
