"""The paper's losses as functions of tensors."""

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor
from torch.nn import functional as F

from pcrl_cli.pure.precision import at_least_float32


def mse(restored: Float[Tensor, "b c *space"], x: Float[Tensor, "b c *space"]) -> Float[Tensor, ""]:
    """Mean squared error over batch, channels and voxels, in float32: one term of L^R (Eq. 4)."""
    return F.mse_loss(at_least_float32(restored), at_least_float32(x))


def cosine(a: Float[Tensor, "b c"], b: Float[Tensor, "b c"]) -> Float[Tensor, ""]:
    """a / |a| . b / |b|, mean over the batch (Eqs. 7, 8), in float32."""
    return F.cosine_similarity(at_least_float32(a), at_least_float32(b), dim=1).mean()


def comparison(
    v_a: Float[Tensor, "b c"],
    p_a: Float[Tensor, "b c"],
    v_b: Float[Tensor, "b c"],
    p_b: Float[Tensor, "b c"],
    stop_gradient: bool = True,
) -> Float[Tensor, ""]:
    """L^C(a, b) = -1/2 [cos(sg(v(a)), f_P(v(b))) + cos(f_P(v(a)), sg(v(b)))]                              (Eq. 9)

    v: v_i of a view; p: f_P(v_i). `stop_gradient=False` lets the features collapse: for tests of the alarm only.
    """
    if stop_gradient:
        v_a, v_b = v_a.detach(), v_b.detach()
    return -0.5 * (cosine(v_a, p_b) + cosine(p_a, v_b))


def soft_dice(
    logits: Float[Tensor, "b r *space"],
    target: Shaped[Tensor, "b r *space"],
    valid: Bool[Tensor, "b *space"] | None = None,
    smooth: float = 1e-5,
) -> Float[Tensor, ""]:
    """1 - mean over cases b and regions r of (2 sum(p t) + s) / (sum(p) + sum(t) + s), p = sigmoid(logits), in float32.

    A region that neither the target nor the prediction has costs nothing.

    Args:
        target: 0 or 1.
        valid: voxels that count; padding is left out of all three sums.
    """
    p, t = torch.sigmoid(logits.float()), target.float()
    if valid is not None:
        p, t = p * valid[:, None], t * valid[:, None]
    p, t = p.flatten(2), t.flatten(2)
    overlap = (2 * (p * t).sum(2) + smooth) / (p.sum(2) + t.sum(2) + smooth)
    return 1 - overlap.mean()


def voxel_bce(
    logits: Float[Tensor, "b r *space"],
    target: Shaped[Tensor, "b r *space"],
    valid: Bool[Tensor, "b *space"] | None = None,
    count: Float[Tensor, ""] | None = None,
) -> Float[Tensor, ""]:
    """Binary cross-entropy, mean over the valid voxels of all cases and regions, in float32.

    Args:
        count: valid voxels of a region, by which the sum over the cases is divided; none: as many as `valid` has.
    """
    each = F.binary_cross_entropy_with_logits(logits.float(), target.float(), reduction="none")
    if valid is None:
        return each.mean()
    count = valid.sum().clamp_min(1) if count is None else count
    return (each * valid[:, None]).sum() / (count * each.shape[1])
