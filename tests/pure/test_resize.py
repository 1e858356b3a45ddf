import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pcrl_cli.pure.resize import resize, resize_matrix

SHAPES = [
    ((112, 112, 64), (64, 64, 32)),
    ((96, 96, 96), (64, 64, 32)),
    ((32, 32, 16), (16, 16, 16)),
    ((8, 8, 8), (16, 16, 16)),
    ((1, 3, 7), (4, 4, 4)),
    ((40, 21, 2), (3, 20, 5)),
    ((73, 50), (224, 30)),
]


@pytest.mark.parametrize(("shape", "out"), SHAPES)
def test_it_equals_scikit_image(shape, out):
    transform = pytest.importorskip("skimage.transform")
    values = np.random.default_rng(0).normal(scale=500, size=shape)
    expected = transform.resize(values, out, order=1, anti_aliasing=True, mode="reflect", preserve_range=True)
    np.testing.assert_allclose(resize(values, out), expected, rtol=0, atol=1e-10)


def test_the_same_shape_changes_nothing():
    values = np.random.default_rng(1).normal(size=(5, 4, 3))
    np.testing.assert_array_equal(resize(values, (5, 4, 3)), values)


@given(st.integers(1, 60), st.integers(1, 60))
@settings(max_examples=60, deadline=None)
def test_every_row_is_a_mean(n_in, n_out):
    matrix = resize_matrix(n_in, n_out)
    assert matrix.min() >= 0
    np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-12)


def test_the_shared_matrix_cannot_be_written_to():
    with pytest.raises(ValueError, match="read-only"):
        resize_matrix(4, 2)[0, 0] = 1
