"""Rubik's cube++ (Tao et al., MICCAI 2020): a volume whose layers were turned is restored; a critic may judge it.

No code of its authors is public: what the abstract leaves open is decided here, and the critic is an option.
x: the crop. g: the same after the moves. G: the U-Net. D: the critic, which sees [candidate | g].
"""

from collections.abc import Iterable
from typing import Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from pcrl_cli.augment.images import ImageRanges
from pcrl_cli.augment.pairs import ARRAYS, normalised, one_crop, slices
from pcrl_cli.augment.rubik import draw_moves, turn
from pcrl_cli.core.config import Settings
from pcrl_cli.core.contract import Architecture
from pcrl_cli.core.learner import Batch, Learner, Progress, Stored, Views, Watched
from pcrl_cli.core.rng import Rng
from pcrl_cli.networks.blocks import Conv3d, gap
from pcrl_cli.networks.encoder import Encoder
from pcrl_cli.networks.restorer import Restorer, architecture_of, backbone
from pcrl_cli.pure import losses
from pcrl_cli.pure.crops import CropPairs

GROUPS = {3: "pairs"}
CROP_PLANS = {3: CropPairs}


class Config(Settings):
    """Every choice of the method; the presets say more (recipes/presets.yaml)."""

    width: int = Field(32, ge=1, description="base number of filters")
    poolings: int = Field(5, ge=1)
    decoder_skip: bool = Field(False, description="on: an ordinary U-Net")
    side: int = Field(8, ge=1, description="of a sub-cube, voxels; must divide the crops' sides")
    moves: int = Field(10, ge=0)
    adversary: Literal["wgan_gp", "none"] = "wgan_gp"
    restore_weight: float = Field(100.0, gt=0, description="of the MSE, beside an adversary; alone: 1")
    deceive_weight: float = Field(
        1.0, ge=0, description="of the adversary, for the restorer; preset matched: both / 100"
    )
    penalty_weight: float = Field(10.0, ge=0)

    def arrays(self, dim: int) -> tuple[str, ...]:
        """The cached arrays that this method reads."""
        return ARRAYS[dim]


class Critic(nn.Module):
    """Scores of patches: levels as the encoder's, with a norm that knows no other sample, and a 1x1x1 convolution.

    The gradient penalty is one of every sample by itself, which batch norm would mix.
    """

    def __init__(self, channels: int, width: int, levels: int = 4) -> None:
        super().__init__()
        c_in, layers = channels, []
        for d in range(levels):
            for c_out in (width * 2**d, 2 * width * 2**d):
                layers += [
                    Conv3d(c_in, c_out, 3, padding=1),
                    nn.GroupNorm(1, c_out),
                    nn.LeakyReLU(0.2),
                ]
                c_in = c_out
            if d + 1 < levels:
                layers.append(nn.AvgPool3d(2, ceil_mode=True))
        self.layers = nn.Sequential(*layers, Conv3d(c_in, 1, 1))

    def forward(self, candidate: Float[Tensor, "b c x y z"], g: Float[Tensor, "b c x y z"]) -> Float[Tensor, " b"]:
        return self.layers(torch.cat([candidate, g], dim=1)).float().flatten(1).mean(dim=1)


class Rubik(Learner):
    """Two players where there is an adversary: `main` restores and deceives, `critic` tells crops from restorations."""

    def __init__(self, config: Config, stored: Stored) -> None:
        super().__init__()
        self.config, self.stored = config, stored
        encoder = backbone(stored.dim, stored.channels, config.width, config.poolings)
        self.restorer = Restorer(encoder, stored.channels, config.decoder_skip)
        self.critic = Critic(2 * stored.channels, config.width) if config.adversary == "wgan_gp" else None

    @property
    def encoder(self) -> Encoder:
        return self.restorer.net.encoder

    @property
    def architecture(self) -> Architecture:
        return architecture_of(self.stored.dim, self.config.width, self.config.poolings)

    def players(self) -> dict[str, Iterable[Any]]:
        players: dict[str, Iterable[Any]] = {"main": self.restorer.parameters()}
        return players | ({"critic": self.critic.parameters()} if self.critic is not None else {})

    def views(self, batch: Batch, rng: Rng) -> Views:
        """x (b, c, ...) in [0, 1]; g turned and normalised; u (b,): between x and G(g), where the penalty is taken."""
        streams = rng.sample.fork("view")
        x = one_crop(batch, self.stored, streams.fork("crop"), ImageRanges())
        shape = tuple(x.shape[2:])
        moves = draw_moves(streams.fork("moves"), shape, self.config.side, self.config.moves)
        views: Views = {"x": x, "g": normalised(turn(x, moves))}
        return views | ({"u": streams.fork("between").uniform()} if self.critic is not None else {})

    def losses(self, views: Views, progress: Progress, player: str = "main") -> dict[str, Tensor]:
        """main: w MSE(G(g), x) - v mean D(G(g)); critic: mean D(G(g)) - mean D(x) + 10 mean (|grad D(between)| - 1)^2."""
        if player == "critic":
            return self._critic(views)
        restored = self.restorer(views["g"])
        restore = losses.mse(restored, views["x"])
        if self.critic is None:
            return {"restore": restore}
        still = {name: p.detach() for name, p in self.critic.named_parameters()}
        score = torch.func.functional_call(self.critic, still, (restored, views["g"]))
        return {"restore": self.config.restore_weight * restore, "deceive": -self.config.deceive_weight * score.mean()}

    def _critic(self, views: Views) -> dict[str, Tensor]:
        assert self.critic is not None
        x, g = views["x"], views["g"]
        with torch.no_grad():
            restored = self.restorer(g)
        tell = self.critic(restored, g).mean() - self.critic(x, g).mean()
        u = views["u"].view(-1, 1, 1, 1, 1)
        penalty = gradient_penalty(self.critic, u * x + (1 - u) * restored, g)
        return {"tell": tell, "penalty": self.config.penalty_weight * penalty}

    def diagnostics(self, views: Views) -> dict[str, Watched]:
        features = gap(self.encoder(views["g"])[-1])
        return {"encoder": Watched(features, features)}

    def pictures(self, views: Views) -> dict[str, Tensor]:
        images = {"x": views["x"], "x'": views["g"], "restored": self.restorer(views["g"])}
        return {name: slices(image) for name, image in images.items()}


def gradient_penalty(critic: nn.Module, between: Tensor, g: Tensor) -> Float[Tensor, ""]:
    """mean over samples of (|grad of D(between, g) with respect to between| - 1)^2, in float32."""
    with torch.enable_grad(), torch.autocast(between.device.type, enabled=False):
        between = between.detach().float().requires_grad_()
        score = critic(between, g.float()).sum()
        (gradient,) = torch.autograd.grad(score, between, create_graph=True)
        norm = (gradient.flatten(1).square().sum(dim=1) + 1e-12).sqrt()
    return (norm - 1).square().mean()


LEARNER = Rubik
