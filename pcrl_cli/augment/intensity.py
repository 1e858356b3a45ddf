"""Blur, noise, gamma and z-normalisation, with TorchIO 1.2.1's conventions. Intensities are in [0, 1] before them."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int32
from torch import Tensor

from pcrl_cli.core.rng import Stream

CONSTANT = 1e-6
"""A view whose range is this small a part of its largest magnitude is constant but for rounding.

One voxel that differs by one Hounsfield unit of 2,000 is 500 times more.
"""


@dataclass(frozen=True)
class Blur:
    """One Gaussian an axis and view.

    sigma_voxel: standard deviations; below 0.125 nothing happens along the axis.
    reach: a bound on every kernel's radius int(4 sigma + 0.5), known on the host.
    """

    sigma_voxel: Float[Tensor, "b 3"]
    reach: int


@dataclass(frozen=True)
class Noise:
    """Gaussian noise of mean 0.

    std: in the intensities' unit.
    keys: of the streams that the normal numbers come from, see `normals`.
    """

    std: Float[Tensor, " b"]
    keys: Int32[Tensor, "b 2"]


@dataclass(frozen=True)
class Gamma:
    """One exponent a view, for all its channels (TorchIO: one a channel)."""

    exponent: Float[Tensor, " b"]


def draw_blur(stream: Stream, sigma_voxel: tuple[float, float] = (0.0, 2.0)) -> Blur:
    return Blur(stream.uniform(3, low=sigma_voxel[0], high=sigma_voxel[1]), reach=radius(sigma_voxel[1]))


def draw_noise(stream: Stream, std: tuple[float, float] = (0.0, 0.25)) -> Noise:
    drawn = stream.uniform(low=std[0], high=std[1])
    return Noise(drawn, stream.fork("normals").keys)


def draw_gamma(stream: Stream, log_gamma: tuple[float, float] = (-0.3, 0.3)) -> Gamma:
    return Gamma(stream.uniform(low=log_gamma[0], high=log_gamma[1]).exp())


def radius(sigma: float) -> int:
    """Voxels that a Gaussian's kernel reaches to each side."""
    return int(4 * sigma + 0.5)


def blur(batch: Float[Tensor, "b c x y z"], params: Blur) -> Float[Tensor, "b c x y z"]:
    """Three matrix products, one an axis; borders are reflected with the edge voxel repeated."""
    return blur_by(batch, blur_matrices(params, batch.shape[2:]))


def blur_matrices(params: Blur, shape: torch.Size) -> list[Float[Tensor, "b _ _"]]:
    """What to multiply each axis of views of this spatial shape by."""
    return [blur_matrix(sigma, n, params.reach) for sigma, n in zip(params.sigma_voxel.unbind(1), shape, strict=True)]


def blur_by(batch: Float[Tensor, "b c x y z"], matrices: list[Float[Tensor, "b _ _"]]) -> Float[Tensor, "b c x y z"]:
    """Each axis multiplied by its matrix of `blur_matrices`.

    Outside autocast, so that it stays float32; a process that allows TF32 products gets TF32's rounding here too.
    """
    b, c, x, y, z = batch.shape
    along_x, along_y, along_z = matrices
    with torch.autocast(batch.device.type, enabled=False):
        batch = along_x[:, None] @ batch.view(b, c, x, y * z)
        batch = along_y[:, None, None] @ batch.view(b, c, x, y, z)
        batch = batch.view(b, c * x * y, z) @ along_z.transpose(1, 2)
    return batch.view(b, c, x, y, z)


def blur_matrix(sigma: Float[Tensor, " b"], n: int, reach: int) -> Float[Tensor, "b n n"]:
    """Row i holds the weights with which the n voxels of an axis make voxel i."""
    step = torch.arange(-reach, reach + 1, device=sigma.device)
    inside = step.abs() <= (4 * sigma[:, None] + 0.5).floor()
    weight = torch.exp(-0.5 * (step / sigma.clamp(min=0.1)[:, None]) ** 2) * inside  # sigma < 0.125: only step 0
    weight = weight / weight.sum(dim=1, keepdim=True)
    period = 2 * n  # of the mirrored axis; around it the weights are summed, the one of step 0 at 0
    before = (reach // period + 1) * period - reach
    around = F.pad(weight, (before, before - 1)).unflatten(1, (-1, period)).sum(dim=1)
    voxel = torch.arange(n, device=sigma.device)
    itself, mirrored = (voxel - voxel[:, None]) % period, (-1 - voxel - voxel[:, None]) % period
    return around[:, itself] + around[:, mirrored]


def noise(batch: Float[Tensor, "b c x y z"], params: Noise) -> Float[Tensor, "b c x y z"]:
    return normals(params, batch.shape[1:]).mul_(params.std.view(-1, 1, 1, 1, 1)).add_(batch)


def normals(params: Noise, shape: torch.Size) -> Float[Tensor, "b c x y z"]:
    """The standard normal numbers that `noise` adds to views of this shape, before the multiplication with std."""
    return Stream(params.keys).normal(*shape)


def gamma(batch: Float[Tensor, "b c x y z"], params: Gamma) -> Float[Tensor, "b c x y z"]:
    """sign(v) |v|^gamma: noise has made some voxels negative."""
    exponent, size = params.exponent.view(-1, 1, 1, 1, 1), batch.abs()
    if batch.device.type == "cpu":  # the same to 1e-6 of the value, at three times the speed
        return size.log_().mul_(exponent).exp_().copysign_(batch)
    return size.pow_(exponent).copysign_(batch)


def z_normalise(batch: Float[Tensor, "b c x y z"]) -> Float[Tensor, "b c x y z"]:
    """(v - mean) / std over the whole view, all channels, std with n - 1; a constant view becomes zeros.

    Count such views with `constant`, before or after: zeros are constant too.
    """
    flat = batch.flatten(1)
    centred = flat - flat.mean(dim=1, keepdim=True)
    std = (centred.square().sum(dim=1, keepdim=True) / (flat.shape[1] - 1)).sqrt()
    same = constant(batch)[:, None]
    return centred.mul_(torch.where(same, 0.0, 1.0 / torch.where(same, 1.0, std))).view_as(batch)


def constant(batch: Float[Tensor, "b c *space"]) -> Bool[Tensor, " b"]:
    """Which views have one value everywhere, up to rounding. A view with a NaN is not constant."""
    low, high = batch.flatten(1).amin(dim=1), batch.flatten(1).amax(dim=1)  # aminmax is 20 times slower on a CPU
    return high - low <= CONSTANT * torch.maximum(low.abs(), high.abs())
