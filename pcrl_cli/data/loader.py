"""Cache to batches: resident on the GPU, in RAM, or read ahead from disk; the order is the same in all three.

What step s holds is a function of (seed, s): an epoch's order is drawn afresh from (seed, epoch), so a run resumes in the
middle of an epoch from its step alone, and the last short batch of an epoch is dropped.
"""

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np
import psutil
import torch
from jaxtyping import Int
from torch import Tensor

from pcrl_cli.core.errors import ConfigError
from pcrl_cli.core.learner import Batch
from pcrl_cli.data.cache import Cache

CacheOn = Literal["auto", "gpu", "ram", "disk"]
Order = Callable[[int], Int[np.ndarray, " n"]]
"""Epoch -> the items of that epoch, in order; always equally many."""

GPU_SHARE, RAM_SHARE, AHEAD = 0.5, 0.5, 4


def shuffled(n: int, seed: int) -> Order:
    """Every item once an epoch."""
    return lambda epoch: np.random.default_rng([seed, 0x0DE5, epoch]).permutation(n)


class Loader:
    """A `core.source.Source` over some cases of a cache.

    Args:
        arrays: of the group; each has one row an item.
        cases: whose items are used, in this order.
        rows: which of their joined items are used; all by default.
        batch: samples a step over all ranks.
        order: of an epoch's items; `shuffled` by default.
        rank, ranks: this process takes rows rank::ranks of every batch.

    Raises:
        ConfigError: the batch is larger than an epoch, or does not divide among the ranks into two or more each.
    """

    def __init__(
        self,
        cache: Cache,
        group: str,
        arrays: Sequence[str],
        cases: Sequence[str],
        batch: int,
        seed: int,
        device: torch.device,
        where: CacheOn = "auto",
        order: Order | None = None,
        rank: int = 0,
        ranks: int = 1,
        rows: Int[np.ndarray, " n"] | None = None,
    ) -> None:
        self.cache, self.group, self.arrays, self.cases = cache, group, tuple(arrays), tuple(cases)
        self.batch_size, self.device, self.rank, self.ranks = batch, device, rank, ranks
        everything = int(cache.sizes(group, arrays[0], cases).sum())
        self.rows = None if rows is None or len(rows) == everything else rows
        self.items = everything if rows is None else len(rows)
        self.order = order or shuffled(self.items, seed)
        self.per_epoch = len(self.order(0))
        if batch > self.per_epoch:
            raise ConfigError(
                f"the batch ({batch}) is larger than an epoch ({self.per_epoch} items of {len(cases)} cases in {cache.path}); "
                "set a smaller --batch or prepare more scans"
            )
        if batch % ranks:
            raise ConfigError(
                f"the batch ({batch}) does not divide among {ranks} ranks; set --batch to a multiple of {ranks}"
            )
        if ranks > 1 and batch < 2 * ranks:
            raise ConfigError(
                f"the batch ({batch}) leaves one sample a rank, and batch norm needs two; set --batch to {2 * ranks} or more"
            )
        self.place, self.residency = self._choose(where)
        self.resident = self._load() if self.place != "disk" else None

    @property
    def steps_per_epoch(self) -> int:
        return self.per_epoch // self.batch_size

    @property
    def bytes(self) -> int:
        """Of the items that are used, as stored."""
        everything = int(self.cache.sizes(self.group, self.arrays[0], self.cases).sum())
        return self.cache.nbytes(self.group, self.arrays, self.cases) * self.items // max(1, everything)

    def batches(self, step: int) -> Iterator[tuple[Int[Tensor, " b"], Batch]]:
        """Endless, from a step on: global positions of this rank's samples, and their arrays on the device."""
        rows = self._rows(step)
        if self.resident is not None:
            for positions, items in rows:
                index = torch.from_numpy(items).to(next(iter(self.resident.values())).device)
                batch = {name: self._to_device(array[index]) for name, array in self.resident.items()}
                yield positions.to(self.device), batch
        else:
            yield from self._read_ahead(rows)

    def _rows(self, step: int) -> Iterator[tuple[Int[Tensor, " b"], Int[np.ndarray, " b"]]]:
        """(positions, items) of every step from `step` on; the order is drawn once an epoch."""
        epoch, order = -1, np.empty(0, np.int64)
        while True:
            if step // self.steps_per_epoch != epoch:
                epoch = step // self.steps_per_epoch
                order = np.asarray(self.order(epoch))
            first = step % self.steps_per_epoch * self.batch_size
            mine = np.arange(self.rank, self.batch_size, self.ranks)
            yield torch.from_numpy(step * self.batch_size + mine), order[first + mine]
            step += 1

    def _choose(self, where: CacheOn) -> tuple[CacheOn, str]:
        """Where the items lie, and why."""
        need = self.bytes
        size = f"{need / 1e9:.2f} GB"
        if where == "gpu" and self.device.type != "cuda":
            raise ConfigError("--cache-on gpu, but the run is on the CPU; leave it out or set --device cuda")
        if where != "auto":
            return where, f"{where} ({size}, as asked)"
        if self.device.type == "cuda":
            free = torch.cuda.mem_get_info(self.device)[0]
            if need <= GPU_SHARE * free:
                return "gpu", f"gpu ({size} of {free / 1e9:.0f} GB free)"
        free = psutil.virtual_memory().available
        if need <= RAM_SHARE * free:
            return "ram", f"ram ({size} of {free / 1e9:.0f} GB free)"
        return (
            "disk",
            f"disk, read ahead ({size}, more than {RAM_SHARE:.0%} of the {free / 1e9:.0f} GB of memory that are free)",
        )

    def _load(self) -> dict[str, Tensor]:
        arrays = self.cache.read(self.group, self.arrays, self.cases, rows=self.rows).arrays
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        if self.place == "gpu":
            tensors = {name: t.to(self.device) for name, t in tensors.items()}
        return tensors

    def _to_device(self, t: Tensor) -> Tensor:
        if self.device.type == "cuda" and t.device.type == "cpu":
            return t.pin_memory().to(self.device, non_blocking=True)
        return t

    def _read_ahead(
        self, rows: Iterator[tuple[Int[Tensor, " b"], Int[np.ndarray, " b"]]]
    ) -> Iterator[tuple[Int[Tensor, " b"], Batch]]:
        """A thread reads up to `AHEAD` batches while the device works; its errors are raised here."""
        ready: queue.Queue[tuple[Tensor, Batch] | BaseException] = queue.Queue(AHEAD)
        stop = threading.Event()

        def put(item: tuple[Tensor, Batch] | BaseException) -> None:
            while not stop.is_set():
                try:
                    return ready.put(item, timeout=0.1)
                except queue.Full:
                    continue

        def read() -> None:
            try:
                for positions, items in rows:
                    if stop.is_set():
                        return
                    rows_ = items if self.rows is None else self.rows[items]
                    arrays = self.cache.read(self.group, self.arrays, self.cases, rows=rows_).arrays
                    put((positions, {name: torch.from_numpy(array) for name, array in arrays.items()}))
            except BaseException as error:
                put(error)

        thread = threading.Thread(target=read, name="pcrl-read-ahead", daemon=True)
        thread.start()
        try:
            while True:
                item = ready.get()
                if isinstance(item, BaseException):
                    raise item
                positions, batch = item
                yield positions.to(self.device), {name: self._to_device(t) for name, t in batch.items()}
        finally:
            stop.set()
            thread.join()
