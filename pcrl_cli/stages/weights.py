"""Encoders out of runs and files."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from pcrl_cli.core.errors import UsageError
from pcrl_cli.data.cache import Cache
from pcrl_cli.engine.run import Run
from pcrl_cli.networks.encoder import Encoder
from pcrl_cli.networks.encoders import build_encoder
from pcrl_cli.networks.imagenet import read_imagenet
from pcrl_cli.networks.transfer import Weights, load_encoder, read_weights, require_backed
from pcrl_cli.stages import training


def weights_of(source: Path) -> Weights:
    """The encoder of a run folder (its best or last checkpoint, hash checked) or of a weights file."""
    if source.is_dir():
        run = Run.load(source)
        run.check_weights()
        return require_backed(read_weights(run.weights_path()))
    return require_backed(read_weights(source))


IMAGENET = "imagenet="
"""What `--init` starts with: `imagenet=FILE`."""


def initial(text: str) -> Weights:
    """What `--init` names.

    Raises:
        UsageError: it is not imagenet=FILE. ConfigError: there is no such file, or it holds another network.
    """
    if not text.startswith(IMAGENET) or text == IMAGENET:
        raise UsageError(f"--init {text!r} is not {IMAGENET}FILE; give a local torchvision state dict of resnet18")
    return require_backed(read_imagenet(Path(text.removeprefix(IMAGENET))))


def unfinished(source: Path) -> list[str]:
    """A sentence where the source is a run that has not come to its end."""
    if not source.is_dir():
        return []
    run = Run.load(source)
    return [] if run.finished else [f"The run {source.name} is not finished: these weights are of a step on the way."]


def encoder_of(source: Path, cache: Cache) -> tuple[Encoder, Weights, dict[str, Any]]:
    """The encoder, loaded for this cache's images, and the report on every key."""
    weights = weights_of(source)
    encoder = build_encoder(weights.contract.architecture, cache.manifest["channels"])
    report = load_encoder(encoder, weights, training.domain_of(cache))
    return encoder, weights, asdict(report)
