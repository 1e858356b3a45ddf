"""2D: what `prep` reaches of the bare decoder's speed, and the loader with device views against a pipeline a sample.

    python -m benchmarks.images [--images N] [--side 1024] [--jobs 2] [--batch 64] [--device cpu|cuda]

One run, the same files, the same cores, interleaved repeats of wall time. The decoder alone: as many processes, which
open and decode every file and do nothing else. `prep`: all of `pcrl prep nih`, from the listing to the sealed cache.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from pcrl_cli.phantoms import radiograph
from pcrl_cli.stages.prep import PrepResult, prep

UNIQUE = 64
"""Files that differ; the others are links to them."""


def make_data(root: Path, images: int, side: int, seed: int = 0) -> Path:
    """Phantoms in NIH's layout, enlarged to `side` with fine noise, so that they are as hard to decode as films."""
    from PIL import Image

    (root / "images").mkdir(parents=True)
    rng, rows, sources = np.random.default_rng(seed), [radiograph._ENTRY], list[Path]()
    pictures = [picture for index in range(UNIQUE) for picture in radiograph.patient(seed, index)][:UNIQUE]
    for i in range(images):
        path = root / "images" / f"{i:08d}_000.png"
        if i < UNIQUE:
            large = Image.fromarray(pictures[i].pixels).resize((side, side), Image.Resampling.BICUBIC)
            noisy = np.asarray(large) + rng.normal(0, 1.5, (side, side))
            Image.fromarray(np.clip(np.rint(noisy), 0, 255).astype(np.uint8)).save(path)
            sources.append(path)
        else:
            os.link(sources[i % UNIQUE], path)
        rows.append(f"{path.name},No Finding,0,{i},50,F,PA,{side},{side},0.1,0.1,")
    (root / radiograph.LAST).write_text("\n".join(rows) + "\n", encoding="utf-8")
    return root


def decode(paths: list[str]) -> int:
    """The decoder and nothing else."""
    from PIL import Image

    for path in paths:
        with Image.open(path) as image:
            image.load()
    return len(paths)


def decoder_seconds(paths: list[str], jobs: int) -> float:
    """Wall seconds of `jobs` processes, their start included as it is in `prep`."""
    start = time.perf_counter()
    parts = [paths[i : i + 64] for i in range(0, len(paths), 64)]
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        assert sum(pool.map(decode, parts)) == len(paths)
    return time.perf_counter() - start


def prep_seconds(root: Path, out: Path, jobs: int) -> tuple[float, PrepResult]:
    shutil.rmtree(out, ignore_errors=True)
    start = time.perf_counter()
    result = prep("nih", data=root, out=out, jobs=jobs)
    assert isinstance(result, PrepResult)
    return time.perf_counter() - start, result


def measure_prep(images: int, side: int, jobs: int, repeats: int = 3) -> dict[str, Any]:
    """Images a second of both, and their ratio, median over interleaved repeats."""
    with tempfile.TemporaryDirectory() as folder:
        root, out = make_data(Path(folder) / "raw", images, side), Path(folder) / "cache"
        paths = sorted(str(path) for path in (root / "images").iterdir())
        decode(paths)  # into the page cache
        pairs = []
        for _ in range(repeats):
            bare = decoder_seconds(paths, jobs)
            whole, result = prep_seconds(root, out, jobs)
            assert sum(counts["images"]["kept"] for counts in result.cases.values()) == images
            pairs.append((bare, whole))
        return {
            "images": images,
            "side": side,
            "jobs": jobs,
            "decoder_per_s": round(images / median(bare for bare, _ in pairs), 1),
            "prep_per_s": round(images / median(whole for _, whole in pairs), 1),
            "prep / decoder": round(median(bare / whole for bare, whole in pairs), 3),
        }
