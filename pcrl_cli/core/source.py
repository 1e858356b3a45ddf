"""What the engine trains on."""

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

from jaxtyping import Int
from torch import Tensor

from pcrl_cli.core.learner import Batch


@runtime_checkable
class Source(Protocol):
    """An endless, stateless order of batches: what step s holds is a function of (seed, s)."""

    @property
    def steps_per_epoch(self) -> int: ...

    @property
    def batch_size(self) -> int:
        """Samples a step, over all ranks."""
        ...

    @property
    def residency(self) -> str:
        """Where the cache lies and why, for the log."""
        ...

    def batches(self, step: int) -> Iterator[tuple[Int[Tensor, " b"], Batch]]:
        """From a step on: the samples' global positions and their arrays, on the device."""
        ...
