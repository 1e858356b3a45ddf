"""torch.compile of a learner's forward pass: an option, since its sums are made in another order."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pcrl_cli.core.errors import ConfigError
from pcrl_cli.core.learner import Learner

BACKEND = "inductor"
GRAPHS = 16
"""Graphs a learner may have: one a scale that can be drawn, and as many again for what the diagnostics ask. Past them
torch.compile goes on without compiling, which is slower and no less right."""


def require_compilable(learner: type[Learner]) -> None:
    """Nothing, if the learner's losses can be compiled.

    Raises:
        ConfigError: torch.compile cannot trace its losses, would make another graph every step, or has not been shown not to.
    """
    if not learner.compilable:
        raise ConfigError(
            f"train.compile is not for {learner.__name__}: it is known to work for pcrlv2 and the tasks only; leave it out"
        )


def compiled(learner: Learner) -> Callable[..., dict[str, Tensor]]:
    """The learner's `forward`, compiled once for each set of host values in the views, such as the drawn scale."""
    from torch import _dynamo

    _dynamo.config.recompile_limit = GRAPHS
    made: Any = torch.compile(learner.forward, backend=BACKEND, dynamic=False)
    return made


def graphs() -> int:
    """How many graphs this process has compiled so far."""
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])
