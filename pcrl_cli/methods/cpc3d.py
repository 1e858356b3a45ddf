"""3D contrastive predictive coding (Taleb et al., NeurIPS 2020): patches of a crop foretell patches further on.

z: code of a patch. c: what a column's context (an inverted pyramid of patches) says. W_k: predictor of step k.
"""

from typing import Literal

import torch
from jaxtyping import Float, Int64
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from pcrl_cli.augment.images import ImageRanges
from pcrl_cli.augment.intensity import z_normalise
from pcrl_cli.augment.pairs import ARRAYS, one_crop, slices
from pcrl_cli.core.config import Settings
from pcrl_cli.core.contract import Architecture
from pcrl_cli.core.learner import Batch, Learner, Progress, Stored, Views, Watched
from pcrl_cli.core.rng import Rng, Stream
from pcrl_cli.networks.blocks import gap
from pcrl_cli.networks.encoder import Encoder
from pcrl_cli.networks.restorer import architecture_of, backbone
from pcrl_cli.pure.crops import CropPairs
from pcrl_cli.pure.patches import context_indices, patchify, target_indices

GROUPS = {3: "pairs"}
CROP_PLANS = {3: CropPairs}


class Config(Settings):
    """Every choice of the method; the presets say more (recipes/presets.yaml)."""

    width: int = Field(32, ge=1, description="base number of filters")
    poolings: int = Field(5, ge=1)
    grid: tuple[int, int, int] = Field((4, 4, 4), description="patches an axis; the first is what is foretold along")
    overlap: bool = Field(False, description="patches twice as large, overlapping by half")
    keep: float = Field(7 / 8, gt=0, le=1, description="share of a patch's side that is left; the rest is blanked")
    flip: float = Field(0.5, ge=0, le=1, description="of a patch's first axis")
    codes: int = Field(1024, ge=1)
    context: int = Field(256, ge=1)
    criterion: Literal["infonce", "bce"] = Field("infonce", description="bce: what the released code does")
    scores: Literal["cosine", "dot"] = Field("cosine", description="of infonce: cosine / temperature, or dot / sqrt(d)")
    temperature: float = Field(0.1, gt=0)

    @model_validator(mode="after")
    def _can_foretell(self) -> "Config":
        if self.grid[0] < 2:
            raise ValueError(f"grid {list(self.grid)} has nothing to foretell along its first axis; give it 2 or more")
        return self

    def arrays(self, dim: int) -> tuple[str, ...]:
        """The cached arrays that this method reads."""
        return ARRAYS[dim]


