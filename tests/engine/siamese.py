"""PCRLv2's comparison on vectors: encoder, v = BN(f), predictor, Eq. 9; small enough to train in a second."""

import torch
from torch import nn
from toys import DIM, Toy

from pcrl_cli.core.learner import Watched
from pcrl_cli.networks.heads import Comparison
from pcrl_cli.pure import losses

WIDTH = 16


class Siamese(Toy):
    """Views differ by noise as strong as the signal, so that to agree on everything is only possible by a collapse."""

    def __init__(self, stop_gradient: bool, seed: int) -> None:
        super().__init__()
        self.stop_gradient = stop_gradient
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.linear = nn.Sequential(nn.Linear(DIM, 32), nn.ReLU(), nn.Linear(32, WIDTH))
            self.head = Comparison(WIDTH)

    def views(self, batch, rng):
        x = batch["x"]
        return {"a": x + rng.sample.normal(DIM), "b": x + rng.sample.fork("b").normal(DIM)}

    def features(self, x):
        f = self.linear(x)
        return f, *self.head(f[:, :, None, None, None])

    def losses(self, views, progress, player="main"):
        (_, v1, p1), (_, v2, p2) = self.features(views["a"]), self.features(views["b"])
        return {"compare": losses.comparison(v1, p1, v2, p2, self.stop_gradient)}

    def diagnostics(self, views):
        f, v, _ = self.features(views["a"])
        return {"encoder": Watched(f, f), "v": Watched(f, v)}
