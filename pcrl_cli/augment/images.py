"""Views of 2D images: random resized crop, flip and rotation in one resampling; grey, blur, jitter, cutout.

Conventions. Images are (b, c, h, w), rows and columns; pixel i of an axis sits at i, half-pixel centres. A box is
(top, left, height, width) in whole pixels. The crop is resized to `side` as torchvision's RandomResizedCrop does it,
then flipped, then rotated about the view's centre; all three are one bilinear look-up. A point whose source lies beyond
the crop's border is black, 0; between the crop's last pixel centre and its border the edge value holds. Where the crop
is larger than the view, the image is low-passed first, an axis by itself, by a discrete Gaussian of variance
(f^2 - 1) / 6, f the factor: together with the bilinear look-up that is the spread of the triangle of half-width f that
torchvision and Pillow use.

Two differences from torchvision, both stated: its rotation takes the nearest pixel of the view that was already
resized; and its antialiasing does not see what lies outside the crop, which here reaches a pixel or two at the rim.

Every transform has its draw (`draw_x(stream, ...)`, one stream a view) and its application (`x(batch, params)`). Values
lie in [0, 1] up to `normalise`.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt
from torch import Tensor

from pcrl_cli.augment.chains import Span, SpanAboveZero, SpanFromZero, take
from pcrl_cli.augment.intensity import blur_matrix, radius
from pcrl_cli.core.constants import constant
from pcrl_cli.core.rng import Stream

TRIES = 10  # torchvision's
PAIR_TRIES = 64
"""Pairs drawn at once for `--crop sub`; fewer than one in 10^12 sets has no pair that overlaps enough."""
BLOCK_PIXELS = {"cpu": 2**17}
"""Views are worked on in blocks of about this size, on an accelerator of 2^27 pixels, so that memory stays bounded."""
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
LUMA = (0.299, 0.587, 0.114)

Probability = Annotated[float, Field(ge=0, le=1)]
Area = Annotated[SpanAboveZero, Field(description="share of the image's area")]


class ImageRanges(BaseModel):
    """What is drawn from: uniform [low, high), one a view. The defaults are recipe `paper`'s."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    global_side: PositiveInt = 224
    local_side: PositiveInt = Field(224, description="released code: 96")
    locals: PositiveInt = 6
    global_area: Area = (0.3, 1.0)
    local_area: Area = (0.05, 0.3)
    aspect: SpanAboveZero = Field((3 / 4, 4 / 3), description="width / height, log-uniform")
    min_overlap: Probability = Field(0.3, description="IoU of the two global boxes with `--crop sub`")
    flip_probability: Probability = 0.5
    rotation_deg: Span = (-10.0, 10.0)
    grey_probability: Probability = Field(0.2, description="does nothing to images of one channel")
    blur_probability: Probability = 0.5
    blur_sigma_pixel: SpanFromZero = (0.1, 2.0)
    jitter: bool = Field(False, description="brightness and contrast; released code: on")
    brightness: SpanFromZero = (0.6, 1.4)
    contrast: SpanFromZero = (0.6, 1.4)
    cutout_holes: NonNegativeInt = Field(3, description="of global views")
    cutout_side: PositiveInt = Field(32, description="pixels")


# ---- boxes -----------------------------------------------------------------------------------------------------------


def draw_shapes(
    stream: Stream, shape: tuple[int, int], area: tuple[float, float], aspect: tuple[float, float], n: int = 1
) -> Int[Tensor, "b n 2"]:
    """(height, width) of n boxes a stream by torchvision's rule.

    Area a share of the image's, aspect log-uniform, sides rounded; the first of ten tries that fits into the image;
    else the largest box within the aspect's bounds.
    """
    h, w = shape
    size = (stream.uniform(n, TRIES, low=area[0], high=area[1]) * (h * w)).sqrt()
    root = (0.5 * stream.uniform(n, TRIES, low=math.log(aspect[0]), high=math.log(aspect[1]))).exp()
    tried = torch.stack([(size / root).round(), (size * root).round()], dim=3).long()  # b n tries 2
    fits = ((tried >= 1) & (tried <= constant(shape, tried.device))).all(dim=3)
    first = fits.int().argmax(dim=2)[:, :, None, None].expand(-1, -1, 1, 2)
    fallback = constant(largest(shape, aspect), tried.device)
    return torch.where(fits.any(dim=2, keepdim=True), tried.gather(2, first)[:, :, 0], fallback)