class CPC(Learner):
    """Every patch is encoded once; anchors are the columns of the grid."""

    told: Int64[Tensor, "anchors terms"]
    foretold: Int64[Tensor, "anchors steps"]

    def __init__(self, config: Config, stored: Stored) -> None:
        super().__init__()
        self.config, self.stored = config, stored
        self.backbone = backbone(stored.dim, stored.channels, config.width, config.poolings)
        self.code = nn.Linear(self.backbone.widths[-1], config.codes)
        self.recall = nn.GRU(config.codes, config.context, batch_first=True)
        self.register_buffer("told", torch.from_numpy(context_indices(config.grid)), persistent=False)
        self.register_buffer("foretold", torch.from_numpy(target_indices(config.grid)), persistent=False)
        steps = self.foretold.shape[1]
        self.foretell = nn.ModuleList(nn.Linear(config.context, config.codes) for _ in range(steps))

    @property
    def encoder(self) -> Encoder:
        return self.backbone

    @property
    def architecture(self) -> Architecture:
        return architecture_of(self.stored.dim, self.config.width, self.config.poolings)

    # ---- views -------------------------------------------------------------------------------------------------------

    def views(self, batch: Batch, rng: Rng) -> Views:
        """p (b, n, c, ...): patches, each with blanked edges and maybe flipped; with `bce`, who the negatives are."""
        streams = rng.sample.fork("view")
        x = one_crop(batch, self.stored, streams.fork("crop"), ImageRanges())
        patches = patchify(z_normalise(x), self.config.grid, self.config.overlap)
        b, n = patches.shape[:2]
        p = self._jitter(patches.flatten(0, 1), streams.fork("patches").each(n)).unflatten(0, (b, n))
        if self.config.criterion == "infonce":
            return {"p": p}
        return {"p": p, "negative": streams.fork("negative").uniform(len(self.told))}

    def _jitter(self, p: Float[Tensor, "m c x y z"], streams: Stream) -> Float[Tensor, "m c x y z"]:
        """Blanks (the crop's mean) what lies outside a random box of `keep` of the sides, so that faces do not tell."""
        flipped = streams.uniform() < self.config.flip
        p = torch.where(flipped[:, None, None, None, None], p.flip(2), p)
        for i, n in enumerate(p.shape[2:]):
            kept = max(1, int(n * self.config.keep))
            start = streams.integers(n - kept + 1)[:, None]
            place = torch.arange(n, device=p.device)
            inside = (place >= start) & (place < start + kept)
            p = p * inside.view(len(p), *(n if j == i + 1 else 1 for j in range(4)))
        return p

    # ---- losses ------------------------------------------------------------------------------------------------------

    def losses(self, views: Views, progress: Progress, player: str = "main") -> dict[str, Tensor]:
        """Mean over the steps k of InfoNCE(W_k c, z of the patch k rows on), candidates: all anchors' of the batch.

        `bce` (released code): BCE of the mean over steps and channels of W_k c * z, one positive and one negative.
        """
        c, z = self.context(views["p"])
        if self.config.criterion == "bce":
            return {"foretell": self._bce(c, z, views["negative"])}
        steps = [self._nce(foretell(c), z[:, k]) for k, foretell in enumerate(self.foretell)]
        return {"foretell": torch.stack(steps).mean()}

    def context(self, p: Float[Tensor, "b n c *patch"]) -> tuple[Float[Tensor, "m d"], Float[Tensor, "m steps codes"]]:
        """c of every anchor (m = b * anchors, sample-major) and the codes that it is to foretell."""
        b, n = p.shape[:2]
        codes = self.code(gap(self.backbone(p.flatten(0, 1))[-1])).float().unflatten(0, (b, n))
        with torch.autocast(p.device.type, enabled=False):
            _, last = self.recall(codes[:, self.told].flatten(0, 1))
        return last[0], codes[:, self.foretold].flatten(0, 1)

    def _nce(self, guess: Float[Tensor, "m codes"], z: Float[Tensor, "m codes"]) -> Float[Tensor, ""]:
        scores = self.score(guess, z)
        return F.cross_entropy(scores, torch.arange(len(scores), device=scores.device))

    def score(self, guess: Float[Tensor, "m codes"], z: Float[Tensor, "m codes"]) -> Float[Tensor, "m m"]:
        """Of every anchor's guess (rows) against every anchor's code."""
        guess, z = guess.float(), z.float()
        with torch.autocast(guess.device.type, enabled=False):
            if self.config.scores == "dot":
                return guess @ z.t() / z.shape[1] ** 0.5
            return F.normalize(guess, dim=1) @ F.normalize(z, dim=1).t() / self.config.temperature

    def _bce(
        self, c: Float[Tensor, "m d"], z: Float[Tensor, "m steps codes"], u: Float[Tensor, "b anchors"]
    ) -> Float[Tensor, ""]:
        guess = torch.stack([foretell(c).float() for foretell in self.foretell], dim=1)
        pairs = z, z[others(u)]
        positive, negative = ((guess * codes).mean(dim=(1, 2)) for codes in pairs)
        scores = torch.cat([positive, negative])
        label = torch.cat([torch.ones_like(positive), torch.zeros_like(negative)])
        return F.binary_cross_entropy_with_logits(scores, label)

    # ---- looking -----------------------------------------------------------------------------------------------------

    def diagnostics(self, views: Views) -> dict[str, Watched]:
        """GAP of the bottleneck, a patch each."""
        features = gap(self.backbone(views["p"].flatten(0, 1))[-1])
        return {"encoder": Watched(features, features)}

    def figures(self, views: Views) -> dict[str, Tensor]:
        """How often an anchor's own patch is the likeliest of all the batch's."""
        c, z = self.context(views["p"])
        hits = [
            (self.score(foretell(c), z[:, k]).argmax(dim=1) == torch.arange(len(c), device=c.device)).float().mean()
            for k, foretell in enumerate(self.foretell)
        ]
        return {"foretold": torch.stack(hits).mean()}

    def pictures(self, views: Views) -> dict[str, Tensor]:
        """Mid slices of the first column's patches."""
        p = views["p"][:, :: len(self.told)]
        return {"patches": slices(p.flatten(0, 1)).view(*p.shape[:2], *p.shape[3:5])}


def others(u: Float[Tensor, "b anchors"]) -> Int64[Tensor, " m"]:
    """For every anchor another one of the batch (b * anchors of them), uniform: never itself, maybe of its volume."""
    m = u.numel()
    own = torch.arange(m, device=u.device)
    step = 1 + (u.flatten() * (m - 1)).long().clamp_(max=m - 2)
    return (own + step) % m


LEARNER = CPC
