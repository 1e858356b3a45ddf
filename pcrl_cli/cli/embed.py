"""pcrl embed"""

from pathlib import Path
from typing import Annotated

import typer

from pcrl_cli.cli import console, options


@console.command
def command(
    run: Annotated[Path, typer.Argument(help="Run or weights file")],
    cache: Annotated[Path | None, typer.Argument(help="Cache with labels (default: the workspace's only one)")] = None,
    out: Annotated[Path, typer.Option("--out", help="File to write, .npz or .csv")] = Path("features.npz"),
    task: Annotated[
        str | None,
        typer.Option(
            "--task",
            help="Whose candidates or images (default: what the cache holds, luna or classify; of a 2D encoder chest)",
        ),
    ] = None,
    device: options.Device = "auto",
    workspace: options.WorkspaceDir = None,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Write the frozen features of every candidate or image."""
    on = console.choice("--device", device, ("auto", "cpu", "cuda"))
    from pcrl_cli.stages.probe import embed
    from pcrl_cli.stages.workspace import Workspace

    result = embed(run, out, cache, task=task, workspace=Workspace(workspace), device=on, overwrite=overwrite)
    rows = {"weights": result.weights, "features": f"{result.rows} rows of {result.width}"}
    console.show(result, as_json=json, quiet=quiet, rows=rows, path=result.out)
