"""SimSiam (Chen and He, CVPR 2021): two views agree, a predictor on one side and a stop-gradient on the other.

Symbols are the paper's: z = projector(GAP(encoder(view))), p = predictor(z).
"""

from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from pcrl_cli.augment.chains import Ranges
from pcrl_cli.augment.images import ImageRanges
from pcrl_cli.augment.pairs import ARRAYS, slices, two_views
from pcrl_cli.core.config import Settings
from pcrl_cli.core.contract import Architecture
from pcrl_cli.core.learner import Batch, Learner, Progress, Stored, Views, Watched
from pcrl_cli.core.rng import Rng
from pcrl_cli.networks.blocks import gap
from pcrl_cli.networks.encoder import Encoder
from pcrl_cli.networks.momentum import trainable
from pcrl_cli.networks.restorer import architecture_of, backbone
from pcrl_cli.pure import losses
from pcrl_cli.pure.crops import CropPairs

GROUPS = {3: "pairs", 2: "images"}
CROP_PLANS = {3: CropPairs}
LEAST_BATCH = 8
"""Samples a rank: batch norm over two makes their features exact opposites, whatever the encoder does."""


class Config(Settings):
    """Every choice of the method; the presets say more (recipes/presets.yaml)."""

    width: int = Field(32, ge=1, description="base number of filters; 2D: 64")
    poolings: int = Field(5, ge=1, description="3D")
    outputs: int = Field(2048, ge=1, description="channels of z and p")
    bottleneck: int = Field(512, ge=1, description="of the predictor")
    fixed_predictor_lr: bool = Field(True, description="the predictor's learning rate stays off the schedule")
    zero_residual: bool = Field(False, description="2D: the last norm of every block starts at 0; native: on")
    stop_gradient: bool = Field(True, description="off only to see a collapse")
    augment: Ranges = Field(Ranges(), description="3D")
    images: ImageRanges = Field(ImageRanges(), description="2D")

    def arrays(self, dim: int) -> tuple[str, ...]:
        """The cached arrays that this method reads."""
        return ARRAYS[dim]


def projector(c: int, outputs: int) -> nn.Sequential:
    """FC-BN-ReLU, FC-BN-ReLU, FC-BN without scale and shift. The last FC's bias is what that norm removes: it is still."""
    hidden = [
        layer for _ in range(2) for layer in (nn.Linear(c, c, bias=False), nn.BatchNorm1d(c), nn.ReLU(inplace=True))
    ]
    last = nn.Linear(c, outputs)
    last.bias.requires_grad_(False)
    return nn.Sequential(*hidden, last, nn.BatchNorm1d(outputs, affine=False))


class SimSiam(Learner):
    """Views are PCRLv2's global ones: the same crops and augmentations, no local crops."""

    def __init__(self, config: Config, stored: Stored) -> None:
        super().__init__()
        self.config, self.stored = config, stored
        self.backbone = backbone(stored.dim, stored.channels, config.width, config.poolings)
        self.projector = projector(self.backbone.widths[-1], config.outputs)
        self.predictor = nn.Sequential(
            nn.Linear(config.outputs, config.bottleneck, bias=False),
            nn.BatchNorm1d(config.bottleneck),
            nn.ReLU(inplace=True),
            nn.Linear(config.bottleneck, config.outputs),
        )
        for name, p in self.backbone.named_parameters():
            if config.zero_residual and stored.dim == 2 and name.endswith("bn2.weight"):
                nn.init.zeros_(p)

    @property
    def encoder(self) -> Encoder:
        return self.backbone

    @property
    def architecture(self) -> Architecture:
        return architecture_of(self.stored.dim, self.config.width, self.config.poolings)

    def players(self) -> dict[str, Iterable[Any]]:
        predictor = {"params": list(self.predictor.parameters()), "fixed": self.config.fixed_predictor_lr}
        others = [*trainable(self.backbone), *trainable(self.projector)]
        return {"main": [{"params": others}, predictor]}

    def views(self, batch: Batch, rng: Rng) -> Views:
        """g (b, 2, c, ...): two augmented views a sample."""
        streams = rng.sample.fork("view")
        return {"g": two_views(batch, self.stored, streams, self.config.augment, self.config.images)[1]}

    def losses(self, views: Views, progress: Progress, player: str = "main") -> dict[str, Tensor]:
        """L = -1/2 [cos(p1, sg(z2)) + cos(p2, sg(z1))], each view by itself through the batch norms."""
        (z1, p1), (z2, p2) = (self.project(views["g"][:, i]) for i in range(2))
        return {"compare": losses.comparison(z1, p1, z2, p2, self.config.stop_gradient)}

    def project(self, g: Float[Tensor, "b c *space"]) -> tuple[Float[Tensor, "b o"], Float[Tensor, "b o"]]:
        """z and p."""
        z = self.projector(gap(self.backbone(g)[-1]))
        return z, self.predictor(z)

    def diagnostics(self, views: Views) -> dict[str, Watched]:
        """GAP of the bottleneck; z before its last batch norm, which hides a collapse, and after it."""
        pooled = torch.cat([gap(self.backbone(views["g"][:, i])[-1]) for i in range(2)])
        before = self.projector[:-1](pooled)
        return {"encoder": Watched(pooled, pooled), "z": Watched(before, self.projector[-1](before))}

    def pictures(self, views: Views) -> dict[str, Tensor]:
        return {f"x{i + 1}'": slices(views["g"][:, i]) for i in range(2)}


LEARNER = SimSiam
