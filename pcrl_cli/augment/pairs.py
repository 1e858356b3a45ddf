"""From stored samples to crops and pairs of views, alike for volumes (cached crop pairs) and for images (cropped here).

3D batches hold `globals` (b, 2, c, x, y, z), 2D batches `image` (b, 1, s, s). The network sees z-normalised volumes and
ImageNet-normalised images of three channels, as in PCRLv2 and as downstream.
"""

from typing import Literal

import torch
from jaxtyping import Float, Num
from torch import Tensor

from pcrl_cli.augment import images
from pcrl_cli.augment.chains import Ranges, global_views
from pcrl_cli.augment.images import ImageRanges
from pcrl_cli.augment.intensity import z_normalise
from pcrl_cli.core.learner import Batch, Stored
from pcrl_cli.core.rng import Stream

NetworkInput = Literal["normalised", "unit"]
ARRAYS: dict[int, tuple[str, ...]] = {2: ("image",), 3: ("globals",)}
"""What is read of a cache, by dimension."""


def to_unit(values: Num[Tensor, "*shape"], stored: Stored) -> Float[Tensor, "*shape"]:
    """Stored integers in [0, 1]."""
    scale, offset = stored.to_unit
    return values.to(torch.float32, copy=True).mul_(scale).add_(offset)


def normalised(x01: Float[Tensor, "n c *space"], how: NetworkInput = "normalised") -> Float[Tensor, "n _ *space"]:
    """What the network sees of views in [0, 1]; `unit`: as they are, images repeated to three channels."""
    if x01.dim() == 5:
        return z_normalise(x01) if how == "normalised" else x01
    return images.normalise(x01) if how == "normalised" else x01.expand(-1, 3, -1, -1)


def one_crop(batch: Batch, stored: Stored, stream: Stream, ranges: ImageRanges) -> Float[Tensor, "b c *space"]:
    """One clean crop a sample in [0, 1]: one of the stored pair (3D), or a box of the image, resized (2D)."""
    if stored.dim == 3:
        pair = batch["globals"]
        which = stream.integers(2) if pair.shape[1] > 1 else torch.zeros(len(pair), dtype=torch.long)
        return to_unit(pair[torch.arange(len(pair), device=pair.device), which.to(pair.device)], stored)
    still = ranges.model_copy(update={"flip_probability": 0.0, "rotation_deg": (0.0, 0.0)})
    return cropped(to_unit(batch["image"], stored), stream, still, 1)


def cropped(
    x01: Float[Tensor, "b c h w"], stream: Stream, ranges: ImageRanges, views: int
) -> Float[Tensor, "n c side side"]:
    """So many random resized crops an image, flipped and rotated as the ranges say; n = b * views, image-major."""
    h, w = x01.shape[2:]
    boxes = images.draw_boxes(stream.fork("boxes"), (h, w), ranges.global_area, ranges.aspect, views).flatten(0, 1)
    longest = images.longest((h, w), ranges.global_area, ranges.aspect)
    drawn = images.draw_crop(stream.each(views).fork("crop"), boxes, ranges, longest)
    return images.crop(x01, drawn, ranges.global_side)


def two_views(
    batch: Batch, stored: Stored, stream: Stream, volumes: Ranges, radiographs: ImageRanges
) -> tuple[Float[Tensor, "b 2 c *space"], Float[Tensor, "b 2 c *space"]]:
    """(target, input) of two views a sample: PCRLv2's global and local augmentation, without local crops.

    3D: of the two stored crops. 2D: of two random resized crops of the image, targets ImageNet-normalised.
    """
    if stored.dim == 3:
        pair = to_unit(batch["globals"], stored)
        x, g = global_views(pair.flatten(0, 1), stream.each(2), volumes)
    else:
        image = to_unit(batch["image"], stored)
        h, w = image.shape[2:]
        boxes = images.draw_boxes(stream.fork("boxes"), (h, w), radiographs.global_area, radiographs.aspect, 2)
        longest = images.longest((h, w), radiographs.global_area, radiographs.aspect)
        drawn = images.draw_views(stream.each(2), boxes.flatten(0, 1), radiographs, longest, "global")
        x, g = images.image_views(image, drawn, radiographs.global_side, target=True)
    return x.unflatten(0, (-1, 2)), g.unflatten(0, (-1, 2))


def slices(x: Float[Tensor, "n c *space"]) -> Float[Tensor, "n 1 _ _"]:
    """The first channel with x to the right, of a volume its middle slice: what the report shows."""
    return x[:, :1].transpose(2, 3) if x.dim() == 4 else x[:, :1, :, :, x.shape[-1] // 2]
