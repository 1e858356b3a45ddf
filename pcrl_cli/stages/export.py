"""An encoder to take away, with its contract and a model card."""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal

from pcrl_cli.core import files
from pcrl_cli.core.contract import Contract
from pcrl_cli.core.errors import ConfigError, UsageError
from pcrl_cli.networks.encoders import build_encoder
from pcrl_cli.networks.transfer import Format, write_weights
from pcrl_cli.stages.results import Result
from pcrl_cli.stages.weights import unfinished, weights_of

SUFFIXES: dict[str, Format] = {".safetensors": "safetensors", ".pt": "torch", ".pth": "torch"}


class ExportResult(Result):
    schema_name: ClassVar[str] = "pcrl.export/1"
    source: Path
    file: Path
    card: Path
    format: str
    tensors: int
    parameters: int
    sha256: str
    contract: Contract
    notes: list[str]


def export(
    source: Path, to: Path, *, format: Literal["safetensors", "torch"] | None = None, overwrite: bool = False
) -> ExportResult:
    """Writes the encoder of a run (or of another weights file) to `to`, and TO.md beside it.

    Args:
        format: from the suffix of `to` by default: .safetensors, or .pt/.pth for a plain torch state dict.

    Raises:
        ConfigError: the source is no run or weights file, or lacks tensors of its encoder.
        UsageError: the format is unclear, or the file exists.
    """
    kind = format or SUFFIXES.get(to.suffix)
    if kind is None:
        raise UsageError(f"--to {to} says no format; end it in .safetensors or .pt, or give --format")
    if to.exists() and not overwrite:
        raise UsageError(f"{to} exists; name another file, or --overwrite")
    weights = weights_of(source)
    contract, notes = weights.contract, unfinished(source)
    encoder = build_encoder(contract.architecture, contract.domain.channels)
    missing = sorted(encoder.state_dict().keys() - weights.tensors.keys())
    if missing:
        raise ConfigError(
            f"{weights.path} lacks {len(missing)} tensors of its encoder ({missing[0]}, ...); it is no whole encoder"
        )
    encoder.load_state_dict({key: weights.tensors[key] for key in encoder.state_dict()})
    with files.blame_machine(to):
        to.parent.mkdir(parents=True, exist_ok=True)
    write_weights(to, encoder, contract, kind)
    card = to.with_name(to.name + ".md")
    parameters = sum(p.numel() for p in encoder.parameters())
    digest = files.sha256_file(to)
    files.write_atomic(card, model_card(to, contract, parameters, digest, notes).encode())
    return ExportResult(
        source=source,
        file=to,
        card=card,
        format=kind,
        tensors=len(encoder.state_dict()),
        parameters=parameters,
        sha256=digest,
        contract=contract,
        notes=notes,
    )


def model_card(file: Path, contract: Contract, parameters: int, sha256: str, notes: Sequence[str] = ()) -> str:
    """What a person who finds the file should know."""
    a, d = contract.architecture, contract.domain
    window = (
        f", clipped to [{d.intensity['hu_min']:g}, {d.intensity['hu_max']:g}] HU" if "hu_min" in d.intensity else ""
    )
    voxels = f", {d.spacing_mm:g} mm voxels" if d.spacing_mm is not None else ""
    return f"""# {file.name}

Encoder of {contract.method} (recipe {contract.recipe}) after {contract.steps} steps, written by pcrl {contract.pcrl}.
{" ".join(notes)}

| | |
|---|---|
| architecture | {a.encoder}, {a.dim}D, base width {a.width}, {a.poolings} poolings, {a.norm} norm; {parameters:,} parameters |
| input | {d.channels} channel(s), {d.modality.upper()}{voxels}{window}; {d.normalisation} |
| axes | {d.axis_order} |
| patients seen | {_seen(contract)} |
| cache | {contract.cache} |
| SHA-256 | {sha256} |

The contract is JSON in the file's metadata under `pcrl`. Not a medical device; not validated for clinical use. Whoever uses
the weights is bound by the licence of the data they were trained on.
"""


def _seen(contract: Contract) -> str:
    known = f"{len(contract.patients.hashes)} (salted hashes are in the metadata)"
    return (
        ("unknown, besides " + known if contract.patients.hashes else "unknown") if contract.patients.unknown else known
    )
