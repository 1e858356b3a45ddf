"""Fine-tuned networks as they are run: float32 contiguous against channels last, bfloat16 and torch.compile.

    python -m benchmarks.inference [--quick] [--device cuda] [--repeats 5]

Nodule blocks of 48^3, radiographs of 224x224 and windows of a liver's segmentation, at the networks' full width. CPU
seconds (on a GPU seconds) of one prediction, interleaved; the median and, in brackets, the smallest and largest of the
repeats as ratios. Beside each ratio how far the probabilities are from those of float32 contiguous.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from pcrl_cli.core.contract import Architecture
from pcrl_cli.core.learner import Batch, Stored, Task
from pcrl_cli.engine.inference import Inference, ready
from pcrl_cli.engine.layout import memory_format
from pcrl_cli.networks.encoders import build_encoder
from pcrl_cli.tasks import chest, lits, luna

WAYS = {
    "channels last": Inference(),
    "channels last, compiled": Inference(compile=True),
    "channels last, bf16": Inference("bf16"),
    "channels last, bf16, compiled": Inference("bf16", compile=True),
}


@dataclass(frozen=True)
class Case:
    """A task and one batch for it."""

    name: str
    make: Callable[[], Task]
    batch: Batch


def cases(quick: bool) -> list[Case]:
    """quick: narrow networks and small images, to see that it runs."""
    width, flat, side, crop = (4, 8, 64, (32, 32, 16)) if quick else (32, 64, 224, (96, 96, 64))
    depth, block = (3, 16) if quick else (5, 48)
    draw = torch.Generator().manual_seed(0)

    def scans(*shape: int) -> Tensor:
        return torch.randint(-1000, 1000, shape, generator=draw, dtype=torch.int16)

    def volume() -> Architecture:
        return Architecture(dim=3, encoder="unet3d", width=width, poolings=depth)

    hu, grey = Stored(3, 1, (1 / 2000, 0.5)), Stored(2, 1, (1 / 255, 0.0), tuple("abcdefghijklmn"))
    radiographs = torch.randint(0, 255, (8, 1, side, side), generator=draw, dtype=torch.uint8)
    cut = chest.Config(side=side, resize=side)
    resnet = Architecture(dim=2, encoder="resnet18", width=flat, poolings=5)
    return [
        Case(
            f"luna, 8 blocks of {block}^3",
            lambda: luna.TASK(build_encoder(volume(), 1), luna.Config(side=block), hu),
            {"blocks": scans(8, 1, *[24 if quick else 64] * 3)},
        ),
        Case(
            f"chest, 8 images of {side}x{side}",
            lambda: chest.TASK(build_encoder(resnet, 1), cut, grey),
            {"image": radiographs},
        ),
        Case(
            f"lits, 1 window of {'x'.join(map(str, crop))}",
            lambda: lits.TASK(build_encoder(volume(), 1), lits.Config(crop=crop), hu),
            {"image": scans(1, 1, *crop)},
        ),
    ]


def built(case: Case) -> Task:
    """The same weights every time, with running statistics of noise, so that outputs are spread."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        task = case.make()
        for module in task.modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(0.5, 1.0)
    return task


def measure(case: Case, device: torch.device, repeats: int) -> Iterator[tuple[str, str]]:
    """A row a way: how often as fast as float32 contiguous, and the largest difference of a probability."""
    batch = {name: array.to(device) for name, array in case.batch.items()}
    plain = built(case).to(device).eval().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    assert memory_format(plain) != torch.contiguous_format
    ways: dict[str, Task] = {"contiguous": plain} | {
        name: ready(built(case), device, how) for name, how in WAYS.items()
    }
    probabilities, seconds, first = {}, {name: list[float]() for name in ways}, {}
    for name, task in ways.items():
        start = time.perf_counter()
        probabilities[name] = task.predict(batch).float().cpu()
        first[name] = time.perf_counter() - start
        task.predict(batch)
    for _ in range(repeats):
        for name, task in ways.items():
            seconds[name].append(_took(task, batch, device))
    yield f"{case.name}: float32 contiguous", f"{1e3 * median(seconds['contiguous']):.0f} ms"
    for name in WAYS:
        ratios = [a / b for a, b in zip(seconds["contiguous"], seconds[name], strict=True)]
        error = (probabilities[name] - probabilities["contiguous"]).abs().max()
        made = f", {first[name]:.0f} s to compile" if WAYS[name].compile else ""
        yield (
            f"{case.name}: {name}",
            f"{median(ratios):.2f}x ({min(ratios):.2f} to {max(ratios):.2f}){made}; probabilities within {error:.1e}",
        )


def _took(task: Task, batch: Batch, device: torch.device) -> float:
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    start = clock()
    task.predict(batch)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return clock() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small networks: to see that it runs")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    torch.set_num_threads(1)
    print(f"{options.device}, one thread, torch {torch.__version__}\n\n| what | measured |\n|---|---|")
    for case in cases(options.quick):
        for what, measured in measure(case, torch.device(options.device), options.repeats):
            print(f"| {what} | {measured} |", flush=True)
        print(f"{case.name} done", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
