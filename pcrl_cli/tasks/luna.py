"""Pulmonary nodule detection: is a candidate of LUNA16 a nodule?"""

import numpy as np
from jaxtyping import Float, Int, Shaped
from pydantic import Field
from torch import Tensor

from pcrl_cli.augment.cubes import rotated_crop
from pcrl_cli.augment.intensity import z_normalise
from pcrl_cli.augment.pairs import to_unit
from pcrl_cli.core.config import Settings
from pcrl_cli.core.errors import ConfigError
from pcrl_cli.core.learner import Batch, Stored, Views
from pcrl_cli.core.rng import Rng
from pcrl_cli.networks.encoder import Encoder
from pcrl_cli.pure.crops import CandidateBlocks
from pcrl_cli.tasks.base import Classification

DIM = 3
GROUP = "candidates"
ARRAYS = ("blocks", "label")
CROP_PLAN = CandidateBlocks
METRIC = "auroc"


class Config(Settings):
    """The paper's numbers: 48^3 round the candidate, one nodule to two others."""

    side: int = Field(48, ge=8, description="voxels of 1 mm")
    negatives_per_positive: float = Field(2.0, gt=0)


class Luna(Classification):
    """Batch: `blocks` (b, 1, n, n, n) as stored, the candidate in the middle voxel; `label` (b,)."""

    def __init__(self, encoder: Encoder, config: Config, stored: Stored) -> None:
        super().__init__(encoder, outputs=1)
        self.config, self.stored = config, stored

    def views(self, batch: Batch, rng: Rng) -> Views:
        """A random side^3 of every block, turned by one of the cube's 48 symmetries (flips, rotations of 90 degrees)."""
        stream = rng.sample.fork("luna")
        crop = rotated_crop(self._large_enough(batch["blocks"]), self.config.side, stream)
        return {"x": self._input(crop), "label": batch["label"]}

    def centre(self, batch: Batch) -> Float[Tensor, "b c x y z"]:
        blocks, side = self._large_enough(batch["blocks"]), self.config.side
        start = blocks.shape[-1] // 2 - side // 2
        cut = slice(start, start + side)
        return self._input(blocks[:, :, cut, cut, cut])

    def _large_enough(self, blocks: Tensor) -> Tensor:
        n, side = blocks.shape[-1], self.config.side
        if side > n:
            raise ConfigError(
                f"learner.side {side} is larger than the cached blocks of {n}^3 voxels; lower it, or prepare the cache "
                f"with --set candidates.side_mm={side + 16}"
            )
        return blocks

    def _input(self, stored: Tensor) -> Tensor:
        """HU window -> [0, 1] -> z-normalised, as in pre-training."""
        return z_normalise(to_unit(stored, self.stored))


def epoch_order(labels: Shaped[np.ndarray, " n"], config: Config, seed: int, epoch: int) -> Int[np.ndarray, " m"]:
    """An epoch's items: every positive, and afresh each epoch as many negatives as asked for, in random order."""
    rng = np.random.default_rng([seed, 0x10A, epoch])
    positives, negatives = np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)
    wanted = min(len(negatives), round(config.negatives_per_positive * len(positives)))
    return rng.permutation(np.concatenate([positives, rng.choice(negatives, wanted, replace=False)]))


TASK = Luna
