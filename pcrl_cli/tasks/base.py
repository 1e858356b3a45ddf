"""What downstream tasks share."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain, combinations
from typing import Any, Literal

import torch
from jaxtyping import Float, Num, UInt8
from pydantic import Field, PositiveInt
from torch import Tensor
from torch.nn import functional as F

from pcrl_cli.augment.images import normalise
from pcrl_cli.augment.pairs import to_unit
from pcrl_cli.core.config import Settings
from pcrl_cli.core.errors import ConfigError, blame_memory
from pcrl_cli.core.learner import Batch, Progress, Stored, Task, Views
from pcrl_cli.core.rng import Rng, Stream
from pcrl_cli.networks.classify import Classifier
from pcrl_cli.networks.encoder import Encoder
from pcrl_cli.networks.segment import Decoder, Segmenter, WholeSegmenter
from pcrl_cli.pure.losses import soft_dice, voxel_bce
from pcrl_cli.pure.volumes import PADDED


class Classification(Task):
    """Encoder, GAP and a linear layer, trained with binary cross-entropy (section 4.3).

    Subclasses say what a view is: `views` for training, `centre` for prediction.
    """

    def __init__(self, encoder: Encoder, outputs: int) -> None:
        super().__init__()
        self.network = Classifier(encoder, outputs)

    @property
    def encoder(self) -> Encoder:
        return self.network.encoder

    def centre(self, batch: Batch) -> Float[Tensor, "b c *space"]:
        """The network's input for prediction; no randomness."""
        raise NotImplementedError

    def losses(self, views: Views, progress: Progress, player: str = "main") -> dict[str, Tensor]:
        """{"bce"}: mean binary cross-entropy of the logits against `label` (b, outputs)."""
        logits = self.network(views["x"]).float()
        return {"bce": F.binary_cross_entropy_with_logits(logits, views["label"].float().view_as(logits))}

    @torch.no_grad()
    def predict(self, batch: Batch) -> Float[Tensor, "b outputs"]:
        """Probabilities, in eval mode."""
        return torch.sigmoid(self.network(self.centre(batch)).float())

    def pictures(self, views: Views) -> dict[str, Tensor]:
        """Mid slices of the training views."""
        x: Any = views["x"]
        return {"training views": x[:, 0, :, :, x.shape[-1] // 2].unsqueeze(1)}


Size = tuple[PositiveInt, PositiveInt, PositiveInt]
AnySize = tuple[PositiveInt, PositiveInt] | Size
USUAL_CROP = {2: (224, 224), 3: (96, 96, 96)}
"""Where a task leaves the crop open, by axes."""


MANY = 4
"""Labels of a region beyond which they are looked up in a table, not compared one by one."""


class SegmentationConfig(Settings):
    """What segmentation tasks share. Sizes are voxels (x, y, z) of the working grid, or pixels (rows, columns)."""

    crop: AnySize | None
    crops: int | None = Field(None, ge=1, description="of a volume an epoch; none: one, or as many as fill a batch")
    foreground: float = Field(0.0, ge=0, le=1, description="share of the crops that must hold a foreground voxel")
    skip: bool = Field(True, description="skip connections of the U-Net; a transferred decoder keeps its own")
    loss: Literal["dice", "dice_bce"] = "dice"
    bce_weight: float = Field(0.2, ge=0, description="of the cross-entropy, with loss=dice_bce")
    window: AnySize | None = Field(None, description="of the sliding window; none: the crop")
    windows: int = Field(1, ge=1, description="that the network sees at once")
    overlap: float = Field(0.5, ge=0, lt=1, description="of neighbouring windows, a share of their size")
    tta: bool = Field(False, description="mirror test-time augmentation: the mean over all flips, 8 passes")
    threshold: float = Field(0.5, gt=0, lt=1)
    largest_component: bool = Field(False, description="keep only the largest part of every predicted region")
    tolerance_mm: float = Field(2.0, gt=0, description="of the normalised surface Dice; pixels in 2D")

    def crop_of(self, dim: int) -> tuple[int, ...]:
        """The crop along the axes of these images.

        Raises:
            ConfigError: it has another number of axes.
        """
        return _of_axes(self.crop or USUAL_CROP[dim], dim, "crop")

    def window_of(self, dim: int) -> tuple[int, ...]:
        """The sliding window along these axes; the crop where no other is asked for. Raises as `crop_of`."""
        return _of_axes(self.window, dim, "window") if self.window else self.crop_of(dim)


class Segmentation(Task):
    """A U-Net round the encoder, one sigmoid a region, trained with soft Dice on random crops (section 4.3).

    Batch: `image` (b, c, x, y, z) integers as stored; `mask` (b, x, y, z) the data set's labels, PADDED beyond the volume,
    which counts in no loss. A picture is a volume of one slice (rows, columns, 1), which a 2D encoder sees in three channels
    with ImageNet's normalisation.

    Args:
        regions: the labels that make up each region, in the order of the outputs; regions may overlap.
    """

    def __init__(
        self, encoder: Encoder, config: SegmentationConfig, stored: Stored, regions: Mapping[str, tuple[int, ...]]
    ) -> None:
        super().__init__()
        self.config, self.stored, self.regions = config, stored, dict(regions)
        self._use(Segmenter(encoder, len(regions), config.skip))

    def build_whole(self, decoder: Decoder) -> None:
        """The U-Net of a pre-training in place of one of the task's own, round the same encoder."""
        self._use(WholeSegmenter(self.encoder, len(self.regions), decoder))

    def _use(self, network: Segmenter | WholeSegmenter) -> None:
        layout = torch.channels_last_3d if network.encoder.dim == 3 else torch.channels_last
        self.network = network
        self.network.to(memory_format=layout)  # type: ignore[call-overload]  # 1.3 times as fast on a CPU

    @property
    def encoder(self) -> Encoder:
        return self.network.encoder

    def views(self, batch: Batch, rng: Rng) -> Views:
        """The crops, each mirrored or not along every axis; the crop itself was drawn by whoever read it."""
        image, mask = self.spatial(batch["image"]), self.spatial(batch["mask"])
        if self.mirrors:
            image, mask = mirrored(image, mask, rng.sample.fork("mirror"))
        return {"x": self.input(image), "mask": mask}

    @property
    def mirrors(self) -> bool:
        """Whether training crops are reversed at random."""
        return True

    def spatial(self, array: Tensor) -> Tensor:
        """An array (..., x, y, z) along the encoder's axes: a picture without its third one."""
        return array.squeeze(-1) if self.stored.dim == 2 else array

    def unit(self, stored: Num[Tensor, "*s"]) -> Float[Tensor, "*s"]:
        """[0, 1] of a CT's window or of grey levels, or an MR sequence's z-scores; 0 beyond the image."""
        return to_unit(stored, self.stored)

    def input(self, stored: Num[Tensor, "b c *s"]) -> Float[Tensor, "b n *s"]:
        """What the network sees."""
        return self.seen(self.unit(stored))

    def seen(self, unit: Float[Tensor, "b c *s"]) -> Float[Tensor, "b n *s"]:
        return normalise(unit) if self.stored.dim == 2 else unit

    def target(self, mask: UInt8[Tensor, "b *s"]) -> UInt8[Tensor, "b r *s"]:
        """1 where a region is, by the labels that make it up."""
        return torch.stack([_any_of(mask, labels) for labels in self.regions.values()], dim=1).to(torch.uint8)

    def losses(self, views: Views, progress: Progress, player: str = "main") -> dict[str, Tensor]:
        """{"dice"}, and with loss=dice_bce {"bce"}, already weighted; padding is left out."""
        logits, target, valid = self.network(views["x"]), self.target(views["mask"]), views["mask"] != PADDED
        terms = {"dice": soft_dice(logits, target, valid)}
        if self.config.loss == "dice_bce":
            terms["bce"] = self.config.bce_weight * voxel_bce(logits, target, valid, self.shared_count(valid))
        return terms

    @torch.no_grad()
    def predict(self, batch: Batch) -> Float[Tensor, "b r *s"]:
        """Probabilities of the crops as they are, in eval mode."""
        return torch.sigmoid(self.network(self.input(self.spatial(batch["image"]))).float())

    @torch.no_grad()
    def infer(
        self, image: Num[Tensor, "c x y z"], config: SegmentationConfig | None = None
    ) -> Float[Tensor, "r x y z"]:
        """Probabilities of a whole volume by a sliding window, blended with Gaussian weights; in eval mode.

        The volume and the result stay where `image` is (the CPU), only windows go to the network's device; what is
        needed besides is two float32 numbers a voxel and region, and what the network takes for `windows` windows. A
        volume smaller than a window is padded on both sides with what lies beyond a scan.

        Args:
            image: as stored, or float32 in stored units.
            config: other window, overlap or tta than the task's own.
        """
        from monai.inferers import sliding_window_inference

        config = config or self.config
        dim = self.stored.dim
        window = config.window_of(dim)
        device = next(self.parameters()).device
        mirrors = mirrors_of(dim if config.tta else 0)

        def probabilities(window: Tensor) -> Tensor:
            return mean_over_mirrors(lambda x: torch.sigmoid(self.network(x).float()), self.seen(window), mirrors)

        what = f"a window of {_by(window)} {'pixels' if dim == 2 else 'voxels'}, {config.windows} at once"
        with blame_memory(what, device.type, _less(config, window)):
            found = sliding_window_inference(
                self.unit(self.spatial(image))[None],
                window,
                config.windows,
                probabilities,
                overlap=config.overlap,
                mode="gaussian",
                padding_mode="constant",
                cval=0.0,
                sw_device=device,
                device=image.device,
            )
        assert isinstance(found, Tensor)
        return found[0].unsqueeze(-1) if dim == 2 else found[0]

    def pictures(self, views: Views) -> dict[str, Tensor]:
        """Mid slices of the training views, or all of a picture, and beside each the regions of its mask."""
        x: Any = views["x"]
        image, mask = x[:, :1].transpose(2, 3), views["mask"].transpose(1, 2)  # of pictures: columns, rows
        if self.stored.dim == 3:
            middle = x.shape[-1] // 2
            image, mask = x[:, :1, ..., middle], views["mask"][..., middle]
        low, high = image.amin((2, 3), keepdim=True), image.amax((2, 3), keepdim=True)
        target = self.target(mask.contiguous()).float()
        return {"training views": torch.cat([(image - low) / (high - low).clamp_min(1e-6), target], dim=1)}


def mirrored(
    image: Num[Tensor, "b c *s"], mask: Num[Tensor, "b *s"], stream: Stream
) -> tuple[Num[Tensor, "b c *s"], Num[Tensor, "b *s"]]:
    """Each axis of each sample is reversed with probability 1/2, image and mask alike."""
    flip = stream.integers(2, mask.dim() - 1).bool()  # b axes
    for axis in range(mask.dim() - 1):
        of_mask = flip[:, axis].view(-1, *[1] * (mask.dim() - 1))
        image = torch.where(of_mask[:, None], image.flip(2 + axis), image)
        mask = torch.where(of_mask, mask.flip(1 + axis), mask)
    return image, mask


def mirrors_of(axes: int) -> list[tuple[int, ...]]:
    """Every set of axes of (b, c, *s) that can be reversed together: 8 in 3D."""
    spatial = range(2, 2 + axes)
    return list(chain.from_iterable(combinations(spatial, n) for n in range(axes + 1)))


def mean_over_mirrors(
    network: Callable[[Tensor], Tensor], x: Float[Tensor, "b c *s"], mirrors: list[tuple[int, ...]]
) -> Float[Tensor, "b r *s"]:
    """The mean of the outputs for reversed inputs, each turned back; one at a time, so that memory stays a window's."""
    total = network(x.flip(mirrors[0])).flip(mirrors[0])
    for axes in mirrors[1:]:
        total += network(x.flip(axes)).flip(axes)
    return total / len(mirrors)


def _less(config: SegmentationConfig, window: Sequence[int]) -> str:
    """What to set when windows do not fit."""
    if config.windows > 1:
        return "--set learner.windows=1"
    half = [max(16, n // 2 // 16 * 16) for n in window]
    return f"--set learner.window=[{','.join(map(str, half))}], half a window a side"


def _by(size: Iterable[int]) -> str:
    return "x".join(map(str, size))


def _of_axes(size: Sequence[int], dim: int, name: str) -> tuple[int, ...]:
    if len(size) != dim:
        raise ConfigError(
            f"learner.{name} is {_by(size)}, and the images have {dim} axes; give {dim} numbers, such as "
            f"--set learner.{name}=[{','.join(map(str, USUAL_CROP[dim]))}]"
        )
    return tuple(size)


def _any_of(mask: UInt8[Tensor, "b *s"], labels: tuple[int, ...]) -> Tensor:
    if len(labels) > MANY:
        belongs = torch.zeros(256, dtype=torch.bool, device=mask.device)
        belongs[list(labels)] = True
        return belongs[mask.int()]
    found = mask == labels[0]
    for label in labels[1:]:
        found |= mask == label
    return found
