"""The names in the weights that the paper's authors have released, and what they are called here.

3D: the whole model, `down_tr64/128/256/512` the encoder's levels 0 to 3 and `up_tr256/128/64` the decoder; the numbers
are the widths at w = 32. 2D: a ResNet-18 by torchvision's names, alone or below a prefix.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import Tensor

from pcrl_cli.core.contract import WIDEST, Architecture, Domain
from pcrl_cli.core.errors import ConfigError

LEVELS, DECODER = (64, 128, 256, 512), (256, 128, 64)
NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
FIRST = (
    ("down_tr64.ops.0.conv1.weight", "down_tr64.ops.0.bn1.weight"),
    ("conv1.weight", "layer1.0.conv1.weight"),
)
"""Two names by which each network is known."""


@dataclass(frozen=True)
class Known:
    """An encoder as this project knows it.

    tensors: by our names. others: the file's names that are no part of the encoder. expected: names that the authors'
    file has, in the file's words.
    """

    architecture: Architecture
    domain: Domain
    tensors: dict[str, Tensor]
    others: tuple[str, ...]
    expected: frozenset[str]
    prefix: str


def recognise(tensors: dict[str, Tensor], source: object) -> Known:
    """The encoder in a released file.

    Raises:
        ConfigError: the names are of another network.
    """
    prefix = _prefix(tensors)
    names = {key.removeprefix(prefix): value for key, value in tensors.items()}
    if "down_tr64.ops.0.conv1.weight" in names:
        return _unet3d(names, prefix, source)
    if "conv1.weight" in names and "layer1.0.conv1.weight" in names:
        return _resnet18(names, prefix, source)
    first = ", ".join(sorted(tensors)[:3])
    raise ConfigError(
        f"{source} holds neither the released 3D model (down_tr64...) nor a ResNet-18 (conv1, layer1...): its first names "
        f"are {first}; give a file that the authors released"
    )


def _prefix(keys: Iterable[str]) -> str:
    """What stands before every name, such as `module.` of a data-parallel model."""
    known = set(keys)
    for key in sorted(known, key=lambda key: (len(key), key)):
        for first, second in FIRST:
            prefix = key.removesuffix(first)
            if key.endswith(first) and (not prefix or prefix.endswith(".")) and prefix + second in known:
                return prefix
    return ""


def first_convolution(weight: Tensor, axes: int, source: object) -> tuple[int, int]:
    """(width, channels) as the first convolution (c_out, c_in, k, ...) over so many axes tells them.

    Raises:
        ConfigError: it is no such convolution, or wider than any that this project builds.
    """
    shape = tuple(weight.shape)
    if len(shape) != 2 + axes or not weight.numel() or max(shape[:2]) > WIDEST:
        raise ConfigError(
            f"the first convolution in {source} has shape {shape}, which no {axes}D encoder of at most {WIDEST} channels "
            "has; give a file of such an encoder"
        )
    return shape[0], shape[1]


def _unet3d(names: dict[str, Tensor], prefix: str, source: object) -> Known:
    width, channels = first_convolution(names["down_tr64.ops.0.conv1.weight"], 3, source)
    tensors = {ours: names[theirs] for theirs, ours in _levels() if theirs in names}
    others = tuple(sorted(names.keys() - {theirs for theirs, _ in _levels()}))
    domain = Domain(
        channels=channels,
        modality="ct",
        spacing_mm=1.0,
        intensity={"hu_min": -1000.0, "hu_max": 1000.0},
        normalisation="z-score of each view, from [0, 1]",
    )
    architecture = Architecture(dim=3, encoder="unet3d", width=width, poolings=3)
    return Known(architecture, domain, tensors, others, frozenset(expected_3d()), prefix)


def _levels() -> Iterator[tuple[str, str]]:
    """(their name, ours) of every tensor of the 3D encoder: 4 levels of two Conv-BN."""
    for d, number in enumerate(LEVELS):
        for i in (0, 1):
            base, ours = f"down_tr{number}.ops.{i}", f"levels.{d}.{i}"
            yield from ((f"{base}.conv1.{name}", f"{ours}.0.{name}") for name in ("weight", "bias"))
            yield from ((f"{base}.bn1.{name}", f"{ours}.1.{name}") for name in NORM)


def expected_3d() -> list[str]:
    """The 169 names of the released 3D model."""
    names = [theirs for theirs, _ in _levels()]
    for number in DECODER:
        up = f"up_tr{number}"
        convolutions = [f"{up}.{part}.conv1" for part in ("ops.0", "ops.1", "deep_supervision_head")]
        linear = [f"{up}.up_conv", *convolutions, f"{up}.predictor_head.0", f"{up}.predictor_head.3"]
        norms = [name.removesuffix("conv1") + "bn1" for name in convolutions]
        norms += [f"{up}.bn", f"{up}.predictor_head.1"]
        names += [f"{layer}.{name}" for layer in linear for name in ("weight", "bias")]
        names += [f"{layer}.{name}" for layer in norms for name in NORM]
    return [*names, "out_tr.final_conv.weight", "out_tr.final_conv.bias"]


def expected_2d() -> list[str]:
    """The 120 names of a ResNet-18 without its last layer."""
    convolutions, norms = ["conv1"], ["bn1"]
    for layer in (1, 2, 3, 4):
        for block in (0, 1):
            base = f"layer{layer}.{block}"
            convolutions += [f"{base}.conv1", f"{base}.conv2"]
            norms += [f"{base}.bn1", f"{base}.bn2"]
            if layer > 1 and block == 0:
                convolutions.append(f"{base}.downsample.0")
                norms.append(f"{base}.downsample.1")
    return [f"{name}.weight" for name in convolutions] + [f"{layer}.{name}" for layer in norms for name in NORM]


def _resnet18(names: dict[str, Tensor], prefix: str, source: object) -> Known:
    expected = frozenset(expected_2d())
    require_no_deeper(names, source)
    width, channels = first_convolution(names["conv1.weight"], 2, source)
    domain = Domain(
        channels=channels,
        modality="xray",
        spacing_mm=None,
        intensity={},
        normalisation="ImageNet's mean and standard deviation",
        axis_order="rows, columns",
    )
    architecture = Architecture(dim=2, encoder="resnet18", width=width, poolings=5)
    tensors = {key: value for key, value in names.items() if key in expected}
    return Known(architecture, domain, tensors, tuple(sorted(names.keys() - expected)), expected, prefix)


def require_no_deeper(names: Iterable[str], source: object) -> None:
    """ResNet-34 and deeper ones have all of ResNet-18's names, and more.

    Raises:
        ConfigError: there are blocks or convolutions that ResNet-18 has not.
    """
    deeper = sorted(key for key in names if re.match(r"layer\d\.([2-9]|\d\d)\.|layer\d\.\d\.conv3\.", key))
    if deeper:
        raise ConfigError(f"{source} holds a deeper ResNet than ResNet-18 ({deeper[0]}); give weights of a ResNet-18")
