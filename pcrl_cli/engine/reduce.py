"""Gradients averaged over the ranks, in buckets that travel while the backward pass still works."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch import distributed as dist

from pcrl_cli.engine.distributed import World

BUCKET_BYTES = 32 << 20
"""Large enough that a message's fixed cost is small beside its time on the wire, small enough that the first one leaves
early: 90 million float32 gradients make 11 buckets."""


@dataclass
class Bucket:
    """Some parameters, and one flat tensor with a view in the layout of each."""

    parameters: list[nn.Parameter]
    flat: Tensor
    views: list[Tensor]
    missing: int = 0
    work: "dist.Work | None" = field(default=None, repr=False)


class Averager:
    """Means over the ranks of the gradients of some parameters. Alone it does nothing.

    Every rank sends the same buckets in the same order, whichever order its gradients come in: bucket k leaves when it
    and all before it are complete. A parameter that the losses do not reach has gradient 0 and completes its bucket at the
    end of the backward pass, so nothing searches the graph for unused parameters.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], world: World, bucket_bytes: int = BUCKET_BYTES) -> None:
        self.world, self.armed, self.next = world, False, 0
        self.buckets: list[Bucket] = []
        if world.size == 1:
            return
        waiting: list[nn.Parameter] = []
        for p in reversed(list(parameters)):  # the backward pass reaches the last ones first
            if waiting and (p.dtype != waiting[0].dtype or sum(q.nbytes for q in waiting) + p.nbytes > bucket_bytes):
                self._close(waiting)
                waiting = []
            waiting.append(p)
        if waiting:
            self._close(waiting)

    def _close(self, parameters: list[nn.Parameter]) -> None:
        flat = torch.empty(sum(p.numel() for p in parameters), dtype=parameters[0].dtype, device=parameters[0].device)
        views, start = [], 0
        for p in parameters:
            views.append(flat[start : start + p.numel()].as_strided(p.shape, p.stride(), start))
            start += p.numel()
        bucket = Bucket(parameters, flat, views)
        self.buckets.append(bucket)

        def arrived(p: Tensor) -> None:
            if self.armed:
                bucket.missing -= 1
                self._send(complete_only=True)

        for p in parameters:
            p.register_post_accumulate_grad_hook(arrived)

    def begin(self) -> None:
        """To be called before a backward pass."""
        self.armed, self.next = True, 0
        for bucket in self.buckets:
            bucket.missing = len(bucket.parameters)

    def finish(self) -> None:
        """After it: every gradient is there. Then each is the mean over the ranks."""
        self._send(complete_only=False)
        self.armed = False
        for bucket in self.buckets:
            assert bucket.work is not None
            bucket.work.wait()
            bucket.work = None
            bucket.flat.div_(self.world.size)
            torch._foreach_copy_([_gradient(p) for p in bucket.parameters], bucket.views)

    def _send(self, complete_only: bool) -> None:
        while self.next < len(self.buckets) and not (complete_only and self.buckets[self.next].missing > 0):
            bucket = self.buckets[self.next]
            torch._foreach_copy_(bucket.views, [_gradient(p) for p in bucket.parameters])
            bucket.work = dist.all_reduce(bucket.flat, async_op=True)
            self.next += 1


def _gradient(p: nn.Parameter) -> Tensor:
    assert p.grad is not None
    return p.grad
