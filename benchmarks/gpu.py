"""Everything that only a CUDA GPU can tell, in one command of some minutes; the result goes to docs/gpu-NAME.md.

    python -m benchmarks.gpu [--out docs] [--batch 32]

Parity of a full-width step with the CPU (float32, TF32 off, same views), single convolutions, a step at each scale, the
augmentation's share, end to end from a cache on the GPU, and the released way on the same card. It needs torch, pydantic,
jaxtyping, h5py, safetensors, psutil and PyYAML; neither SimpleITK nor MONAI. `--rehearse` runs all of it on the CPU with a tiny
network, to see that the command works before a GPU is paid for.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn

from benchmarks.step import SCALES, at_scale, learner_of, make_views
from pcrl_cli.core.learner import Batch, Progress, Views
from pcrl_cli.core.rng import Rng
from pcrl_cli.engine.layout import arrange
from pcrl_cli.engine.tf32 import tf32
from pcrl_cli.methods.pcrlv2 import Config, PCRLv2
from pcrl_cli.stages.cost import step_flops

Row = tuple[str, str]


@dataclass(frozen=True)
class Bench:
    """Where and how large."""

    device: str = "cuda"
    width: int = 32
    batch: int = 32
    repeats: int = 20

    def seconds(self, work: Callable[[], object]) -> float:
        """Median of single calls after a warm-up; the device has finished when the clock is read."""
        times = []
        for repeat in range(self.repeats + 3):
            start = time.perf_counter()
            work()
            if self.device == "cuda":
                torch.cuda.synchronize()
            if repeat >= 3:
                times.append(time.perf_counter() - start)
        return median(times)

    def learner(self, recipe: str) -> PCRLv2:
        learner = learner_of(recipe, self.width)
        return arrange(learner, torch.device(self.device))

    def to_device(self, views: Views) -> Views:
        return {k: v.to(self.device) if isinstance(v, Tensor) else v for k, v in views.items()}


def parity(bench: Bench) -> list[Row]:
    """Largest relative difference of any loss term, CPU against the device, over the five scales, four pairs.

    Relative to the term, or to 0.1 where the term is smaller: a cosine is a difference of larger numbers and may be near 0.
    With two pairs the batch norms of the heads see two vectors and magnify rounding to their signs, hence four.
    """
    views, cpu, other = make_views(Config(), 4), learner_of("paper", bench.width), bench.learner("paper")
    other.load_state_dict(cpu.state_dict())
    worst = 0.0
    for scale in SCALES:
        with torch.no_grad(), tf32(False):
            a = cpu.losses(at_scale(views, scale), Progress(0, 1))
            b = other.losses(bench.to_device(at_scale(views, scale)), Progress(0, 1))
        worst = max(worst, *(abs(b[k].item() - a[k].item()) / max(abs(a[k].item()), 0.1) for k in a))
    return [
        (
            f"losses at width {bench.width}, device against CPU, float32 without TF32: largest relative difference",
            f"{worst:.1e} (target 1e-3)",
        )
    ]


def convolutions(bench: Bench) -> list[Row]:
    """bf16, channels last, 64x64x32, forward and backward."""
    rows = []
    for c_in, c_out in ((32, 64), (64, 64), (128, 64)):
        layer = nn.Conv3d(c_in, c_out, 3, padding=1)
        took = bench.seconds(_convolution(bench, layer, (bench.batch, c_in, 64, 64, 32)))
        flops = 3 * 2 * 27 * c_in * c_out * bench.batch * 64 * 64 * 32
        rows.append(
            (
                f"conv3d k3 {c_in} -> {c_out}, batch {bench.batch}, bf16 channels last",
                f"{flops / took / 1e12:.3g} TFLOP/s",
            )
        )
    composed = nn.ConvTranspose3d(128, 64, 4, stride=2, padding=1)
    took = bench.seconds(_convolution(bench, composed, (bench.batch, 128, 32, 32, 16)))
    return [*rows, ("transposed convolution k4 s2 128 -> 64, in place of up-sampling and k3", f"{1e3 * took:.2f} ms")]


def _convolution(bench: Bench, layer: nn.Module, shape: tuple[int, ...]) -> Callable[[], object]:
    layer = layer.to(bench.device, torch.bfloat16).to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    x = torch.randn(*shape, device=bench.device, dtype=torch.bfloat16)
    x = x.to(memory_format=torch.channels_last_3d).requires_grad_()
    return lambda: layer(x).sum().backward()


def steps(bench: Bench) -> list[Row]:
    """A step at each scale, bf16; the mean; the released way with and without AMP; augmentation; end to end."""
    ours, released, views = (
        bench.learner("paper"),
        bench.learner("released"),
        bench.to_device(make_views(Config(), bench.batch)),
    )
    rows: list[Row] = []
    total = 0.0
    for scale in SCALES:
        took = bench.seconds(partial(_step, bench, ours, at_scale(views, scale), torch.bfloat16))
        total += took / len(SCALES)
        flops = step_flops(Config(width=bench.width), bench.batch, scale)
        rows.append(
            (f"step at F{scale}, bf16, batch {bench.batch}", f"{1e3 * took:.1f} ms, {flops / took / 1e12:.3g} TFLOP/s")
        )
    rows.append(("mean over the scales", f"{1e3 * total:.1f} ms, {bench.batch / total:.3g} pairs/s"))
    ways = (
        ("AMP bf16", torch.bfloat16, False),
        ("float32 in TF32", torch.float32, True),
        ("float32 without TF32", torch.float32, False),
    )
    for name, dtype, fast in ways:
        with tf32(fast):
            took = sum(bench.seconds(partial(_step, bench, released, at_scale(views, s), dtype)) for s in (1, 2, 3)) / 3
        rows.append((f"released way, {name}", f"{1e3 * took:.1f} ms, ours is {took / total:.2f}x as fast"))
    return [*rows, *_whole(bench, ours, total)]


def _whole(bench: Bench, learner: PCRLv2, step_seconds: float) -> list[Row]:
    """Augmentation alone, and steps as a run does them, from integers that lie on the device."""
    stored: Batch = {
        "globals": torch.randint(-1000, 1000, (bench.batch, 2, 1, 64, 64, 32), dtype=torch.int16, device=bench.device),
        "locals_sub": torch.randint(
            -1000, 1000, (bench.batch, 6, 1, 16, 16, 16), dtype=torch.int16, device=bench.device
        ),
    }
    positions = torch.arange(bench.batch, device=bench.device)

    def views(step: int) -> Views:
        with torch.no_grad():
            return learner.views(stored, Rng.at(0, step, positions))

    augmented = bench.seconds(partial(views, 0))
    times = []
    for step in range(5 * bench.repeats):
        start = time.perf_counter()
        _step(bench, learner, views(step), torch.bfloat16)
        if bench.device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    mean = sum(times[5:]) / max(len(times) - 5, 1) if len(times) > 5 else times[-1]
    rows = [
        ("augmentation", f"{1e3 * augmented:.1f} ms, {augmented / (augmented + step_seconds):.1%} of a step"),
        ("end to end from a cache on the device", f"{bench.batch / mean:.3g} pairs/s"),
    ]
    if bench.device == "cuda":
        rows.append(("peak memory", f"{torch.cuda.max_memory_allocated() / 1e9:.1f} GB"))
    return rows


def _step(bench: Bench, learner: PCRLv2, views: Views, dtype: torch.dtype) -> None:
    learner.zero_grad()
    with torch.autocast(bench.device, torch.bfloat16, enabled=dtype != torch.float32):
        terms = learner.losses(views, Progress(0, 1))
    torch.stack(list(terms.values())).sum().backward()


def report(bench: Bench) -> tuple[str, str]:
    """The device's name and the page about it."""
    name = torch.cuda.get_device_name(0) if bench.device == "cuda" else "rehearsal on the CPU"
    cudnn = torch.backends.cudnn.version() if bench.device == "cuda" else None
    head = f"{time.strftime('%Y-%m-%d')}, {name}, torch {torch.__version__}, CUDA {torch.version.cuda}, cuDNN {cudnn}"
    rows = [*parity(bench), *convolutions(bench), *steps(bench)]
    table = ["| what | measured |", "|---|---|", *(f"| {what} | {measured} |" for what, measured in rows)]
    return name, "\n".join([f"# {name}", "", head, "", *table]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs"))
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rehearse", action="store_true")
    options = parser.parse_args()
    if options.rehearse:
        print(report(Bench("cpu", width=2, batch=2, repeats=1))[1])
        return
    if not torch.cuda.is_available():
        raise SystemExit("there is no CUDA GPU here, and this measures nothing else; --rehearse shows that it runs")
    name, text = report(Bench(batch=options.batch))
    print(text)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"gpu-{name.replace(' ', '-').lower()}.md").write_text(text)


if __name__ == "__main__":
    main()
