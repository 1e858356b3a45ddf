"""2D views of cached radiographs against per-image pipelines of Pillow and TorchIO: one thread, CPU seconds, interleaved.

An image's views are recipe `paper`'s: two global and six local ones of 224 x 224 out of 256 x 256. The two others do
what ours does with their own means, image by image: crop, antialiased resize, flip, rotation, blur, normalisation,
cutout. TorchIO has no resized crop; it is made of its CropOrPad-like slice and Resize.
"""

import math
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from pcrl_cli.augment.images import IMAGENET_MEAN, IMAGENET_STD, ImageRanges, draw_multi, views_of
from pcrl_cli.core.rng import Stream

IMAGES, SIDE = 4, 256
RANGES = ImageRanges()


def measure(repeats: int = 5) -> dict[str, float]:
    """Medians over `repeats`: CPU seconds an image (eight views) of ours, Pillow's and TorchIO's, and the ratios."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        sides: dict[str, Callable[[Tensor, int], None]] = {"ours": _ours, "pillow": _pillow, "torchio": _torchio}
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        for step in range(repeats + 1):
            images = (Stream.of("images", step).each(IMAGES).uniform(1, SIDE, SIDE) * 255).to(torch.uint8)
            for name, side in sides.items():
                start = time.process_time()
                side(images, step)
                if step:
                    seconds[name].append((time.process_time() - start) / IMAGES)
    finally:
        torch.set_num_threads(threads)
    found = {f"{name}_s_per_image": statistics.median(values) for name, values in seconds.items()}
    for name in ("pillow", "torchio"):
        found[f"{name} / ours"] = found[f"{name}_s_per_image"] / found["ours_s_per_image"]
    return found


def _ours(images: Tensor, step: int) -> None:
    unit = images.float() / 255
    stream = Stream.of("views", step).each(len(images))
    boxes = draw_multi(stream, (SIDE, SIDE), RANGES)
    views_of(unit, stream, boxes[0], RANGES, "global")
    views_of(unit, stream, boxes[1], RANGES, "local")


def _drawn(rng: np.random.Generator, local: bool) -> tuple[int, int, int, int]:
    """(left, top, width, height)"""
    area = SIDE * SIDE * rng.uniform(*(RANGES.local_area if local else RANGES.global_area))
    root = math.sqrt(math.exp(rng.uniform(math.log(RANGES.aspect[0]), math.log(RANGES.aspect[1]))))
    w, h = (min(SIDE, round(math.sqrt(area) * f)) for f in (root, 1 / root))
    return int(rng.integers(SIDE - w + 1)), int(rng.integers(SIDE - h + 1)), w, h


def _normalised(unit: Tensor, rng: np.random.Generator, local: bool) -> Tensor:
    """ImageNet's mean and deviation in three channels, and holes in global views."""
    mean, std = (torch.tensor(v)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
    view = (unit - mean) / std
    for row, column in rng.integers(RANGES.global_side, size=(0 if local else 3, 2)):
        view[:, max(0, row - 16) : row + 16, max(0, column - 16) : column + 16] = 0
    return view


def _pillow(images: Tensor, step: int) -> None:
    from PIL import Image, ImageFilter

    rng = np.random.default_rng(step)
    views = []
    for image in images[:, 0].numpy():
        for k in range(8):
            local = k >= 2
            left, top, w, h = _drawn(rng, local)
            view = Image.fromarray(image).crop((left, top, left + w, top + h))
            view = view.resize((RANGES.global_side, RANGES.global_side), Image.Resampling.BILINEAR)
            if rng.random() < 0.5:
                view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            view = view.rotate(rng.uniform(-10, 10), Image.Resampling.BILINEAR)
            target = torch.from_numpy(np.array(view)).float()[None] / 255
            if not local:
                views.append(_normalised(target, rng, True))
            if rng.random() < 0.5:
                view = view.filter(ImageFilter.GaussianBlur(rng.uniform(0.1, 2)))
            views.append(_normalised(torch.from_numpy(np.array(view)).float()[None] / 255, rng, local))
    torch.stack(views)


def _torchio(images: Tensor, step: int) -> None:
    import torchio as tio

    rng = np.random.default_rng(step)
    resize = tio.Resize((RANGES.global_side, RANGES.global_side, 1))
    views = []
    for image in images.float() / 255:
        for k in range(8):
            local = k >= 2
            left, top, w, h = _drawn(rng, local)
            x = resize(image[:, top : top + h, left : left + w, None].contiguous())
            if rng.random() < 0.5:
                x = tio.Flip(axes=(1,))(x)
            x = tio.Affine(
                scales=(1.0, 1.0, 1.0),
                degrees=(0, 0, rng.uniform(-10, 10)),
                translation=(0.0, 0.0, 0.0),
                default_pad_value=0,
            )(x)
            if not local:
                views.append(_normalised(x[..., 0], rng, True))
            if rng.random() < 0.5:
                sigma = rng.uniform(0.1, 2)
                x = tio.Blur(std=(sigma, sigma, 0))(x)
            views.append(_normalised(x[..., 0], rng, local))
    torch.stack(views)
