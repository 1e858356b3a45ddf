"""pcrl report"""

from pathlib import Path
from typing import Annotated

import typer

from pcrl_cli.cli import console, options


@console.command
def command(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders")],
    out: Annotated[Path, typer.Option("--out", help="Page to write")] = Path("report.html"),
    overwrite: options.Overwrite = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Join runs in one self-contained page."""
    from pcrl_cli.stages.report import join_reports

    result = join_reports(runs, out, overwrite)
    console.show(result, as_json=json, quiet=quiet, rows={"runs": len(result.runs)}, path=result.report)
