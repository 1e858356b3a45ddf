"""The authors' released weights to weights of this project."""

from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from pcrl_cli import __version__
from pcrl_cli.core import files
from pcrl_cli.core.contract import Contract, Patients
from pcrl_cli.core.errors import ConfigError, UsageError
from pcrl_cli.networks.encoders import planned_encoder
from pcrl_cli.networks.released import Known, recognise
from pcrl_cli.networks.transfer import ENOUGH, write_weights
from pcrl_cli.networks.untrusted import open_untrusted
from pcrl_cli.stages.export import model_card
from pcrl_cli.stages.patients import UNKNOWN
from pcrl_cli.stages.results import Result

NAME = "encoder.safetensors"


class ImportResult(Result):
    """What was imported, and how the file differs from what the authors' code writes.

    expected: names that such a file has. missing: of them, not in the file. unexpected: in the file, and none of them.
    wrong_shape: encoder tensors that do not fit and were left out. not_encoder: how many tensors belong to the decoder
    and the heads, which do not move. options: of the training, as the file states them. share: of the encoder's values.
    """

    schema_name: ClassVar[str] = "pcrl.import/1"
    source: Path
    source_sha256: str
    format: str
    file: Path
    card: Path
    sha256: str
    tensors: int
    parameters: int
    share: float
    expected: int
    missing: list[str]
    unexpected: list[str]
    wrong_shape: list[str]
    not_encoder: int
    epoch: int | None
    options: dict[str, Any]
    contract: Contract
    notes: list[str]


def import_weights(source: Path, out: Path, *, overwrite: bool = False) -> ImportResult:
    """Writes `out/encoder.safetensors`, with its contract, and a model card beside it.

    Args:
        source: a torch file; it is opened in a process of its own, without pickle's power.

    Raises:
        UsageError: `out` holds an encoder already. ConfigError: the file is of another network.
        IntegrityError: the file is torn, wants to run code, or wants too much memory.
    """
    target = out / NAME
    if target.exists() and not overwrite:
        raise UsageError(f"{target} exists; name another --out, or --overwrite")
    opened = open_untrusted(source)
    digest = files.sha256_file(source)
    known = recognise(opened.tensors, source)
    encoder = planned_encoder(known.architecture, known.domain.channels)
    fitting, wrong_shape, share = _fitting(known, encoder.state_dict(), source)
    contract = Contract(
        architecture=known.architecture,
        domain=known.domain,
        patients=Patients(salt=digest[:16], unknown=True),
        method="pcrlv2, imported",
        recipe="released",
        pcrl=__version__,
    )
    with files.blame_machine(target):
        out.mkdir(parents=True, exist_ok=True)
    write_weights(target, fitting, contract, "safetensors")
    found = {key.removeprefix(known.prefix) for key in opened.tensors}
    parameters = sum(p.numel() for p in encoder.parameters())
    sha256, card = files.sha256_file(target), target.with_name(target.name + ".md")
    notes = [f"{UNKNOWN[:1].upper()}{UNKNOWN[1:]}.", *_notes(opened.facts, wrong_shape)]
    files.write_atomic(card, model_card(target, contract, parameters, sha256, notes).encode())
    return ImportResult(
        source=source,
        source_sha256=digest,
        format=opened.facts["format"],
        file=target,
        card=card,
        sha256=sha256,
        tensors=len(fitting),
        parameters=parameters,
        share=share,
        expected=len(known.expected),
        missing=sorted(known.expected - found),
        unexpected=sorted(found - known.expected),
        wrong_shape=wrong_shape,
        not_encoder=len(known.others),
        epoch=opened.facts["epoch"],
        options=opened.facts["options"],
        contract=contract,
        notes=notes,
    )


def _fitting(known: Known, own: dict[str, Tensor], source: Path) -> tuple[dict[str, Tensor], list[str], float]:
    """The tensors that fit the encoder, the names of those that do not, and the share of its values that are there.

    Raises:
        ConfigError: less than 90 % are.
    """
    there = {key: value for key, value in known.tensors.items() if key in own}
    fitting = {key: value.to(own[key].dtype) for key, value in there.items() if value.shape == own[key].shape}
    wrong = [
        f"{key}: {tuple(value.shape)} in the file, {tuple(own[key].shape)} in the network"
        for key, value in there.items()
        if key not in fitting
    ]
    share = sum(value.numel() for value in fitting.values()) / sum(value.numel() for value in own.values())
    if share < ENOUGH:
        raise ConfigError(
            f"only {100 * share:.1f} % of the encoder's values are in {source} ({len(own) - len(there)} tensors missing, "
            f"{len(wrong)} of another shape); it is of another network"
        )
    return fitting, wrong, share


def _notes(facts: dict[str, Any], wrong_shape: list[str]) -> list[str]:
    notes = [f"{len(facts['left_out'])} entries are no tensors and were left out."] if facts["left_out"] else []
    return notes + ([f"{len(wrong_shape)} tensors of another shape were left out."] if wrong_shape else [])
