"""What every way from a cache to the device shares: whose turn it is, where the items lie, and reading ahead of the step.

On a GPU the way is the same for RAM and disk: a thread fills pinned memory, out of a ring of `AHEAD + 2` places that are made
once, and starts the copy on a stream of its own; the training loop finds tensors on the device and an event to wait for.
"""

import os
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np
import psutil
import torch
from jaxtyping import Int
from torch import Tensor

from pcrl_cli.core.errors import ConfigError
from pcrl_cli.core.learner import Batch

CacheOn = Literal["auto", "gpu", "ram", "disk"]
Order = Callable[[int], Int[np.ndarray, " n"]]
"""Epoch -> the items of that epoch, in order; always equally many."""
Rows = Iterator[tuple[Int[Tensor, " b"], Int[np.ndarray, " b"]]]
"""Global positions and items of a rank's share of every step."""
Fill = Callable[[Int[Tensor, " b"], Int[np.ndarray, " b"], Batch], None]
"""(positions, items, where to put their arrays)."""

GPU_SHARE, RAM_SHARE, AHEAD = 0.5, 0.5, 4


def own_device(device: torch.device) -> torch.device:
    """The device by its number: the thread that reads ahead has no current GPU of its own."""
    return torch.device("cuda", torch.cuda.current_device()) if device == torch.device("cuda") else device


def require_shares(batch: int, ranks: int) -> None:
    """A batch divides among the ranks into two or more samples each.

    Raises:
        ConfigError: it does not.
    """
    if batch % ranks:
        raise ConfigError(
            f"the batch ({batch}) does not divide among {ranks} ranks; set --batch to a multiple of {ranks}"
        )
    if ranks > 1 and batch < 2 * ranks:
        raise ConfigError(
            f"the batch ({batch}) leaves one sample a rank, and batch norm needs two; set --batch to {2 * ranks} or more"
        )


def steps(order: Order, per_epoch: int, batch: int, step: int, rank: int, ranks: int) -> Rows:
    """(positions, items) of a rank's share of every step from `step` on; the order is drawn once an epoch.

    per_epoch: steps.
    """
    epoch, items = -1, np.empty(0, np.int64)
    mine = np.arange(rank, batch, ranks)
    while True:
        if step // per_epoch != epoch:
            epoch = step // per_epoch
            items = np.asarray(order(epoch))
        yield torch.from_numpy(step * batch + mine), items[step % per_epoch * batch + mine]
        step += 1


def choose(where: CacheOn, need: int, device: torch.device, note: str = "") -> tuple[CacheOn, str]:
    """Where this process keeps so many bytes, and why. note: what they are of, for the reason.

    Raises:
        ConfigError: on the GPU, and the run is on the CPU.
    """
    size = f"{need / 1e9:.2f} GB{note}"
    if where == "gpu" and device.type != "cuda":
        raise ConfigError("--cache-on gpu, but the run is on the CPU; leave it out or set --device cuda")
    if where != "auto":
        return where, f"{where} ({size}, as asked)"
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
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


def ranks_of_this_machine() -> int:
    """Processes that share this machine's memory; they also share what the system keeps of files that were read."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def small(numbers: Tensor, device: torch.device) -> Tensor:
    """A few numbers on the device, without waiting for it."""
    return numbers if device.type == "cpu" else numbers.pin_memory().to(device, non_blocking=True)


def ahead(
    rows: Rows, fill: Fill, room: Callable[[], Batch], device: torch.device
) -> Iterator[tuple[Int[Tensor, " b"], Batch]]:
    """A thread makes up to `AHEAD` batches while the device works; its errors are raised here.

    room: makes memory for this rank's rows of one batch.
    """
    ready: queue.Queue[tuple[Tensor, Batch, torch.cuda.Event | None] | BaseException] = queue.Queue(AHEAD)
    stop = threading.Event()
    ring = Ring(room, device)

    def put(item: tuple[Tensor, Batch, torch.cuda.Event | None] | BaseException) -> None:
        while not stop.is_set():
            try:
                return ready.put(item, timeout=0.1)
            except queue.Full:
                continue

    def work() -> None:
        try:
            if device.type == "cuda":
                torch.cuda.set_device(device)
            while not stop.is_set():  # asked before reading, not after
                positions, items = next(rows)
                out = ring.next()
                fill(positions, items, out)
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
                stream = torch.cuda.current_stream(device)
                stream.wait_event(arrived)
                for t in (positions, *batch.values()):
                    t.record_stream(stream)
            yield positions, batch
    finally:
        stop.set()
        thread.join()


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