def largest(shape: tuple[int, int], aspect: tuple[float, float]) -> tuple[int, int]:
    """(height, width) of the largest box whose aspect lies within the bounds."""
    h, w = shape
    if w / h < aspect[0]:
        return round(w / aspect[0]), w
    if w / h > aspect[1]:
        return h, round(h * aspect[1])
    return h, w


def draw_boxes(
    stream: Stream, shape: tuple[int, int], area: tuple[float, float], aspect: tuple[float, float], n: int = 1
) -> Int[Tensor, "b n 4"]:
    """n boxes a stream anywhere in the image, torchvision's RandomResizedCrop.get_params.

    One difference: where no try fitted, the largest box lies anywhere, too, instead of in the centre. In a square image
    with the usual bounds that is the whole image either way.
    """
    size = draw_shapes(stream, shape, area, aspect, n)
    room = constant(shape, size.device) - size
    return torch.cat([_start(stream, room), size], dim=2)


def draw_pairs(
    stream: Stream, shape: tuple[int, int], area: tuple[float, float], aspect: tuple[float, float], min_overlap: float
) -> Int[Tensor, "b 2 4"]:
    """Two boxes a stream whose IoU is at least `min_overlap`: drawn as by `draw_boxes` until they overlap enough.

    If none of 64 pairs does, the second box is the first.
    """
    drawn = draw_boxes(stream, shape, area, aspect, 2 * PAIR_TRIES).unflatten(1, (PAIR_TRIES, 2))  # b tries 2 4
    enough = iou(drawn[:, :, 0], drawn[:, :, 1]) >= min_overlap
    first = enough.int().argmax(dim=1)[:, None, None, None].expand(-1, 1, 2, 4)
    pair = drawn.gather(1, first)[:, 0]
    return torch.where(enough.any(dim=1)[:, None, None], pair, pair[:, :1])


def draw_inside(
    stream: Stream,
    hull: Int[Tensor, "b 4"],
    shape: tuple[int, int],
    area: tuple[float, float],
    aspect: tuple[float, float],
    n: int,
) -> Int[Tensor, "b n 4"]:
    """n boxes a stream inside its hull: sizes as by `draw_boxes`, shares of the *image's* area, capped to the hull's."""
    size = torch.minimum(draw_shapes(stream, shape, area, aspect, n), hull[:, None, 2:])
    start = _start(stream, hull[:, None, 2:] - size)
    return torch.cat([hull[:, None, :2] + start, size], dim=2)


def _start(stream: Stream, room: Int[Tensor, "b n 2"]) -> Int[Tensor, "b n 2"]:
    """Uniform over 0 .. room."""
    return torch.minimum((stream.uniform(*room.shape[1:]) * (room + 1)).long(), room)


def iou(a: Int[Tensor, "*b 4"], b: Int[Tensor, "*b 4"]) -> Float[Tensor, "*b"]:
    """Intersection over union."""
    low = torch.maximum(a[..., :2], b[..., :2])
    high = torch.minimum(a[..., :2] + a[..., 2:], b[..., :2] + b[..., 2:])
    shared = (high - low).clamp(min=0).prod(dim=-1)
    return shared / (a[..., 2:].prod(dim=-1) + b[..., 2:].prod(dim=-1) - shared)


def hull(boxes: Int[Tensor, "b n 4"]) -> Int[Tensor, "b 4"]:
    """The smallest box that holds all n."""
    low = boxes[..., :2].amin(dim=1)
    return torch.cat([low, (boxes[..., :2] + boxes[..., 2:]).amax(dim=1) - low], dim=1)


