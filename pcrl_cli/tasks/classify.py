"""Classes of one's own images or scans: any cache that `prep folder --labels` makes, in 2D and in 3D."""

from pydantic import Field

from pcrl_cli.augment.images import ImageRanges, Span, SpanAboveZero
from pcrl_cli.core.config import Settings
from pcrl_cli.core.errors import ConfigError
from pcrl_cli.core.learner import Stored
from pcrl_cli.networks.encoder import Encoder
from pcrl_cli.tasks.findings import Findings, Look, Plane, Space, Symmetries

DIM = None
GROUP = "images"
ARRAYS = ("image", "label")
METRIC = "auroc"
"""The mean over the classes that have one."""
SIDE, RESIZE = 224, 256
"""In 2D, as for radiographs."""
FLAT, SOLID = ("resize", "area", "flip_probability", "rotation_deg"), ("symmetries",)
"""Settings of one number of axes."""


class Config(Settings):
    """What is unsaid is, in 2D, as for radiographs: trained on random crops of 0.3 to 1 of the area, tested on the centre.

    In 3D a cube of every scan is seen, in training anywhere in it and turned, in tests the middle.
    """

    side: int | None = Field(
        None, ge=8, description="of the network's input; none: 224 pixels in 2D, in 3D 7/8 of the cached scans' side"
    )
    resize: int | None = Field(None, ge=16, description="2D: side before the centre is cut, for tests; none: 256")
    area: SpanAboveZero | None = Field(None, description="2D: share of the image that a training crop covers")
    flip_probability: float | None = Field(None, ge=0, le=1, description="2D: of a mirrored training view; none: 0.5")
    rotation_deg: Span | None = Field(None, description="2D: of training views; none: -10 to 10")
    symmetries: Symmetries | None = Field(
        None, description="3D: all (48 flips and turns, the default), mirrors, or none where left and right matter"
    )

    def look(self, dim: int) -> Look:
        """Raises:
        ConfigError: a setting of the other number of axes, or values that do not fit together.
        """
        for name in SOLID if dim == 2 else FLAT:
            if getattr(self, name) is not None:
                raise ConfigError(f"learner.{name} changes nothing for {dim}D images; leave it out")
        if dim == 3:
            return Space(self.side, self.symmetries or "all")
        side, resize = self.side or SIDE, self.resize or max(RESIZE, self.side or 0)
        if side > resize:
            raise ConfigError(f"learner.side {side} is cut from {resize} pixels; it may not be larger")
        said = {"global_area": self.area, "flip_probability": self.flip_probability, "rotation_deg": self.rotation_deg}
        ranges = {name: value for name, value in said.items() if value is not None}
        return Plane(resize, ImageRanges(global_side=side, **ranges))


class Classify(Findings):
    """See `findings.Findings`."""

    def __init__(self, encoder: Encoder, config: Config, stored: Stored) -> None:
        super().__init__(encoder, stored, "classify", config.look(stored.dim))
        self.config = config


TASK = Classify
