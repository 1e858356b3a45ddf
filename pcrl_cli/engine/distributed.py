"""torchrun's ranks. With one process everything here is the identity."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch import distributed as dist

from pcrl_cli.core.errors import MachineError

T = TypeVar("T")
PATIENCE = timedelta(hours=1)
"""How long a rank waits for another, which may be hashing a large cache."""


@dataclass(frozen=True)
class World:
    """This process among the others of a run."""

    rank: int = 0
    size: int = 1
    began: bool = field(default=False, compare=False)
    """This process group was made by `join`, and ends with `leave`."""

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
        began = not dist.is_initialized()
        if began:
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
        return cls(dist.get_rank(), size, began)

    def leave(self) -> None:
        """Ends the process group that `join` made; one that was there before stays."""
        if self.began and dist.is_initialized():
            dist.destroy_process_group()

    def first(self, work: Callable[[], T], others: Callable[[], T]) -> T:
        """`work` on rank 0 and, when it is done, `others` on the other ranks; every rank's own value.

        Raises:
            MachineError: on the other ranks, if `work` raised an error on rank 0; there that error.
        """
        if self.size == 1:
            return work()
        if self.talks:
            done = False
            try:
                value = work()
                done = True
            finally:
                self._tell(done)
            return value
        if not self._tell(False):
            raise MachineError("rank 0 refused to go on, so this rank ends too; see what rank 0 says")
        return others()

    def _tell(self, flag: bool) -> bool:
        """Rank 0's flag, on every rank."""
        told = torch.tensor([int(flag)], device="cuda" if dist.get_backend() == "nccl" else "cpu")
        dist.broadcast(told, 0)
        return bool(told.item())

    def broadcast(self, module: nn.Module) -> None:
        """Rank 0's parameters and buffers to all."""
        if self.size > 1:
            for tensor in (*module.parameters(), *module.buffers()):
                dist.broadcast(tensor.data, 0)

    def mean(self, value: Tensor) -> Tensor:
        """Averaged over the ranks: equal on all of them, and NaN on all if it is on one."""
        if self.size > 1:
            value = value.clone()
            dist.all_reduce(value)
            value /= self.size
        return value

    def gather(self, rows: Tensor) -> Tensor:
        """The rows of all ranks, rank by rank; every rank has as many."""
        if self.size == 1:
            return rows
        parts = [torch.empty_like(rows) for _ in range(self.size)]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

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