# ---- crop, flip, rotation --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Crop:
    """One resampling a view.

    box: what is cut, (top, left, height, width).
    flip: left and right exchanged.
    rotation_deg: counter-clockwise as the image is shown (rows downwards), about the view's centre, after the flip.
    largest: a bound on the boxes' sides, known on the host.
    """

    box: Int[Tensor, "n 4"]
    flip: Bool[Tensor, " n"]
    rotation_deg: Float[Tensor, " n"]
    largest: int


def draw_crop(stream: Stream, box: Int[Tensor, "n 4"], ranges: ImageRanges, largest: int) -> Crop:
    """Flip and rotation for boxes that are drawn already, one a stream."""
    flip = stream.uniform() < ranges.flip_probability
    low, high = ranges.rotation_deg
    return Crop(box, flip, stream.uniform(low=low, high=high), largest)


def longest(shape: tuple[int, int], area: tuple[float, float], aspect: tuple[float, float]) -> int:
    """A bound on the sides of boxes that are drawn with this area and aspect."""
    stretch = max(aspect[1], 1 / aspect[0])
    pixels = shape[0] * shape[1]
    bound = math.ceil(math.sqrt(area[1] * pixels * stretch))
    always_fits = bound <= min(shape) and math.sqrt(area[0] * pixels / stretch) >= 1
    return bound if always_fits else max(min(bound, max(shape)), *largest(shape, aspect))


def crop(images: Float[Tensor, "b c h w"], params: Crop, side: int) -> Float[Tensor, "n c side side"]:
    """n / b views of every image, image-major: view i is of image i // (n / b)."""
    n, k = len(params.box), len(params.box) // len(images)
    shrinks = params.largest > side
    if shrinks:
        images = low_pass(images.repeat_interleave(k, dim=0), params, side)
    grid, outside = _sources(params, side, images.shape[2:])
    if not shrinks:  # an image's views one below the other, so that it is not copied k times
        grid = grid.view(len(images), k * side, side, 2)
    taken = F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
    if not shrinks:
        taken = taken.unflatten(2, (k, side)).transpose(1, 2).flatten(0, 1)
    return taken.masked_fill(outside[:, None], 0.0).view(n, images.shape[1], side, side)


def _sources(
    params: Crop, side: int, shape: torch.Size
) -> tuple[Float[Tensor, "n side side 2"], Bool[Tensor, "n side side"]]:
    """Where every pixel comes from as `grid_sample` wants it, (column, row) in [-1, 1]; and whether beyond the crop."""
    at = torch.arange(side, dtype=torch.float32, device=params.box.device) - (side - 1) / 2
    angle = params.rotation_deg * (math.pi / 180)
    cos, sin = angle.cos(), angle.sin()
    sign = torch.where(params.flip, -1.0, 1.0)
    grid, outside = torch.empty(len(sign), side, side, 2, device=at.device), None
    # row = cos r + sin c and column = +-(cos c - sin r) from the view's centre, then scaled to the crop's
    for axis, by_row, by_column in ((0, cos, sin), (1, -sign * sin, sign * cos)):
        start, size = params.box[:, axis].float(), params.box[:, 2 + axis].float()
        scale, half = size / side, ((size - 1) / 2)[:, None, None]
        source = (by_row * scale)[:, None, None] * at[:, None] + (by_column * scale)[:, None, None] * at
        beyond = source.abs() > (size / 2)[:, None, None]
        outside = beyond if outside is None else outside.logical_or_(beyond)
        middle = (2 * (start + (size - 1) / 2) + 1) / shape[axis] - 1
        source = torch.minimum(torch.maximum(source, -half, out=source), half, out=source)
        torch.add(middle[:, None, None], source, alpha=2 / shape[axis], out=grid[..., 1 - axis])
    assert outside is not None
    return grid, outside


def low_pass(images: Float[Tensor, "n c h w"], params: Crop, side: int) -> Float[Tensor, "n c h w"]:
    """Each image smoothed for the factors by which its box shrinks; an axis that does not shrink is left as it is."""
    worst = (max(params.largest / side, 1.0) ** 2 - 1) / 6
    reach = math.ceil(4 * math.sqrt(worst)) + 1
    factor = params.box[:, 2:].float() / side
    weights = discrete_gaussian((factor.square() - 1).clamp(min=0) / 6, reach)  # n 2 reach + 1
    return _smooth(_smooth(images, weights[:, 0], 2), weights[:, 1], 3)


