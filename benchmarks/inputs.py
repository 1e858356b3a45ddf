"""The data's way from disk to the network's input: ours against the released way, and what each place of the cache costs.

The released way reads a sample at a time from float64 .npy files, one of two globals and one of six locals, and augments it
view by view with TorchIO; ours reads batches of int16 items from sealed shards and augments them at once. One thread,
CPU seconds, the two interleaved, files in the system's cache.
"""

import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import numpy as np
import torch

from benchmarks.step import learner_of
from pcrl_cli.core.plan import Drawn
from pcrl_cli.core.rng import Rng, Stream
from pcrl_cli.data.cache import Cache, gather_manifest, open_cache, write_shard, write_split
from pcrl_cli.data.direct import Direct
from pcrl_cli.data.loader import CacheOn, Loader
from pcrl_cli.engine.run import Run
from pcrl_cli.engine.trainer import TrainConfig, Trainer

CASES, PAIRS, BATCH, REPEATS = 4, 8, 8, 15
SHAPES = {"globals": (2, 1, 64, 64, 32), "locals_sub": (6, 1, 16, 16, 16)}
CPU = torch.device("cpu")


def make(folder: Path, cases: int = CASES, pairs: int = PAIRS) -> Cache:
    """Random pairs as a cache."""
    (folder / "cache/shards").mkdir(parents=True)
    for case in range(cases):
        draw = np.random.default_rng(case)
        arrays = {name: draw.integers(-1000, 1000, (pairs, *s), dtype=np.int16) for name, s in SHAPES.items()}
        facts = {"patient": f"p{case}", "settings": "f", "source": {}}
        write_shard(folder / "cache", f"c{case}", {"pairs": Drawn(arrays, Counter(kept=pairs))}, facts)
    write_split(folder / "cache", [f"p{case}" for case in range(cases)], 0)
    gather_manifest(folder / "cache", {"reader": "benchmark", "fingerprint": "f"})
    return open_cache(folder / "cache")


def make_npy(cache: Cache, folder: Path) -> None:
    """The same as the released way keeps them: float64, a file of globals and one of locals a pair."""
    for name, array in cache.read("pairs", tuple(SHAPES), cache.cases()).arrays.items():
        for k, item in enumerate(array):
            np.save(folder / f"{k}_{name}.npy", (item + 1000) / 2000)


def loader(cache: Cache, where: CacheOn) -> Loader:
    return Loader(cache, "pairs", tuple(SHAPES), cache.cases(), BATCH, 0, CPU, where)


def ours(cache: Cache, where: CacheOn) -> Iterator[None]:
    """Batches read and augmented, endlessly."""
    learner = learner_of("paper", 1)
    batches = loader(cache, where).batches(0)
    try:
        for step in range(10**9):
            positions, batch = next(batches)
            with torch.no_grad():
                learner.views(batch, Rng.at(0, step, positions))
            yield
    finally:
        batches.close()  # type: ignore[attr-defined]


def released(folder: Path) -> Iterator[None]:
    """The same number of samples, one after the other."""
    from pcrl_cli.augment.reference import views_by_torchio  # 3 s to import

    for step in range(10**9):
        for k in range(BATCH):
            number = (step * BATCH + k) % (CASES * PAIRS)
            stream = Stream.of("released", step, k)
            big, small = (torch.from_numpy(np.load(folder / f"{number}_{name}.npy")).float() for name in SHAPES)
            views_by_torchio(big, stream.each(2))
            views_by_torchio(small, stream.each(6), local=True)
        yield


def measure(repeats: int = REPEATS) -> dict[str, float]:
    """Samples a CPU second of both ways, the ratios of `repeats` pairs, and of reading alone by three means."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cache = make(folder)
        make_npy(cache, folder)
        sides = {
            "ours, read ahead from disk": ours(cache, "disk"),
            "ours, in RAM": ours(cache, "ram"),
            "released way": released(folder),
        }
        times: dict[str, list[float]] = {side: [] for side in sides}
        for repeat in range(repeats + 1):
            for side, work in sides.items():
                spent = cpu_seconds(lambda work=work: next(work))  # type: ignore[misc]
                if repeat:
                    times[side].append(spent / BATCH)
        for work in sides.values():
            work.close()  # type: ignore[attr-defined]
        found = {side: 1 / median(values) for side, values in times.items()}
        both = zip(times["released way"], times["ours, read ahead from disk"], strict=True)
        ratios = sorted(slow / fast for slow, fast in both)
        ratio = {"ratio": median(ratios), "lowest ratio": ratios[0], "highest ratio": ratios[-1]}
        return ratio | found | reading(cache, folder, repeats)


def reading(cache: Cache, folder: Path, repeats: int) -> dict[str, float]:
    """Samples a second (wall, one after the other) of reading alone, from files that the system has in memory."""
    items = np.random.default_rng(0).permutation(CASES * PAIRS)
    direct = Direct(cache, "pairs", tuple(SHAPES), cache.cases())
    room = direct.room(len(items))
    resident = {
        name: torch.from_numpy(a) for name, a in cache.read("pairs", tuple(SHAPES), cache.cases()).arrays.items()
    }
    index = torch.from_numpy(items)

    def npy() -> None:
        for number in items:
            for name in SHAPES:
                np.load(folder / f"{number}_{name}.npy")

    ways: dict[str, Callable[[], object]] = {
        "reading: released .npy": npy,
        "reading: h5py": lambda: cache.read("pairs", tuple(SHAPES), cache.cases(), rows=items),
        "reading: straight from the shards": lambda: direct.read(items, room),
        "reading: RAM": lambda: [a[index] for a in resident.values()],
    }
    times: dict[str, list[float]] = {way: [] for way in ways}
    for repeat in range(3 * repeats + 1):
        for way, work in ways.items():
            start = time.perf_counter()
            work()
            if repeat:
                times[way].append(time.perf_counter() - start)
    direct.close()
    return {way: len(items) / median(values) for way, values in times.items()}


def waits(width: int = 8, steps: int = 6) -> dict[str, float]:
    """Share of a training's time that was spent waiting for data, by place, as every run reports it."""
    with tempfile.TemporaryDirectory() as name:
        cache = make(Path(name))
        shares: dict[str, float] = {}
        places: tuple[CacheOn, ...] = ("ram", "disk")
        for where in places:
            run = Run.open(Path(name) / where, "pretrain", {}, "f", "a: 1\n", False)
            config = TrainConfig(steps=steps, batch=BATCH, check_every=1000)
            trainer = Trainer(
                learner_of("paper", width), loader(cache, where), config, run, device=CPU, metadata=lambda step: {}
            )
            shares[where] = trainer.fit().data_wait
        return shares


def cpu_seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(measure())
    print(waits())
