"""pcrl export"""

from pathlib import Path
from typing import Annotated

import typer

from pcrl_cli.cli import console, options


@console.command
def command(
    run: Annotated[Path, typer.Argument(help="Run or weights file")],
    to: Annotated[Path, typer.Option("--to", help="File to write: .safetensors, or .pt for a torch state dict")],
    format_: Annotated[
        str | None, typer.Option("--format", metavar="safetensors|torch", help="(default: by the suffix)")
    ] = None,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Write the encoder with its contract, and a model card beside it."""
    kind = console.choice("--format", format_, ("safetensors", "torch")) if format_ else None
    from pcrl_cli.stages.export import export

    result = export(run, to, format=kind, overwrite=overwrite)
    for note in result.notes:
        console.Bars().warn(note)
    rows = {
        "parameters": f"{result.parameters:,} in {result.tensors} tensors",
        "sha256": result.sha256,
        "card": result.card,
    }
    console.show(result, as_json=json, quiet=quiet, rows=rows, path=result.file)
