"""A step that must not have happened: what it changed is put back bit for bit."""

import copy
from collections.abc import Callable, Mapping

import torch
from torch import nn


def snapshot(learner: nn.Module, optimisers: Mapping[str, torch.optim.Optimizer]) -> Callable[[], None]:
    """Remembers a learner's buffers and returns the function that restores them.

    With several optimisers their states and all parameters are remembered too: the first player has moved by the time
    that the second one's loss is known. With one, nothing moves before every number is known to be finite.
    """
    buffers = [
        (module, name, buffer, buffer.detach().clone())
        for module in learner.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    several = len(optimisers) > 1
    parameters = [(p, p.detach().clone()) for p in learner.parameters()] if several else []
    states = [(o, copy.deepcopy(o.state_dict()["state"])) for o in optimisers.values()] if several else []

    def undo() -> None:
        with torch.no_grad():
            for module, name, buffer, value in buffers:
                module._buffers[name] = buffer.copy_(value)  # a step may also have put another tensor in its place
            for p, value in parameters:
                p.copy_(value)
        for optimiser, state in states:
            optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})

    return undo
