"""pcrl replay"""

from pathlib import Path
from typing import Annotated

import typer

from pcrl_cli.cli import console, options


@console.command
def command(
    capture: Annotated[Path, typer.Argument(help="Folder RUN/captures/step_N of a step that was not finite")],
    cache: Annotated[Path | None, typer.Option("--cache", help="The run's cache, if it was moved")] = None,
    device: options.Device = "auto",
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Show a captured non-finite step again: its losses, and which tensor was the first."""
    on = console.choice("--device", device, ("auto", "cpu", "cuda"))
    from pcrl_cli.stages.replay import replay

    result = replay(capture, cache, device=on)
    for note in result.notes:
        console.Bars(quiet or json).warn(note)
    rows = {
        "step": f"{result.step} of {result.run}, rank {result.rank}, {result.precision} on {result.device}",
        "first": result.first,
        "losses": result.terms,
        "when it happened": result.captured,
        "gradient norm": result.gradient_norm,
        "also": [f"{f.kind} {f.name} ({f.bad} of {f.of})" for f in result.findings[1:]],
    }
    console.show(result, as_json=json, quiet=quiet, rows=rows)
    if quiet and not json:
        print(result.first or "-")
