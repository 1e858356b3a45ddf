"""torchrun's ranks. With one process everything here is the identity."""

import os
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch import distributed as dist


@dataclass(frozen=True)
class World:
    """This process among the others of a run."""

    rank: int = 0
    size: int = 1

    @property
    def talks(self) -> bool:
        """Only one rank writes and prints."""
        return self.rank == 0

    @classmethod
    def join(cls, device: torch.device) -> "World":
        """Joins the process group that torchrun's variables describe; alone where there are none."""
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size == 1:
            return cls()
        if device.type == "cuda":  # from here on `cuda` means this rank's own GPU
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        if not dist.is_initialized():
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        return cls(dist.get_rank(), size)

    def broadcast(self, module: nn.Module) -> None:
        """Rank 0's parameters and buffers to all."""
        if self.size > 1:
            for tensor in (*module.parameters(), *module.buffers()):
                dist.broadcast(tensor.data, 0)

    def mean_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Gradients averaged over the ranks, in one message."""
        if self.size > 1:
            gradients = [p.grad for p in parameters if p.grad is not None]
            flat = torch.cat([g.flatten() for g in gradients])
            dist.all_reduce(flat)
            for g, part in zip(gradients, (flat / self.size).split([g.numel() for g in gradients]), strict=True):
                g.copy_(part.view_as(g))

    def mean(self, value: Tensor) -> Tensor:
        """Averaged over the ranks: equal on all of them, and NaN on all if it is on one."""
        if self.size > 1:
            value = value.clone()
            dist.all_reduce(value)
            value /= self.size
        return value

    def agrees(self, number: int, device: torch.device) -> bool:
        """Whether all ranks hold the same number."""
        if self.size == 1:
            return True
        extremes = torch.tensor([number, -number], device=device)
        dist.all_reduce(extremes, dist.ReduceOp.MAX)
        return int(extremes[0]) == -int(extremes[1])

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()
