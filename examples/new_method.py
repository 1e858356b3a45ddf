"""A template: a self-supervised method is one file with a Config and a Learner. This one only restores (Table 3, row 0).

Put such a file into `pcrl_cli/methods/`, add its name to METHODS in `pcrl_cli/methods/__init__.py`, and `pcrl pretrain --method
NAME` trains it; engine, loader and commands need no change. Its tests are those that run over every Learner by name.
"""

import torch
from pydantic import Field
from torch import Tensor, nn

from pcrl_cli.augment.chains import Ranges, global_views
from pcrl_cli.core.config import Settings
from pcrl_cli.core.contract import Architecture
from pcrl_cli.core.learner import Batch, Learner, Progress, Stored, Views, Watched
from pcrl_cli.core.rng import Rng
from pcrl_cli.networks.blocks import gap
from pcrl_cli.networks.encoder import Encoder
from pcrl_cli.networks.nsunet import NsUNet
from pcrl_cli.networks.unet3d import UNet3dEncoder
from pcrl_cli.pure import losses
from pcrl_cli.pure.crops import CropPairs

GROUPS, CROP_PLANS = {3: "pairs"}, {3: CropPairs}


class Config(Settings):
    width: int = Field(32, ge=1)
    augment: Ranges = Ranges()

    def arrays(self, dim: int) -> tuple[str, ...]:
        return ("globals",)


class Restorer(Learner):
    """Restores the first global view from its corrupted self."""

    def __init__(self, config: Config, stored: Stored) -> None:
        super().__init__()
        self.config, self.stored = config, stored
        self.net = NsUNet(UNet3dEncoder(stored.channels, config.width, poolings=3))
        self.head = nn.Sequential(nn.Conv3d(self.net.widths[-1], stored.channels, 1), nn.Sigmoid())

    @property
    def encoder(self) -> Encoder:
        return self.net.encoder

    @property
    def architecture(self) -> Architecture:
        return Architecture(dim=3, encoder="unet3d", width=self.config.width, poolings=3)

    def views(self, batch: Batch, rng: Rng) -> Views:
        """All randomness: drawn from `rng`, keyed by the samples' positions."""
        scale, offset = self.stored.to_unit
        x, g = global_views(
            batch["globals"][:, 0].float() * scale + offset, rng.sample.fork("view"), self.config.augment
        )
        return {"x": x, "g": g}

    def losses(self, views: Views, progress: Progress, player: str = "main") -> dict[str, Tensor]:
        return {"restore": losses.mse(self.head(self.net(views["g"])[-1]), views["x"])}

    def diagnostics(self, views: Views) -> dict[str, Watched]:
        features = gap(self.encoder(views["g"])[-1])
        return {"encoder": Watched(features, features)}

    def pictures(self, views: Views) -> dict[str, Tensor]:
        middle = views["x"].shape[-1] // 2
        with torch.no_grad():
            restored = self.head(self.net(views["g"])[-1])
        images = {"x": views["x"], "x'": views["g"], "restored": restored}
        return {name: image[:, :1, :, :, middle] for name, image in images.items()}


LEARNER = Restorer
