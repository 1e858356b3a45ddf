"""The training step: decoded to the drawn scale, decoded fully, and as the released code does it."""

import time
from statistics import median

import torch

from pcrl_cli.core.learner import Progress, Stored, Views
from pcrl_cli.core.rng import Rng
from pcrl_cli.engine.layout import arrange
from pcrl_cli.methods.pcrlv2 import Config, PCRLv2, Scales
from pcrl_cli.stages.pretrain import pretrain_settings

SCALES = (1, 2, 3, 4, 5)


def learner_of(recipe: str, width: int, **choices: str) -> PCRLv2:
    layer = ("benchmark", {"learner": {"width": width, **choices}})
    return PCRLv2(pretrain_settings(recipe=recipe, layers=[layer])[0].learner, Stored(3, 1, (1 / 2000, 0.5))).train()


def make_views(config: Config, batch: int) -> Views:
    draw = torch.Generator().manual_seed(0)
    stored = {
        "globals": torch.randint(-1000, 1000, (batch, 2, 1, 64, 64, 32), dtype=torch.int16, generator=draw),
        "locals_sub": torch.randint(-1000, 1000, (batch, 6, 1, 16, 16, 16), dtype=torch.int16, generator=draw),
    }
    with torch.no_grad():
        return learner_of("paper", 2).views(stored, Rng.at(0, 0, torch.arange(batch)))


def measure(width: int = 16, batch: int = 2, repeats: int = 3) -> dict[str, float]:
    """CPU seconds a step, medians of interleaved repeats, mean over the scales; and ratios.

    All in float32, since bf16 gradients are wrong on some CPUs (docs/LOG.md). `to drawn scale` and `all decoded` are recipe
    paper, channels last. `released way` is recipe released: 3 scales, all decoded, all heads, contiguous.
    """
    views = make_views(Config(), batch)
    ours, full = learner_of("paper", width), learner_of("paper", width, decode="all")
    for learner in (ours, full):
        arrange(learner, torch.device("cpu"))
    released = learner_of("released", width)
    times: dict[str, list[float]] = {"to drawn scale": [], "all decoded": [], "released way": []}
    for repeat in range(repeats + 1):
        spent = dict.fromkeys(times, 0.0)
        for scale in SCALES:
            at = {**views, "scales": Scales(scale, scale, ((scale,) * 6,) * 2)}
            spent["to drawn scale"] += _cpu(ours, at) / len(SCALES)
            spent["all decoded"] += _cpu(full, at) / len(SCALES)
        for scale in (1, 2, 3):
            at = {**views, "scales": Scales(scale, scale, ((scale,) * 6,) * 2)}
            spent["released way"] += _cpu(released, at) / 3
        if repeat:  # the first is a warm-up
            for name, seconds in spent.items():
                times[name].append(seconds)
    found = {f"{name}, s": median(values) for name, values in times.items()}
    found["all decoded / to drawn scale"] = median(
        b / a for a, b in zip(times["to drawn scale"], times["all decoded"], strict=True)
    )
    found["released way / to drawn scale"] = median(
        b / a for a, b in zip(times["to drawn scale"], times["released way"], strict=True)
    )
    return found


def _cpu(learner: PCRLv2, views: Views) -> float:
    """CPU seconds of forward and backward."""
    start = time.process_time()
    learner.zero_grad()
    terms = learner.losses(views, Progress(0, 1))
    torch.stack(list(terms.values())).sum().backward()
    return time.process_time() - start
