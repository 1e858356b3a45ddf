"""pcrl import"""

from pathlib import Path
from typing import Annotated

import typer

from pcrl_cli.cli import console, options


@console.command
def command(
    file: Annotated[Path, typer.Argument(help="Weights that the paper's authors released (.pt)")],
    out: Annotated[Path, typer.Option("--out", help="Folder to make")],
    overwrite: options.Overwrite = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Turn the authors' released weights into an encoder with a contract; nothing in the file is run."""
    from pcrl_cli.stages.import_ import import_weights

    result = import_weights(file, out, overwrite=overwrite)
    for note in result.notes:
        console.Bars().warn(note)
    a = result.contract.architecture
    found = result.expected - len(result.missing)
    rows = {
        "encoder": f"{a.encoder}, {a.dim}D, width {a.width}, {a.poolings} poolings",
        "parameters": f"{result.parameters:,} in {result.tensors} tensors, {100 * result.share:.1f} % of the values",
        "names": f"{found} of {result.expected} expected, {result.not_encoder} not of the encoder",
        "missing": result.missing[:5],
        "unexpected": result.unexpected[:5],
        "epoch": result.epoch,
        "sha256": result.sha256,
        "card": result.card,
    }
    console.show(result, as_json=json, quiet=quiet, rows=rows, path=result.file)
