"""Augmentation of crop pairs against TorchIO's, one thread, CPU seconds, the two interleaved."""

import statistics
import time
from collections.abc import Callable

import torch

from pcrl_cli.augment.chains import global_views, local_views
from pcrl_cli.augment.reference import views_by_torchio
from pcrl_cli.core.rng import Stream

PAIRS, GLOBALS, LOCALS = 8, (2, 1, 64, 64, 32), (6, 1, 16, 16, 16)


def measure(repeats: int = 5) -> dict[str, float]:
    """Medians over `repeats`: CPU seconds a pair (two global views, six local) of ours and TorchIO's, and the ratio.

    A batch is 8 pairs of uniform random voxels; no step's time depends on them. One round of each goes uncounted.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        sides = {"ours_s_per_pair": _ours, "torchio_s_per_pair": _torchio}
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        for step in range(repeats + 1):
            batch = _batch(step)
            for name, side in sides.items():
                spent = _cpu_seconds(side, *batch)
                if step:
                    seconds[name].append(spent / PAIRS)
    finally:
        torch.set_num_threads(threads)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {**medians, "ratio": medians["torchio_s_per_pair"] / medians["ours_s_per_pair"]}


def _batch(step: int) -> tuple[torch.Tensor, torch.Tensor, Stream]:
    stream = Stream.of("benchmark", step).keyed(torch.arange(PAIRS))
    return stream.uniform(*GLOBALS).flatten(0, 1), stream.uniform(*LOCALS).flatten(0, 1), stream


def _ours(big: torch.Tensor, small: torch.Tensor, stream: Stream) -> None:
    global_views(big, stream.fork("global").each(2))
    local_views(small, stream.fork("local").each(6))


def _torchio(big: torch.Tensor, small: torch.Tensor, stream: Stream) -> None:
    views_by_torchio(big, stream.fork("global").each(2))
    views_by_torchio(small, stream.fork("local").each(6), local=True)


def _cpu_seconds(side: Callable[..., None], *batch: object) -> float:
    start = time.process_time()
    side(*batch)
    return time.process_time() - start
