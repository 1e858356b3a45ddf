"""Everything that only a CUDA GPU can tell, in one command of less than ten minutes; the result goes to docs/gpu-NAME.md.

    python -m benchmarks.gpu [--out docs] [--batch 32] [--minutes 9]

First the single convolutions and the parity of a full-width step with the CPU (float32, TF32 off, same views); then a step at
each scale and where its time goes, with and without the sub-pixel form and torch.compile, the released way on the same card,
host synchronisations, what bf16 does to the gradient, and whole trainings from each place of the cache. What does not fit into
the minutes, or fails, says so in its row. It needs torch, pydantic, jaxtyping, h5py, safetensors, psutil and PyYAML; TorchIO
only for the comparison with its workers. `--rehearse` runs all of it on the CPU with a tiny network, to see that the command
works before a GPU is paid for.
"""

import argparse
import gc
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn

from benchmarks.inputs import SHAPES as ITEM
from benchmarks.inputs import make as make_cache
from benchmarks.step import SCALES, at_scale, learner_of, make_views
from pcrl_cli.core.learner import Batch, Learner, Progress, Stored, Views
from pcrl_cli.core.names import find
from pcrl_cli.core.rng import Rng
from pcrl_cli.data.loader import CacheOn, Loader
from pcrl_cli.engine import compiling as engine_compiling
from pcrl_cli.engine.compiling import compiled, graphs
from pcrl_cli.engine.layout import arrange
from pcrl_cli.engine.run import Run, read_metrics
from pcrl_cli.engine.tf32 import tf32
from pcrl_cli.engine.trainer import TrainConfig, Trainer, fill_gradients, make_optimisers
from pcrl_cli.engine.undo import Snapshot
from pcrl_cli.methods import METHODS
from pcrl_cli.methods.pcrlv2 import Config, PCRLv2
from pcrl_cli.stages.cost import step_flops
from pcrl_cli.stages.pretrain import pretrain_settings

Row = tuple[str, str]


