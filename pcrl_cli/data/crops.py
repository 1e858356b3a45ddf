"""Random crops of cached volumes with their masks: a `core.source.Source` for segmentation.

What step s holds is a function of (seed, s, global position): cases come in an order that is drawn afresh each epoch, as in
`data.loader`, and a crop's place is drawn from (seed, position). From disk only the crop is read.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Int, Int16, Int64, UInt8
from torch import Tensor

from pcrl_cli.core.errors import ConfigError
from pcrl_cli.core.learner import Batch
from pcrl_cli.data.ahead import CacheOn, ahead, choose, own_device, require_shares, small, steps
from pcrl_cli.data.cache import Cache
from pcrl_cli.data.loader import shuffled
from pcrl_cli.pure.volumes import PADDED

GROUP, ARRAYS = "volumes", ("image", "mask")


class VolumeCrops:
    """Crops of the volumes of some cases; a batch is {"image": (b, c, x, y, z) int16 stored units, "mask": (b, x, y, z)}.

    A crop lies in the case's `box`, uniformly; along an axis where the box is shorter than the crop it holds the box and
    lies in the scan, uniformly; where the scan itself is shorter it is padded on both sides alike (image: `pad`, mask: PADDED).

    Args:
        cases: whose volumes are used, in this order.
        size: of a crop, voxels (x, y, z).
        batch: crops a step over all ranks.
        pad: the stored value beyond a scan's edge.
        foreground: the share of crops that are moved so that they hold a foreground voxel, uniform over the case's list;
            cases without foreground are cropped as the others are. 0 are the paper's plain random crops.
        crops: of a case in an epoch; None: as few as fill a batch, which is 1 unless cases are fewer than the batch.
        rank, ranks: this process takes rows rank::ranks of every batch.

    Raises:
        ConfigError: the batch is larger than an epoch, or does not divide among the ranks into two or more each.
    """

    def __init__(
        self,
        cache: Cache,
        cases: Sequence[str],
        size: tuple[int, int, int],
        batch: int,
        seed: int,
        device: torch.device,
        where: CacheOn = "auto",
        *,
        pad: int = 0,
        foreground: float = 0.0,
        crops: int | None = None,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        self.cache, self.cases, self.size, self.seed, self.pad = cache, tuple(cases), size, seed, pad
        self.batch_size, self.device, self.rank, self.ranks = batch, own_device(device), rank, ranks
        self.crops = crops or max(1, -(-batch // max(1, len(cases))))
        if batch > self.crops * len(cases):
            raise ConfigError(
                f"the batch ({batch}) is larger than an epoch ({self.crops} crops of {len(cases)} cases in {cache.path}); "
                "set a smaller --batch, more crops a case, or prepare more scans"
            )
        require_shares(batch, ranks)
        self.order = shuffled(self.crops * len(cases), seed)
        self.shapes = np.array([cache.records[case]["arrays"][GROUP]["image"]["shape"][1:] for case in cases], np.int64)
        boxes = cache.read(GROUP, ("box",), cases).arrays["box"].reshape(-1, 2, 3).astype(np.int64)
        self.low, self.high = crop_range(self.shapes, boxes, size)
        self.foreground = foreground
        self.seeds = [cache.read(GROUP, ("foreground",), [c]).arrays["foreground"] for c in cases] if foreground else []
        self.place, self.residency = choose(where, cache.nbytes(GROUP, ARRAYS, cases), device)
        self.resident = [self._load(case) for case in cases] if self.place != "disk" else None

    @property
    def steps_per_epoch(self) -> int:
        return self.crops * len(self.cases) // self.batch_size

    @property
    def padded(self) -> tuple[str, ...]:
        """The cases that are smaller than a crop along an axis."""
        short = (self.shapes < np.array(self.size)).any(axis=1)
        return tuple(self.cases[i] for i in np.flatnonzero(short))

    def batches(self, step: int) -> Iterator[tuple[Int[Tensor, " b"], Batch]]:
        """Endless, from a step on: global positions of this rank's crops, and their arrays on the device."""
        work = steps(self.order, self.steps_per_epoch, self.batch_size, step, self.rank, self.ranks)
        if self.place != "gpu":
            yield from ahead(work, self._fill, self._room, self.device)
            return
        for positions, items in work:
            batch = self._room()
            self._fill(positions, items, batch)
            yield small(positions, self.device), batch

    def start(self, position: int, case: int) -> Int64[np.ndarray, "3"]:
        """The first voxel (x, y, z) of the crop at a global position; negative where the crop is padded."""
        rng = np.random.default_rng([self.seed, 0xC409, position])
        low, high = self.low[case], self.high[case]
        if self.foreground and rng.random() < self.foreground and len(self.seeds[case]):
            voxel = self.seeds[case][rng.integers(len(self.seeds[case]))]
            low, high = np.clip(voxel - self.size + 1, low, high), np.clip(voxel, low, high)
        return rng.integers(low, high, endpoint=True)

    def _room(self) -> Batch:
        """Memory for this rank's crops of one batch, where the volumes are."""
        channels = self.cache.records[self.cases[0]]["arrays"][GROUP]["image"]["shape"][0]
        on = self.device if self.place == "gpu" else torch.device("cpu")
        n = len(range(self.rank, self.batch_size, self.ranks))
        image = torch.empty((n, channels, *self.size), dtype=torch.int16, device=on)
        return {"image": image, "mask": torch.empty((n, *self.size), dtype=torch.uint8, device=on)}

    def _fill(self, positions: Int[Tensor, " b"], items: Int[np.ndarray, " b"], out: Batch) -> None:
        """One crop an item; items name their cases again and again."""
        image, mask = out["image"].fill_(self.pad), out["mask"].fill_(PADDED)
        cases = items % len(self.cases)
        for row, (position, case) in enumerate(zip(positions.tolist(), cases.tolist(), strict=True)):
            start = self.start(position, case)
            first, last = np.maximum(start, 0), np.minimum(start + self.size, self.shapes[case])
            target = tuple(slice(int(a), int(b)) for a, b in zip(first - start, last - start, strict=True))
            part, labels = self._part(case, first, last)
            image[row][(slice(None), *target)], mask[row][target] = part, labels

    def _part(
        self, case: int, first: Int64[np.ndarray, "3"], last: Int64[np.ndarray, "3"]
    ) -> tuple[Int16[Tensor, "c x y z"], UInt8[Tensor, "x y z"]]:
        if self.resident is not None:
            box = tuple(slice(int(a), int(b)) for a, b in zip(first, last, strict=True))
            image, mask = self.resident[case]
            return image[(slice(None), *box)], mask[box]
        start, size = first.tolist(), (last - first).tolist()
        image, mask = (torch.from_numpy(self.cache.read_box(self.cases[case], GROUP, a, start, size)) for a in ARRAYS)
        return image, mask

    def _load(self, case: str) -> tuple[Int16[Tensor, "c x y z"], UInt8[Tensor, "x y z"]]:
        """A whole volume, in memory or on the device."""
        image, mask = (torch.from_numpy(self.cache.read_box(case, GROUP, name)) for name in ARRAYS)
        return (image.to(self.device), mask.to(self.device)) if self.place == "gpu" else (image, mask)


def crop_range(
    shape: Int64[np.ndarray, "n 3"], box: Int64[np.ndarray, "n 2 3"], size: Sequence[int]
) -> tuple[Int64[np.ndarray, "n 3"], Int64[np.ndarray, "n 3"]]:
    """The least and the greatest start of a crop of each case, both included.

    In the box where that is as long as the crop; else round the box, in the scan; else in the middle, from -(missing // 2).
    """
    n = np.asarray(size)
    begin, end = box[:, 0], box[:, 0] + box[:, 1]
    low = np.where(box[:, 1] >= n, begin, np.maximum(0, end - n))
    high = np.where(box[:, 1] >= n, end - n, np.minimum(begin, shape - n))
    middle = -((n - shape) // 2)
    return np.where(shape < n, middle, low), np.where(shape < n, middle, high)
