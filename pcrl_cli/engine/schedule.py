"""Learning rates as pure functions of the step."""

import math
from collections.abc import Sequence
from typing import Literal

Schedule = Literal["cosine", "cosine_epoch", "halving", "steps", "constant"]


def factor(
    schedule: Schedule,
    step: int,
    steps: int,
    warmup: int,
    steps_per_epoch: int,
    halve_every: int = 50,
    step_epochs: Sequence[int] = (),
) -> float:
    """What multiplies the base learning rate at a step.

    warmup: linear from 1/warmup to 1 over the first steps, then the schedule over the rest.
    cosine: 1/2 (1 + cos(pi t)) a step, to 0 (section 4.3); cosine_epoch: the same, changed an epoch (released code);
    halving: x 0.5 every `halve_every` epochs (released fine-tuning); steps: x 0.1 from each of `step_epochs` on; constant.
    """
    if step < warmup:
        return (step + 1) / warmup
    done, total = step - warmup, max(steps - warmup, 1)
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * done / total))
    if schedule == "cosine_epoch":
        epoch_start = max(step // steps_per_epoch * steps_per_epoch - warmup, 0)
        return 0.5 * (1 + math.cos(math.pi * epoch_start / total))
    if schedule == "halving":
        return float(0.5 ** (step // (halve_every * steps_per_epoch)))
    if schedule == "steps":
        return float(0.1 ** sum(step >= epoch * steps_per_epoch for epoch in step_epochs))
    return 1.0