def discrete_gaussian(variance: Float[Tensor, "n k"], reach: int) -> Float[Tensor, "n k reach_1"]:
    """Weights at steps 0 .. reach of the kernel whose variance over the whole numbers is exactly `variance`.

    exp(-t) I_j(t), from its frequency response exp(t (cos w - 1)). A sampled Gaussian is far too narrow below t = 0.2.
    """
    period = 4 * reach + 4
    w = torch.arange(period, dtype=torch.float32, device=variance.device) * (2 * math.pi / period)
    step = torch.arange(reach + 1, dtype=torch.float32, device=variance.device)
    response = (variance[:, :, None] * (w.cos() - 1)).exp()
    weights = (response[:, :, None, :] * (w * step[:, None]).cos()).mean(dim=3)
    return weights / (2 * weights.sum(dim=2, keepdim=True) - weights[:, :, :1])


def _smooth(
    images: Float[Tensor, "n c h w"], weights: Float[Tensor, "n taps"], axis: int, mirrored: bool = False
) -> Float[Tensor, "n c h w"]:
    """A symmetric kernel along one axis; beyond the image its edge value holds, or its mirror image, edge repeated."""
    reach, size = weights.shape[1] - 1, images.shape[axis]
    if mirrored:
        before, after = images.narrow(axis, 0, reach), images.narrow(axis, size - reach, reach)
        padded = torch.cat([before.flip(axis), images, after.flip(axis)], dim=axis)
    else:
        padded = F.pad(images, (0, 0, reach, reach) if axis == 2 else (reach, reach, 0, 0), mode="replicate")
    by_step = weights[:, :, None, None, None]
    out, both = images * by_step[:, 0], torch.empty_like(images)
    for step in range(1, reach + 1):
        torch.add(padded.narrow(axis, reach - step, size), padded.narrow(axis, reach + step, size), out=both)
        out.addcmul_(both, by_step[:, step])
    return out


# ---- pixels ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Blur:
    """Gaussian, the same along both axes; sigma 0 is no blur. reach: a bound on the kernel's radius."""

    sigma_pixel: Float[Tensor, " n"]
    reach: int


@dataclass(frozen=True)
class Jitter:
    """Factors of brightness and contrast, and which comes first."""

    brightness: Float[Tensor, " n"]
    contrast: Float[Tensor, " n"]
    contrast_first: Bool[Tensor, " n"]


@dataclass(frozen=True)
class Cutout:
    """Centres (row, column) of square holes."""

    centre: Int[Tensor, "n holes 2"]
    side: int


def draw_grey(stream: Stream, probability: float = 0.2) -> Bool[Tensor, " n"]:
    return stream.uniform() < probability


def draw_blur(stream: Stream, probability: float = 0.5, sigma_pixel: tuple[float, float] = (0.1, 2.0)) -> Blur:
    happens = stream.uniform() < probability
    sigma = stream.uniform(low=sigma_pixel[0], high=sigma_pixel[1])
    return Blur(torch.where(happens, sigma, 0.0), radius(sigma_pixel[1]))


def draw_jitter(
    stream: Stream, brightness: tuple[float, float] = (0.6, 1.4), contrast: tuple[float, float] = (0.6, 1.4)
) -> Jitter:
    return Jitter(
        stream.uniform(low=brightness[0], high=brightness[1]),
        stream.uniform(low=contrast[0], high=contrast[1]),
        stream.uniform() < 0.5,
    )


def draw_cutout(stream: Stream, shape: tuple[int, int], holes: int = 3, side: int = 32) -> Cutout:
    room = constant(shape, stream.device) - 1
    return Cutout(_start(stream, room.expand(len(stream), holes, 2)), side)


