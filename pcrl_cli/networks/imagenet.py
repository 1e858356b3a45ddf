"""A local torchvision state dict of ResNet-18 as weights to start from; nothing is ever downloaded."""

from pathlib import Path

from pcrl_cli.core.contract import Architecture, Contract, Domain
from pcrl_cli.core.errors import ConfigError
from pcrl_cli.networks.released import first_convolution, require_no_deeper
from pcrl_cli.networks.transfer import Weights
from pcrl_cli.networks.untrusted import open_untrusted

WHERE = (
    "`torchvision.models.resnet18(weights='IMAGENET1K_V1')` on a machine with a network leaves such a file in "
    "~/.cache/torch/hub/checkpoints"
)


def read_imagenet(path: Path) -> Weights:
    """The encoder's tensors and what is left out (`fc`), from a state dict in any of torch's formats.

    Raises:
        ConfigError: there is no such file, or it holds another network.
        IntegrityError: it is torn, holds no tensors, or is a pickle that wants to run code; see `open_untrusted`.
    """
    if not path.is_file():
        raise ConfigError(f"there is no file {path} to start from, and pcrl downloads nothing; {WHERE}")
    tensors = {name.removeprefix("module."): value for name, value in open_untrusted(path).tensors.items()}
    if "conv1.weight" not in tensors or "layer4.1.conv2.weight" not in tensors:
        raise ConfigError(f"{path} is no ResNet-18 with torchvision's names; {WHERE}")
    require_no_deeper(tensors, path)
    encoder = {name: value.float() if value.is_floating_point() else value for name, value in tensors.items()}
    others = tuple(sorted(name for name in tensors if name.startswith("fc.")))
    width, channels = first_convolution(tensors["conv1.weight"], 2, path)
    contract = Contract(
        architecture=Architecture(dim=2, encoder="resnet18", width=width, poolings=5),
        domain=Domain(
            channels=channels,
            modality="photograph",
            spacing_mm=None,
            intensity={},
            normalisation="ImageNet mean and standard deviation",
            axis_order="rows, columns",
        ),
        method="ImageNet classification",
    )
    return Weights(path, {k: v for k, v in encoder.items() if k not in others}, contract, others)
