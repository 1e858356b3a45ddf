"""Single items of sealed shards, read straight from their files by several threads.

h5py lets one thread at a time into the HDF5 library and keeps the interpreter meanwhile, so threads that read through it
gain nothing and hold up the training loop. A shard's items are raw chunks whose places in the file never change, so their
offsets are asked for once a shard, and `preadv` then fills the batch, wherever it lies, without a copy and without the
interpreter (docs/performance.md has the rates). What is compressed or otherwise chunked still goes through h5py.
"""

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock

import h5py
import numpy as np
from jaxtyping import Int

from pcrl_cli.core.errors import IntegrityError
from pcrl_cli.data.cache import REPAIR, Cache, shard_path

THREADS = 4
"""That read items of one batch at once; on a network disk so many requests are under way."""

Offsets = dict[str, Int[np.ndarray, " n"]]


class Direct:
    """Items of some arrays over some cases, as `Cache.read` joins them, into memory that the caller gives.

    Raises:
        IntegrityError: (when reading) a shard is missing, torn or not what its record says.
    """

    def __init__(self, cache: Cache, group: str, arrays: Sequence[str], cases: Sequence[str]) -> None:
        self.cache, self.group, self.cases = cache, group, tuple(cases)
        self.ends = np.cumsum(cache.sizes(group, arrays[0], cases))
        self.like = cache.read(group, arrays, cases, rows=np.empty(0, np.int64)).arrays  # shapes and types
        self.offsets: dict[int, Offsets | None] = {}
        self.lock = Lock()
        self.pool = ThreadPoolExecutor(THREADS, "pcrl-read")

    def close(self) -> None:
        self.pool.shutdown(wait=True, cancel_futures=True)

    def room(self, n: int) -> dict[str, np.ndarray]:
        """Arrays for n items."""
        return {name: np.empty((n, *a.shape[1:]), a.dtype) for name, a in self.like.items()}

    def read(self, items: Int[np.ndarray, " n"], out: Mapping[str, np.ndarray]) -> None:
        """Item k of `items` into row k of every array in `out`, each contiguous."""
        case = np.searchsorted(self.ends, items, side="right")
        first = np.concatenate([[0], self.ends[:-1]])
        work = [
            self.pool.submit(
                self._read_case, int(i), items[places := np.flatnonzero(case == i)] - first[i], out, places
            )
            for i in np.unique(case)
        ]
        for future in work:
            future.result()

    def _read_case(
        self, i: int, rows: Int[np.ndarray, " k"], out: Mapping[str, np.ndarray], places: Int[np.ndarray, " k"]
    ) -> None:
        offsets = self._offsets_of(i)
        if offsets is None:
            with self.lock:
                self.cache._read_case(self.group, self.cases[i], rows, dict(out), places)
            return
        path = shard_path(self.cache.path, self.cases[i])
        try:
            file = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise IntegrityError(f"{path} is missing or unreadable: {REPAIR}") from error
        try:
            for name, target in out.items():
                for place, row in zip(places, rows, strict=True):
                    wanted = target[place : place + 1].view(np.uint8).reshape(-1).data
                    if not fill(file, wanted, int(offsets[name][row])):
                        raise IntegrityError(f"{path} is torn or unreadable: {REPAIR}")
        finally:
            os.close(file)

    def _offsets_of(self, i: int) -> Offsets | None:
        """Where the items of a case begin in its file; None if they are not all raw and one by one."""
        with self.lock:
            if i not in self.offsets:
                with self.cache._opened(self.cases[i]) as file:
                    self.offsets[i] = self._look_up(self.cases[i], file)
            return self.offsets[i]

    def _look_up(self, case: str, file: h5py.File) -> Offsets | None:
        found = {}
        for name, like in self.like.items():
            stored = file[self.group][name]
            self.cache._require_shape(case, list(stored.shape), self.cache._facts(self.group, name, case)["shape"])
            offsets = item_offsets(stored) if stored.dtype == like.dtype else None
            if offsets is None:
                return None
            found[name] = offsets
        return found


def fill(file: int, wanted: memoryview, offset: int) -> bool:
    """Fills `wanted` from there on; False if the file ends before. One call may give less than was asked for."""
    while len(wanted):
        n = os.preadv(file, [wanted], offset)
        if n == 0:
            return False
        wanted, offset = wanted[n:], offset + n
    return True


def item_offsets(stored: h5py.Dataset) -> Int[np.ndarray, " n"] | None:
    """The byte in the file at which each item of an array begins; None if an item is not one raw piece of it."""
    n, size = len(stored), int(np.prod(stored.shape[1:], dtype=np.int64)) * stored.dtype.itemsize
    if stored.chunks is None:
        start = stored.id.get_offset()
        return None if start is None else start + size * np.arange(n)
    if stored.chunks != (1, *stored.shape[1:]) or stored.id.get_create_plist().get_nfilters():
        return None
    if stored.id.get_num_chunks() != n:
        return None
    origin = (0,) * (stored.ndim - 1)
    return np.array([stored.id.get_chunk_info_by_coord((k, *origin)).byte_offset for k in range(n)], np.int64)
