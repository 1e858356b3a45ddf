"""Pictures with masks on the grid that a network sees, and back."""

import numpy as np
import pytest

from pcrl_cli.core.errors import DataError
from pcrl_cli.data.labelled import Preparation
from pcrl_cli.data.pictures import PicturePreparation, label_picture, preparation, prepare_picture
from pcrl_cli.pure.volumes import to_native


def test_a_small_picture_stays_as_it_is():
    pixels = np.random.default_rng(0).integers(0, 256, (9, 12)).astype(np.uint8)
    imaged = prepare_picture(pixels, PicturePreparation(size=16), "a", "id")
    np.testing.assert_array_equal(imaged.image[0, :, :, 0], pixels)
    assert imaged.grid.shape == imaged.native.shape == (9, 12, 1)
    assert imaged.scan_ids == ("id",)
    big = prepare_picture(np.zeros((40, 30), np.uint8), PicturePreparation(size=None), "a")
    assert big.image.shape == (1, 40, 30, 1)


@pytest.mark.parametrize("shape", [(120, 90), (90, 121), (301, 512)])
def test_a_large_picture_is_shrunk_evenly_and_its_grid_says_where_pixels_lie(shape):
    ramp = np.add.outer(np.arange(shape[0]), 2 * np.arange(shape[1])).astype(np.float64)
    pixels = np.rint(ramp / ramp.max() * 255).astype(np.uint8)
    imaged = prepare_picture(pixels, PicturePreparation(size=32), "a")
    assert max(imaged.grid.shape) == 32
    at = [np.arange(n) * s for n, s in zip(imaged.grid.shape[:2], imaged.grid.spacing, strict=False)]
    wanted = np.add.outer(at[0], 2 * at[1]) / ramp.max() * 255
    inner = (slice(1, -1), slice(1, -1))
    np.testing.assert_allclose(imaged.image[0, :, :, 0][inner], wanted[inner], atol=1.0)


def test_shrinking_is_antialiased():
    stripes = np.tile(np.array([0, 255], np.uint8), (64, 32))
    found = prepare_picture(stripes, PicturePreparation(size=16), "a").image
    assert np.abs(found[0, :, 1:-1, 0] - 127.5).max() < 10


def test_a_mask_goes_to_the_working_grid_and_back():
    mask = np.zeros((120, 90), np.uint8)
    mask[20:80, 30:70] = 1
    imaged = prepare_picture(mask * 200, PicturePreparation(size=40), "a")
    scan = label_picture(imaged, mask, "a", "m")
    assert scan.mask.shape == (40, 30, 1)
    assert scan.box.tolist() == [[0, 0, 0], [40, 30, 1]]
    back = to_native((scan.mask[None] > 0).astype(np.float32), scan.grid, scan.native)[0, :, :, 0]
    assert np.count_nonzero(back ^ (mask > 0)) < 0.05 * mask.sum()
    np.testing.assert_array_equal(scan.native_mask[:, :, 0], mask)


def test_sizes_that_differ_and_pictures_of_one_row_are_refused():
    imaged = prepare_picture(np.zeros((9, 12), np.uint8), PicturePreparation(), "a.png")
    with pytest.raises(DataError, match=r"m.png has 12 x 9 pixels and a.png 9 x 12"):
        label_picture(imaged, np.zeros((12, 9), np.uint8), "a.png", "m.png")
    with pytest.raises(DataError, match="1 x 12 pixels"):
        prepare_picture(np.zeros((1, 12), np.uint8), PicturePreparation(), "a.png")


def test_a_record_says_which_preparation_it_is_of():
    for how in (PicturePreparation(size=None), Preparation(modality="mr", spacing_mm=None)):
        assert preparation(how.model_dump(mode="json")) == how
