"""What a training step costs: counted on meta tensors, no arithmetic done, and timed against this machine's rate."""

import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from pcrl_cli.core.learner import Progress, Views
from pcrl_cli.core.rng import Stream
from pcrl_cli.methods.pcrlv2 import Config, PCRLv2, draw_scales


def step_flops(config: Config, batch: int, scale: int | None = None) -> float:
    """FLOP of one forward and backward pass of PCRLv2 at the paper's view sizes.

    scale: the drawn one; None: the mean over all that may be drawn.
    """
    if scale is None:
        scales = sorted({*config.restore_at, *config.compare_at})
        return sum(step_flops(config, batch, s) for s in scales) / len(scales)
    only = config.model_copy(
        update={
            "restore_scales": (scale,) if config.restore_at else (),
            "compare_scales": (scale,) if config.compare_at else (),
        }
    )
    with torch.device("meta"):
        learner = PCRLv2(config, 1, (1.0, 0.0)).train()
        views = _views(batch, config)
    views["scales"] = draw_scales(only, Stream.of("cost"), 0 if config.crop == "none" else 6)
    counter = FlopCounterMode(display=False)
    with counter:
        terms = learner.losses(views, Progress(0, 1))
        torch.stack(list(terms.values())).sum().backward()
    return float(counter.get_total_flops())


def _views(batch: int, config: Config) -> Views:
    views: Views = {"x": torch.zeros(batch, 2, 1, 64, 64, 32), "g": torch.zeros(batch, 2, 1, 64, 64, 32)}
    if config.crop != "none":
        views["l"] = torch.zeros(batch, 6, 1, 16, 16, 16)
    return views


def machine_rate(device: torch.device) -> float:
    """FLOP/s of a 3D convolution, forward and backward, here and now; takes about a second."""
    x = torch.randn(2, 32, 32, 32, 16, device=device, requires_grad=True)
    w = torch.randn(32, 32, 3, 3, 3, device=device, requires_grad=True)

    def work() -> Tensor:
        y = torch.nn.functional.conv3d(x, w, padding=1).sum()
        y.backward()
        return y.detach()

    flops = 3 * 2 * 27 * 32 * 32 * 2 * 32 * 32 * 16
    return flops / _seconds(work, device)


def _seconds(work: Callable[[], Tensor], device: torch.device) -> float:
    """Of one call, the best of three after a warm-up."""
    times = []
    for _ in range(4):
        start = time.perf_counter()
        float(work())
        times.append(time.perf_counter() - start)
    return min(times[1:])
