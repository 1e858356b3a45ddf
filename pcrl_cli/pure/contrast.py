"""Contrastive losses: InfoNCE, and the binary noise-contrastive estimation that the released code of C2L uses."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def similarities(
    q: Float[Tensor, "b d"], k: Float[Tensor, "b d"], negatives: Float[Tensor, "n d"], temperature: float
) -> Float[Tensor, "b n+1"]:
    """cos(q, .) / T of the positive key (first) and of the negatives, in float32."""
    q, k, negatives = (F.normalize(v.float(), dim=1) for v in (q, k, negatives))
    with torch.autocast(q.device.type, enabled=False):
        return torch.cat([(q * k).sum(dim=1, keepdim=True), q @ negatives.t()], dim=1) / temperature


def info_nce(logits: Float[Tensor, "b n"]) -> Float[Tensor, ""]:
    """-log(exp(s_0) / sum over j of exp(s_j)), mean over the batch; the first is the positive."""
    return -F.log_softmax(logits, dim=1)[:, 0].mean()


def nce_constant(logits: Float[Tensor, "b n"], samples: int) -> Float[Tensor, ""]:
    """Z = mean(exp(s)) N: the normalisation that is taken from the first batch and then kept."""
    return logits.detach().double().exp().mean().float() * samples


def nce(logits: Float[Tensor, "b n"], z: Float[Tensor, ""], samples: int, epsilon: float = 1e-5) -> Float[Tensor, ""]:
    """-log[P_0 / (P_0 + K/N + eps)] - sum over negatives of log[(K/N) / (P_j + K/N + eps)], mean over the batch.

    P = exp(s) / Z, K the number of negatives, N that of the samples of the data set.
    """
    p = logits.exp() / z
    noise = (logits.shape[1] - 1) / samples
    positive = -(p[:, 0] / (p[:, 0] + noise + epsilon)).log()
    negative = -(noise / (p[:, 1:] + noise + epsilon)).log().sum(dim=1)
    return (positive + negative).mean()
