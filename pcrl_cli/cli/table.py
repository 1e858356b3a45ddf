"""pcrl table"""

from pathlib import Path
from typing import Annotated, Any

import typer

from pcrl_cli.cli import console, options
from pcrl_cli.cli.prep import _shard as share


@console.command
def command(
    spec: Annotated[Path, typer.Argument(help="YAML: task, methods, ratios, seeds (see examples/tables)")],
    out: Annotated[Path | None, typer.Option("--out", help="Folder of all cells (default: runs/table-NAME)")] = None,
    shard: Annotated[
        str | None, typer.Option("--shard", metavar="I/N", help="This worker's share, as of a Slurm array")
    ] = None,
    device: options.Device = "auto",
    cache_on: options.CacheOn = "auto",
    workspace: options.WorkspaceDir = None,
    dry_run: options.DryRun = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Make a whole comparison: methods x labelled ratios x seeds; run the same command again to continue."""
    on = console.choice("--device", device, ("auto", "cpu", "cuda"))
    where = console.choice("--cache-on", cache_on, ("auto", "gpu", "ram", "disk"))
    part = share(shard)
    from pcrl_cli.stages.results import Plan
    from pcrl_cli.stages.table import frame, require, table
    from pcrl_cli.stages.workspace import Workspace

    result = table(
        spec,
        out=out,
        workspace=Workspace(workspace),
        shard=part,
        device=on,
        cache_on=where,
        dry_run=dry_run,
        listener=console.Bars(quiet or json, verbose),
    )
    if isinstance(result, Plan):
        return console.show_plan(result, json, quiet)
    rows: dict[str, Any] = {f"{result.metric} x 100": "  ".join(frame(result).columns)}
    rows |= {name: "  ".join(cells) for name, cells in zip(*_text(frame(result)), strict=True)}
    rows |= {"cells": f"{result.done} of {result.cells}", "failed": len(result.failed), "report": result.report}
    console.show(result, as_json=json, quiet=quiet, rows=rows, path=result.out)
    require(result)


def _text(shown: Any) -> tuple[list[str], list[list[str]]]:
    """Rows of the table, their cells padded to the columns' widths."""
    width = {c: max(len(c), *(len(v) for v in shown[c])) for c in shown.columns}
    return list(shown.index), [[str(row[c]).ljust(width[c]) for c in shown.columns] for _, row in shown.iterrows()]
