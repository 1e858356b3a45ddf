"""Models Genesis (Zhou et al., MICCAI 2019, MedIA 2021): a corrupted crop is restored, MSE over all voxels.

Flip (input and target) | local pixel shuffling, non-linear intensity, in- or out-painting (input) | U-Net, sigmoid.
"""

from pydantic import Field
from torch import Tensor

from pcrl_cli.augment.genesis import GenesisRates, corrupt, draw_corruption, draw_flips, flip
from pcrl_cli.augment.images import ImageRanges
from pcrl_cli.augment.pairs import ARRAYS, NetworkInput, normalised, one_crop, slices
from pcrl_cli.core.contract import Architecture
from pcrl_cli.core.learner import Batch, Learner, Progress, Stored, Views, Watched
from pcrl_cli.core.rng import Rng
from pcrl_cli.networks.blocks import gap
from pcrl_cli.networks.encoder import Encoder
from pcrl_cli.networks.restorer import RestorerConfig
from pcrl_cli.pure import losses
from pcrl_cli.pure.crops import CropPairs

GROUPS = {3: "pairs", 2: "images"}
CROP_PLANS = {3: CropPairs}


class Config(RestorerConfig):
    """Every choice of the method; the presets say more (recipes/presets.yaml)."""

    network_input: NetworkInput = Field("normalised", description="native: unit, the corrupted crop in [0, 1]")
    rates: GenesisRates = GenesisRates()
    images: ImageRanges = Field(ImageRanges(), description="2D: of the crops' boxes")

    def arrays(self, dim: int) -> tuple[str, ...]:
        """The cached arrays that this method reads."""
        return ARRAYS[dim]


class Genesis(Learner):
    """One crop a sample: one of the stored pair (3D), or a box of the image (2D)."""

    def __init__(self, config: Config, stored: Stored) -> None:
        super().__init__()
        self.config, self.stored = config, stored
        self.restorer = config.restorer(stored)

    @property
    def encoder(self) -> Encoder:
        return self.restorer.net.encoder

    @property
    def architecture(self) -> Architecture:
        return self.config.architecture(self.stored.dim)

    def views(self, batch: Batch, rng: Rng) -> Views:
        """x (b, c, ...) flipped, clean, in [0, 1]: the target. g the same corrupted, as the network sees it."""
        streams = rng.sample.fork("view")
        clean = one_crop(batch, self.stored, streams.fork("crop"), self.config.images)
        shape = tuple(clean.shape[2:])
        x = flip(clean, draw_flips(streams.fork("flip"), len(shape), self.config.rates.flip))
        corrupted = corrupt(x, draw_corruption(streams.fork("corruption"), shape, self.config.rates))
        return {"x": x, "g": normalised(corrupted, self.config.network_input)}

    def losses(self, views: Views, progress: Progress, player: str = "main") -> dict[str, Tensor]:
        """MSE(U-Net(g), x) over all voxels, not only the corrupted ones."""
        return {"restore": losses.mse(self.restorer(views["g"]), views["x"])}

    def diagnostics(self, views: Views) -> dict[str, Watched]:
        features = gap(self.encoder(views["g"])[-1])
        return {"encoder": Watched(features, features)}

    def pictures(self, views: Views) -> dict[str, Tensor]:
        images = {"x": views["x"], "x'": views["g"], "restored": self.restorer(views["g"])}
        return {name: slices(image) for name, image in images.items()}


LEARNER = Genesis
