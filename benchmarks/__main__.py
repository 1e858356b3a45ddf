"""`python -m benchmarks`: what is fast and by how much, as ratios from one run on one thread.

    python -m benchmarks [--quick] [--markdown FILE]

Times are CPU seconds of interleaved repeats, since shared machines are noisy; compare within a run only.
"""

import argparse
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import torch

from benchmarks import augment, crops, image_views, inputs, step
from pcrl_cli.methods.pcrlv2 import Config
from pcrl_cli.stages.cost import step_flops


def help_seconds(repeats: int = 5) -> float:
    """Wall seconds of `pcrl --help`, median."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "pcrl_cli", "--help"], capture_output=True, check=True)
        times.append(time.perf_counter() - start)
    return median(times)


Row = tuple[str, str, str, str]
"""What, measured, must, aim."""


def arithmetic(quick: bool) -> Iterator[Row]:
    flops = " / ".join(f"{step_flops(Config(subpixel=n), 32) / 1e12:.1f}" for n in (0, 2, 4))
    yield "G1 TFLOP a step at batch 32, sub-pixel form in 0 / 2 / 4 stages", flops, "21.5", "17.5"


def the_step(quick: bool) -> Iterator[Row]:
    s = step.measure(width=8 if quick else 32, repeats=1 if quick else 2)
    yield "G2 step, all decoded / to the drawn scale, fp32", f"{s['all decoded / to drawn scale']:.2f}x", "1.3x", "1.6x"
    yield "G2 the same, drawn scale in the sub-pixel form", f"{s['all decoded / ours']:.2f}x", "", ""
    yield "G3 step, released way / ours, both fp32", f"{s['released way / ours']:.2f}x", "3x", "4x"
    yield "G3 the same without the sub-pixel form", f"{s['released way / to drawn scale']:.2f}x", "", ""
    yield "G3 step, released way in fp32 / ours with --precision bf16", f"{s['released way / bf16']:.2f}x", "3x", "4x"
    for name in ("ours", "to drawn scale", "all decoded", "bf16", "released way"):
        yield f"a step, {name}", f"{s[f'{name}, s']:.2f} s of CPU", "", ""


def augmentation(quick: bool) -> Iterator[Row]:
    a = augment.measure(repeats=2 if quick else 5)
    yield "G4 augmentation of a pair, TorchIO / ours", f"{a['ratio']:.2f}x", "4x", "5x"
    yield "augmentation of a pair, ours", f"{1e3 * a['ours_s_per_pair']:.1f} ms", "", ""
    for shape in ((64, 64, 32), (224, 224)):
        view = augment.shuffling(shape, repeats=2 if quick else 5)
        ours, whole, by_keys = (f"{1e3 * view[name]:.1f}" for name in ("ours", "without the host", "sorted keys"))
        name = f"local shuffling of a view of {'x'.join(map(str, shape))}, ours / all voxels, as on a GPU / sorted keys"
        yield name, f"{ours} / {whole} / {by_keys} ms", "", ""


def pictures(quick: bool) -> Iterator[Row]:
    v = image_views.measure(repeats=2 if quick else 5)
    for name, other in (("pillow", "Pillow"), ("torchio", "TorchIO")):
        yield f"eight 2D views of an image, {other} / ours, CPU", f"{v[f'{name} / ours']:.2f}x", "", ""


def input_path(quick: bool) -> Iterator[Row]:
    found = inputs.measure(repeats=2 if quick else inputs.REPEATS)
    ratio, lowest, highest = (found.pop(name) for name in ("ratio", "lowest ratio", "highest ratio"))
    said = f"{ratio:.2f}x ({lowest:.2f} to {highest:.2f})"
    yield "read and augment, samples/s, ours / released way", said, "5x", ""
    for name, rate in found.items():
        yield f"{name}, samples/s", f"{rate:.0f}", "", ""
    for place, share in inputs.waits(width=4 if quick else 8).items():
        yield f"G6 share of a training's time spent waiting for data, {place}", f"{share:.2%}", "5%", "1%"


def cropping(quick: bool) -> Iterator[Row]:
    for name, c in crops.measure().items():
        yield f"G11 crops of a pair in `prep`, recipe {name}, CPU", f"{c['cpu_ms_a_pair']} ms", "40 ms", "15 ms"


def start_up(quick: bool) -> Iterator[Row]:
    yield "G14 `pcrl --help`", f"{help_seconds(2 if quick else 5):.2f} s", "0.3 s", "0.2 s"


def rows(quick: bool) -> Iterator[Row]:
    """Every row, as soon as it is known."""
    for section in (arithmetic, augmentation, pictures, input_path, cropping, start_up, the_step):
        yield from section(quick)


def markdown(table: list[Row], quick: bool) -> str:
    cpu = next((line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")), platform.machine())
    head = f"{time.strftime('%Y-%m-%d')}, {cpu}, one thread, torch {torch.__version__}{', --quick' if quick else ''}"
    lines = [head, "", "| what | measured | must | aim |", "|---|---|---|---|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in table)]) + "\n"


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small networks, few repeats: to see that it runs")
    parser.add_argument("--markdown", type=Path, help="write the table there too")
    options = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    torch.set_num_threads(1)
    table = []
    for row in rows(options.quick):
        print(*row, sep=" | ", file=sys.stderr, flush=True)
        table.append(row)
    text = markdown(table, options.quick)
    print(text)
    if options.markdown:
        options.markdown.write_text(text)


if __name__ == "__main__":
    main()
