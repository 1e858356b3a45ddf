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
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
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


def forms(bench: Bench) -> list[Row]:
    """The same step in other forms: sub-pixel stages, torch.compile."""
    views = bench.to_device(make_views(Config(), bench.batch))
    rows: list[Row] = []
    scales = (SCALES[0], SCALES[-1]) if bench.device == "cpu" else SCALES
    for stages in (0, 2, 3, 4):
        learner = arrange(learner_of("paper", bench.width, subpixel=stages), torch.device(bench.device))
        took = [bench.seconds(partial(_step, bench, learner, at_scale(views, s), torch.bfloat16)) for s in scales]
        each = ", ".join(f"F{s} {1e3 * t:.1f}" for s, t in zip(scales, took, strict=True))
        rows.append((f"sub-pixel form in {stages} stages", f"{each} ms; mean {1e3 * sum(took) / len(took):.1f} ms"))
    return rows


def compiling(bench: Bench) -> list[Row]:
    """torch.compile: seconds to compile each scale, the step after it, and its loss beside the eager one's."""
    views = bench.to_device(make_views(Config(), bench.batch))
    learner = bench.learner("paper")
    fast, before, rows = compiled(learner), graphs(), []
    for scale in (1, 3, 5) if bench.device == "cuda" else (1,):
        at = at_scale(views, scale)
        start = time.perf_counter()
        made = _step(bench, learner, at, torch.bfloat16, fast)
        first = time.perf_counter() - start
        eager = _step(bench, learner, at, torch.bfloat16)
        took = bench.seconds(partial(_step, bench, learner, at, torch.bfloat16, fast))
        plain = bench.seconds(partial(_step, bench, learner, at, torch.bfloat16))
        rows.append(
            (
                f"torch.compile at F{scale}",
                f"{1e3 * took:.1f} ms against {1e3 * plain:.1f} ms eager, {first:.0f} s to compile, "
                f"loss {float(made):.5f} against {float(eager):.5f}",
            )
        )
    return [*rows, ("graphs compiled", str(graphs() - before))]


def bf16_gradient(bench: Bench) -> list[Row]:
    """What bf16 autocast does to the gradient at the start of a training, on augmented random voxels."""
    views, learner = bench.to_device(make_views(Config(), max(2, bench.batch // 4))), bench.learner("paper")
    rows = []
    for scale in (1, 5):
        flat = {}
        for dtype in (torch.float32, torch.bfloat16):
            with tf32(False):
                _step(bench, learner, at_scale(views, scale), dtype)
            flat[dtype] = torch.cat([p.grad.flatten() for p in learner.parameters() if p.grad is not None])
        cosine = nn.functional.cosine_similarity(flat[torch.float32], flat[torch.bfloat16], dim=0)
        rows.append((f"cosine of the bf16 and the float32 gradient at F{scale}", f"{float(cosine):.4f}"))
    return rows


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
            lambda: Snapshot(learner, {}).undo_unless(torch.ones((), dtype=torch.bool, device=bench.device))
        ),
    }
    return [(f"step at F3: {name}", f"{1e3 * seconds:.2f} ms") for name, seconds in parts.items()]


def trainings(bench: Bench) -> list[Row]:
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
        rows = [("batches from " + ", ".join(places), "equal" if same else "NOT EQUAL")]
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
            logged = read_metrics(run.metrics_path)[steps // 3 :]
            rate = sum(r["samples_per_second"] for r in logged) / len(logged)
            waited = sum(r["data_wait"] for r in logged) / len(logged)
            rows.append(
                (f"training, cache on {where}", f"{rate:.4g} pairs/s, waited for data {waited:.2%}{watch.said}")
            )
        rows.append(
            (
                "host synchronisations in three steps between two looks",
                _synchronisations(trainer, loader(places[0]), cuda),
            )
        )
    return rows


def _synchronisations(trainer: Trainer, source: Loader, cuda: bool) -> str:
    """How often the host waits for the device where it should not."""
    if not cuda:
        return "not on a CPU"
    batches = source.batches(0)
    taken = [next(batches) for _ in range(3)]
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        for positions, batch in taken:
            trainer._blind_step(positions, batch)
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

    return [(f"2D step with augmentation, batch {batch}, {size}x{size}", f"{batch / bench.seconds(step):.4g} images/s")]


SECTIONS = (
    convolutions,
    parity,
    steps,
    breakdown,
    trainings,
    forms,
    bf16_gradient,
    two_dimensional,
    torchio_workers,
    compiling,
)
"""In the order of what is wanted most."""


def report(bench: Bench, minutes: float = 9.0) -> tuple[str, str]:
    """The device's name and the page about it."""
    began = time.monotonic()
    name = torch.cuda.get_device_name(0) if bench.device == "cuda" else "rehearsal on the CPU"
    cudnn = torch.backends.cudnn.version() if bench.device == "cuda" else None
    head = f"{time.strftime('%Y-%m-%d')}, {name}, torch {torch.__version__}, CUDA {torch.version.cuda}, cuDNN {cudnn}"
    rows: list[Row] = []
    for section in SECTIONS:
        if time.monotonic() - began > 60 * minutes:
            rows.append((section.__name__, f"left out: {minutes:g} minutes were over"))
            continue
        try:
            rows += section(bench)
        except Exception as error:  # the other sections are worth having
            if bench.device == "cpu":
                raise
            rows.append((section.__name__, f"failed: {type(error).__name__}: {str(error).splitlines()[0]}"))
        print(f"{time.monotonic() - began:5.0f} s  {section.__name__}", file=sys.stderr, flush=True)
    table = ["| what | measured |", "|---|---|", *(f"| {what} | {measured} |" for what, measured in rows)]
    return name, "\n".join([f"# {name}", "", head, "", *table]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs"))
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--minutes", type=float, default=9.0, help="after which no further section begins")
    parser.add_argument("--rehearse", action="store_true")
    options = parser.parse_args()
    if options.rehearse:
        print(report(Bench("cpu", width=2, batch=2, repeats=1), 60)[1])
        return
    if not torch.cuda.is_available():
        raise SystemExit("there is no CUDA GPU here, and this measures nothing else; --rehearse shows that it runs")
    name, text = report(Bench(batch=options.batch), options.minutes)
    print(text)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"gpu-{name.replace(' ', '-').lower()}.md").write_text(text)


if __name__ == "__main__":
    main()
