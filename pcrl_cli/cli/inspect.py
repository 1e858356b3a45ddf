"""pcrl inspect"""

from pathlib import Path
from typing import Annotated

import typer

from pcrl_cli.cli import console, options


@console.command
def command(
    path: Annotated[Path, typer.Argument(help="A cache, a run, or a weights file")],
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Say what a path is."""
    from pcrl_cli.core.config import leaves
    from pcrl_cli.stages.inspect import inspect

    result = inspect(path)
    rows = {"kind": result.kind, **dict(leaves(result.facts))}
    console.show(result, as_json=json, quiet=quiet, rows=rows)
    if quiet and not json:
        print(result.kind)
