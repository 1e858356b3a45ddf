"""Cache to batches: resident on the GPU, in RAM, or read ahead from disk; the order is the same in all three.

What step s holds is a function of (seed, s): an epoch's order is drawn afresh from (seed, epoch), so a run resumes in the
middle of an epoch from its step alone, and the last short batch of an epoch is dropped.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from pcrl_cli.core.errors import ConfigError
from pcrl_cli.core.learner import Batch
from pcrl_cli.data.ahead import CacheOn, Order, Rows, ahead, choose, own_device, require_shares, small, steps
from pcrl_cli.data.cache import Cache
from pcrl_cli.data.direct import Direct


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
        self.batch_size, self.device, self.rank, self.ranks = batch, own_device(device), rank, ranks
        self.seed = seed
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
        require_shares(batch, ranks)
        self.mine = self._mine()
        note = f" of {self.bytes / 1e9:.2f}, this rank's parts" if self.share > 1 else ""
        self.place, self.residency = choose(where, self.bytes // self.share, self.device, note)
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
        rows = steps(self.order, self.steps_per_epoch, self.batch_size, step, self.rank, self.ranks)
        if self.place == "disk":
            yield from self._from_disk(rows)
        elif self.device.type == "cuda" and self.place == "ram":
            yield from ahead(rows, self._gather, self._room, self.device)
        else:
            assert self.resident is not None
            for positions, items in rows:
                index = small(torch.from_numpy(self._within(items)), self.device)
                yield small(positions, self.device), {name: array[index] for name, array in self.resident.items()}

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

    def _load(self) -> dict[str, Tensor]:
        rows = self.rows if self.mine is None else self.mine if self.rows is None else self.rows[self.mine]
        arrays = self.cache.read(self.group, self.arrays, self.cases, rows=rows).arrays
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        if self.place == "gpu":
            tensors = {name: t.to(self.device) for name, t in tensors.items()}
        return tensors

    def _gather(self, positions: Int[Tensor, " b"], items: Int[np.ndarray, " b"], out: Batch) -> None:
        """From RAM into the batch."""
        assert self.resident is not None
        index = torch.from_numpy(self._within(items))
        for name, array in self.resident.items():
            torch.index_select(array, 0, index, out=out[name])

    def _from_disk(self, rows: Rows) -> Iterator[tuple[Int[Tensor, " b"], Batch]]:
        direct = Direct(self.cache, self.group, self.arrays, self.cases)

        def fill(positions: Int[Tensor, " b"], items: Int[np.ndarray, " b"], out: Batch) -> None:
            direct.read(items if self.rows is None else self.rows[items], {name: t.numpy() for name, t in out.items()})

        try:
            yield from ahead(rows, fill, self._room, self.device)
        finally:
            direct.close()

    def _room(self) -> Batch:
        """Memory for this rank's rows of one batch."""
        n = len(range(self.rank, self.batch_size, self.ranks))
        none = self.cache.read(self.group, self.arrays, self.cases, rows=np.empty(0, np.int64)).arrays
        return {name: torch.from_numpy(np.empty((n, *a.shape[1:]), a.dtype)) for name, a in none.items()}
