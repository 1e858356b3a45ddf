"""Brain tumour segmentation on BraTS: three overlapping regions of the labels.

1 necrosis (BraTS 2018: with non-enhancing tumour), 2 oedema, 3 non-enhancing tumour (BraTS 2013 only), 4 enhancing tumour.
"""

from pcrl_cli.core.learner import Stored
from pcrl_cli.networks.encoder import Encoder
from pcrl_cli.pure.volumes import WholeVolumes
from pcrl_cli.tasks.base import Segmentation, SegmentationConfig, Size

GROUP = "volumes"
ARRAYS = ("image", "mask")
CROP_PLAN = WholeVolumes
METRIC = "dice"
DIM = 3
REGIONS = {"WT": (1, 2, 3, 4), "TC": (1, 3, 4), "ET": (4,)}
"""Whole tumour, tumour core, enhancing tumour."""
BOX_FROM_TRUTH = False
"""Whether the box that training crops come from was made of the mask, so that Dice inside it is a number of its own."""


class Config(SegmentationConfig):
    """The paper's crop, 112^3 voxels of 1 mm, out of the brain's box."""

    crop: Size = (112, 112, 112)


class Brats(Segmentation):
    def __init__(self, encoder: Encoder, config: Config, stored: Stored) -> None:
        super().__init__(encoder, config, stored, REGIONS)


TASK = Brats