def grey(batch: Float[Tensor, "n c h w"], params: Bool[Tensor, " n"]) -> Float[Tensor, "n c h w"]:
    """Luma in all three channels where drawn; images of one channel are grey already."""
    if batch.shape[1] == 1:
        return batch
    return torch.where(params[:, None, None, None], luma(batch), batch)


def luma(batch: Float[Tensor, "n c h w"]) -> Float[Tensor, "n 1 h w"]:
    """ITU-R 601, as Pillow's "L"; one channel is its own."""
    if batch.shape[1] == 1:
        return batch
    return (batch * constant(LUMA, batch.device)[:, None, None]).sum(dim=1, keepdim=True)


def blur(batch: Float[Tensor, "n c h w"], params: Blur) -> Float[Tensor, "n c h w"]:
    """Radius int(4 sigma + 0.5), borders reflected with the edge pixel repeated, as in 3D.

    Two matrix products on an accelerator; on a CPU shifted sums, of the views that are blurred at all.
    """
    if batch.device.type != "cpu" or params.reach > min(batch.shape[2:]):
        return _blur_by_matrix(batch, params)
    rows = params.sigma_pixel.nonzero()[:, 0]
    step = torch.arange(params.reach + 1)
    sigma = params.sigma_pixel[rows, None]
    weights = torch.exp(-0.5 * (step / sigma) ** 2) * (step <= (4 * sigma + 0.5).floor())
    weights = weights / (2 * weights.sum(dim=1, keepdim=True) - weights[:, :1])
    blurred = _smooth(_smooth(batch[rows], weights, 2, mirrored=True), weights, 3, mirrored=True)
    return batch.index_copy(0, rows, blurred)


def _blur_by_matrix(batch: Float[Tensor, "n c h w"], params: Blur) -> Float[Tensor, "n c h w"]:
    h, w = batch.shape[2:]
    with torch.autocast(batch.device.type, enabled=False):
        down = blur_matrix(params.sigma_pixel, h, params.reach)
        across = down if h == w else blur_matrix(params.sigma_pixel, w, params.reach)
        return down[:, None] @ batch @ across.transpose(1, 2)[:, None]


def jitter(batch: Float[Tensor, "n c h w"], params: Jitter) -> Float[Tensor, "n c h w"]:
    """Brightness multiplies; contrast blends with the image's mean grey; each clips to [0, 1], in the drawn order."""
    by = [p.view(-1, 1, 1, 1) for p in (params.brightness, params.contrast, params.contrast_first)]

    def brightness(v: Tensor) -> Tensor:
        return (v * by[0]).clamp(0, 1)

    def contrast(v: Tensor) -> Tensor:
        mean = luma(v).mean(dim=(1, 2, 3), keepdim=True)
        return (by[1] * v + (1 - by[1]) * mean).clamp(0, 1)

    first = torch.where(by[2], contrast(batch), brightness(batch))
    return torch.where(by[2], brightness(first), contrast(first))


