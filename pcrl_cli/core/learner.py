"""The one protocol that the engine trains: a self-supervised method and a downstream task are both Learners."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pcrl_cli.core.contract import Architecture
from pcrl_cli.core.rng import Rng

Batch = dict[str, Tensor]
"""Cached arrays by name, first axis = samples, on the device; integers as they were stored."""

Views = dict[str, Any]
"""What `views` made of a batch: tensors with samples first, and host values that the whole batch shares."""


@dataclass(frozen=True)
class Progress:
    """Where a run is. `fraction` in [0, 1) is what a method may depend on; it replaces epoch numbers."""

    step: int
    steps: int

    @property
    def fraction(self) -> float:
        return self.step / self.steps


@dataclass(frozen=True)
class Stored:
    """What a Learner must know of the cache that it reads.

    dim: axes of an image. to_unit: (scale, offset) that bring stored values to [0, 1], or to what the task trains on.
    classes: names of the labels, in their order.
    regions: of masks: the labels that make up each region, by its name.
    """

    dim: int
    channels: int
    to_unit: tuple[float, float]
    classes: tuple[str, ...] = ()
    regions: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Watched:
    """Features whose collapse is watched for.

    before: (n, C) before any batch normalisation of the features, which would hide that they shrink to a point.
    after: (n, C) as the loss sees them.
    """

    before: Tensor
    after: Tensor


class Learner(nn.Module):
    """A network together with its views and losses.

    Everything that must survive a resume is a parameter or a buffer. All randomness is in `views`; `losses` is a
    deterministic function of its arguments and of the parameters.
    """

    compilable: ClassVar[bool] = False
    """Whether torch.compile is known to trace `losses` into a few graphs that serve every step."""

    def together(self, rows: Tensor) -> Tensor:
        """The rows of all ranks, rank by rank and equal on each; the trainer puts its own in place where there are several.

        For `after_step`: what a queue remembers must be the same everywhere, since a checkpoint is of one rank.
        """
        return rows

    def shared_count(self, counts: Tensor) -> Tensor:
        """How many of a batch's values count, the mean over the ranks; 1 where none does on any. No gradient.

        Gradients are averaged over the ranks, so a mean over what counts must be a sum over a rank's own values divided
        by this: divided by a rank's own count, a value would weigh more the fewer there are beside it.

        Args:
            counts: true or 1 where a value counts.
        """
        mean = self.together(counts.sum().float().reshape(1)).mean()
        return torch.where(mean > 0, mean, 1.0)

    @property
    def encoder(self) -> nn.Module:
        """The part that is exported, probed and transferred."""
        raise NotImplementedError

    @property
    def architecture(self) -> Architecture:
        """Of the encoder, for the weights' contract."""
        raise NotImplementedError

    def views(self, batch: Batch, rng: Rng) -> Views:
        """Draws and applies the augmentations; runs without gradients on the batch's device."""
        raise NotImplementedError

    def losses(self, views: Views, progress: Progress, player: str = "main") -> dict[str, Tensor]:
        """Named scalar terms; the player minimises their sum."""
        raise NotImplementedError

    def forward(self, views: Views, progress: Progress, player: str = "main") -> dict[str, Tensor]:
        """`losses`, under the name that DistributedDataParallel hooks into."""
        return self.losses(views, progress, player)

    def players(self) -> dict[str, Iterable[Any]]:
        """Parameters (or optimiser groups) by player. One by default; two make an adversarial game."""
        return {"main": self.parameters()}

    def after_step(self, progress: Progress) -> None:
        """Momentum copies, queues: whatever follows an optimiser step."""

    def diagnostics(self, views: Views) -> dict[str, Watched]:
        """Features to watch for a collapse, by name."""
        return {}

    def figures(self, views: Views) -> dict[str, Tensor]:
        """Scalars to log beside the diagnostics, such as how many views were degenerate."""
        return {}

    def pictures(self, views: Views) -> dict[str, Tensor]:
        """Images for the report by name: (rows, columns, x, y) in any range."""
        return {}


class Task(Learner):
    """A downstream Learner: it also predicts and scores."""

    compilable = True

    def predict(self, batch: Batch) -> Tensor:
        """Probabilities (b, outputs), no randomness."""
        raise NotImplementedError