@dataclass(frozen=True)
class Bench:
    """Where and how large."""

    device: str = "cuda"
    width: int = 32
    batch: int = 32
    repeats: int = 20
    patience: float = 3.0
    """Seconds after which a measurement of three calls or more is not repeated any further."""
    found: dict[str, float] = field(default_factory=dict)
    """What the targets are held against, by name."""

    def seconds(self, work: Callable[[], object]) -> float:
        """Median of single calls after a warm-up; the device has finished when the clock is read."""
        times, warm_up = [], 3 if self.device == "cuda" else 0
        began = time.perf_counter()
        for repeat in range(self.repeats + warm_up):
            start = time.perf_counter()
            work()
            if self.device == "cuda":
                torch.cuda.synchronize()
            if repeat >= warm_up:
                times.append(time.perf_counter() - start)
            if len(times) >= 3 and time.perf_counter() - began > self.patience:
                break
        return median(times)

    def learner(self, recipe: str) -> PCRLv2:
        """The same weights at every call."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
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


def steps(bench: Bench) -> Iterator[Row]:
    """A step at each scale, bf16; the mean; the released way with and without AMP; augmentation; end to end."""
    ours, released, views = (
        bench.learner("paper"),
        bench.learner("released"),
        bench.to_device(make_views(Config(), bench.batch)),
    )
    total = 0.0
    for scale in SCALES:
        took = bench.seconds(partial(_step, bench, ours, at_scale(views, scale), torch.bfloat16))
        total += took / len(SCALES)
        flops = step_flops(Config(width=bench.width), bench.batch, scale)
        said = f"{1e3 * took:.1f} ms, {flops / took / 1e12:.3g} TFLOP/s"
        yield f"step at F{scale}, bf16, batch {bench.batch}", said
    yield "mean over the scales", f"{1e3 * total:.1f} ms, {bench.batch / total:.3g} pairs/s"
    yield from _whole(bench, ours, total)
    ways = (
        ("AMP bf16", torch.bfloat16, False),
        ("float32 in TF32", torch.float32, True),
        ("float32 without TF32", torch.float32, False),
    )
    for name, dtype, fast in ways:
        with tf32(fast):
            took = sum(bench.seconds(partial(_step, bench, released, at_scale(views, s), dtype)) for s in (1, 2, 3)) / 3
        if dtype == torch.bfloat16:
            bench.found["released"] = bench.batch / took
        yield f"released way, {name}", f"{1e3 * took:.1f} ms, ours is {took / total:.2f}x as fast"


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
    if bench.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    times = []
    for step in range(5 * bench.repeats):
        start = time.perf_counter()
        _step(bench, learner, views(step), torch.bfloat16)
        if bench.device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    mean = sum(times[5:]) / max(len(times) - 5, 1) if len(times) > 5 else times[-1]
    bench.found.update(augmentation=augmented / (augmented + step_seconds), rate=bench.batch / mean)
    rows = [
        ("augmentation", f"{1e3 * augmented:.1f} ms, {augmented / (augmented + step_seconds):.1%} of a step"),
        ("end to end from a cache on the device", f"{bench.batch / mean:.3g} pairs/s"),
    ]
    if bench.device == "cuda":
        rows.append(("peak memory of these steps", f"{torch.cuda.max_memory_allocated() / 1e9:.1f} GB"))
    return rows


def _step(
    bench: Bench,
    learner: Learner,
    views: Views,
    dtype: torch.dtype,
    forward: Callable[..., dict[str, Tensor]] | None = None,
) -> Tensor:
    learner.zero_grad()
    with torch.autocast(bench.device, torch.bfloat16, enabled=dtype != torch.float32):
        terms = (forward or learner)(views, Progress(0, 1))
    loss = torch.stack([t.float() for t in terms.values()]).sum()
    loss.backward()
    return loss.detach()


def forms(bench: Bench) -> Iterator[Row]:
    """The same step in other forms: sub-pixel stages, torch.compile."""
    views = bench.to_device(make_views(Config(), bench.batch))
    scales = (SCALES[0], SCALES[-1]) if bench.device == "cpu" else SCALES
    for stages in (0, 2, 3, 4):
        learner = arrange(learner_of("paper", bench.width, subpixel=stages), torch.device(bench.device))
        took = [bench.seconds(partial(_step, bench, learner, at_scale(views, s), torch.bfloat16)) for s in scales]
        each = ", ".join(f"F{s} {1e3 * t:.1f}" for s, t in zip(scales, took, strict=True))
        yield f"sub-pixel form in {stages} stages", f"{each} ms; mean {1e3 * sum(took) / len(took):.1f} ms"


def compiling(bench: Bench) -> Iterator[Row]:
    """torch.compile: seconds to compile each scale, the step after it, loss and gradient beside the eager one's, graphs."""
    views = bench.to_device(make_views(Config(), bench.batch))
    learner = bench.learner("paper")
    if bench.device == "cpu":  # a rehearsal need not wait for a compiler
        engine_compiling.BACKEND = "eager"
    fast, before = compiled(learner), graphs()
    scales = (1, 3, 5) if bench.device == "cuda" else (1,)
    for scale in scales:
        at = at_scale(views, scale)
        start = time.perf_counter()
        made = _step(bench, learner, at, torch.bfloat16, fast)
        first, gradient = time.perf_counter() - start, _gradient(learner)
        eager = _step(bench, learner, at, torch.bfloat16)
        alike = nn.functional.cosine_similarity(gradient, _gradient(learner), dim=0)
        took = bench.seconds(partial(_step, bench, learner, at, torch.bfloat16, fast))
        plain = bench.seconds(partial(_step, bench, learner, at, torch.bfloat16))
        said = (
            f"{plain / took:.2f}x: {1e3 * took:.1f} ms against {1e3 * plain:.1f} ms eager, {first:.0f} s to compile, loss "
            f"{float(made):.5f} against {float(eager):.5f}, gradients' cosine {float(alike):.6f}, {graphs() - before} graphs"
        )
        yield f"torch.compile at F{scale}", said
    counted = graphs()
    for scale in scales:
        _step(bench, learner, at_scale(views, scale), torch.bfloat16, fast)
    yield "recompilations when the scales come again", f"{graphs() - counted} (target 0)"


def _gradient(learner: Learner) -> Tensor:
    """All gradients in one row, copied."""
    return torch.cat([p.grad.flatten().double() for p in learner.parameters() if p.grad is not None])


