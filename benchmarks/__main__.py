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
from pathlib import Path
from statistics import median

import torch

from benchmarks import augment, crops, inputs, step
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


def rows(quick: bool) -> list[tuple[str, str, str, str]]:
    """(what, measured, must, aim)."""
    n = 2 if quick else 5
    a = augment.measure(repeats=n)
    i = inputs.measure(repeats=n)
    w = inputs.waits(width=4 if quick else 8)
    s = step.measure(width=8 if quick else 32, repeats=1 if quick else 2)
    error = step.bf16_error()
    c = crops.measure()
    flops = [step_flops(Config(subpixel=n), 32) / 1e12 for n in (0, 2, 4)]
    table = [
        (
            "G1 TFLOP a step at batch 32; sub-pixel in 0, 2, 4 stages",
            " / ".join(f"{f:.1f}" for f in flops),
            "21.5",
            "17.5",
        ),
        (
            "G2 step, all decoded / to the drawn scale, fp32",
            f"{s['all decoded / to drawn scale']:.2f}x",
            "1.3x",
            "1.6x",
        ),
        ("G3 step, released way / ours, both fp32", f"{s['released way / to drawn scale']:.2f}x", "3x", "4x"),
        ("G3, ours without the sub-pixel form and deep layout", f"{s['released way / plain']:.2f}x", "", ""),
        (
            f"G3, ours in bf16 (loss within {error['loss']:.1e}, gradients' cosine {error['cosine']:.4f})",
            f"{s['released way / bf16']:.2f}x",
            "3x",
            "4x",
        ),
        ("G4 augmentation of a pair, TorchIO / ours", f"{a['ratio']:.2f}x", "4x", "5x"),
        ("augmentation of a pair, ours", f"{1e3 * a['ours_s_per_pair']:.1f} ms", "", ""),
        ("read and augment, samples a second, ours / released way", f"{i['ratio']:.2f}x", "5x", ""),
    ]
    table += [
        (f"{name}, samples/s", f"{rate:.0f}", "", "")
        for name, rate in i.items()
        if name.startswith(("reading", "ours", "released"))
    ]
    table += [
        (f"G6 share of a training's time spent waiting, {place}", f"{share:.2%}", "5%", "1%")
        for place, share in w.items()
    ]
    table += [
        (f"G11 crops of a pair in `prep`, recipe {name}, CPU", f"{c[name]['cpu_ms_a_pair']} ms", "40 ms", "15 ms")
        for name in c
    ]
    return [*table, ("G14 `pcrl --help`", f"{help_seconds(n):.2f} s", "0.3 s", "0.2 s")]


def markdown(table: list[tuple[str, str, str, str]], quick: bool) -> str:
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
    text = markdown(rows(options.quick), options.quick)
    print(text)
    if options.markdown:
        options.markdown.write_text(text)


if __name__ == "__main__":
    main()
