"""PCRLv2 (Zhou et al., TPAMI 2023): pixel restoration and siamese comparison at every scale of a non-skip U-Net.

Symbols are the paper's. x1, x2: global views after the global (spatial) augmentation, the targets. g1, g2: the same
after the local (pixel) augmentation, what the network sees (the paper's x1', x2'). l1..l6: local views. F_0: the
bottleneck, F_1..F_N: decoder maps, coarse to fine. f_i^R: restoration head, f_P: predictor of scale i. v_i = BN(GAP(F_i)).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from pcrl_cli.augment.chains import Ranges, global_views, local_views
from pcrl_cli.augment.images import ImageRanges, draw_multi, draw_sub, views_of
from pcrl_cli.augment.intensity import constant
from pcrl_cli.augment.pairs import to_unit
from pcrl_cli.core.config import Settings
from pcrl_cli.core.contract import Architecture
from pcrl_cli.core.errors import ConfigError
from pcrl_cli.core.learner import Batch, Learner, Progress, Stored, Views, Watched
from pcrl_cli.core.rng import Rng, Stream
from pcrl_cli.networks.blocks import gap
from pcrl_cli.networks.encoder import Encoder
from pcrl_cli.networks.encoders import build_encoder
from pcrl_cli.networks.heads import Comparison, Restoration, RestoreHead, full_resolution_head
from pcrl_cli.networks.initial import Init, initialise
from pcrl_cli.networks.nsunet import NsUNet, Up
from pcrl_cli.pure import losses
from pcrl_cli.pure.crops import CropPairs

Crop = Literal["sub", "multi", "none"]
GROUPS = {2: "images", 3: "pairs"}
CROP_PLANS = {3: CropPairs}
"""In 2D whole images are cached, and every step cuts its own crops."""
CROSSED_WIDTH = 256
ENCODERS = {2: "resnet18", 3: "unet3d"}


class Config(Settings):
    """Every choice of the method; the defaults are recipe `paper` in 3D."""

    crop: Crop = Field("sub", description="where local views come from: the globals' hull, the whole scan, nowhere")
    width: int = Field(32, ge=1, description="base number of filters; 2D: 64")
    poolings: int = Field(5, ge=1, description="released code, 3D: 3")
    init: Init = Field("torch", description="how decoder and heads start: 2D he, released code released")
    up: Up = Field("nearest", description="released code: deconv")
    decoder_widths: tuple[int, ...] | None = Field(None, description="of F_1..F_N; none mirrors the encoder")
    decoder_bias: bool = Field(False, description="released code: on; redundant before a batch norm")
    decoder_skip: bool = Field(False, description="Table 1's ablation: an ordinary U-Net")
    restore_head: RestoreHead = "paper"
    restore_activation: Literal["sigmoid", "linear"] = Field("sigmoid", description="docs/stability.md; 2D: linear")
    restore_scales: tuple[int, ...] | None = Field(None, description="scales drawn from; none: 1..N; empty: no L^R")
    compare_scales: tuple[int, ...] | None = Field(None, description="the same for L^C")
    comparison: Literal["pairwise", "crossed"] = Field("pairwise", description="Table 2's ablation: crossed")
    restored_views: Literal["both", "first"] = Field("both", description="Eq. 4: both; released code: first")
    full_resolution: bool = Field(False, description="released code: one more MSE from F_N at every step")
    scale_weight: Literal["constant", "cosine"] = Field("constant", description="of the scale's MSE; released: cosine")
    local_scales: Literal["shared", "fresh"] = Field("shared", description="released: drawn again for every local term")
    local_terms: Literal["sum", "mean"] = Field("sum", description="Eq. 10: sum; released code: mean")
    decode: Literal["drawn", "all"] = Field(
        "drawn", description="all: the same result, slower; for benchmarks and tests"
    )
    subpixel: int | None = Field(
        None,
        ge=0,
        description="so many finest stages up-sample and convolve in one, equally; none: where it pays, on a CPU",
    )
    stop_gradient: bool = Field(True, description="off only to see a collapse")
    augment: Ranges = Field(Ranges(), description="3D")
    images: ImageRanges = Field(ImageRanges(), description="2D: views of radiographs")
    augmentation: Literal["batched", "torchio"] = Field(
        "batched", description="torchio: the reference, on the CPU, slow"
    )

    @model_validator(mode="after")
    def _scales_exist(self) -> "Config":
        for name in ("restore_scales", "compare_scales"):
            scales = getattr(self, name)
            if scales is not None and not all(0 <= i <= self.poolings for i in scales):
                raise ValueError(f"{name} {list(scales)} must lie in 0..{self.poolings}, the scales of this depth")
        if self.restore_scales == () and self.compare_scales == ():
            raise ValueError("restore_scales and compare_scales are both empty: nothing would be learned")
        if self.decoder_widths is not None and len(self.decoder_widths) != self.poolings:
            raise ValueError(f"decoder_widths needs {self.poolings} numbers, one a scale")
        return self

    @property
    def restore_at(self) -> tuple[int, ...]:
        return tuple(range(1, self.poolings + 1)) if self.restore_scales is None else self.restore_scales

    @property
    def compare_at(self) -> tuple[int, ...]:
        return tuple(range(1, self.poolings + 1)) if self.compare_scales is None else self.compare_scales

    def arrays(self, dim: int) -> tuple[str, ...]:
        """The cached arrays that this method reads."""
        if dim == 2:
            return ("image",)
        return ("globals",) if self.crop == "none" else ("globals", f"locals_{self.crop}")


@dataclass(frozen=True)
class Scales:
    """The scales that an iteration uses, host values. local[m][k]: of L^C(l_k, g_m)."""

    restore: int | None
    compare: int | None
    local: tuple[tuple[int, ...], ...]

    @property
    def finest(self) -> int:
        """Of the globals; nothing finer need be decoded."""
        return max(s for s in (self.restore, self.compare, self.finest_local, 0) if s is not None)

    @property
    def finest_local(self) -> int:
        return max([0, *(s for row in self.local for s in row)])  # no `default=`, which cannot be traced


def draw_scales(config: Config, stream: Stream, locals_: int) -> Scales:
    """One scale for all terms of the iteration (Eqs. 4, 9), uniformly; equal lists give equal scales."""
    u = stream.uniform().item()

    def pick(scales: tuple[int, ...], u: float) -> int | None:
        return scales[int(u * len(scales))] if scales else None

    compare = pick(config.compare_at, u)
    if compare is None or locals_ == 0:
        local: tuple[tuple[int, ...], ...] = ()
    elif config.local_scales == "shared":
        local = ((compare,) * locals_,) * 2
    else:  # released code: drawn afresh for each of the 12 terms
        fresh = stream.integers(len(config.compare_at), 2, locals_)[0].tolist()
        local = tuple(tuple(config.compare_at[j] for j in row) for row in fresh)
    return Scales(pick(config.restore_at, u), compare, local)


class PCRLv2(Learner):
    """nsUNet with a restoration and a comparison head at every scale that the losses may draw.

    Batch, integers as stored. 3D: `globals` (b, 2, c, x, y, z) and `locals_sub` or `locals_multi` (b, k, c, x, y, z).
    2D: `image` (b, 1, h, w), of which the crops are views too.

    Args:
        config: the method's choices.
        stored: what the cache holds.

    Raises:
        ConfigError: a setting that 2D does not have.
    """

    compilable = True

    def __init__(self, config: Config, stored: Stored) -> None:
        super().__init__()
        self.config, self.stored = config, stored
        dim = stored.dim
        if dim == 2:
            _fits_2d(config)
        encoder = build_encoder(self.architecture, stored.channels)
        channels = encoder.channels
        self.net = NsUNet(
            encoder, config.decoder_widths, config.up, config.decoder_skip, config.decoder_bias, config.subpixel
        )
        sigmoid = config.restore_activation == "sigmoid"
        self.restore = nn.ModuleDict(
            {
                str(i): Restoration(dim, self.net.widths[i], channels, config.restore_head, sigmoid)
                for i in config.restore_at
            }
        )
        crossed = CROSSED_WIDTH if config.comparison == "crossed" else None
        self.compare = nn.ModuleDict({str(i): Comparison(self.net.widths[i], crossed) for i in config.compare_at})
        self.full = full_resolution_head(dim, self.net.widths[-1], channels) if config.full_resolution else None
        for part in (self.net.stages, self.restore, self.compare, self.full):
            if part is not None:
                initialise(part, config.init)

    @property
    def encoder(self) -> Encoder:
        return self.net.encoder

    @property
    def architecture(self) -> Architecture:
        return Architecture(
            dim=self.stored.dim,
            encoder=ENCODERS[self.stored.dim],
            width=self.config.width,
            poolings=self.config.poolings,
        )

    # ---- views (section 3.4, Fig. 5) -----------------------------------------------------------------------------

    def views(self, batch: Batch, rng: Rng) -> Views:
        """x (b, 2, c, ...) targets; g the same corrupted and normalised; l (b, k, c, ...); the scales.

        Targets are in [0, 1] and inputs z-normalised in 3D; both are ImageNet-normalised in 2D.
        """
        views = self._image_views(batch, rng) if self.stored.dim == 2 else self._crop_views(batch, rng)
        views["scales"] = draw_scales(self.config, rng.step.fork("scales"), views["l"].shape[1] if "l" in views else 0)
        return views

    def _crop_views(self, batch: Batch, rng: Rng) -> Views:
        """Of cached crops of scans."""
        globals_ = to_unit(batch["globals"], self.stored)
        b, n = globals_.shape[:2]
        x, g = self._augment(globals_.flatten(0, 1), rng.sample.fork("global").each(n), local=False)
        views: Views = {"x": x.unflatten(0, (b, n)), "g": g.unflatten(0, (b, n))}
        if self.config.crop != "none":
            locals_ = to_unit(batch[f"locals_{self.config.crop}"], self.stored)
            k = locals_.shape[1]
            _, l = self._augment(locals_.flatten(0, 1), rng.sample.fork("local").each(k), local=True)  # noqa: E741
            views["l"] = l.unflatten(0, (b, k))
        return views

    def _image_views(self, batch: Batch, rng: Rng) -> Views:
        """Of whole images: the boxes are drawn here, anywhere in the image or (`sub`) in the hull of two that overlap."""
        stored, ranges, sample = to_unit(batch["image"], self.stored), self.config.images, rng.sample.fork("image")
        draw_boxes = draw_sub if self.config.crop == "sub" else draw_multi
        global_boxes, local_boxes = draw_boxes(sample, (stored.shape[2], stored.shape[3]), ranges)
        x, g = views_of(stored, sample, global_boxes, ranges, "global")
        views: Views = {"x": x, "g": g}
        if self.config.crop != "none":
            views["l"] = views_of(stored, sample, local_boxes, ranges, "local")[1]
        return views

    def _augment(self, x01: Tensor, streams: Stream, local: bool) -> tuple[Tensor, Tensor]:
        """(target, input) of views in [0, 1]; the target of local views is not used."""
        if self.config.augmentation == "torchio":
            from pcrl_cli.augment.reference import views_by_torchio  # 3 s to import; only comparisons need it

            return views_by_torchio(x01, streams, self.config.augment, local=local)
        if local:
            l = local_views(x01, streams, self.config.augment)  # noqa: E741
            return l, l
        return global_views(x01, streams, self.config.augment)

    # ---- losses --------------------------------------------------------------------------------------------------

    def losses(self, views: Views, progress: Progress, player: str = "main") -> dict[str, Tensor]:
        """L = L^R(g1, g2) + L^C(g1, g2) + sum over m in {1, 2}, k of L^C(l_k, g_m)                      (Eq. 10)

        Terms: `restore`, `compare`, `local`, and `full` (recipe released).
        """
        x, g, scales = views["x"], views["g"], views["scales"]
        until = self.net.scales if self.config.full_resolution else self._until(scales.finest)
        # g1, g2 and all locals pass by themselves: each has its own batch-norm statistics
        f1, f2 = self.net(g[:, 0], until), self.net(g[:, 1], until)
        terms = {}
        if scales.restore is not None:
            terms["restore"] = self._restore(f1, f2, x, scales.restore, progress)
        if self.full is not None:
            terms["full"] = losses.mse(self.full(f1[-1]), x[:, 0])
        if scales.compare is not None:
            heads = self._heads(f1), self._heads(f2)
            terms["compare"] = self._compare(*heads, scales.compare)
            if scales.local:
                terms["local"] = self._local(views["l"], heads, scales)
        return terms

    def _until(self, finest: int) -> int:
        """What must be decoded: nothing finer than the finest scale that a loss uses."""
        everything = self.config.decode == "all" or self.config.comparison == "crossed"
        return self.net.scales if everything else finest

    def _restore(self, f1: list[Tensor], f2: list[Tensor], x: Tensor, i: int, progress: Progress) -> Tensor:
        """L^R(g1, g2) = MSE(f_i^R(F_i(g1)), x1) + MSE(f_i^R(F_i(g2)), x2)                               (Eq. 4)

        Paper: both views, weight 1. Released code (`restored_views: first`, `scale_weight: cosine`): the first view,
        weight 1/2 (1 + cos(pi t)), t the share of the run that is done (there: epoch / 240, the 240 fixed).
        """
        head, size = self.restore[str(i)], tuple(x.shape[3:])
        loss = losses.mse(head(f1[i], size), x[:, 0])
        if self.config.restored_views == "both":
            loss = loss + losses.mse(head(f2[i], size), x[:, 1])
        if self.config.scale_weight == "cosine":
            loss = loss * (0.5 * (1 + math.cos(math.pi * progress.fraction)))
        return loss

    def _heads(self, pyramid: list[Tensor]) -> "Heads":
        return Heads(self.compare, pyramid)

    def _compare(self, a: "Pairs", b: "Pairs", i: int) -> Tensor:
        """L^C(a, b) at scale i (Eq. 9), or its mean over all pairs of scales (`comparison: crossed`, Table 2)."""
        pairs = [(i, i)] if self.config.comparison == "pairwise" else list(product(self.config.compare_at, repeat=2))
        terms = [losses.comparison(*a(s), *b(t), self.config.stop_gradient) for s, t in pairs]
        return torch.stack(terms).mean()

    def _local(self, l: Float[Tensor, "b k c *space"], heads: tuple["Heads", "Heads"], scales: Scales) -> Tensor:  # noqa: E741
        """sum over m, k of L^C(l_k, g_m); released code (`local_terms: mean`): their mean."""
        b, k = l.shape[:2]
        of_all = Heads(self.compare, self.net(l.flatten(0, 1), self._until(scales.finest_local)))
        terms = torch.stack(
            [self._compare(of_all.of_view(j, b, k), heads[m], scales.local[m][j]) for m in range(2) for j in range(k)]
        )
        return terms.sum() if self.config.local_terms == "sum" else terms.mean()

    # ---- looking -------------------------------------------------------------------------------------------------

    def diagnostics(self, views: Views) -> dict[str, Watched]:
        """GAP(F_0) of both globals, and of every compared scale GAP(F_i) before and v_i after its batch norm."""
        passes = [self.net(views["g"][:, m], max(self.config.compare_at, default=0)) for m in range(2)]

        def both(f: Tensor, h: Tensor) -> Tensor:
            return torch.cat([f, h])

        pooled = both(gap(passes[0][0]), gap(passes[1][0]))
        watched = {"encoder": Watched(pooled, pooled)}
        for i in self.config.compare_at:
            before = both(gap(passes[0][i]), gap(passes[1][i]))
            after = both(*(self.compare[str(i)](p[i])[0] for p in passes))
            watched[f"v{i}"] = Watched(before, after)
        return watched

    def figures(self, views: Views) -> dict[str, Tensor]:
        """How many views had one value everywhere: in 3D they became zeros, where TorchIO would raise."""
        seen = [views[name].flatten(0, 1) for name in ("g", "l") if name in views]
        seen = [v[:, :1] for v in seen] if self.stored.dim == 2 else seen  # the normalisation sets the channels apart
        return {"constant_views": torch.stack([constant(v).sum() for v in seen]).sum()}

    def pictures(self, views: Views) -> dict[str, Tensor]:
        """Images or mid slices as the network saw them: a row a sample. x1, g1, x2, g2, restorations of g1, locals."""
        x, g = views["x"], views["g"]
        pyramid = self.net(g[:, 0])
        size = tuple(x.shape[3:])
        columns = {"x1": x[:, 0], "x1'": g[:, 0], "x2": x[:, 1], "x2'": g[:, 1]}
        columns |= {f"restored from F{i}": self.restore[str(i)](pyramid[i], size) for i in self.config.restore_at}
        shown = {name: self._slice(image).unsqueeze(1) for name, image in columns.items()}
        if "l" in views:
            shown["local views"] = self._slice(views["l"].flatten(0, 1)).unflatten(0, views["l"].shape[:2])
        return shown

    def _slice(self, image: Float[Tensor, "n c *space"]) -> Float[Tensor, "n x y"]:
        """The first channel, in 3D its middle slice; x goes to the right."""
        if self.stored.dim == 2:
            return image[:, 0].transpose(1, 2)
        return image[:, 0, :, :, image.shape[-1] // 2]


def _fits_2d(config: Config) -> None:
    if config.poolings != 5:
        raise ConfigError(f"learner.poolings is {config.poolings}, but ResNet-18 has 5; leave it out in 2D")
    if config.augmentation != "batched":
        raise ConfigError("learner.augmentation=torchio is for 3D; leave it out in 2D")


Pairs = Callable[[int], tuple[Tensor, Tensor]]
"""Scale -> (v_i, f_P(v_i)) of one set of views."""


class Heads:
    """(v_i, f_P(v_i)) of one forward pass, computed once a scale on first use."""

    def __init__(self, heads: nn.ModuleDict, pyramid: list[Tensor]) -> None:
        self.heads, self.pyramid = heads, pyramid
        self.known: dict[int, tuple[Tensor, Tensor]] = {}

    def __call__(self, i: int) -> tuple[Tensor, Tensor]:
        if i not in self.known:
            self.known[i] = self.heads[str(i)](self.pyramid[i])
        return self.known[i]

    def of_view(self, j: int, b: int, k: int) -> "OneView":
        return OneView(self, j, b, k)


@dataclass(frozen=True)
class OneView:
    """The j-th of k views that passed together, (b * k) rows sample-major."""

    heads: Heads
    j: int
    b: int
    k: int

    def __call__(self, i: int) -> tuple[Tensor, Tensor]:
        v, p = self.heads(i)
        return v.unflatten(0, (self.b, self.k))[:, self.j], p.unflatten(0, (self.b, self.k))[:, self.j]


LEARNER = PCRLv2
