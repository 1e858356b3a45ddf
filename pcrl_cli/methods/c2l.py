"""C2L, "comparing to learn" (Zhou et al., MICCAI 2020): momentum contrast with mixed images and mixed features.

q: student's, k: teacher's feature of a view. A tilde: of mixed inputs; a hat: of mixed features.
"""

from collections.abc import Iterable
from typing import Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from pcrl_cli.augment.chains import Ranges
from pcrl_cli.augment.images import ImageRanges
from pcrl_cli.augment.mix import draw_name, draw_share, mix, order
from pcrl_cli.augment.pairs import ARRAYS, slices, two_views
from pcrl_cli.core.config import Settings
from pcrl_cli.core.contract import Architecture
from pcrl_cli.core.learner import Batch, Learner, Progress, Stored, Views, Watched
from pcrl_cli.core.rng import Rng
from pcrl_cli.networks.blocks import gap
from pcrl_cli.networks.encoder import Encoder
from pcrl_cli.networks.momentum import Contrast, follow, in_groups, momentum_copy, trainable
from pcrl_cli.networks.restorer import architecture_of, backbone
from pcrl_cli.pure.crops import CropPairs

GROUPS = {3: "pairs", 2: "images"}
CROP_PLANS = {3: CropPairs}
LEAST_BATCH = 8
"""Samples a rank: the batch norms of the keys' groups need them."""


class Config(Settings):
    """Every choice of the method; the presets say more (recipes/presets.yaml)."""

    width: int = Field(32, ge=1, description="base number of filters; 2D: 64")
    poolings: int = Field(5, ge=1, description="3D")
    features: int = Field(128, ge=1)
    queue: int = Field(16384, ge=1, description="negatives: the last so many keys")
    temperature: float = Field(0.07, gt=0)
    momentum: float = Field(0.999, ge=0, le=1)
    criterion: Literal["infonce", "nce"] = Field("infonce", description="nce: what the released code does")
    samples: int = Field(100_000, ge=1, description="of nce: N, the samples of the data set")
    groups: int = Field(2, ge=1, description="of the shuffled keys, each with its own batch statistics")
    augment: Ranges = Field(Ranges(), description="3D")
    images: ImageRanges = Field(ImageRanges(), description="2D")

    def arrays(self, dim: int) -> tuple[str, ...]:
        """The cached arrays that this method reads."""
        return ARRAYS[dim]


class Features(nn.Module):
    """Encoder, GAP, one linear layer."""

    def __init__(self, encoder: Encoder, features: int) -> None:
        super().__init__()
        self.encoder, self.head = encoder, nn.Linear(encoder.widths[-1], features)

    def forward(self, x: Float[Tensor, "b c *space"]) -> Float[Tensor, "b d"]:
        return self.head(gap(self.encoder(x)[-1])).float()


class C2L(Learner):
    """Views are PCRLv2's global ones. Of the keys only k enters the queue, after all three losses."""

    def __init__(self, config: Config, stored: Stored) -> None:
        super().__init__()
        self.config, self.stored = config, stored
        encoder = backbone(stored.dim, stored.channels, config.width, config.poolings)
        self.student = Features(encoder, config.features)
        self.teacher = momentum_copy(self.student)
        self.contrast = Contrast(
            config.queue, config.features, config.temperature, config.samples if config.criterion == "nce" else None
        )

    @property
    def encoder(self) -> Encoder:
        return self.student.encoder

    @property
    def architecture(self) -> Architecture:
        return architecture_of(self.stored.dim, self.config.width, self.config.poolings)

    def players(self) -> dict[str, Iterable[Any]]:
        return {"main": trainable(self.student)}

    def views(self, batch: Batch, rng: Rng) -> Views:
        """g (b, 2, c, ...); the share of mixing; names of the orders of partners and of the teacher's batch."""
        streams = rng.sample.fork("view")
        step = rng.step.fork("mix")
        return {
            "g": two_views(batch, self.stored, streams, self.config.augment, self.config.images)[1],
            "share": draw_share(step.fork("share")),
            "partners": draw_name(step.fork("partners")),
            "shuffle": draw_name(step.fork("shuffle")),
        }

    def losses(self, views: Views, progress: Progress, player: str = "main") -> dict[str, Tensor]:
        """L = 1/3 [l(q, k) + l(q~, k~) + l(q~, k^)], the negatives from the queue."""
        g1, g2 = views["g"].unbind(1)
        share, partner = views["share"], order(views["partners"], len(g1), g1.device)
        q, q_mixed = self.student(g1), self.student(mix(g1, share, partner))
        with torch.no_grad():
            k, k_mixed = self.keys(g2, views), self.keys(mix(g2, share, partner), views)
        k_hat = mix(k, share, partner)
        terms = {"contrast": (q, k), "mixed_inputs": (q_mixed, k_mixed), "mixed_features": (q_mixed, k_hat)}
        logits = {name: self.contrast.logits(*pair) for name, pair in terms.items()}
        found = {name: self.contrast(s) / 3 for name, s in logits.items()}
        self.contrast.note(k, logits["contrast"])
        return found

    def keys(self, g: Float[Tensor, "b c *space"], views: Views) -> Float[Tensor, "b d"]:
        return in_groups(self.teacher, g, order(views["shuffle"], len(g), g.device), self.config.groups)

    def after_step(self, progress: Progress) -> None:
        """The teacher follows, the keys enter the queue."""
        follow(self.teacher, self.student, self.config.momentum)
        self.contrast.remember(self.together)

    def diagnostics(self, views: Views) -> dict[str, Watched]:
        """GAP of the bottleneck and q."""
        pooled = gap(self.encoder(views["g"][:, 0])[-1])
        q = self.student.head(pooled)
        return {"encoder": Watched(pooled, pooled), "q": Watched(q, q)}

    def pictures(self, views: Views) -> dict[str, Tensor]:
        return {f"x{i + 1}'": slices(views["g"][:, i]) for i in range(2)}


LEARNER = C2L
