"""What a training step costs: counted on meta tensors, no arithmetic done, and timed against this machine's rate."""

import subprocess
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
        drawn = _drawn(config)
        return sum(_flops_at(config, batch, *scales, shapes, dim) for scales in drawn) / len(drawn)
    restore, compare = (scale if at else None for at in (config.restore_at, config.compare_at))
    return _flops_at(config, batch, restore, compare, shapes, dim)


def _drawn(config: Config) -> list[tuple[int | None, int | None]]:
    """The scales for restoration and comparison that a step may draw, all equally likely; the costliest last."""
    restore, compare = config.restore_at, config.compare_at
    n = max(len(restore), len(compare))

    def pick(scales: tuple[int, ...], k: int) -> int | None:
        return scales[k * len(scales) // n] if scales else None

    pairs = [(pick(restore, k), pick(compare, k)) for k in range(n)]
    return sorted(pairs, key=lambda pair: max(s for s in (*pair, 0) if s is not None))


def _flops_at(config: Config, batch: int, restore: int | None, compare: int | None, shapes: Shapes, dim: int) -> float:
    counter = FlopCounterMode(display=False)
    with counter:
        _step(config, batch, restore, compare, shapes, dim).backward()
    return float(counter.get_total_flops())


def activation_bytes(config: Config, batch: int, shapes: Shapes = PAPER, dim: int = 3) -> int:
    """Of what the forward pass at the costliest scale keeps for the backward pass, everything in float32."""
    kept: dict[int, int] = {}

    def keep(t: Tensor) -> Tensor:
        if not isinstance(t, nn.Parameter):
            storage = t.untyped_storage()
            kept[storage._cdata] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        loss = _step(config, batch, *_drawn(config)[-1], shapes, dim)  # as long as it lives, so do the storages
    total = sum(kept.values())
    del loss
    return total


def parameter_count(config: Config, channels: int = 1, dim: int = 3) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in PCRLv2(config, Stored(dim, channels, (1.0, 0.0))).parameters())


def memory(
    config: Config, batch: int, momenta: int, bf16: bool, shapes: Shapes = PAPER, dim: int = 3
) -> dict[str, float]:
    """GB on the device while training, as far as counting tells; the allocator's own surplus comes on top.

    momenta: tensors that the optimiser keeps a parameter (SGD 1, Adam 2). bf16: activations count half.
    """
    weights = 4 * parameter_count(config, shapes["globals"][1], dim)
    activations = activation_bytes(config, batch, shapes, dim) / (2 if bf16 else 1)
    parts = {"weights": weights, "gradients": weights, "optimiser": momenta * weights, "activations": activations}
    return {name: round(value / 1e9, 3) for name, value in (parts | {"all": sum(parts.values())}).items()}


def watts(device: torch.device) -> float | None:
    """The power limit of the GPU as `nvidia-smi` reports it; None where nothing reports one.

    Asked for by the GPU's UUID: torch counts the GPUs that CUDA_VISIBLE_DEVICES shows, `nvidia-smi` all of them.
    """
    if device.type != "cuda":
        return None
    uuid = str(getattr(torch.cuda.get_device_properties(device), "uuid", ""))
    if not uuid:
        return None
    command = [
        "nvidia-smi",
        f"--id=GPU-{uuid}",
        "--query-gpu=power.limit",
        "--format=csv,noheader,nounits",
    ]
    try:
        return float(subprocess.run(command, capture_output=True, check=True, text=True, timeout=20).stdout.strip())
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def _step(config: Config, batch: int, restore: int | None, compare: int | None, shapes: Shapes, dim: int) -> Tensor:
    """The loss of one step with these scales drawn, on meta tensors."""
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
    terms = learner.losses(views, Progress(0, 1))
    return torch.stack(list(terms.values())).sum()


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


def machine_rate(device: torch.device, bf16: bool = False) -> float:
    """FLOP/s of a 3D convolution, forward and backward, here and now; takes about a second."""
    batch, c = (2, 32) if device.type == "cpu" else (32, 64)
    dtype = torch.bfloat16 if bf16 else torch.float32
    layout = torch.channels_last_3d
    x = torch.randn(batch, c, 32, 32, 16, device=device, dtype=dtype).to(memory_format=layout).requires_grad_()
    w = torch.randn(c, c, 3, 3, 3, device=device, dtype=dtype).to(memory_format=layout).requires_grad_()

    def work() -> Tensor:
        y = torch.nn.functional.conv3d(x, w, padding=1).sum()
        y.backward()
        return y.detach()

    flops = 3 * 2 * 27 * c * c * batch * 32 * 32 * 16
    return flops / _seconds(work, device)


def _seconds(work: Callable[[], Tensor], device: torch.device) -> float:
    """Of one call, the best of three after a warm-up."""
    times = []
    for _ in range(4):
        start = time.perf_counter()
        float(work())
        times.append(time.perf_counter() - start)
    return min(times[1:])
