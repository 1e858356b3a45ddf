"""The augmentations in the order of the method: what is drawn for views, and what becomes of them.

flip and affine | the target is taken here | blur, noise, gamma, swap (global views only), z-normalisation.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal, TypeVar

import torch
from jaxtyping import Float
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)
from torch import Tensor

from pcrl_cli.augment.corrupt import Swap, draw_swap, swap_
from pcrl_cli.augment.intensity import (
    Blur,
    Gamma,
    Noise,
    blur_by,
    blur_matrices,
    draw_blur,
    draw_gamma,
    draw_noise,
    gamma,
    noise,
    z_normalise,
)
from pcrl_cli.augment.spatial import Affine, affine, draw_affine
from pcrl_cli.core.rng import Stream

BLOCK_VOXELS = 2**17
"""On a CPU intensities are worked on in blocks of about this size, which stay in the core's cache."""

Params = TypeVar("Params")


def _rising(bounds: tuple[float, float]) -> tuple[float, float]:
    if bounds[0] > bounds[1]:
        raise ValueError(f"the lower bound {bounds[0]} is above the upper bound {bounds[1]}")
    return bounds


Span = Annotated[tuple[float, float], AfterValidator(_rising)]
SpanFromZero = Annotated[tuple[NonNegativeFloat, NonNegativeFloat], AfterValidator(_rising)]
SpanAboveZero = Annotated[tuple[PositiveFloat, PositiveFloat], AfterValidator(_rising)]


class Ranges(BaseModel):
    """What is drawn from: uniform [low, high), an axis or a view each. The defaults are TorchIO's (released code)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    flip_axes: tuple[Literal[0, 1, 2], ...] = (0,)
    flip_probability: Annotated[float, Field(ge=0, le=1)] = 0.5
    scale: SpanAboveZero = (0.9, 1.1)
    rotation_deg: Span = (-10.0, 10.0)
    translation_voxel: Span = (0.0, 0.0)
    blur_sigma_voxel: SpanFromZero = (0.0, 2.0)
    noise_std: SpanFromZero = (0.0, 0.25)
    log_gamma: Span = (-0.3, 0.3)
    swap_patch: tuple[PositiveInt, PositiveInt, PositiveInt] = (8, 4, 4)
    swap_count: NonNegativeInt = 100


@dataclass(frozen=True)
class Drawn:
    """Everything random about n views; the first axis of every tensor is the views."""

    affine: Affine
    blur: Blur
    noise: Noise
    gamma: Gamma
    swap: Swap | None


def draw_global(stream: Stream, shape: tuple[int, int, int], ranges: Ranges) -> Drawn:
    """For views of this spatial shape, one a stream.

    Raises:
        ConfigError: the views are too small for `ranges.swap_patch`.
    """
    drawn = draw_local(stream, ranges)
    exchanges = draw_swap(stream.fork("swap"), shape, ranges.swap_patch, ranges.swap_count)
    return dataclasses.replace(drawn, swap=exchanges)


def draw_local(stream: Stream, ranges: Ranges) -> Drawn:
    """For views of any shape, one a stream: the same without swap."""
    spatial = draw_affine(
        stream.fork("affine"),
        ranges.flip_axes,
        ranges.flip_probability,
        ranges.scale,
        ranges.rotation_deg,
        ranges.translation_voxel,
    )
    return Drawn(
        affine=spatial,
        blur=draw_blur(stream.fork("blur"), ranges.blur_sigma_voxel),
        noise=draw_noise(stream.fork("noise"), ranges.noise_std),
        gamma=draw_gamma(stream.fork("gamma"), ranges.log_gamma),
        swap=None,
    )


def global_views(
    x01: Float[Tensor, "n c x y z"], stream: Stream, ranges: Ranges | None = None
) -> tuple[Float[Tensor, "n c x y z"], Float[Tensor, "n c x y z"]]:
    """(target, input) of n views in [0, 1], from n streams.

    Raises:
        ConfigError: the views are too small for `ranges.swap_patch`.
    """
    x, y, z = x01.shape[2:]
    return views(x01, draw_global(stream, (x, y, z), ranges or Ranges()))


def local_views(
    x01: Float[Tensor, "n c x y z"], stream: Stream, ranges: Ranges | None = None
) -> Float[Tensor, "n c x y z"]:
    """The input of n local views in [0, 1], from n streams; they are not restored, so there is no target."""
    return views(x01, draw_local(stream, ranges or Ranges()))[1]


def views(
    x01: Float[Tensor, "n c x y z"], drawn: Drawn
) -> tuple[Float[Tensor, "n c x y z"], Float[Tensor, "n c x y z"]]:
    """(target, input): a function of the views and of what was drawn, each view by itself."""
    target = affine(x01, drawn.affine)
    matrices = blur_matrices(drawn.blur, x01.shape[2:])
    seen = torch.empty_like(target)
    for rows in _blocks(x01):
        blurred = blur_by(target[rows], [along[rows] for along in matrices])
        seen[rows] = gamma(noise(blurred, take(drawn.noise, rows)), take(drawn.gamma, rows))
    if drawn.swap is not None:
        swap_(seen, drawn.swap)
    for rows in _blocks(x01):
        seen[rows] = z_normalise(seen[rows])
    return target, seen


def take(params: Params, rows: slice) -> Params:
    """The same parameters of fewer views."""
    if isinstance(params, Tensor):
        return params[rows]  # type: ignore[return-value]
    if not dataclasses.is_dataclass(params):
        return params
    parts = {field.name: take(getattr(params, field.name), rows) for field in dataclasses.fields(params)}
    return dataclasses.replace(params, **parts)  # type: ignore[type-var]


def _blocks(batch: Float[Tensor, "n c x y z"]) -> Iterator[slice]:
    """Consecutive views: everything at once on an accelerator, what a core's cache holds on a CPU."""
    n = len(batch)
    size = max(1, BLOCK_VOXELS // max(1, batch[:1].numel())) if batch.device.type == "cpu" else max(1, n)
    return (slice(start, start + size) for start in range(0, n, size))
