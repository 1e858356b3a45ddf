"""Segmentation of one's own data: the regions are those of the cache, in 3D or 2D, and may overlap."""

from pydantic import Field, model_validator

from pcrl_cli.core.errors import ConfigError
from pcrl_cli.core.learner import Stored
from pcrl_cli.networks.encoder import Encoder
from pcrl_cli.pure.volumes import WholeVolumes
from pcrl_cli.tasks.base import AnySize, Segmentation, SegmentationConfig

GROUP = "volumes"
ARRAYS = ("image", "mask")
CROP_PLAN = WholeVolumes
METRIC = "dice"
DIM = None
DATA_SET = "folder"
"""Whose cache is taken where several fit."""
REGIONS = None
"""The cache's."""
BOX_FROM_TRUTH = None
"""As the cache was prepared: of CT scans yes, of others no."""


class Config(SegmentationConfig):
    """Crops of 96 voxels a side in 3D, 224 pixels in 2D."""

    crop: AnySize | None = Field(None, description="of an image; none: 96 voxels a side in 3D, 224 pixels in 2D")
    mirror: bool = Field(True, description="reverse training crops along every axis; off where left is not right")

    @model_validator(mode="after")
    def _alike(self) -> "Config":
        if self.tta and not self.mirror:
            raise ValueError("tta shows the network mirrored images, which with mirror=false it never learned from")
        return self


class Segment(Segmentation):
    """Raises:
    ConfigError: the cache has no regions.
    """

    def __init__(self, encoder: Encoder, config: Config, stored: Stored) -> None:
        if not stored.regions:
            raise ConfigError(
                "this cache names no regions, which the task segment needs; prepare one with "
                "`pcrl prep folder --masks DIR`, or fine-tune with the data set's own task"
            )
        super().__init__(encoder, config, stored, stored.regions)
        self.mirror = config.mirror

    @property
    def mirrors(self) -> bool:
        return self.mirror


TASK = Segment
