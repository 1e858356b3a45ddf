"""Cache to batches: resident on the GPU, in RAM, or read ahead from disk; the order is the same in all three.

On a GPU the way is the same for RAM and disk: a thread fills pinned memory, out of a ring of `AHEAD + 2` places that are made
once, and starts the copy on a stream of its own; the training loop finds tensors on the device and an event to wait for.

What step s holds is a function of (seed, s): an epoch's order is drawn afresh from (seed, epoch), so a run resumes in the
middle of an epoch from its step alone, and the last short batch of an epoch is dropped.
"""

import math
import os
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
from pcrl_cli.data.direct import Direct

CacheOn = Literal["auto", "gpu", "ram", "disk"]
Order = Callable[[int], Int[np.ndarray, " n"]]
"""Epoch -> the items of that epoch, in order; always equally many."""

GPU_SHARE, RAM_SHARE, AHEAD = 0.5, 0.5, 4


def shuffled(n: int, seed: int) -> Order:
    """Every item once an epoch."""
    return lambda epoch: np.random.default_rng([seed, 0x0DE5, epoch]).permutation(n)


def parts_of(n: int, seed: int, deals: int) -> list[Int[np.ndarray, " _"]]:
    """The items of each part, the same in every epoch."""
    return np.array_split(np.random.default_rng([seed, 0xDEA1]).permutation(n), deals)


