"""Findings on chest radiographs: NIH ChestX-ray14, CheXpert, or any images with a table of labels."""

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from pcrl_cli.augment.images import ImageRanges, crop, draw_boxes, draw_crop, longest, normalise
from pcrl_cli.core.config import Settings
from pcrl_cli.core.errors import ConfigError
from pcrl_cli.core.learner import Batch, Progress, Stored, Views
from pcrl_cli.core.rng import Rng
from pcrl_cli.networks.encoder import Encoder
from pcrl_cli.tasks.base import Classification

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


class Chest(Classification):
    """Batch: `image` (b, 1, h, w) as stored; `label` (b, k): 1 present, 0 absent, -1 not known.

    Raises:
        ConfigError: the cache has no findings.
    """

    def __init__(self, encoder: Encoder, config: Config, stored: Stored) -> None:
        if not stored.classes:
            raise ConfigError("this cache has no labels, which the task chest needs; prepare it with --labels")
        super().__init__(encoder, outputs=len(stored.classes))
        self.config, self.stored = config, stored

    def views(self, batch: Batch, rng: Rng) -> Views:
        """A random resized crop of every image, flipped and rotated, as the global views of pre-training are."""
        images, stream, ranges = self._unit(batch["image"]), rng.sample.fork("chest"), self.config.ranges
        shape = (images.shape[2], images.shape[3])
        box = draw_boxes(stream.fork("box"), shape, ranges.global_area, ranges.aspect)[:, 0]
        bound = longest(shape, ranges.global_area, ranges.aspect)
        cut = crop(images, draw_crop(stream.fork("crop"), box, ranges, bound), self.config.side)
        return {"x": normalise(cut), "label": batch["label"]}

    def centre(self, batch: Batch) -> Float[Tensor, "b 3 side side"]:
        return normalise(self.centre_unit(batch))

    def centre_unit(self, batch: Batch) -> Float[Tensor, "b 1 side side"]:
        """What is predicted from, before it is normalised: the centre of the image at `resize` pixels, in [0, 1]."""
        images, resize, side = self._unit(batch["image"]), self.config.resize, self.config.side
        if images.shape[2:] != (resize, resize):
            images = F.interpolate(images, (resize, resize), mode="bilinear", antialias=True, align_corners=False)
        start = (resize - side) // 2
        return images[:, :, start : start + side, start : start + side]

    def losses(self, views: Views, progress: Progress, player: str = "main") -> dict[str, Tensor]:
        """{"bce"}: mean binary cross-entropy over the known labels of all ranks; 0 where a batch has none."""
        logits, label = self.network(views["x"]).float(), views["label"]
        known = label >= 0
        terms = F.binary_cross_entropy_with_logits(logits, label.clamp(min=0).float(), reduction="none")
        return {"bce": (terms * known).sum() / self.shared_count(known)}

    @torch.no_grad()
    def activation(self, batch: Batch) -> Float[Tensor, "b k side side"]:
        """Class activation maps over what `centre` shows, brought to its size bilinearly."""
        maps = self.network.activation(self.centre(batch))
        return F.interpolate(maps, self.config.side, mode="bilinear", align_corners=False)

    def pictures(self, views: Views) -> dict[str, Tensor]:
        """Training views, x to the right."""
        return {"training views": views["x"][:, :1].transpose(2, 3)}

    def _unit(self, stored: Tensor) -> Tensor:
        scale, offset = self.stored.to_unit
        return stored.float() * scale + offset


TASK = Chest
