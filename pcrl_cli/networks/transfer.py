"""Weights in and out: every tensor is accounted for, and what the file promises is checked.

An encoder file is safetensors (or a plain torch state dict) with the contract as JSON in its metadata, or beside it.
"""

import hashlib
import json
import pickle
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Literal

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from pcrl_cli.core import files
from pcrl_cli.core.contract import Contract, Domain
from pcrl_cli.core.errors import ConfigError, IntegrityError
from pcrl_cli.networks.encoders import planned_encoder
from pcrl_cli.networks.open_torch import Unsafe, check_archive
from pcrl_cli.networks.segment import STAGES

Format = Literal["safetensors", "torch"]
Stem = Literal["divide", "repeat"]
"""Of a first convolution of one channel that is repeated over c: divided by c (recipe paper), or as it is (released)."""
ENOUGH = 0.9
"""Share of the encoder's values that must have been loaded."""
PREFIXES = ("net.encoder.", "network.encoder.", "encoder.", "")
"""Where the encoder's tensors are in a pre-training run, a task's run, an exported whole model, an exported encoder."""


@dataclass(frozen=True)
class Weights:
    """The encoder's tensors, by their names in the encoder, and the contract they come with."""

    path: Path
    tensors: dict[str, Tensor]
    contract: Contract
    others: tuple[str, ...] = ()
    """Names of the file's tensors that are no part of the encoder: decoder, heads, a task's last layer."""
    decoder: dict[str, Tensor] = field(default_factory=dict)
    """Those among them that lie beside the encoder as a decoder's do, by their names there: `stages.0. ...`."""

    @property
    def digest(self) -> str:
        """SHA-256 of names and values, wherever they come from."""
        return _digest(self.tensors)

    @property
    def decoder_digest(self) -> str:
        return _digest(self.decoder)


def _digest(tensors: dict[str, Tensor]) -> str:
    return hashlib.sha256(save({key: value.contiguous() for key, value in tensors.items()})).hexdigest()


@dataclass
class TransferReport:
    """What became of every key."""

    source: str
    loaded: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    wrong_shape: list[str] = field(default_factory=list)
    not_encoder: list[str] = field(default_factory=list)
    """Keys of the file that belong to a decoder, a head or a task's last layer, which stay behind."""
    adapted: list[str] = field(default_factory=list)
    """Keys that were changed to fit, and how."""
    differences: list[str] = field(default_factory=list)
    """Where the data differ from what the weights saw: reported, not refused."""
    share: float = 0.0
    """Share of the encoder's values that were loaded."""

    @property
    def random(self) -> list[str]:
        """A sentence for every tensor that starts random; a batch norm's counter of batches is no loss."""
        lacking = [f"{key}: not in the file" for key in self.missing if not key.endswith("num_batches_tracked")]
        return [f"{what}; it starts random" for what in [*self.wrong_shape, *lacking]]


def contract_metadata(contract: Contract) -> dict[str, str]:
    """The contract as a safetensors file carries it."""
    return {"pcrl": contract.model_dump_json()}


def contract_path(path: Path) -> Path:
    """Where the contract of a torch file lies, which has no metadata of its own."""
    return path.with_name(path.name + ".json")


def read_weights(path: Path) -> Weights:
    """The encoder in a weights file (safetensors or torch), without running anything that the file holds.

    Raises:
        ConfigError: there is no such file, or it has no contract.
        IntegrityError: the file is torn, or is a pickle that wants to run code.
    """
    if not path.is_file():
        raise ConfigError(f"there is no weights file {path}; give a run folder or a file that `pcrl export` wrote")
    with path.open("rb") as file:
        zipped = file.read(4) == b"PK\x03\x04"
    tensors, text = _read_torch(path) if zipped or path.suffix in (".pt", ".pth") else _read_safetensors(path)
    if text is None:
        raise ConfigError(
            f"{path} carries no pcrl contract, so what it belongs to is unknown; export it with `pcrl export`"
        )
    try:
        contract = Contract.model_validate_json(text)
    except ValidationError:
        raise IntegrityError(
            f"the contract in {path} is damaged or of another version; export the weights again"
        ) from None
    known = (contract.encoder_at or PREFIXES[0], *PREFIXES)
    prefix = next((p for p in known if any(key.startswith(p) for key in tensors)), "")
    encoder = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    others = tuple(sorted(key for key in tensors if not key.startswith(prefix)))
    network = prefix.removesuffix("encoder.")
    beside = {key.removeprefix(network): tensors[key] for key in others if key.startswith(f"{network}{STAGES}")}
    return Weights(path, encoder, contract, others, beside)


