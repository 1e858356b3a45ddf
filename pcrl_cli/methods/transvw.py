"""TransVW (Haghighi et al., TMI 2021): cubes of discovered visual words are restored, and their word is told.

In 2D a cube is a square of a radiograph, as large as the network's input; all else is the same.

Words are found first, without labels: `pcrl discover` (stages/discover.py, pure/words.py) with a `Describer` of scans.
"""

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from pcrl_cli.augment.genesis import corrupt, draw_elastic, draw_one_of, elastic
from pcrl_cli.augment.pairs import NetworkInput, normalised, slices, to_unit
from pcrl_cli.core.contract import Architecture
from pcrl_cli.core.errors import ConfigError
from pcrl_cli.core.learner import Batch, Learner, Progress, Stored, Views, Watched
from pcrl_cli.core.rng import Rng
from pcrl_cli.networks.blocks import AXES, ConvBnReLU, gap
from pcrl_cli.networks.encoder import Encoder
from pcrl_cli.networks.restorer import Restorer, RestorerConfig, architecture_of, backbone
from pcrl_cli.pure import losses
from pcrl_cli.pure.words import Words

GROUPS = {3: "words", 2: "words"}
CROP_PLANS = {3: Words, 2: Words}
POOLINGS = 3
"""Of the encoder that describes volumes, as published."""


class Config(RestorerConfig):
    """Every choice of the method; the presets say more (recipes/presets.yaml)."""

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
    """Batch: `word` (b, 1, *space) cubes as stored, `label` (b,) their words, whose number the cache knows."""

    def __init__(self, config: Config, stored: Stored) -> None:
        super().__init__()
        if not stored.classes:
            raise ConfigError(
                "the cache names no visual words; make one with `pcrl discover` and give it to --method transvw"
            )
        self.config, self.stored = config, stored
        self.restorer = config.restorer(stored)
        c = self.encoder.widths[-1]
        self.tell = ConvBnReLU(AXES[stored.dim], c, 2 * c, bias=True)
        self.words = nn.Linear(2 * c, len(stored.classes))

    @property
    def encoder(self) -> Encoder:
        return self.restorer.net.encoder

    @property
    def architecture(self) -> Architecture:
        return self.config.architecture(self.stored.dim)

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
    """Of whole scans, made small: an auto-encoder, whose pooled bottleneck says which patients are alike.

    shape: of what it sees. Volumes are cached so; images are resized here.
    """

    def __init__(self, width: int, shape: tuple[int, ...], stored: Stored) -> None:
        super().__init__()
        self.stored, self.width, self.shape = stored, width, shape
        self.restorer = Restorer(backbone(stored.dim, stored.channels, width, POOLINGS), stored.channels)

    @property
    def encoder(self) -> Encoder:
        return self.restorer.net.encoder

    @property
    def architecture(self) -> Architecture:
        return architecture_of(self.stored.dim, self.width, POOLINGS)

    def views(self, batch: Batch, rng: Rng) -> Views:
        """x (b, 1, *shape) in [0, 1]: nothing is random."""
        return {"x": self.small(batch["image"])}

    def small(self, image: Tensor) -> Tensor:
        """Stored volumes or images in [0, 1], as the network sees them but for an image's three channels."""
        x = to_unit(image, self.stored)
        if tuple(x.shape[2:]) == self.shape:
            return x
        return F.interpolate(x, self.shape, mode="bilinear", antialias=True, align_corners=False)

    def losses(self, views: Views, progress: Progress, player: str = "main") -> dict[str, Tensor]:
        return {"restore": losses.mse(self.restorer(normalised(views["x"], "unit")), views["x"])}

    def describe(self, image: Tensor) -> Tensor:
        """(b, 1, *space) as stored to descriptors (b, c)."""
        return gap(self.encoder(normalised(self.small(image), "unit"))[-1])


LEARNER = TransVW
