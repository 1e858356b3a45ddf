"""What tasks with several labels an image share, some of them unknown: the loss, and what of an image is seen."""

from collections.abc import Sequence
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from pcrl_cli.augment.cubes import rotated_crop
from pcrl_cli.augment.images import ImageRanges, crop, draw_boxes, draw_crop, longest, normalise
from pcrl_cli.augment.intensity import z_normalise
from pcrl_cli.augment.pairs import to_unit
from pcrl_cli.core.errors import ConfigError
from pcrl_cli.core.learner import Batch, Progress, Stored, Views
from pcrl_cli.core.rng import Rng, Stream
from pcrl_cli.networks.encoder import Encoder
from pcrl_cli.tasks.base import Classification

Symmetries = Literal["all", "mirrors", "none"]


@runtime_checkable
class Look(Protocol):
    """What of an image a network sees, in training and in prediction. Images are in [0, 1]."""

    def drawn(self, images: Float[Tensor, "b c *space"], stream: Stream) -> Tensor:
        """The network's input in training: a part of every image, drawn."""

    def centre(self, images: Float[Tensor, "b c *space"]) -> Tensor:
        """What is predicted from, before it is normalised."""

    def normalised(self, seen: Tensor) -> Tensor: ...


class Findings(Classification):
    """Batch: `image` (b, 1, *space) as stored; `label` (b, k): 1 present, 0 absent, -1 not known.

    Args:
        name: of the task. look: what of an image is seen.

    Raises:
        ConfigError: the cache has no findings.
    """

    def __init__(self, encoder: Encoder, stored: Stored, name: str, look: Look) -> None:
        if not stored.classes:
            raise ConfigError(f"this cache has no labels, which the task {name} needs; prepare it with --labels")
        super().__init__(encoder, outputs=len(stored.classes))
        self.stored, self.name, self.look = stored, name, look

    def views(self, batch: Batch, rng: Rng) -> Views:
        seen = self.look.drawn(to_unit(batch["image"], self.stored), rng.sample.fork(self.name))
        return {"x": self.look.normalised(seen), "label": batch["label"]}

    def centre(self, batch: Batch) -> Float[Tensor, "b c *side"]:
        return self.look.normalised(self.centre_unit(batch))

    def centre_unit(self, batch: Batch) -> Float[Tensor, "b 1 *side"]:
        """What is predicted from, before it is normalised, in [0, 1]."""
        return self.look.centre(to_unit(batch["image"], self.stored))

    def losses(self, views: Views, progress: Progress, player: str = "main") -> dict[str, Tensor]:
        """{"bce"}: mean binary cross-entropy over the known labels of all ranks; 0 where a batch has none."""
        logits, label = self.network(views["x"]).float(), views["label"]
        known = label >= 0
        terms = F.binary_cross_entropy_with_logits(logits, label.clamp(min=0).float(), reduction="none")
        return {"bce": (terms * known).sum() / self.shared_count(known)}

    @torch.no_grad()
    def activation(self, batch: Batch) -> Float[Tensor, "b k *side"]:
        """Class activation maps over what `centre` shows, brought to its size linearly."""
        x = self.centre(batch)
        mode = "bilinear" if x.dim() == 4 else "trilinear"
        return F.interpolate(self.network.activation(x), x.shape[2:], mode=mode, align_corners=False)

    def pictures(self, views: Views) -> dict[str, Tensor]:
        """Training views, in 2D with x to the right; in 3D their mid slices."""
        if views["x"].dim() == 5:
            return super().pictures(views)
        return {"training views": views["x"][:, :1].transpose(2, 3)}


class Plane:
    """Of a 2D image: in training a random resized crop, flipped and rotated, as the global views of pre-training are; for
    prediction the centre of the image at `resize` pixels.
    """

    def __init__(self, resize: int, ranges: ImageRanges) -> None:
        self.resize, self.ranges, self.side = resize, ranges, ranges.global_side

    def drawn(self, images: Float[Tensor, "b 1 h w"], stream: Stream) -> Float[Tensor, "b 1 side side"]:
        shape, ranges = (images.shape[2], images.shape[3]), self.ranges
        box = draw_boxes(stream.fork("box"), shape, ranges.global_area, ranges.aspect)[:, 0]
        bound = longest(shape, ranges.global_area, ranges.aspect)
        return crop(images, draw_crop(stream.fork("crop"), box, ranges, bound), self.side)

    def centre(self, images: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b 1 side side"]:
        resize, side = self.resize, self.side
        if images.shape[2:] != (resize, resize):
            images = F.interpolate(images, (resize, resize), mode="bilinear", antialias=True, align_corners=False)
        start = (resize - side) // 2
        return images[:, :, start : start + side, start : start + side]

    def normalised(self, seen: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b 3 h w"]:
        return normalise(seen)


class Space:
    """Of a 3D scan: a cube, in training anywhere and turned by a symmetry of the cube, for prediction the middle one.

    side: voxels of the cube; None: 7/8 of the scan's shortest side.
    """

    def __init__(self, side: int | None = None, symmetries: Symmetries = "all") -> None:
        self.wanted, self.symmetries = side, symmetries

    def drawn(self, images: Float[Tensor, "b 1 x y z"], stream: Stream) -> Float[Tensor, "b 1 s s s"]:
        side = self.side_of(images.shape[2:])
        return rotated_crop(images, side, stream, self.symmetries == "all", self.symmetries != "none")

    def centre(self, images: Float[Tensor, "b 1 x y z"]) -> Float[Tensor, "b 1 s s s"]:
        side = self.side_of(images.shape[2:])
        x, y, z = (slice((n - side) // 2, (n - side) // 2 + side) for n in images.shape[2:])
        return images[:, :, x, y, z]

    def normalised(self, seen: Float[Tensor, "b 1 s s s"]) -> Float[Tensor, "b 1 s s s"]:
        """z-normalised, as in pre-training."""
        return z_normalise(seen)

    def side_of(self, shape: Sequence[int]) -> int:
        """Raises:
        ConfigError: the cube does not fit into the cached scans.
        """
        least = min(shape)
        side = self.wanted or max(1, 7 * least // 8)
        if side > least:
            raise ConfigError(
                f"learner.side {side} is larger than the cached scans ({' x '.join(map(str, shape))} voxels); lower it, or "
                f"prepare the cache with --set whole.shape=[{side},{side},{side}]"
            )
        return side
