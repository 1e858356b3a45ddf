"""2D: what `prep` reaches of the bare decoder's speed, and the loader with its views against a pipeline a file.

    python -m benchmarks.images [--images N] [--side 1024] [--jobs 2] [--repeats 3]

One run, the same files, the same cores, interleaved repeats; ratios of CPU seconds (of all processes, since shared
machines are noisy) and of wall seconds. The decoder alone: as many processes, which open and decode every file and do
nothing else (`benchmarks.decode`). `prep`: all of `pcrl prep nih`, from the listing to the sealed cache. Both as a command
of their own, its start included.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.image_views import RANGES, SIDE, _pillow
from pcrl_cli.augment.images import draw_multi, views_of
from pcrl_cli.core.rng import Rng
from pcrl_cli.data.cache import open_cache
from pcrl_cli.data.loader import Loader
from pcrl_cli.phantoms import radiograph

UNIQUE = 64
"""Files that differ; the others are links to them."""
BATCH = 16


def make_data(root: Path, images: int, side: int, seed: int = 0) -> Path:
    """Phantoms in NIH's layout, enlarged to `side` with fine noise, so that they are as hard to decode as films."""
    from PIL import Image

    (root / "images").mkdir(parents=True)
    rng, rows, sources = np.random.default_rng(seed), [radiograph.ENTRY], list[Path]()
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


def _decode_all(root: Path, jobs: int) -> None:
    subprocess.run(
        [sys.executable, "-m", "benchmarks.decode", str(jobs), str(root / "images")], check=True, capture_output=True
    )


def _prep_all(root: Path, out: Path, jobs: int) -> None:
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-m", "pcrl_cli", "prep", "nih", "--data", str(root), "--out", str(out), "-q"]
    subprocess.run([*command, "--jobs", str(jobs)], check=True, capture_output=True)


def _timed(work: Callable[[], None]) -> tuple[float, float]:
    """Wall seconds, and CPU seconds of this process and of those that it waited for."""
    start, before = time.perf_counter(), _cpu()
    work()
    return time.perf_counter() - start, _cpu() - before


def _cpu() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def measure_prep(folder: Path, images: int, side: int, jobs: int, repeats: int) -> dict[str, Any]:
    """Images a second of both, and how much of the decoder's speed `prep` reaches; medians of interleaved repeats.

    share_*: of the whole command, its start and the listing included. share_cpu_an_image: of the images alone, from a
    second, smaller set: what a data set of many thousands gets.
    """
    sets = {n: make_data(folder / f"raw{n}", n, side) for n in (images, images // 4)}
    bare, whole = ({n: list[tuple[float, float]]() for n in sets} for _ in range(2))
    for root in sets.values():
        _decode_all(root, jobs)  # into the page cache
    for n, root in [*sets.items()] * repeats:
        bare[n].append(_timed(lambda: _decode_all(root, jobs)))  # noqa: B023
        whole[n].append(_timed(lambda: _prep_all(root, folder / f"cache{n}", jobs)))  # noqa: B023
        assert open_cache(folder / f"cache{n}").manifest["totals"]["counts"]["images"]["kept"] == n
    few = images // 4

    def cpu(runs: list[tuple[float, float]]) -> float:
        return median(seconds for _, seconds in runs)

    return {
        "side": side,
        "images": images,
        "jobs": jobs,
        "decoder_per_s": round(images / median(wall for wall, _ in bare[images]), 1),
        "prep_per_s": round(images / median(wall for wall, _ in whole[images]), 1),
        "share_wall": round(median(a[0] / b[0] for a, b in zip(bare[images], whole[images], strict=True)), 3),
        "share_cpu": round(cpu(bare[images]) / cpu(whole[images]), 3),
        "share_cpu_an_image": round((cpu(bare[images]) - cpu(bare[few])) / (cpu(whole[images]) - cpu(whole[few])), 3),
    }


def measure_loader(root: Path, cache_path: Path, batches: int, repeats: int) -> dict[str, float]:
    """CPU seconds a sample of pre-training, two global and six local views each, on one thread.

    ours: batches from the cache and their views, batched. a pipeline a file: every sample is opened, decoded, resized and
    augmented by Pillow by itself, as data loaders commonly do.
    """
    from PIL import Image

    torch.set_num_threads(1)
    cache = open_cache(cache_path)
    loader = Loader(cache, "images", ("image",), cache.cases(), BATCH, 0, torch.device("cpu"), "ram")
    paths = sorted((root / "images").iterdir())

    def ours() -> None:
        for step, (positions, batch) in enumerate(islice(loader.batches(0), batches)):
            stream = Rng.at(0, step, positions).sample
            unit = batch["image"].float() / 255
            for kind, boxes in zip(("global", "local"), draw_multi(stream, (SIDE, SIDE), RANGES), strict=True):
                views_of(unit, stream, boxes, RANGES, kind)  # type: ignore[arg-type]

    def by_file() -> None:
        for step in range(batches):
            read = []
            for path in paths[step * BATCH : (step + 1) * BATCH]:
                with Image.open(path) as image:
                    read.append(np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.BILINEAR)))
            _pillow(torch.from_numpy(np.stack(read))[:, None], step)

    pairs = [(_timed(by_file)[1], _timed(ours)[1]) for _ in range(repeats + 1)][1:]
    samples = batches * BATCH
    return {
        "by_file_samples_per_cpu_s": round(samples / median(a for a, _ in pairs), 1),
        "ours_samples_per_cpu_s": round(samples / median(b for _, b in pairs), 1),
        "by file / ours": round(median(a / b for a, b in pairs), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2048, help="at least 64")
    parser.add_argument("--side", type=int, nargs="+", default=[1024, 256], help="of the files, in pixels")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeats", type=int, default=3)
    o = parser.parse_args()
    for side in o.side:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            found = measure_prep(folder, o.images, side, o.jobs, o.repeats)
            loader = measure_loader(folder / f"raw{o.images}", folder / f"cache{o.images}", 2, o.repeats)
            print(json.dumps(found | {"loader": loader}), flush=True)


if __name__ == "__main__":
    main()
