"""PCRLv1 (Zhou et al., ICCV 2021): C2L's contrast, and a decoder that restores different contexts as it is told.

x1, x2: clean views. g1, g2: what student and teacher see of them. T1, T2: targets, the views flipped and turned as the
indicators a1, a2 say. F_q, F_k: maps of student and teacher. A tilde: of inputs mixed by lambda.
"""

from collections.abc import Iterable
from typing import Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from pcrl_cli.augment import images
from pcrl_cli.augment.chains import Ranges
from pcrl_cli.augment.genesis import draw_paint, draw_shuffle, paint, shuffle
from pcrl_cli.augment.images import ImageRanges
from pcrl_cli.augment.indicate import draw_turn, indicator, transform
from pcrl_cli.augment.intensity import blur, draw_blur
from pcrl_cli.augment.mix import draw_name, draw_share, mix, order
from pcrl_cli.augment.pairs import ARRAYS, cropped, normalised, slices, to_unit
from pcrl_cli.augment.spatial import affine, draw_affine
from pcrl_cli.core.contract import Architecture
from pcrl_cli.core.learner import Batch, Learner, Progress, Stored, Views, Watched
from pcrl_cli.core.rng import Rng, Stream
from pcrl_cli.networks.blocks import gap
from pcrl_cli.networks.encoder import Encoder
from pcrl_cli.networks.momentum import Contrast, follow, in_groups, momentum_copy, trainable
from pcrl_cli.networks.restorer import Restorer, RestorerConfig
from pcrl_cli.pure import losses
from pcrl_cli.pure.crops import CropPairs

GROUPS = {3: "pairs", 2: "images"}
CROP_PLANS = {3: CropPairs}
LEAST_BATCH = 8
"""Samples a rank: the batch norms of the keys' groups need them."""


class Config(RestorerConfig):
    """Every choice of the method; the presets say more (recipes/presets.yaml)."""

    features: int = Field(128, ge=1)
    queue: int = Field(16384, ge=1, description="negatives: the last so many keys")
    temperature: float = Field(0.2, gt=0)
    momentum: float = Field(0.999, ge=0, le=1)
    criterion: Literal["infonce", "nce"] = Field("infonce", description="nce: what the released code does")
    samples: int = Field(100_000, ge=1, description="of nce: N, the samples of the data set")
    groups: int = Field(2, ge=1, description="of the shuffled keys, each with its own batch statistics")
    restore_weight: float = Field(1.0, ge=0)
    targets: Literal["clean", "as_released"] = Field(
        "clean", description="as_released: T of what the network sees, and mixed targets that are not aligned"
    )
    shuffle: float = Field(0.5, ge=0, le=1, description="3D: how often voxels are shuffled")
    windows: int = Field(10_000, ge=1, description="of shuffling")
    paint: float = Field(0.9, ge=0, le=1, description="3D: how often a pair is in- or out-painted")
    inside: float = Field(0.2, ge=0, le=1, description="3D: of the painted")
    network_input: Literal["normalised", "unit"] = Field("normalised", description="native, 3D: unit")
    augment: Ranges = Field(Ranges(), description="3D: of flip, affine map and blur")
    images: ImageRanges = Field(ImageRanges(), description="2D")

    def arrays(self, dim: int) -> tuple[str, ...]:
        """The cached arrays that this method reads."""
        return ARRAYS[dim]


class Gate(nn.Module):
    """sigmoid(FC(ReLU(FC(a)))): one factor a channel of the bottleneck.

    The released code's form; the paper's is an outer product.
    """

    def __init__(self, bits: int, c: int, hidden: int = 256) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(bits, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, c), nn.Sigmoid())

    def forward(self, maps: list[Tensor], a: Float[Tensor, "b bits"]) -> list[Tensor]:
        """The maps with their last, the bottleneck, gated."""
        factor = self.layers(a)
        return [*maps[:-1], maps[-1] * factor.view(*factor.shape, *[1] * (maps[-1].dim() - 2))]


class Student(nn.Module):
    """The U-Net and the head of the contrast: GAP, FC-ReLU-FC."""

    def __init__(self, restorer: Restorer, features: int) -> None:
        super().__init__()
        self.restorer = restorer
        c = restorer.net.encoder.widths[-1]
        self.head = nn.Sequential(nn.Linear(c, features), nn.ReLU(inplace=True), nn.Linear(features, features))

    def maps(self, g: Float[Tensor, "b c *space"]) -> list[Tensor]:
        return self.restorer.net.encoder(g)

    def feature(self, maps: list[Tensor]) -> Float[Tensor, "b d"]:
        return self.head(gap(maps[-1])).float()


