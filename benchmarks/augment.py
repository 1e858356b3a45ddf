"""Augmentation of crop pairs against TorchIO's, and local shuffling against sorting: one thread, CPU seconds, interleaved."""

import math
import statistics
import time
from collections.abc import Callable, Mapping

import torch

from pcrl_cli.augment.chains import global_views, local_views
from pcrl_cli.augment.genesis import Shuffle, draw_shuffle, shuffle, shuffle_all
from pcrl_cli.augment.reference import views_by_torchio
from pcrl_cli.core.rng import Stream

PAIRS, GLOBALS, LOCALS = 8, (2, 1, 64, 64, 32), (6, 1, 16, 16, 16)


def measure(repeats: int = 5) -> dict[str, float]:
    """Medians over `repeats`: CPU seconds a pair (two global views, six local) of ours and TorchIO's, and the ratio.

    A batch is 8 pairs of uniform random voxels; no step's time depends on them. One round of each goes uncounted.
    """
    sides = {"ours_s_per_pair": _ours, "torchio_s_per_pair": _torchio}
    medians = {name: value / PAIRS for name, value in _medians(sides, _batch, repeats).items()}
    return {**medians, "ratio": medians["torchio_s_per_pair"] / medians["ours_s_per_pair"]}


def shuffling(shape: tuple[int, ...], repeats: int = 5) -> dict[str, float]:
    """CPU seconds a shuffled view, medians: as on a CPU, as on a GPU, and the sorts alone of a key a voxel of every window."""

    def batch(step: int) -> tuple[torch.Tensor, Shuffle]:
        stream = Stream.of("shuffling", step).keyed(torch.arange(PAIRS))
        return stream.uniform(1, *shape), draw_shuffle(stream.fork("shuffle"), shape, 1.0)

    sides = {"ours": shuffle, "without the host": shuffle_all, "sorted keys": _sorted}
    return {name: value / PAIRS for name, value in _medians(sides, batch, repeats).items()}


def _sorted(batch: torch.Tensor, params: Shuffle) -> None:
    """The least that permutations by sorting take: keys of the largest window's voxels, those past a window's end last."""
    most = math.prod(params.most)
    for keys, sides in zip(params.keys, params.side, strict=True):
        drawn = Stream(torch.stack([keys, keys ^ 0x5BD1E995], dim=1)).uniform(most)
        beyond = torch.arange(most) >= sides.prod(dim=1)[:, None]
        torch.where(beyond, 1.0, drawn).argsort(dim=1, stable=True)


def _medians(
    sides: Mapping[str, Callable[..., object]], batch: Callable[[int], tuple[object, ...]], repeats: int
) -> dict[str, float]:
    """CPU seconds of each side on the same batches, medians over `repeats`; one round goes uncounted."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        for step in range(repeats + 1):
            given = batch(step)
            for name, side in sides.items():
                spent = _cpu_seconds(side, *given)
                if step:
                    seconds[name].append(spent)
    finally:
        torch.set_num_threads(threads)
    return {name: statistics.median(values) for name, values in seconds.items()}


def _batch(step: int) -> tuple[torch.Tensor, torch.Tensor, Stream]:
    stream = Stream.of("benchmark", step).keyed(torch.arange(PAIRS))
    return stream.uniform(*GLOBALS).flatten(0, 1), stream.uniform(*LOCALS).flatten(0, 1), stream


def _ours(big: torch.Tensor, small: torch.Tensor, stream: Stream) -> None:
    global_views(big, stream.fork("global").each(2))
    local_views(small, stream.fork("local").each(6))


def _torchio(big: torch.Tensor, small: torch.Tensor, stream: Stream) -> None:
    views_by_torchio(big, stream.fork("global").each(2))
    views_by_torchio(small, stream.fork("local").each(6), local=True)


def _cpu_seconds(side: Callable[..., object], *batch: object) -> float:
    start = time.process_time()
    side(*batch)
    return time.process_time() - start