def cuda_graph(bench: Bench) -> Iterator[Row]:
    """The same step replayed as one CUDA graph: what the launches cost, at each end of the scales."""
    if bench.device == "cpu":
        yield "step as one CUDA graph", "not on a CPU"
        return
    views = bench.to_device(make_views(Config(), bench.batch))
    for scale in (SCALES[0], SCALES[-1]):
        learner, at = bench.learner("paper"), at_scale(views, scale)

        def step(learner: Learner = learner, at: Views = at) -> Tensor:
            learner.zero_grad(set_to_none=True)
            with torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
                terms = learner(at, Progress(0, 1))
            loss = torch.stack([t.float() for t in terms.values()]).sum()
            loss.backward()
            return loss.detach()

        plain = bench.seconds(step)
        eager, gradient = float(step()), _gradient(learner)
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            loss = step()
        took = bench.seconds(graph.replay)
        alike = nn.functional.cosine_similarity(gradient, _gradient(learner), dim=0)
        said = f"loss {float(loss):.5f} against {eager:.5f}, gradients' cosine {float(alike):.6f}"
        yield f"step at F{scale} as one CUDA graph", f"{plain / took:.2f}x, {1e3 * took:.1f} ms; {said}"
        del graph


def layouts(bench: Bench) -> Iterator[Row]:
    """Channels last against contiguous, and cuDNN choosing its kernels by trying: the step at F3 and its loss."""
    at = at_scale(bench.to_device(make_views(Config(), bench.batch)), 3)
    last = bench.learner("paper")
    contiguous = learner_of("paper", bench.width).to(bench.device).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    contiguous.load_state_dict(last.state_dict())
    with tf32(False):
        a, b = (float(_step(bench, learner, at, torch.float32)) for learner in (last, contiguous))
    plain, took = (bench.seconds(partial(_step, bench, learner, at, torch.bfloat16)) for learner in (contiguous, last))
    yield "channels last against contiguous, F3, bf16", f"{plain / took:.2f}x; float32 losses {a:.6f} and {b:.6f}"
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        tried = bench.seconds(partial(_step, bench, last, at, torch.bfloat16))
    finally:
        torch.backends.cudnn.benchmark = before
    yield "cudnn.benchmark on against off, F3, bf16", f"{took / tried:.2f}x"


def optimisers(bench: Bench) -> Iterator[Row]:
    """Fused SGD against torch's own way: the same weights after three steps, the time of one."""
    views, took, weights = at_scale(bench.to_device(make_views(Config(), bench.batch)), 1), {}, {}
    for fused in (True, False):
        learner = bench.learner("paper")
        (optimiser,) = make_optimisers(learner, TrainConfig(), fused=fused).values()
        with tf32(False):
            _step(bench, learner, views, torch.float32)
        fill_gradients(list(learner.parameters()))
        for p in learner.parameters():
            drawn = torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))
            p.grad = torch.empty_like(p).copy_(drawn)  # in its layout, by which the kernel goes
        for _ in range(3):
            optimiser.step()
        weights[fused] = torch.cat([p.detach().flatten() for p in learner.parameters()])
        took[fused] = bench.seconds(optimiser.step)
    worst = float((weights[True] - weights[False]).abs().max())
    said = f"{took[False] / took[True]:.2f}x, {1e3 * took[True]:.2f} ms; largest difference of a weight {worst:.1e}"
    yield "fused SGD against foreach", said


def kernels(bench: Bench) -> Iterator[Row]:
    """What the device does in a step at F3, by the profiler: the eight kernels that take most of it."""
    from torch.profiler import ProfilerActivity, profile

    cuda = bench.device == "cuda"
    learner, at = bench.learner("paper"), at_scale(bench.to_device(make_views(Config(), bench.batch)), 3)
    _step(bench, learner, at, torch.bfloat16)
    with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as profiled:
        _step(bench, learner, at, torch.bfloat16)
        if cuda:
            torch.cuda.synchronize()
    which = "self_device_time_total" if cuda else "self_cpu_time_total"
    events = sorted(profiled.key_averages(), key=lambda e: -float(getattr(e, which)))
    total = sum(float(getattr(e, which)) for e in events) or 1.0
    yield "kernels launched in a step at F3", str(sum(int(e.count) for e in events))
    for e in events[:8]:
        share, name = float(getattr(e, which)) / total, str(e.key)[:90].replace("|", "/")
        yield f"kernel {name}", f"{share:.1%}, {e.count} times"


