"""The training step: decoded to the drawn scale, decoded fully, and as the released code does it."""

import time
from statistics import median

import torch

from pcrl_cli.core.learner import Learner, Progress, Stored, Views
from pcrl_cli.core.rng import Rng
from pcrl_cli.engine.layout import arrange
from pcrl_cli.methods.pcrlv2 import Config, PCRLv2, Scales
from pcrl_cli.stages.pretrain import pretrain_settings

SCALES = (1, 2, 3, 4, 5)


def learner_of(recipe: str, width: int, **choices: object) -> PCRLv2:
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
    """CPU seconds a step, mean over the scales, medians of interleaved repeats; and ratios, medians of pairs.

    `ours` is recipe paper as it runs: decoded to the drawn scale, channels last with deep weights contiguous, the sub-pixel
    form where it pays. `to drawn scale` is the same without the sub-pixel form, `all decoded` that with everything decoded.
    `bf16` is `ours` with `--precision bf16`; `benchmarks.precision` says what that changes. `released way` is recipe released:
    3 scales, all decoded, all heads, contiguous, float32.
    """
    views = make_views(Config(), batch)
    cpu = torch.device("cpu")
    ours = arrange(learner_of("paper", width), cpu)
    sides: dict[str, tuple[PCRLv2, tuple[int, ...], bool]] = {
        "ours": (ours, SCALES, False),
        "to drawn scale": (arrange(learner_of("paper", width, subpixel=0), cpu), SCALES, False),
        "all decoded": (arrange(learner_of("paper", width, subpixel=0, decode="all"), cpu), SCALES, False),
        "bf16": (ours, SCALES, True),
        "released way": (learner_of("released", width), (1, 2, 3), False),
    }
    for learner, _, bf16 in sides.values():  # a first call of each allocates
        _cpu(learner, at_scale(views, 1), bf16)
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        spent = dict.fromkeys(times, 0.0)
        for k in range(len(SCALES)):
            for name, (learner, scales, bf16) in sides.items():
                if k < len(scales):
                    spent[name] += _cpu(learner, at_scale(views, scales[k]), bf16) / len(scales)
        for name, seconds in spent.items():
            times[name].append(seconds)
    found = {f"{name}, s": median(values) for name, values in times.items()}
    for name, other in (
        ("all decoded", "to drawn scale"),
        ("all decoded", "ours"),
        ("released way", "to drawn scale"),
        ("released way", "ours"),
        ("released way", "bf16"),
    ):
        found[f"{name} / {other}"] = median(b / a for a, b in zip(times[other], times[name], strict=True))
    return found


def at_scale(views: Views, scale: int) -> Views:
    return {**views, "scales": Scales(scale, scale, ((scale,) * 6,) * 2)}


def backward(learner: Learner, views: Views, bf16: bool = False) -> torch.Tensor:
    """The loss, after its gradients were computed on the CPU."""
    learner.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        terms = learner.losses(views, Progress(0, 1))
    loss = torch.stack([t.float() for t in terms.values()]).sum()
    loss.backward()
    return loss.detach()


def _cpu(learner: PCRLv2, views: Views, bf16: bool = False) -> float:
    """CPU seconds of forward and backward."""
    start = time.process_time()
    backward(learner, views, bf16)
    return time.process_time() - start
