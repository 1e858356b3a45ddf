"""What a training step costs: counted on meta tensors, no arithmetic done, and timed against this machine's rate."""

import subprocess
import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pcrl_cli.core.learner import Progress, Stored, Views
from pcrl_cli.core.rng import Stream
from pcrl_cli.data.cache import Cache
from pcrl_cli.methods.pcrlv2 import Config, PCRLv2, draw_scales

Shapes = Mapping[str, tuple[int, ...]]
"""Cached arrays by name: views, channels, x, y, z of one item."""

PAPER: Shapes = {"globals": (2, 1, 64, 64, 32), "locals_sub": (6, 1, 16, 16, 16), "locals_multi": (6, 1, 16, 16, 16)}


def item_shapes(cache: Cache, group: str) -> Shapes:
    """The shape of one item of every array of a group, from the records alone."""
    arrays = next(r["arrays"][group] for r in cache.manifest["cases"] if group in r["arrays"])
    return {name: tuple(facts["shape"][1:]) for name, facts in arrays.items()}


def step_flops(config: Config, batch: int, scale: int | None = None, shapes: Shapes = PAPER) -> float:
    """FLOP of one forward and backward pass of PCRLv2.

    scale: the drawn one; None: the mean over all that may be drawn.
    shapes: of the cached pairs; the paper's by default.
    """
    if scale is None:
        scales = _scales(config)
        return sum(step_flops(config, batch, s, shapes) for s in scales) / len(scales)
    counter = FlopCounterMode(display=False)
    with counter:
        _step(config, batch, scale, shapes).backward()
    return float(counter.get_total_flops())


def activation_bytes(config: Config, batch: int, shapes: Shapes = PAPER) -> int:
    """Of what the forward pass at the costliest scale keeps for the backward pass, everything in float32."""
    most = 0
    for scale in _scales(config)[-1:]:
        kept: dict[int, int] = {}

        def keep(t: Tensor, kept: dict[int, int] = kept) -> Tensor:
            if not isinstance(t, nn.Parameter):
                storage = t.untyped_storage()
                kept[storage._cdata] = storage.nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            loss = _step(config, batch, scale, shapes)  # as long as it lives, so do the storages
        most = max(most, sum(kept.values()))
        del loss
    return most


def parameter_count(config: Config, channels: int = 1) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in PCRLv2(config, Stored(3, channels, (1.0, 0.0))).parameters())


def memory(config: Config, batch: int, momenta: int, bf16: bool, shapes: Shapes = PAPER) -> dict[str, float]:
    """GB on the device while training, as far as counting tells; the allocator's own surplus comes on top.

    momenta: tensors that the optimiser keeps a parameter (SGD 1, Adam 2). bf16: activations count half.
    """
    weights = 4 * parameter_count(config, shapes["globals"][1])
    activations = activation_bytes(config, batch, shapes) / (2 if bf16 else 1)
    parts = {"weights": weights, "gradients": weights, "optimiser": momenta * weights, "activations": activations}
    return {name: round(value / 1e9, 3) for name, value in (parts | {"all": sum(parts.values())}).items()}


def watts(device: torch.device) -> float | None:
    """The power limit of the GPU as `nvidia-smi` reports it; None where nothing reports one."""
    if device.type != "cuda":
        return None
    command = [
        "nvidia-smi",
        f"--id={torch.cuda.current_device()}",
        "--query-gpu=power.limit",
        "--format=csv,noheader,nounits",
    ]
    try:
        return float(subprocess.run(command, capture_output=True, check=True, text=True, timeout=20).stdout.strip())
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def _scales(config: Config) -> list[int]:
    return sorted({*config.restore_at, *config.compare_at})


def _step(config: Config, batch: int, scale: int, shapes: Shapes) -> Tensor:
    """The loss of one step at a scale, on meta tensors."""
    only = config.model_copy(
        update={
            "restore_scales": (scale,) if config.restore_at else (),
            "compare_scales": (scale,) if config.compare_at else (),
        }
    )
    with torch.device("meta"):
        learner = PCRLv2(config, Stored(3, shapes["globals"][1], (1.0, 0.0))).train()
        views = _views(batch, config, shapes)
    views["scales"] = draw_scales(only, Stream.of("cost"), views["l"].shape[1] if "l" in views else 0)
    terms = learner.losses(views, Progress(0, 1))
    return torch.stack(list(terms.values())).sum()


def _views(batch: int, config: Config, shapes: Shapes) -> Views:
    views: Views = {name: torch.zeros(batch, *shapes["globals"]) for name in ("x", "g")}
    if config.crop != "none":
        views["l"] = torch.zeros(batch, *shapes[f"locals_{config.crop}"])
    return views


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