def dealt(n: int, seed: int, deals: int) -> Order:
    """Every item once an epoch, position k of it from part k mod `deals`, into which the items are dealt for the whole run.

    So a rank whose rows of a batch all come from some parts needs no other items, and the order still knows nothing of
    ranks. What is left over because n does not divide is another item in every epoch.
    """
    parts = parts_of(n, seed, deals)

    def order(epoch: int) -> Int[np.ndarray, " n"]:
        draw = np.random.default_rng([seed, 0x0DE5, epoch])
        return np.stack([draw.permutation(part)[: n // deals] for part in parts], axis=1).flatten()

    return order


def ranks_of_this_machine() -> int:
    """Processes that share this machine's memory; they also share what the system keeps of files that were read."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


class Loader:
    """A `core.source.Source` over some cases of a cache.

    Args:
        arrays: of the group; each has one row an item.
        cases: whose items are used, in this order.
        rows: which of their joined items are used; all by default.
        batch: samples a step over all ranks.
        order: of an epoch's items; `shuffled` by default.
        rank, ranks: this process takes rows rank::ranks of every batch.
        deals: see `dealt`; resident items are then those of this rank's parts alone, 1/gcd(ranks, deals) of all.

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
        deals: int = 1,
    ) -> None:
        self.cache, self.group, self.arrays, self.cases = cache, group, tuple(arrays), tuple(cases)
        self.batch_size, self.device, self.rank, self.ranks = batch, device, rank, ranks
        self.seed = seed
        if device.type == "cuda" and device.index is None:  # the thread that reads ahead has no current GPU of its own
            self.device = torch.device("cuda", torch.cuda.current_device())
        everything = int(cache.sizes(group, arrays[0], cases).sum())
        self.rows = None if rows is None or len(rows) == everything else rows
        self.items = everything if rows is None else len(rows)
        if batch % deals or (order is not None and deals > 1):
            raise ConfigError(
                f"train.deals ({deals}) does not divide the batch ({batch})"
                if batch % deals
                else "train.deals is for an order in which every item comes once an epoch; leave it out"
            )
        self.deals, self.share = deals, math.gcd(ranks, deals)
        self.order = order or (shuffled(self.items, seed) if deals == 1 else dealt(self.items, seed, deals))
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
        self.mine = self._mine()
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
        if self.place == "disk":
            yield from self._from_disk(rows)
        elif self.device.type == "cuda" and self.place == "ram":
            yield from self._ahead(rows, self._gather)
        else:
            assert self.resident is not None
            for positions, items in rows:
                index = self._small(torch.from_numpy(self._within(items)))
                yield self._small(positions), {name: array[index] for name, array in self.resident.items()}

    def _small(self, numbers: Tensor) -> Tensor:
        """A few numbers on the device, without waiting for it."""
        return numbers if self.device.type == "cpu" else numbers.pin_memory().to(self.device, non_blocking=True)

    def _mine(self) -> Int[np.ndarray, " m"] | None:
        """The items, ascending, that this rank will ever be asked for; None: all."""
        if self.share == 1:
            return None
        part_of = np.empty(self.items, np.int64)
        for k, part in enumerate(parts_of(self.items, self.seed, self.deals)):
            part_of[part] = k
        return np.flatnonzero(part_of % self.share == self.rank % self.share)

    def _within(self, items: Int[np.ndarray, " b"]) -> Int[np.ndarray, " b"]:
        """Positions of items in the resident arrays."""
        return items if self.mine is None else np.searchsorted(self.mine, items)

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
        need = self.bytes // self.share
        size = f"{need / 1e9:.2f} GB" + (f" of {self.bytes / 1e9:.2f}, this rank's parts" if self.share > 1 else "")
        if where == "gpu" and self.device.type != "cuda":
            raise ConfigError("--cache-on gpu, but the run is on the CPU; leave it out or set --device cuda")
        if where != "auto":
            return where, f"{where} ({size}, as asked)"
        if self.device.type == "cuda":
            free = torch.cuda.mem_get_info(self.device)[0]
            if need <= GPU_SHARE * free:
                return "gpu", f"gpu ({size}; {free / 1e9:.0f} GB free, of which {GPU_SHARE:.0%} may be used)"
        free, here = psutil.virtual_memory().available, ranks_of_this_machine()
        if need * here <= RAM_SHARE * free:
            return "ram", f"ram ({size}; {free / 1e9:.0f} GB free, of which {RAM_SHARE:.0%} may be used)"
        each = f" for each of {here} ranks here" if here > 1 else ""
        return (
            "disk",
            f"disk, read ahead ({size}{each}, more than {RAM_SHARE:.0%} of the {free / 1e9:.0f} GB of memory that are free)",
        )

    def _load(self) -> dict[str, Tensor]:
        rows = self.rows if self.mine is None else self.mine if self.rows is None else self.rows[self.mine]
        arrays = self.cache.read(self.group, self.arrays, self.cases, rows=rows).arrays
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        if self.place == "gpu":
            tensors = {name: t.to(self.device) for name, t in tensors.items()}
        return tensors

    # ---- ahead of the training loop ------------------------------------------------------------------------------

    def _gather(self, items: Int[np.ndarray, " b"], out: Batch) -> None:
        """From RAM into the batch."""
        assert self.resident is not None
        index = torch.from_numpy(self._within(items))
        for name, array in self.resident.items():
            torch.index_select(array, 0, index, out=out[name])

    def _from_disk(self, rows: "Rows") -> Iterator[tuple[Int[Tensor, " b"], Batch]]:
        direct = Direct(self.cache, self.group, self.arrays, self.cases)

        def fill(items: Int[np.ndarray, " b"], out: Batch) -> None:
            direct.read(items if self.rows is None else self.rows[items], {name: t.numpy() for name, t in out.items()})

        try:
            yield from self._ahead(rows, fill)
        finally:
            direct.close()

    def _ahead(
        self, rows: "Rows", fill: Callable[[Int[np.ndarray, " b"], Batch], None]
    ) -> Iterator[tuple[Tensor, Batch]]:
        """A thread makes up to `AHEAD` batches while the device works; its errors are raised here."""
        ready: queue.Queue[tuple[Tensor, Batch, torch.cuda.Event | None] | BaseException] = queue.Queue(AHEAD)
        stop = threading.Event()
        ring = Ring(self._room, self.device)

        def put(item: tuple[Tensor, Batch, torch.cuda.Event | None] | BaseException) -> None:
            while not stop.is_set():
                try:
                    return ready.put(item, timeout=0.1)
                except queue.Full:
                    continue

        def work() -> None:
            try:
                if self.device.type == "cuda":
                    torch.cuda.set_device(self.device)
                for positions, items in rows:
                    if stop.is_set():
                        return
                    out = ring.next()
                    fill(items, out)
                    put(ring.send(positions, out))
            except BaseException as error:
                put(error)

        thread = threading.Thread(target=work, name="pcrl-read-ahead", daemon=True)
        thread.start()
        try:
            while True:
                item = ready.get()
                if isinstance(item, BaseException):
                    raise item
                positions, batch, arrived = item
                if arrived is not None:
                    stream = torch.cuda.current_stream(self.device)
                    stream.wait_event(arrived)
                    for t in (positions, *batch.values()):
                        t.record_stream(stream)
                yield positions, batch
        finally:
            stop.set()
            thread.join()

    def _room(self) -> Batch:
        """Memory for this rank's rows of one batch."""
        n = len(range(self.rank, self.batch_size, self.ranks))
        none = self.cache.read(self.group, self.arrays, self.cases, rows=np.empty(0, np.int64)).arrays
        return {name: torch.from_numpy(np.empty((n, *a.shape[1:]), a.dtype)) for name, a in none.items()}


Rows = Iterator[tuple[Int[Tensor, " b"], Int[np.ndarray, " b"]]]


class Ring:
    """Where batches are put together. On a GPU pinned places that go round, each free again when its copy has ended.

    On a CPU every batch is new, since whoever trains on it keeps it.
    """

    def __init__(self, room: Callable[[], Batch], device: torch.device) -> None:
        self.room, self.device, self.turn = room, device, 0
        self.like = room()
        self.places: list[Batch] = []
        self.events: list[torch.cuda.Event | None] = []
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def next(self) -> Batch:
        """The place to fill."""
        if self.stream is None:
            return {name: torch.empty_like(t) for name, t in self.like.items()}
        if len(self.places) < AHEAD + 2:
            self.places.append({name: torch.empty_like(t, pin_memory=True) for name, t in self.like.items()})
            self.events.append(None)
            self.turn = len(self.places) - 1
        else:
            self.turn = (self.turn + 1) % len(self.places)
            event = self.events[self.turn]
            if event is not None:
                event.synchronize()
        return self.places[self.turn]

    def send(self, positions: Tensor, batch: Batch) -> tuple[Tensor, Batch, torch.cuda.Event | None]:
        """The filled place's content on the device, and the event that says when it is there."""
        if self.stream is None:
            return positions, batch, None
        with torch.cuda.stream(self.stream):
            there = {name: t.to(self.device, non_blocking=True) for name, t in batch.items()}
            where = positions.pin_memory().to(self.device, non_blocking=True)
            event = torch.cuda.Event()
            event.record(self.stream)
        self.events[self.turn] = event
        return where, there, event
