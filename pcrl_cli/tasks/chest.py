"""Findings on chest radiographs: NIH ChestX-ray14, CheXpert, or any images with a table of labels."""

from pydantic import Field, model_validator

from pcrl_cli.augment.images import ImageRanges
from pcrl_cli.core.config import Settings
from pcrl_cli.core.learner import Stored
from pcrl_cli.networks.encoder import Encoder
from pcrl_cli.tasks.findings import Findings, Plane

DIM = 2
GROUP = "images"
ARRAYS = ("image", "label")
METRIC = "auroc"
"""The mean over the findings that have one."""


class Config(Settings):
    """The paper's numbers: 224 x 224; trained on random crops of 0.3 to 1 of the area, tested on the centre of 256."""

    side: int = Field(224, ge=16, description="pixels of the network's input")
    resize: int = Field(256, ge=16, description="side that an image is brought to before the centre is cut, for tests")
    area: tuple[float, float] = Field((0.3, 1.0), description="share of the image that a training crop covers")
    flip_probability: float = Field(0.5, ge=0, le=1)
    rotation_deg: tuple[float, float] = (-10.0, 10.0)

    @model_validator(mode="after")
    def _fits(self) -> "Config":
        if self.side > self.resize:
            raise ValueError(f"side {self.side} is cut from {self.resize} pixels; it may not be larger")
        self.ranges  # noqa: B018  checks the other values
        return self

    @property
    def ranges(self) -> ImageRanges:
        return ImageRanges(
            global_side=self.side,
            global_area=self.area,
            flip_probability=self.flip_probability,
            rotation_deg=self.rotation_deg,
        )


class Chest(Findings):
    """See `findings.Findings`."""

    def __init__(self, encoder: Encoder, config: Config, stored: Stored) -> None:
        super().__init__(encoder, stored, "chest", Plane(config.resize, config.ranges))
        self.config = config


TASK = Chest
