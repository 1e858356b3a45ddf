"""Batch norm with the statistics of all ranks' samples. Written out, so that it also runs over gloo, where it is tested."""

import torch
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce
from torch.nn.modules.batchnorm import _BatchNorm

from pcrl_cli.pure.precision import at_least_float32


class SyncBatchNorm(_BatchNorm):
    """The batch norm that one process would compute over the ranks' samples together, equally many on each.

    Mean first, then the variance about it: two messages a call and two in the backward pass, which are sums again.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        axes, shape = (0, *range(2, x.dim())), (1, -1, *(1 for _ in range(x.dim() - 2)))
        ranks = torch.distributed.get_world_size()
        values = at_least_float32(x)
        mean = all_reduce(values.mean(axes)) / ranks
        centred = values - mean.view(shape)
        variance = all_reduce(centred.square().mean(axes)) / ranks
        with torch.no_grad():
            if self.track_running_stats and self.running_mean is not None and self.running_var is not None:
                assert self.num_batches_tracked is not None
                self.num_batches_tracked.add_(1)
                n = ranks * x.numel() // x.shape[1]
                momentum = self.momentum if self.momentum is not None else 0.1
                self.running_mean.lerp_(mean.detach(), momentum)
                self.running_var.lerp_(variance.detach() * (n / max(n - 1, 1)), momentum)
        y = centred * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            y = y * self.weight.view(shape) + self.bias.view(shape)
        return y.to(x.dtype)

    def _check_input_dim(self, input: Tensor) -> None:
        """Any number of axes."""


def synchronise(module: nn.Module) -> nn.Module:
    """Makes every batch norm below a synchronised one in place: the same parameters and buffers under the same names."""
    for part in module.modules():
        if isinstance(part, _BatchNorm) and not isinstance(part, SyncBatchNorm):
            part.__class__ = SyncBatchNorm
    return module
