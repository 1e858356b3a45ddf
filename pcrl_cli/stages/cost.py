"""What a training step costs: counted on meta tensors, no arithmetic done, and timed against this machine's rate."""

import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pcrl_cli.core.learner import Batch, Learner, Progress, Stored, Views
from pcrl_cli.core.rng import Rng, Stream
from pcrl_cli.data.cache import Cache
from pcrl_cli.methods.pcrlv2 import Config, PCRLv2, draw_scales
from pcrl_cli.networks.encoder import Encoder

Shapes = Mapping[str, tuple[int, ...]]
"""Cached arrays by name: views, channels, x, y, z of one item."""

PAPER: Shapes = {"globals": (2, 1, 64, 64, 32), "locals_sub": (6, 1, 16, 16, 16), "locals_multi": (6, 1, 16, 16, 16)}


def item_shapes(cache: Cache, group: str) -> Shapes:
    """The shape of one item of every array of a group, from the records alone."""
    arrays = next(r["arrays"][group] for r in cache.manifest["cases"] if group in r["arrays"])
    return {name: tuple(facts["shape"][1:]) for name, facts in arrays.items()}


def view_shapes(config: Config) -> Shapes:
    """The same of what a step in 2D cuts from one image, three channels of it."""
    r = config.images
    local = (r.locals, 3, r.local_side, r.local_side)
    return {"globals": (2, 3, r.global_side, r.global_side), "locals_sub": local, "locals_multi": local}


def step_flops(config: Config, batch: int, scale: int | None = None, shapes: Shapes = PAPER, dim: int = 3) -> float:
    """FLOP of one forward and backward pass of PCRLv2.

    scale: the drawn one; None: the mean over all that may be drawn.
    shapes: of the cached pairs, in 2D of the views; the paper's pairs by default.
    """
    if scale is None:
        restore, compare = config.restore_at, config.compare_at
        n = max(len(restore), len(compare))

        def drawn(scales: tuple[int, ...], k: int) -> int | None:
            return scales[k * len(scales) // n] if scales else None

        return sum(_flops_at(config, batch, drawn(restore, k), drawn(compare, k), shapes, dim) for k in range(n)) / n
    return _flops_at(
        config, batch, scale if config.restore_at else None, scale if config.compare_at else None, shapes, dim
    )


def _flops_at(config: Config, batch: int, restore: int | None, compare: int | None, shapes: Shapes, dim: int) -> float:
    """With these scales drawn for restoration and comparison."""
    only = config.model_copy(
        update={
            "restore_scales": (restore,) if restore is not None else (),
            "compare_scales": (compare,) if compare is not None else (),
        }
    )
    with torch.device("meta"):
        learner = PCRLv2(config, Stored(dim, shapes["globals"][1], (1.0, 0.0))).train()
        views = _views(batch, config, shapes)
    views["scales"] = draw_scales(only, Stream.of("cost"), views["l"].shape[1] if "l" in views else 0)
    counter = FlopCounterMode(display=False)
    with counter:
        terms = learner.losses(views, Progress(0, 1))
        torch.stack(list(terms.values())).sum().backward()
    return float(counter.get_total_flops())


def _views(batch: int, config: Config, shapes: Shapes) -> Views:
    views: Views = {name: torch.zeros(batch, *shapes["globals"]) for name in ("x", "g")}
    if config.crop != "none":
        views["l"] = torch.zeros(batch, *shapes[f"locals_{config.crop}"])
    return views


def learner_flops(learner: Learner, batch: Batch, samples: int) -> float:
    """FLOP of one step of any learner with so many samples, all players, from two samples on the CPU.

    The views are made; the rest is counted on meta tensors. The learner is of no use afterwards.
    """
    two = {name: array[:2] for name, array in batch.items()}
    with torch.no_grad():
        views = learner.views(two, Rng.at(0, 0, torch.arange(2)))
    views = {name: v.to("meta") if isinstance(v, Tensor) else v for name, v in views.items()}
    learner.to("meta").train()
    counter = FlopCounterMode(display=False)
    with counter:
        for player in learner.players():
            terms = learner.losses(views, Progress(0, 1), player)
            torch.stack(list(terms.values())).sum().backward()
    return float(counter.get_total_flops()) * samples / 2


@torch.no_grad()
def encoder_passes(learner: Learner, views: Views) -> tuple[int, int]:
    """How often a step's losses, of all players, call an encoder, and how many voxels enter there."""
    seen: list[int] = []

    def note(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen.append(args[0].numel())

    hooks = [m.register_forward_pre_hook(note) for m in learner.modules() if isinstance(m, Encoder)]
    try:
        for player in learner.players():
            learner.losses(views, Progress(0, 1), player)
    finally:
        for hook in hooks:
            hook.remove()
    return len(seen), sum(seen)


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
