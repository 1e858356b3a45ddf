"""How spread out features are: two numbers that fall when a representation collapses.

Both belong on features *before* a batch norm: behind one, every channel has unit spread whatever the encoder does.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


@torch.no_grad()
def effective_rank(features: Float[Tensor, "n c"]) -> Float[Tensor, ""]:
    """exp of the entropy of the singular values, divided by their sum, of the centred features (Roy and Vetterli 2007).

    Lies in [1, min(n - 1, c)], so a threshold on it must know n as well as c: 16 samples never show a rank above 15.
    Singular values at the rounding level of the features' own type count as 0; features that are all equal have rank 0.

    Returns:
        A float64 scalar on the features' device; NaN where a feature is not finite.
    """
    if not bool(torch.isfinite(features).all()):
        return torch.full((), torch.nan, dtype=torch.float64, device=features.device)
    x = features.double()
    noise = torch.finfo(features.dtype).eps * x.norm() / min(x.shape) ** 0.5
    x = x - x[0]  # equal rows become exactly 0, which their mean, being rounded, would not make them
    s = torch.linalg.svdvals(x - x.mean(dim=0))
    s = torch.where(s > noise, s, 0.0)
    p = s / s.sum().clamp_min(torch.finfo(torch.float64).tiny)
    return torch.special.entr(p).sum().exp() * (s.sum() > 0)


@torch.no_grad()
def feature_std(features: Float[Tensor, "n c"]) -> Float[Tensor, ""]:
    """Mean over channels of the standard deviation of the L2-normalised features (Chen and He 2021, SimSiam).

    1 / sqrt(c) for directions spread evenly over the sphere, which is also the most it can be; 0 when all features
    point the same way. The deviation is the population's (divided by n).

    Returns:
        A float64 scalar on the features' device.
    """
    return F.normalize(features.double(), dim=1).std(dim=0, correction=0).mean()
