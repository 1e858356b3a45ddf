"""The same chain by TorchIO 1.2.1, view by view on the CPU: for comparison runs (`--augment torchio`) and tests."""

from collections.abc import Callable

import torch
import torchio as tio
from jaxtyping import Float
from torch import Tensor

from pcrl_cli.augment.chains import Drawn, Ranges, take
from pcrl_cli.augment.intensity import Noise, normals
from pcrl_cli.core.rng import Stream

Step = Callable[[Tensor], Tensor]


def views_by_torchio(
    x01: Float[Tensor, "n c x y z"], stream: Stream, ranges: Ranges | None = None, local: bool = False
) -> tuple[Float[Tensor, "n c x y z"], Float[Tensor, "n c x y z"]]:
    """(target, input) as `global_views` makes them (`local`: without swap), drawn by TorchIO itself.

    TorchIO draws from torch's global state: it is seeded from each view's stream and put back afterwards.

    Raises:
        RuntimeError: TorchIO's, for a view that is constant after everything.
    """
    spatial, intensity = random_steps(ranges or Ranges(), local)
    seeds = stream.bits(1).flatten().tolist()
    targets, inputs = [], []
    with torch.random.fork_rng(devices=[]):
        for view, seed in zip(x01.cpu(), seeds, strict=True):
            torch.manual_seed(seed)
            targets.append(spatial(view))
            inputs.append(intensity(targets[-1]))
    return torch.stack(targets).to(x01.device), torch.stack(inputs).to(x01.device)


def random_steps(ranges: Ranges, local: bool) -> tuple[Step, Step]:
    """TorchIO's random transforms of one view (c, x, y, z): up to the target, and from there to the input."""
    spatial = [
        tio.RandomFlip(axes=ranges.flip_axes, flip_probability=ranges.flip_probability),
        tio.RandomAffine(
            scales=ranges.scale,
            degrees=ranges.rotation_deg,
            translation=ranges.translation_voxel,
            default_pad_value="minimum",
        ),
    ]
    intensity = [
        tio.RandomBlur(std=ranges.blur_sigma_voxel),
        tio.RandomNoise(mean=(0, 0), std=ranges.noise_std),
        tio.RandomGamma(log_gamma=ranges.log_gamma),
        tio.RandomSwap(patch_size=ranges.swap_patch, num_iterations=ranges.swap_count),
        tio.ZNormalization(),
    ]
    if local:
        del intensity[3]
    return tio.Compose(spatial), tio.Compose(intensity)


def views_from_drawn(
    x01: Float[Tensor, "n c x y z"], drawn: Drawn
) -> tuple[Float[Tensor, "n c x y z"], Float[Tensor, "n c x y z"]]:
    """(target, input) by TorchIO with our drawn parameters, the noise's normal numbers included."""
    targets, inputs = [], []
    for i, view in enumerate(x01.cpu()):
        spatial, intensity = fixed_steps(take(drawn, slice(i, i + 1)))
        targets.append(spatial(view))
        inputs.append(intensity(targets[-1]))
    return torch.stack(targets).to(x01.device), torch.stack(inputs).to(x01.device)


def fixed_steps(drawn: Drawn) -> tuple[Step, Step]:
    """TorchIO's transforms of one view with the parameters of `drawn`, which holds one view."""
    flipped = drawn.affine.flip[0].nonzero().flatten().tolist()
    placed = tio.Affine(
        scales=tuple(drawn.affine.scale[0].tolist()),
        degrees=tuple(drawn.affine.rotation_deg[0].tolist()),
        translation=tuple(drawn.affine.translation_voxel[0].tolist()),
        default_pad_value="minimum",
    )
    spatial = [tio.Flip(axes=flipped), placed] if flipped else [placed]
    intensity = [
        tio.Blur(std=tuple(drawn.blur.sigma_voxel[0].tolist())),
        tio.Lambda(lambda view: add_noise(view, drawn.noise)),
        tio.Gamma(gamma=drawn.gamma.exponent[0].item()),
        tio.ZNormalization(),
    ]
    if drawn.swap is not None:
        pairs = list(zip(drawn.swap.first[0].tolist(), drawn.swap.second[0].tolist(), strict=True))
        intensity.insert(3, tio.Swap(patch_size=drawn.swap.patch, locations=pairs))
    return tio.Compose(spatial), tio.Compose(intensity)


def add_noise(view: Float[Tensor, "c x y z"], params: Noise) -> Float[Tensor, "c x y z"]:
    """What TorchIO's Noise does, with our normal numbers in the place of its own."""
    return view + normals(params, view.shape)[0].cpu() * params.std[0].item() + 0.0
