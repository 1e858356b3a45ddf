"""Pictures with masks, as segmentation tasks train on them: volumes of one slice, (rows, columns, 1), grey 0 .. 255.

The working grid begins at the centre of the first pixel, as that of a scan does (`data.labelled`); positions are pixels of the
picture's own file, for a radiograph is a projection and has no millimetres.
"""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from jaxtyping import Float32, UInt8
from pydantic import BaseModel, ConfigDict, Field

from pcrl_cli.core.errors import DataError
from pcrl_cli.core.plan import Grid, Labelled
from pcrl_cli.data.labelled import Imaged, Preparation, nearest


class PicturePreparation(BaseModel):
    """How pictures become what is cached.

    size: pixels of the longer side, to which larger pictures are shrunk; None keeps every picture as it is.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    modality: Literal["xray"] = "xray"
    size: int | None = Field(default=256, ge=8)

    @property
    def to_unit(self) -> tuple[float, float]:
        """(scale, offset): [0, 1] = stored * scale + offset."""
        return 1 / 255, 0.0

    @property
    def of_images(self) -> dict[str, Any]:
        """What decides the images' values and grid."""
        return {"modality": self.modality, "size": self.size}

    @property
    def pad(self) -> int:
        """The stored value beyond a picture's edge: black."""
        return 0


def preparation(values: Mapping[str, Any]) -> Preparation | PicturePreparation:
    """Of a manifest or of a run's record."""
    of_pictures = values.get("modality") == "xray"
    return PicturePreparation.model_validate(values) if of_pictures else Preparation.model_validate(values)


def prepare_picture(
    pixels: UInt8[np.ndarray, "rows columns"], how: PicturePreparation, source: str, scan_id: str = ""
) -> Imaged:
    """A picture on the grid that a network works on.

    Raises:
        DataError: it has fewer than 2 rows or columns.
    """
    if min(pixels.shape) < 2:
        raise DataError(f"{source} has {pixels.shape[0]} x {pixels.shape[1]} pixels: leave it out.", slug="too_small")
    factor = max(1.0, max(pixels.shape) / how.size) if how.size else 1.0
    native = grid_of(pixels.shape, 1.0)
    image = pixels.astype(np.float32)
    if factor > 1:
        rows, columns = (_shrinking(n, factor) for n in pixels.shape)
        image = rows @ image @ columns.T
    grid = grid_of(image.shape, factor)
    return Imaged(np.ascontiguousarray(image[None, :, :, None]), grid, native, (scan_id,) if scan_id else ())


def label_picture(imaged: Imaged, mask: UInt8[np.ndarray, "rows columns"], source: str, other: str) -> Labelled:
    """A picture with its mask; training crops come from all of it.

    source, other: the files of the picture and of the mask, for messages.

    Raises:
        DataError: their sizes differ.
    """
    shape = imaged.native.shape
    if mask.shape != shape[:2]:
        raise DataError(
            f"{other} has {mask.shape[0]} x {mask.shape[1]} pixels and {source} {shape[0]} x {shape[1]}: they have to be of one "
            "size; resample one of them or leave the case out.",
            slug="bad_geometry",
        )
    native_mask = np.ascontiguousarray(mask[:, :, None])
    on_grid = nearest(native_mask, imaged.native, imaged.grid.spacing)
    box = np.array([[0, 0, 0], on_grid.shape], np.int64)
    return Labelled(imaged.image, on_grid, imaged.grid, native_mask, imaged.native, box, imaged.scan_ids)


def grid_of(shape: tuple[int, ...], pixel: float) -> Grid:
    """Of a picture whose pixels are so many of its file's."""
    return Grid((shape[0], shape[1], 1), np.array([pixel, pixel, 1.0]), np.zeros(3), np.eye(3))


def _shrinking(n: int, factor: float) -> Float32[np.ndarray, "m n"]:
    """Weights of a triangle as wide as the shrinking asks for, round every factor-th pixel; each row sums to 1."""
    at = np.arange(max(1, round(n / factor)))[:, None] * factor
    weight = np.maximum(0, 1 - np.abs(np.arange(n) - at) / factor)
    return (weight / weight.sum(axis=1, keepdims=True)).astype(np.float32)
