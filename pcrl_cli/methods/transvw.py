"""TransVW (Haghighi et al., TMI 2021): cubes of discovered visual words are restored, and their word is told.

Words are found first, without labels: `pcrl discover` (stages/discover.py, pure/words.py) with a `Describer` of scans.
"""

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from pcrl_cli.augment.genesis import corrupt, draw_elastic, draw_one_of, elastic
from pcrl_cli.augment.pairs import NetworkInput, normalised, slices, to_unit
from pcrl_cli.core.config import Settings
from pcrl_cli.core.contract import Architecture
from pcrl_cli.core.errors import ConfigError
from pcrl_cli.core.learner import Batch, Learner, Progress, Stored, Views, Watched
from pcrl_cli.core.rng import Rng
from pcrl_cli.networks.blocks import gap
from pcrl_cli.networks.encoder import Encoder
from pcrl_cli.networks.nsunet import Up
from pcrl_cli.networks.restorer import Restorer, architecture_of, backbone
from pcrl_cli.pure import losses
from pcrl_cli.pure.words import Words

GROUPS = {3: "words"}
CROP_PLANS = {3: Words}


class Config(Settings):
    """Every choice of the method; the presets say more (recipes/presets.yaml)."""

    width: int = Field(32, ge=1, description="base number of filters")
    poolings: int = Field(5, ge=1, description="native: 3")
    decoder_skip: bool = True
    up: Up = Field("nearest", description="native: deconv")
    network_input: NetworkInput = Field("normalised", description="native: unit, the corrupted cube in [0, 1]")
    windows: int = Field(5, ge=1, description="of local shuffling")
    elastic_alpha: float = Field(991.0, ge=0)
    elastic_sigma: float = Field(8.0, gt=0, description="voxels")
    restore_weight: float = Field(1.0, ge=0)
    word_weight: float = Field(0.01, ge=0)

    def arrays(self, dim: int) -> tuple[str, ...]:
        """The cached arrays that this method reads."""
        return ("word", "label")


class TransVW(Learner):
    """Batch: `word` (b, 1, x, y, z) cubes as stored, `label` (b,) their words, whose number the cache knows."""

    def __init__(self, config: Config, stored: Stored) -> None:
        super().__init__()
        if not stored.classes:
            raise ConfigError(
                "the cache names no visual words; make one with `pcrl discover` and give it to --method transvw"
            )
        self.config, self.stored = config, stored
        encoder = backbone(stored.dim, stored.channels, config.width, config.poolings)
        self.restorer = Restorer(encoder, stored.channels, config.decoder_skip, config.up)
        c = encoder.widths[-1]
        self.tell = nn.Sequential(nn.Conv3d(c, 2 * c, 3, padding=1), nn.BatchNorm3d(2 * c), nn.ReLU(inplace=True))
        self.words = nn.Linear(2 * c, len(stored.classes))

    @property
    def encoder(self) -> Encoder:
        return self.restorer.net.encoder

    @property
    def architecture(self) -> Architecture:
        return architecture_of(self.stored.dim, self.config.width, self.config.poolings)

    def views(self, batch: Batch, rng: Rng) -> Views:
        """x: the cubes in [0, 1], the target; g: bent, then corrupted in one of four ways; word: their labels."""
        streams = rng.sample.fork("view")
        x = to_unit(batch["word"], self.stored)
        shape = tuple(x.shape[2:])
        bent = elastic(
            x, draw_elastic(streams.fork("bend"), shape, self.config.elastic_alpha, self.config.elastic_sigma)
        )
        g = corrupt(bent, draw_one_of(streams.fork("corruption"), shape, self.config.windows))
        return {"x": x, "g": normalised(g, self.config.network_input), "word": batch["label"].long()}

    def losses(self, views: Views, progress: Progress, player: str = "main") -> dict[str, Tensor]:
        """L = 1 MSE(D(F), x) + 0.01 CE(words of the bottleneck)."""
        maps = self.encoder(views["g"])
        restore = losses.mse(self.restorer.decode(maps, views["g"]), views["x"])
        tell = F.cross_entropy(self.logits(maps), views["word"])
        return {"restore": self.config.restore_weight * restore, "word": self.config.word_weight * tell}

    def logits(self, maps: list[Tensor]) -> Tensor:
        return self.words(gap(self.tell(maps[-1]))).float()

    def diagnostics(self, views: Views) -> dict[str, Watched]:
        features = gap(self.encoder(views["g"])[-1])
        return {"encoder": Watched(features, features)}

    def figures(self, views: Views) -> dict[str, Tensor]:
        """How many of the batch's words are told."""
        return {"words_told": (self.logits(self.encoder(views["g"])).argmax(dim=1) == views["word"]).float().mean()}

    def pictures(self, views: Views) -> dict[str, Tensor]:
        images = {"x": views["x"], "x'": views["g"], "restored": self.restorer(views["g"])}
        return {name: slices(image) for name, image in images.items()}


class Describer(Learner):
    """Of whole scans, resized: an auto-encoder, whose pooled bottleneck says which patients are alike."""

    def __init__(self, width: int, stored: Stored) -> None:
        super().__init__()
        self.stored, self.width = stored, width
        self.restorer = Restorer(backbone(3, stored.channels, width, 3), stored.channels)

    @property
    def encoder(self) -> Encoder:
        return self.restorer.net.encoder

    @property
    def architecture(self) -> Architecture:
        return architecture_of(3, self.width, 3)

    def views(self, batch: Batch, rng: Rng) -> Views:
        """x (b, 1, x, y, z) in [0, 1], as stored: nothing is random."""
        return {"x": to_unit(batch["image"], self.stored)}

    def losses(self, views: Views, progress: Progress, player: str = "main") -> dict[str, Tensor]:
        return {"restore": losses.mse(self.restorer(views["x"]), views["x"])}


LEARNER = TransVW
