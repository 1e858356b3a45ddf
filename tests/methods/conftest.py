"""Small PCRLv2 models and batches of stored crops."""

import pytest
import torch

from pcrl_cli.core.learner import Stored
from pcrl_cli.core.rng import Rng
from pcrl_cli.methods.pcrlv2 import Config, PCRLv2

TO_UNIT = (1 / 2000, 0.5)


@pytest.fixture
def make():
    """A learner of width 2 and four poolings with weights from a seed; options of its Config."""

    def make_(seed=0, channels=1, **options):
        torch.manual_seed(seed)
        return PCRLv2(Config(**({"width": 2, "poolings": 4} | options)), Stored(3, channels, TO_UNIT))

    return make_


@pytest.fixture
def batch():
    """Three pairs of int16 crops in HU, smaller than the real ones, with structure and some air."""
    generator = torch.Generator().manual_seed(5)

    def crops(*shape):
        coarse = torch.rand(shape[0] * shape[1], 1, *(s // 4 for s in shape[3:]), generator=generator)
        fine = torch.nn.functional.interpolate(coarse, size=shape[3:], mode="trilinear", align_corners=False)
        return (2600 * fine.view(shape) - 1300).clamp(-1000, 1000).to(torch.int16)

    return {
        "globals": crops(3, 2, 1, 24, 16, 16),
        "locals_sub": crops(3, 6, 1, 8, 8, 8),
        "locals_multi": crops(3, 6, 1, 8, 8, 8),
    }


@pytest.fixture
def rng():
    """The randomness of a step for three samples."""

    def rng_(step=0, seed=0):
        return Rng.at(seed, step, torch.tensor([4, 0, 9]))

    return rng_
