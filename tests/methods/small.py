"""Small learners of the compared methods and batches for them."""

import torch
from torch import Tensor

from pcrl_cli.core.learner import Learner, Progress, Stored
from pcrl_cli.core.names import find
from pcrl_cli.core.rng import Rng
from pcrl_cli.methods import METHODS

NOW = Progress(3, 10)
OPTIONS = {
    "c2l": {"queue": 24, "features": 8},
    "cpc3d": {"codes": 12, "context": 8},
    "genesis": {"rates": {"windows": 40}},
    "pcrlv1": {"queue": 24, "features": 8, "windows": 40},
    "rubik": {"side": 8},
    "simsiam": {"outputs": 16, "bottleneck": 8},
    "transvw": {"windows": 5},
}


def learner(name: str, dim: int = 3, seed: int = 0, classes: tuple[str, ...] = (), **options) -> Learner:
    """Of width 2 and 3 poolings, weights from a seed."""
    module = find("method", name, METHODS)
    torch.manual_seed(seed)
    cropped_here = dim == 2 and "images" in module.Config.model_fields
    images = {"images": {"global_side": 32, "cutout_side": 8}} if cropped_here else {}
    config = module.Config(**({"width": 2, "poolings": 3} | OPTIONS[name] | images | options))
    return module.LEARNER(config, Stored(dim, 1, (1 / 2000, 0.5) if dim == 3 else (1 / 255, 0.0), classes))


def smooth(*shape: int, seed: int = 5) -> Tensor:
    """int16 crops in HU with structure and some air; the last three axes are space."""
    generator = torch.Generator().manual_seed(seed)
    count = int(torch.tensor(shape[:-3]).prod())
    coarse = torch.rand(count, 1, *(max(2, s // 4) for s in shape[-3:]), generator=generator)
    fine = torch.nn.functional.interpolate(coarse, size=shape[-3:], mode="trilinear", align_corners=False)
    return (2600 * fine.reshape(shape) - 1300).clamp(-1000, 1000).to(torch.int16)


def batch(dim: int = 3, n: int = 4) -> dict[str, Tensor]:
    if dim == 2:
        return {"image": ((smooth(n, 1, 40, 40, 4)[..., 0].float() + 1000) / 2000 * 255).to(torch.uint8)}
    return {"globals": smooth(n, 2, 1, 32, 32, 16)}


def views(of: Learner, given: dict[str, Tensor], step: int = 0, seed: int = 0) -> dict:
    n = len(next(iter(given.values())))
    with torch.no_grad():
        return of.views(given, Rng.at(seed, step, torch.arange(n)))


def total(terms: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(terms.values())).sum()
