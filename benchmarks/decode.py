"""`python -m benchmarks.decode JOBS FOLDER`: opens and decodes every image of a folder in JOBS processes; nothing else."""

import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path


def decode(paths: list[str]) -> int:
    from PIL import Image

    for path in paths:
        with Image.open(path) as image:
            image.load()
    return len(paths)


def main() -> None:
    jobs, folder = int(sys.argv[1]), Path(sys.argv[2])
    paths = sorted(str(path) for path in folder.iterdir())
    parts = [paths[i : i + 64] for i in range(0, len(paths), 64)]
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        print(sum(pool.map(decode, parts)))


if __name__ == "__main__":
    main()