class PCRLv1(Learner):
    """Four passes of the encoders and four of the decoder a step."""

    def __init__(self, config: Config, stored: Stored) -> None:
        super().__init__()
        self.config, self.stored = config, stored
        restorer = config.restorer(stored)
        self.student = Student(restorer, config.features)
        self.teacher = momentum_copy(self.student)
        self.gate = Gate(stored.dim + 4, restorer.net.encoder.widths[-1])
        samples = config.samples if config.criterion == "nce" else None
        self.contrast = Contrast(config.queue, config.features, config.temperature, samples)

    @property
    def encoder(self) -> Encoder:
        return self.student.restorer.net.encoder

    @property
    def architecture(self) -> Architecture:
        return self.config.architecture(self.stored.dim)

    def players(self) -> dict[str, Iterable[Any]]:
        return {"main": [*trainable(self.student), *trainable(self.gate)]}

    # ---- views -------------------------------------------------------------------------------------------------------

    def views(self, batch: Batch, rng: Rng) -> Views:
        """g, t and y (b, 2, c, ...): inputs, targets T(x) and what mixed inputs restore; a (b, 2, bits): indicators.

        With targets `clean` y is x itself. Shares and orders are the whole batch's.
        """
        streams, step = rng.sample.fork("view"), rng.step.fork("mix")
        y, x, seen = (v.flatten(0, 1) for v in self._augment(batch, streams))
        told = draw_turn(streams.fork("turn").each(2), tuple(x.shape[2:]))
        as_released = self.config.targets == "as_released"
        t = transform(seen if as_released else x, told)
        g = normalised(seen, self.config.network_input)
        two = {"g": g, "t": t, "y": y if as_released else x, "a": indicator(told)}
        views: Views = {name: v.unflatten(0, (-1, 2)) for name, v in two.items()}
        for name in ("share", "alpha", "alpha_mixed"):
            views[name] = draw_share(step.fork(name))
        for name in ("partners", "shuffle"):
            views[name] = draw_name(step.fork(name))
        return views

    def _augment(self, batch: Batch, streams: Stream) -> tuple[Tensor, Tensor, Tensor]:
        """(stored, clean, corrupted) pairs (b, 2, c, ...) in [0, 1]; clean: after the spatial augmentation."""
        return self._volumes(batch, streams) if self.stored.dim == 3 else self._radiographs(batch, streams)

    def _volumes(self, batch: Batch, streams: Stream) -> tuple[Tensor, Tensor, Tensor]:
        """Flip and affine map | blur, shuffling, painting (of both views or none, in- or outside alike)."""
        stored, c = to_unit(batch["globals"], self.stored), self.config
        both, shape = streams.each(2), tuple(batch["globals"].shape[3:])
        r = c.augment
        spatial = draw_affine(
            both.fork("affine"), r.flip_axes, r.flip_probability, r.scale, r.rotation_deg, r.translation_voxel
        )
        clean = affine(stored.flatten(0, 1), spatial)
        seen = blur(clean, draw_blur(both.fork("blur"), r.blur_sigma_voxel))
        seen = shuffle(seen, draw_shuffle(both.fork("shuffle"), shape, c.shuffle, c.windows))
        seen = self._paint(seen, both.fork("boxes"), streams.fork("kind"), shape)
        return stored, clean.unflatten(0, (-1, 2)), seen.unflatten(0, (-1, 2))

    def _paint(self, seen: Tensor, both: Stream, pair: Stream, shape: tuple[int, ...]) -> Tensor:
        """Boxes of each view's own, their kind the pair's."""
        c = self.config
        painted, inside = (pair.uniform() < p for p in (c.paint, c.inside))
        painted, inside = painted.repeat_interleave(2), inside.repeat_interleave(2)
        for kind, share in ((inside, 1.0), (~inside, 0.0)):
            part = paint(seen, draw_paint(both.fork(str(share)), shape, 1.0, share))
            seen = torch.where((painted & kind).view(-1, *[1] * (seen.dim() - 1)), part, seen)
        return seen

    def _radiographs(self, batch: Batch, streams: Stream) -> tuple[Tensor, Tensor, Tensor]:
        """Random resized crop, flip, rotation | blur, jitter where the ranges have it, cutout (grey: the mean)."""
        r = self.config.images
        clean = cropped(to_unit(batch["image"], self.stored), streams.fork("crop"), r, 2)
        both, side = streams.each(2), r.global_side
        seen = images.blur(clean, images.draw_blur(both.fork("blur"), r.blur_probability, r.blur_sigma_pixel))
        if r.jitter:
            seen = images.jitter(seen, images.draw_jitter(both.fork("jitter"), r.brightness, r.contrast))
        if r.cutout_holes:
            holes = images.draw_cutout(both.fork("cutout"), (side, side), r.cutout_holes, r.cutout_side)
            mean = sum(images.IMAGENET_MEAN) / 3
            seen = images.cutout(seen - mean, holes) + mean
        pair = clean.unflatten(0, (-1, 2))
        return pair, pair, seen.unflatten(0, (-1, 2))

    # ---- losses ------------------------------------------------------------------------------------------------------

    def losses(self, views: Views, progress: Progress, player: str = "main") -> dict[str, Tensor]:
        """L = 1/3 [l(q, k) + l(q~, k~) + l(q~, k^)]
            + 1/4 [MSE(D(F_q), T1) + MSE(D(alpha F_q + (1 - alpha) F_k), alpha T1 + (1 - alpha) T2)
                   + the same of mixed inputs without indicators, their targets mixed clean views].

        D: the student's decoder; maps are mixed at the bottleneck and at every skip; F_q, F_k are gated by a1, a2.
        """
        g1, g2 = views["g"].unbind(1)
        share, partner = views["share"], order(views["partners"], len(g1), g1.device)
        g1_mixed, g2_mixed = mix(g1, share, partner), mix(g2, share, partner)
        f_q, f_q_mixed = self.student.maps(g1), self.student.maps(g1_mixed)
        with torch.no_grad():
            f_k, k = self._teach(g2, views)
            f_k_mixed, k_mixed = self._teach(g2_mixed, views)
        q, q_mixed = self.student.feature(f_q), self.student.feature(f_q_mixed)
        pairs = {
            "contrast": (q, k),
            "mixed_inputs": (q_mixed, k_mixed),
            "mixed_features": (q_mixed, mix(k, share, partner)),
        }
        logits = {name: self.contrast.logits(*pair) for name, pair in pairs.items()}
        terms = {name: self.contrast(s) / 3 for name, s in logits.items()}
        self.contrast.note(k, logits["contrast"])
        if self.config.restore_weight:
            a1, a2 = views["a"].unbind(1)
            told = self._restore(self.gate(f_q, a1), self.gate(f_k, a2), views["t"], views["alpha"], g1)
            y = mix(views["y"], share, partner)
            mixed = self._restore(f_q_mixed, f_k_mixed, y, views["alpha_mixed"], g1)
            weight = self.config.restore_weight / 4
            terms |= {"restore": weight * told, "restore_mixed": weight * mixed}
        return terms

    def _teach(self, g: Float[Tensor, "b c *space"], views: Views) -> tuple[list[Tensor], Float[Tensor, "b d"]]:
        """The teacher's maps and keys, by shuffled groups."""
        maps = in_groups(self.teacher.maps, g, order(views["shuffle"], len(g), g.device), self.config.groups)
        return maps, self.teacher.feature(maps)

    def _restore(
        self, f_q: list[Tensor], f_k: list[Tensor], t: Float[Tensor, "b 2 c *space"], alpha: float, size: Tensor
    ) -> Float[Tensor, ""]:
        """MSE(D(F_q), T1) + MSE(D(alpha F_q + (1 - alpha) F_k), alpha T1 + (1 - alpha) T2)."""
        decode = self.student.restorer.decode
        both = [alpha * a + (1 - alpha) * b for a, b in zip(f_q, f_k, strict=True)]
        t1, t2 = t.unbind(1)
        alone, together = decode(f_q, size), decode(both, size)
        return losses.mse(alone, t1) + losses.mse(together, alpha * t1 + (1 - alpha) * t2)

    def after_step(self, progress: Progress) -> None:
        """The teacher follows, the keys enter the queue."""
        follow(self.teacher, self.student, self.config.momentum)
        self.contrast.remember(self.together)

    # ---- looking -----------------------------------------------------------------------------------------------------

    def diagnostics(self, views: Views) -> dict[str, Watched]:
        """GAP of the bottleneck and q."""
        maps = self.student.maps(views["g"][:, 0])
        pooled, q = gap(maps[-1]), self.student.feature(maps)
        return {"encoder": Watched(pooled, pooled), "q": Watched(q, q)}

    def pictures(self, views: Views) -> dict[str, Tensor]:
        g, a = views["g"][:, 0], views["a"][:, 0]
        restored = self.student.restorer.decode(self.gate(self.student.maps(g), a), g)
        shown = {"x1'": g, "x2'": views["g"][:, 1], "T(x1)": views["t"][:, 0], "restored": restored}
        return {name: slices(image) for name, image in shown.items()}


LEARNER = PCRLv1