def require_backed(weights: Weights) -> Weights:
    """The weights, unless their contract asks for a network of more values than the file has.

    To be called before that network is built: a small file may promise any width.

    Raises:
        ConfigError: less than 90 % of the values are there, or this version knows no such encoder.
    """
    planned = planned_encoder(weights.contract.architecture, weights.contract.domain.channels)
    asked = sum(value.numel() for value in planned.state_dict().values())
    share = sum(value.numel() for value in weights.tensors.values()) / asked
    if share < ENOUGH:
        raise ConfigError(
            f"only {100 * share:.1f} % of the values of the encoder that {weights.path} promises are in it; it is no whole "
            "encoder, export it again"
        )
    return weights


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, with or without a contract.

    Raises:
        IntegrityError: the file is torn.
    """
    return _read_safetensors(path)[0]


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], str | None]:
    try:
        with safe_open(path, "pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, (file.metadata() or {}).get("pcrl")  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise IntegrityError(
            f"{path} is no sound safetensors file ({str(error)[:80]}); copy or export it again"
        ) from None


def _read_torch(path: Path) -> tuple[dict[str, Tensor], str | None]:
    try:
        check_archive(path)
    except Unsafe as error:
        raise IntegrityError(f"{path} {error}; copy or export it again") from None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise IntegrityError(
            f"{path} holds more than tensors and was not opened, since a pickle can run code"
        ) from None
    except (
        Exception
    ) as error:  # a torn pickle stream fails in every way there is: IndexError, KeyError, struct.error ...
        first = str(error).splitlines()[0][:80] if str(error) else type(error).__name__
        raise IntegrityError(f"{path} is no sound torch file ({first}); copy or export it again") from None
    if not isinstance(content, dict) or not all(map(_is_named_tensor, content.items())):
        raise ConfigError(
            f"{path} is not a file that `pcrl export --format torch` wrote; export the weights with it, or give "
            "another file"
        )
    if sum(value.nbytes for value in content.values()) > path.stat().st_size:  # strides of 0
        raise IntegrityError(f"{path} promises more values than it has bytes; copy or export it again")
    return content, _sidecar(path)


def _sidecar(path: Path) -> str | None:
    """The contract of a torch file, which lies beside it."""
    try:
        return contract_path(path).read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def _is_named_tensor(item: tuple[object, object]) -> bool:
    return isinstance(item[0], str) and isinstance(item[1], Tensor) and item[1].layout is torch.strided


def write_weights(path: Path, encoder: nn.Module | dict[str, Tensor], contract: Contract, format: Format) -> None:
    """Writes an encoder's tensors and its contract, atomically.

    safetensors: contract in the metadata under `pcrl`. torch: a plain state dict, and the contract in FILE.json beside it.
    """
    tensors = encoder if isinstance(encoder, dict) else encoder.state_dict()
    tensors = {key: value.detach().contiguous().cpu() for key, value in tensors.items()}
    if format == "safetensors":
        content = save(tensors, contract_metadata(contract))
    else:
        buffer = BytesIO()
        torch.save(tensors, buffer)
        content = buffer.getvalue()
        files.write_atomic(contract_path(path), contract.model_dump_json(indent=1).encode())
    files.write_atomic(path, content)


def load_encoder(encoder: nn.Module, weights: Weights, domain: Domain, stem: Stem = "divide") -> TransferReport:
    """Loads the tensors by name and reports on every key.

    A first convolution of one channel is repeated over c channels and, with stem=divide, divided by c, so that equal
    channels give what one gave.

    Args:
        encoder: of the weights' architecture.
        domain: what the encoder will see now; differences are listed.

    Raises:
        ConfigError: less than 90 % of the encoder's values were loaded.
    """
    report = TransferReport(
        str(weights.path),
        not_encoder=list(weights.others),
        differences=_differences(weights.contract.domain, domain),
    )
    own = encoder.state_dict()
    new: dict[str, Tensor] = {}
    for key, value in weights.tensors.items():
        if key not in own:
            report.unexpected.append(key)
            continue
        value = _inflate(key, value, own[key], stem, report)
        if value.shape != own[key].shape:
            report.wrong_shape.append(
                f"{key}: {tuple(value.shape)} in the file, {tuple(own[key].shape)} in the network"
            )
            continue
        new[key] = value
    report.loaded = sorted(new)
    report.missing = sorted(own.keys() - weights.tensors.keys())
    report.share = sum(own[k].numel() for k in new) / sum(v.numel() for v in own.values())
    if report.share < ENOUGH:
        raise ConfigError(
            f"only {100 * report.share:.1f} % of the encoder's values are in {weights.path} "
            f"({len(report.missing)} keys missing, {len(report.wrong_shape)} of another shape); "
            "these weights are of another network"
        )
    encoder.load_state_dict(own | new)
    return report


def load_decoder(network: nn.Module, weights: Weights, report: TransferReport) -> None:
    """Loads the decoder's tensors, every one of them, into a network that was built for them; noted in the report."""
    own = network.state_dict()
    wanted = {key for key in own if key.startswith(STAGES)}
    assert wanted == weights.decoder.keys(), "the network was built for another decoder"
    network.load_state_dict(own | weights.decoder)
    report.loaded += sorted(wanted)
    report.not_encoder = [k for k in report.not_encoder if not any(k.endswith(f".{name}") for name in wanted)]


def _inflate(key: str, value: Tensor, own: Tensor, stem: Stem, report: TransferReport) -> Tensor:
    """The first convolution, (c_out, 1, k, k, k) -> (c_out, c, k, k, k), repeated and divided by c or not."""
    if value.dim() < 4 or value.shape[1] != 1 or own.shape[1] == 1 or value.shape[2:] != own.shape[2:]:
        return value
    c = own.shape[1]
    divided = stem == "divide"
    how = f"divided by {c}" if divided else "not divided"
    report.adapted.append(f"{key}: repeated over {c} channels and {how}")
    return value.expand(-1, c, *value.shape[2:]) / (c if divided else 1)


def _differences(saw: Domain, now: Domain) -> list[str]:
    return [f"{key}: the weights saw {json.dumps(a)}, now {json.dumps(b)}" for key, a, b in saw.differences(now)]
