"""Liver segmentation on LiTS: labels 1 (liver) and 2 (tumour, which lies in the liver) are one mask."""

from pcrl_cli.core.learner import Stored
from pcrl_cli.networks.encoder import Encoder
from pcrl_cli.pure.volumes import WholeVolumes
from pcrl_cli.tasks.base import Segmentation, SegmentationConfig, Size

GROUP = "volumes"
ARRAYS = ("image", "mask")
CROP_PLAN = WholeVolumes
METRIC = "dice"
DIM = 3
REGIONS = {"liver": (1, 2)}
BOX_FROM_TRUTH = True
"""Whether the box that training crops come from was made of the mask, so that Dice inside it is a number of its own."""


class Config(SegmentationConfig):
    """The paper's crop, 256x256x64 voxels of 1 mm, out of the liver's box and 30 voxels round it."""

    crop: Size = (256, 256, 64)


class Lits(Segmentation):
    def __init__(self, encoder: Encoder, config: Config, stored: Stored) -> None:
        super().__init__(encoder, config, stored, REGIONS)


TASK = Lits
