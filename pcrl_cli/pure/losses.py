"""The paper's losses as functions of tensors."""

from jaxtyping import Float
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
