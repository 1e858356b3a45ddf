"""What pre-training on a corpus of scans costs, from rates that are measured here or stated: the table of docs/performance.md.

    python -m benchmarks.corpus [--scans 100000] [--epochs 40] [--rate 300] [--markdown FILE]

Every row says where its number comes from: counted (exact), measured (here and now), stated (an assumption of this file or of the
command line). No GPU has been measured, so a GPU's rate is stated; put the measured one in with --rate.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

from benchmarks import crops
from pcrl_cli.methods.pcrlv2 import Config
from pcrl_cli.stages.cost import memory, parameter_count, step_flops

Row = tuple[str, str, str]
"""What, how much, where from."""

BATCH, BYTES_A_VOXEL, VOXELS_A_SCAN = 32, 2, 512 * 512 * 300
RESAMPLE_S, LINK_GB_S, NODE_GB_S, WATTS = 20.0, 300.0, 45.0, 1000.0


@dataclass(frozen=True)
class Corpus:
    scans: int = 100_000
    pairs: int = 16
    """A scan."""
    epochs: int = 40
    rate: float = 300.0
    """Pairs/s of one GPU."""


def rows(corpus: Corpus) -> list[Row]:
    measured = crops.measure(scans=2)["paper"]
    pairs = corpus.scans * corpus.pairs
    steps = pairs // BATCH * corpus.epochs
    flops, gb = step_flops(Config(), BATCH), memory(Config(), BATCH, 1, True)
    cache = pairs * measured["bytes_a_pair"]
    cut = pairs * measured["cpu_ms_a_pair"] / 3.6e6
    hours = steps * BATCH / corpus.rate / 3600
    table = [
        (
            "raw scans",
            f"{corpus.scans * VOXELS_A_SCAN * BYTES_A_VOXEL / 1e12:.1f} TB",
            "stated: 512x512x300 int16 a scan",
        ),
        (
            "cache",
            f"{cache / 1e12:.2f} TB",
            f"measured: {measured['bytes_a_pair'] / 1e3:.0f} kB a pair, {corpus.pairs} pairs a scan",
        ),
        ("`prep`: crops", f"{cut:.0f} CPU hours", f"measured: {measured['cpu_ms_a_pair']} ms a pair on one core here"),
        (
            "`prep`: reading and resampling",
            f"{corpus.scans * RESAMPLE_S / 3600:.0f} CPU hours",
            f"stated: {RESAMPLE_S:.0f} s a scan",
        ),
        ("steps", f"{steps:,} of {BATCH} pairs a GPU's worth", f"counted: {corpus.epochs} epochs"),
        (
            "arithmetic",
            f"{steps * flops / 1e18:.0f} EFLOP, {flops / 1e12:.1f} TFLOP a step",
            "counted, mean over the scales",
        ),
        (
            "memory of a GPU",
            f"{gb['all']:.0f} GB, of which activations {gb['activations']:.0f}",
            "counted, bf16, batch 32, costliest scale",
        ),
        ("a checkpoint", f"{gb['weights'] + gb['optimiser']:.2f} GB", "counted"),
        (
            "read from disk",
            f"{corpus.rate * measured['bytes_a_pair'] / 1e6:.0f} MB/s a GPU",
            "measured bytes at the stated rate",
        ),
    ]
    for gpus in (1, 8, 64):
        table += _scaled(corpus, gpus, hours, cache)
    return table


def _scaled(corpus: Corpus, gpus: int, hours: float, cache: int) -> list[Row]:
    """Hours, energy and memory on so many GPUs, batch 32 on each, eight a node; all-reduce not overlapped: the worst case."""
    step = BATCH / corpus.rate
    message = 4 * parameter_count(Config()) * 2 * (gpus - 1) / gpus
    wire = message / 1e9 / (LINK_GB_S if gpus <= 8 else NODE_GB_S)
    share = step / (step + wire)
    took = hours / gpus / share
    link = LINK_GB_S if gpus <= 8 else NODE_GB_S
    much = (
        f"{took:,.1f} hours, {100 * share:.0f} % of linear, {took * gpus * WATTS / 1e3:,.0f} kWh, "
        f"{cache / gpus / 1e9:,.0f} GB of cache a rank if dealt"
    )
    sent = f", {message / 1e9:.2f} GB a step at {link:g} GB/s" if gpus > 1 else ""
    return [
        (f"{gpus} GPU{'s' if gpus > 1 else ''}", much, f"stated: {corpus.rate:g} pairs/s and {WATTS:g} W a GPU{sent}")
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scans", type=int, default=100_000)
    parser.add_argument("--pairs", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--rate", type=float, default=300.0, help="pairs/s of one GPU")
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    table = rows(Corpus(options.scans, options.pairs, options.epochs, options.rate))
    lines = ["| what | how much | from |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in table)]
    text = "\n".join(lines) + "\n"
    print(text)
    if options.markdown:
        options.markdown.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