def normalise(batch: Float[Tensor, "n c h w"]) -> Float[Tensor, "n 3 h w"]:
    """ImageNet's mean and standard deviation a channel; one channel is repeated to three first."""
    mean, std = (constant(v, batch.device)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
    return (batch - mean) / std


def cutout(batch: Float[Tensor, "n c h w"], params: Cutout) -> Float[Tensor, "n c h w"]:
    """Zeros from centre - side // 2 to centre + side // 2, the end not included, cut at the border."""
    inside = []
    for axis, size in enumerate(batch.shape[2:]):
        at = torch.arange(size, device=batch.device)
        start = params.centre[:, :, axis, None] - params.side // 2
        inside.append((at >= start) & (at < start + 2 * (params.side // 2)))  # n holes size
    hole = (inside[0][:, :, :, None] & inside[1][:, :, None, :]).any(dim=1)
    return batch.masked_fill(hole[:, None], 0.0)


# ---- the chain -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Drawn:
    """Everything random about n views; the first axis of every tensor is the views."""

    crop: Crop
    grey: Bool[Tensor, " n"]
    blur: Blur
    jitter: Jitter | None
    cutout: Cutout | None


Views = tuple[Float[Tensor, "n 3 side side"], Float[Tensor, "n 3 side side"]]


def draw_views(
    stream: Stream, box: Int[Tensor, "n 4"], ranges: ImageRanges, largest: int, kind: Literal["global", "local"]
) -> Drawn:
    """For views of these boxes, one a stream; holes are cut into global views only."""
    side = ranges.global_side
    holes = kind == "global" and ranges.cutout_holes > 0
    return Drawn(
        crop=draw_crop(stream.fork("crop"), box, ranges, largest),
        grey=draw_grey(stream.fork("grey"), ranges.grey_probability),
        blur=draw_blur(stream.fork("blur"), ranges.blur_probability, ranges.blur_sigma_pixel),
        jitter=draw_jitter(stream.fork("jitter"), ranges.brightness, ranges.contrast) if ranges.jitter else None,
        cutout=draw_cutout(stream.fork("cutout"), (side, side), ranges.cutout_holes, ranges.cutout_side)
        if holes
        else None,
    )


def image_views(images: Float[Tensor, "b c h w"], drawn: Drawn, side: int, target: bool) -> Views:
    """(target, input), both ImageNet-normalised: crop, flip, rotation | target | grey, blur, jitter, normalise, cutout.

    target: whether it is wanted; else it is the input, as local views are not restored.
    """
    n = len(drawn.crop.box)
    k = n // len(images)
    seen = images.new_empty(n, 3, side, side)
    goal = torch.empty_like(seen) if target else seen
    block = max(1, BLOCK_PIXELS.get(images.device.type, 2**27) // (k * side * side))
    for start in range(0, len(images), block):
        rows, into = slice(start, start + block), slice(start * k, (start + block) * k)
        part = take(drawn, into)
        x = crop(images[rows], part.crop, side)
        if target:
            goal[into] = normalise(x)
        x = blur(grey(x, part.grey), part.blur)
        x = normalise(x if part.jitter is None else jitter(x, part.jitter))
        seen[into] = x if part.cutout is None else cutout(x, part.cutout)
    return goal, seen


def views_of(
    images: Float[Tensor, "b c h w"],
    stream: Stream,
    boxes: Int[Tensor, "b k 4"],
    ranges: ImageRanges,
    kind: Literal["global", "local"],
) -> tuple[Float[Tensor, "b k 3 side side"], Float[Tensor, "b k 3 side side"]]:
    """(target, input) of the k views of every image whose boxes are drawn; local views are their own target."""
    b, k = boxes.shape[:2]
    h, w = images.shape[2:]
    is_global = kind == "global"
    area, side = (ranges.global_area, ranges.global_side) if is_global else (ranges.local_area, ranges.local_side)
    bound = longest((h, w), area, ranges.aspect)
    drawn = draw_views(stream.fork(kind).each(k), boxes.flatten(0, 1), ranges, bound, kind)
    goal, seen = image_views(images, drawn, side, target=is_global)
    return goal.unflatten(0, (b, k)), seen.unflatten(0, (b, k))


def draw_multi(stream: Stream, shape: tuple[int, int], ranges: ImageRanges) -> tuple[Tensor, Tensor]:
    """Boxes of two global views (b, 2, 4) and of the local ones (b, k, 4), anywhere in the image."""
    globals_ = draw_boxes(stream.fork("global boxes"), shape, ranges.global_area, ranges.aspect, 2)
    locals_ = draw_boxes(stream.fork("local boxes"), shape, ranges.local_area, ranges.aspect, ranges.locals)
    return globals_, locals_


def draw_sub(stream: Stream, shape: tuple[int, int], ranges: ImageRanges) -> tuple[Tensor, Tensor]:
    """The same with global boxes that overlap and local boxes inside their hull (section 3.4 in two dimensions)."""
    pair = draw_pairs(stream.fork("global boxes"), shape, ranges.global_area, ranges.aspect, ranges.min_overlap)
    inside = draw_inside(stream.fork("local boxes"), hull(pair), shape, ranges.local_area, ranges.aspect, ranges.locals)
    return pair, inside
