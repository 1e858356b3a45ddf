"""Made views with structure, flat air and a sharp edge, and one stream a view."""

from collections.abc import Callable

import pytest
import torch.nn.functional as F
from torch import Tensor

from pcrl_cli.core.rng import Stream

MakeViews = Callable[..., Tensor]
MakeStream = Callable[[str, int], Stream]


@pytest.fixture
def make_views() -> MakeViews:
    """(n, c, *shape) in [0, 1]; no channel's minimum is 0, and no two views are alike."""

    def make(n: int, shape: tuple[int, int, int] = (20, 18, 12), c: int = 1, name: str = "views") -> Tensor:
        stream = Stream.of("test", name).each(n)
        coarse = stream.uniform(c, *(max(2, s // 3) for s in shape))
        smooth = F.interpolate(coarse, size=shape, mode="trilinear", align_corners=False)
        fine = smooth + 0.1 * stream.uniform(c, *shape)
        low = stream.uniform(c, 1, 1, 1, low=0.1, high=0.4)
        return fine.clamp(0, 1).maximum(low)

    return make


@pytest.fixture
def make_stream() -> MakeStream:
    return lambda name, n: Stream.of("draws", name).each(n)