def bf16_gradient(bench: Bench) -> Iterator[Row]:
    """What bf16 autocast does to the gradient, at the start of a training and after some steps of it in float32."""
    views, learner = bench.to_device(make_views(Config(), max(2, bench.batch // 4))), bench.learner("paper")
    (optimiser,) = make_optimisers(learner, TrainConfig(), fused=bench.device == "cuda" or None).values()
    for trained in (0, 20 if bench.device == "cuda" else 1):
        for step in range(trained):
            with tf32(False):
                _step(bench, learner, at_scale(views, SCALES[step % len(SCALES)]), torch.float32)
            fill_gradients(list(learner.parameters()))
            optimiser.step()
        for scale in (1, 5):
            flat = {}
            for dtype in (torch.float32, torch.bfloat16):
                with tf32(False):
                    _step(bench, learner, at_scale(views, scale), dtype)
                flat[dtype] = _gradient(learner)
            cosine = nn.functional.cosine_similarity(flat[torch.float32], flat[torch.bfloat16], dim=0)
            yield (
                f"cosine of the bf16 and the float32 gradient at F{scale}, after {trained} steps",
                f"{float(cosine):.4f}",
            )


def breakdown(bench: Bench) -> list[Row]:
    """Where the time of a step at F3 goes, each part by itself."""
    learner = bench.learner("paper")
    views = at_scale(bench.to_device(make_views(Config(), bench.batch)), 3)
    optimisers = make_optimisers(learner, TrainConfig(), fused=bench.device == "cuda" or None)
    (optimiser,) = optimisers.values()
    _step(bench, learner, views, torch.bfloat16)
    fill_gradients(list(learner.parameters()))

    def forward() -> None:
        with torch.autocast(bench.device, torch.bfloat16):
            learner.losses(views, Progress(0, 1))

    whole = bench.seconds(partial(_step, bench, learner, views, torch.bfloat16))
    ahead = bench.seconds(forward)
    parts = {
        "forward": ahead,
        "backward": whole - ahead,
        "optimiser": bench.seconds(optimiser.step),
        "copies of the buffers, and putting them back": bench.seconds(
            lambda: Snapshot(learner).undo_unless(torch.ones((), dtype=torch.bool, device=bench.device))
        ),
    }
    return [(f"step at F3: {name}", f"{1e3 * seconds:.2f} ms") for name, seconds in parts.items()]


def trainings(bench: Bench) -> Iterator[Row]:
    """Whole trainings by the engine from each place: rate, wait, use of the GPU, synchronisations; the places' equality."""
    device, cuda = torch.device(bench.device), bench.device == "cuda"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cache = make_cache(folder, 8 if cuda else 2, max(bench.batch // 2, 2))
        places: tuple[CacheOn, ...] = ("gpu", "ram", "disk") if cuda else ("ram", "disk")

        def loader(where: CacheOn) -> Loader:
            return Loader(cache, "pairs", tuple(ITEM), cache.cases(), bench.batch, 0, device, where)

        first = {
            where: [{k: v.cpu() for k, v in b.items()} for _, b in islice(loader(where).batches(0), 6)]
            for where in places
        }
        same = all(
            torch.equal(a[k], b[k])
            for where in places
            for a, b in zip(first[places[0]], first[where], strict=True)
            for k in a
        )
        yield "batches from " + ", ".join(places), "equal" if same else "NOT EQUAL"
        losses: dict[str, list[float]] = {}
        for where in places:
            steps = 60 if cuda else 2
            run = Run.open(folder / f"run-{where}", "pretrain", {}, "f", "a: 1\n", False)
            config = TrainConfig(
                steps=steps, batch=bench.batch, check_every=10**6, lr=1e-3, checkpoint_minutes=1e6, epochs=1
            )
            trainer = Trainer(
                bench.learner("paper"), loader(where), config, run, device=device, metadata=lambda step: {}
            )
            with Watching(cuda) as watch:
                trainer.fit()
            logged = read_metrics(run.metrics_path)
            losses[where] = [sum(v for k, v in r.items() if k.startswith("loss/")) for r in logged]
            logged = logged[steps // 3 :]
            rate = sum(r["samples_per_second"] for r in logged) / len(logged)
            waited = sum(r["data_wait"] for r in logged) / len(logged)
            bench.found[f"wait on {where}"] = waited
            yield f"training, cache on {where}", f"{rate:.4g} pairs/s, waited for data {waited:.2%}{watch.said}"
        first_place, worst = losses[places[0]], 0.0
        for where in places:
            worst = max(worst, *(abs(a - b) for a, b in zip(first_place, losses[where], strict=True)))
        yield "largest difference of a step's loss between the places", f"{worst:.1e}"
        said = _synchronisations(trainer, loader(places[0]), cuda)
        yield "host synchronisations in three steps between two looks", said


def _synchronisations(trainer: Trainer, source: Loader, cuda: bool) -> str:
    """How often the host waits for the device where it should not."""
    if not cuda:
        return "not on a CPU"
    batches = source.batches(0)
    taken = [next(batches) for _ in range(3)]
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            for positions, batch in taken:
                trainer._blind_step(positions, batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    places = sorted({f"{Path(w.filename).name}:{w.lineno}" for w in heard if "synchroniz" in str(w.message)})
    return f"{len(places)} places {', '.join(places)}"


class Watching:
    """Mean use and power of the GPU while something runs, by nvidia-smi every second."""

    def __init__(self, on: bool) -> None:
        self.on, self.said = on, ""

    def __enter__(self) -> "Watching":
        command = ["nvidia-smi", "--query-gpu=utilization.gpu,power.draw", "--format=csv,noheader,nounits", "-l", "1"]
        self.process = None
        if self.on and shutil.which("nvidia-smi"):
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        return self

    def __exit__(self, *error: object) -> None:
        if self.process is not None:
            self.process.terminate()
            lines = [line.split(",") for line in self.process.communicate()[0].splitlines()]
            found = [(float(u), float(w)) for u, w in lines if u.strip().isdigit()][1:]
            if found:
                use, power = (sum(values) / len(found) for values in zip(*found, strict=True))
                self.said = f", GPU busy {use:.0f} % of the time, {power:.0f} W"


def torchio_workers(bench: Bench) -> list[Row]:
    """What TorchIO's augmentation lets through, from one core's rate here: for G7 and G8, beside the released step's rate."""
    from benchmarks import augment

    seconds = augment.measure(repeats=2)["torchio_s_per_pair"]
    bench.found.update({f"torchio {n}": n / seconds for n in (4, 16)})
    return [
        (f"TorchIO, {n} workers at most", f"{n / seconds:.3g} pairs/s, from {1e3 * seconds:.0f} ms a pair")
        for n in (4, 16)
    ]


def two_dimensional(bench: Bench) -> list[Row]:
    """G12: a step of 2D pre-training at 224x224, where this version has it."""
    try:
        settings = pretrain_settings(dim="2d")[0]
        module = find("method", settings.method, METHODS)
        learner = module.LEARNER(settings.learner, Stored(2, 1, (1 / 255, 0.0))).train()
    except Exception as error:
        return [("2D pre-training", f"not measured: {error}")]
    learner = arrange(learner, torch.device(bench.device))
    batch, size = (256, 224) if bench.device == "cuda" else (2, 64)
    images = torch.randint(0, 255, (batch, 1, size, size), dtype=torch.uint8, device=bench.device)
    positions = torch.arange(batch, device=bench.device)

    def step() -> None:
        with torch.no_grad():
            views = learner.views({"image": images}, Rng.at(0, 0, positions))
        _step(bench, learner, views, torch.bfloat16)

    bench.found["images"] = batch / bench.seconds(step)
    return [(f"2D step with augmentation, batch {batch}, {size}x{size}", f"{bench.found['images']:.4g} images/s")]


def targets(bench: Bench) -> Iterator[Row]:
    """The project's targets beside what the sections before found; those of a section that failed are not known."""

    def held(text: str, said: Callable[..., str], *names: str) -> Row:
        lacking = [name for name in names if name not in bench.found]
        if lacking:
            return text, f"not known: {', '.join(lacking)} was not measured"
        return text, said(*(bench.found[name] for name in names))

    def share(ours: float, released: float, workers: float) -> str:
        return f"{ours / min(released, workers):.2f}x"

    yield held("G5 augmentation's share of a step (5 %, aim 1 %)", "{:.2%}".format, "augmentation")
    for where in ("gpu", "ram", "disk"):
        waited = f"wait on {where}"
        yield held(f"G6 not waiting for data, cache on {where} (0.95, aim 0.99)", lambda w: f"{1 - w:.3f}", waited)
    yield held("G7 against the released way, AMP, 16 workers (2x, aim 2.5x)", share, "rate", "released", "torchio 16")
    yield held("G8 the same with 4 workers (5x, aim 8x)", share, "rate", "released", "torchio 4")
    yield held("G9 end to end, bf16, five scales (300 pairs/s, aim 450)", "{:.4g} pairs/s".format, "rate")
    yield held("G12 2D, a step with its views (half of its roofline)", "{:.4g} images/s".format, "images")


SECTIONS: dict[Callable[[Bench], Iterable[Row]], int] = {
    convolutions: 40,
    parity: 60,
    steps: 120,
    torchio_workers: 40,
    breakdown: 40,
    trainings: 120,
    two_dimensional: 40,
    bf16_gradient: 40,
    layouts: 40,
    optimisers: 30,
    kernels: 30,
    forms: 60,
    compiling: 300,
    cuda_graph: 40,
    targets: 10,
}
"""In the order of what is wanted most, with the seconds after which each is cut off; the last one needs none."""


class Late(Exception):
    """A section's time is over."""


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raises `Late` inside the block when its time is over, as soon as Python has its turn."""

    def ring(number: int, frame: object) -> None:
        raise Late(f"cut off after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.01))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def report(
    bench: Bench, minutes: float = 9.0, write: Callable[[str], object] = lambda page: None, only: Iterable[str] = ()
) -> str:
    """The page about the device. write: is given the page after every section, so that nothing known is lost."""
    began, rows = time.monotonic(), list[Row]()
    cuda, page = bench.device == "cuda", ""
    for section, limit in SECTIONS.items():
        if only and section.__name__ not in only:
            continue
        left = 60 * minutes - (time.monotonic() - began)
        if left <= 0 and section is not targets:
            rows.append((section.__name__, f"left out: {minutes:g} minutes were over"))
            continue
        try:
            if cuda:
                torch.cuda.reset_peak_memory_stats()
            with at_most(10 if section is targets else min(limit, left) if cuda else 60 * minutes):
                for row in section(bench):
                    rows.append(row)
        except Exception as error:  # the other sections are worth having
            if not cuda:
                raise
            first = (str(error).splitlines() or [""])[0]
            rows.append((section.__name__, f"failed: {type(error).__name__}: {first}"))
        gc.collect()
        if cuda:
            try:
                rows.append((f"peak memory of {section.__name__}", f"{torch.cuda.max_memory_allocated() / 1e9:.1f} GB"))
                torch.cuda.empty_cache()
            except RuntimeError as error:  # an illegal access leaves nothing of this process's GPU
                rows.append((section.__name__, f"the device is lost: {str(error).splitlines()[0]}"))
        page = _page(bench, rows)
        write(page)
        print(f"{time.monotonic() - began:5.0f} s  {section.__name__}", file=sys.stderr, flush=True)
    return page


def _page(bench: Bench, rows: list[Row]) -> str:
    name, cudnn = name_of(bench), torch.backends.cudnn.version() if bench.device == "cuda" else None
    head = f"{time.strftime('%Y-%m-%d')}, {name}, torch {torch.__version__}, CUDA {torch.version.cuda}, cuDNN {cudnn}"
    table = ["| what | measured |", "|---|---|", *(f"| {what} | {measured} |" for what, measured in rows)]
    return "\n".join([f"# {name}", "", head, "", *table]) + "\n"


def name_of(bench: Bench) -> str:
    return torch.cuda.get_device_name(0) if bench.device == "cuda" else "rehearsal on the CPU"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs"))
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--minutes", type=float, default=9.0, help="after which no further section begins")
    parser.add_argument("--rehearse", action="store_true")
    parser.add_argument("--only", nargs="*", default=(), metavar="SECTION", help="some sections alone")
    options = parser.parse_args()
    if options.rehearse:
        torch.set_num_threads(1)
        print(report(Bench("cpu", width=2, batch=2, repeats=1), 60, only=options.only))
        return
    if not torch.cuda.is_available():
        raise SystemExit("there is no CUDA GPU here, and this measures nothing else; --rehearse shows that it runs")
    bench = Bench(batch=options.batch)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"gpu-{name_of(bench).replace(' ', '-').lower()}.md"
    print(report(bench, options.minutes, lambda page: path.write_text(page, encoding="utf-8"), options.only))


if __name__ == "__main__":
    main()
