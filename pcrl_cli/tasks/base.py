"""What downstream tasks share."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from pcrl_cli.core.learner import Batch, Progress, Task, Views
from pcrl_cli.networks.classify import Classifier
from pcrl_cli.networks.encoder import Encoder


class Classification(Task):
    """Encoder, GAP and a linear layer, trained with binary cross-entropy (section 4.3).

    Subclasses say what a view is: `views` for training, `centre` for prediction.
    """

    def __init__(self, encoder: Encoder, outputs: int) -> None:
        super().__init__()
        self.network = Classifier(encoder, outputs)

    @property
    def encoder(self) -> Encoder:
        return self.network.encoder

    def centre(self, batch: Batch) -> Float[Tensor, "b c *space"]:
        """The network's input for prediction; no randomness."""
        raise NotImplementedError

    def losses(self, views: Views, progress: Progress, player: str = "main") -> dict[str, Tensor]:
        """{"bce"}: mean binary cross-entropy of the logits against `label` (b, outputs)."""
        logits = self.network(views["x"]).float()
        return {"bce": F.binary_cross_entropy_with_logits(logits, views["label"].float().view_as(logits))}

    @torch.no_grad()
    def predict(self, batch: Batch) -> Float[Tensor, "b outputs"]:
        """Probabilities, in eval mode."""
        return torch.sigmoid(self.network(self.centre(batch)).float())

    def pictures(self, views: Views) -> dict[str, Tensor]:
        """Mid slices of the training views."""
        x: Any = views["x"]
        return {"training views": x[:, 0, :, :, x.shape[-1] // 2].unsqueeze(1)}
