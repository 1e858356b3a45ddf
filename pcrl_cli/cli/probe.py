"""pcrl probe"""

from pathlib import Path
from typing import Annotated

import typer

from pcrl_cli.cli import console, options


@console.command
def command(
    run: Annotated[Path, typer.Argument(help="Run or weights file")],
    cache: Annotated[Path | None, typer.Argument(help="Cache with labels (default: the workspace's only one)")] = None,
    task: Annotated[
        str | None,
        typer.Option(
            "--task", help="Whose labels (default: what the cache holds, luna or classify; of a 2D encoder chest)"
        ),
    ] = None,
    split: Annotated[str, typer.Option("--split", metavar="val|test", help="Part to score")] = "test",
    device: options.Device = "auto",
    workspace: options.WorkspaceDir = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """k-NN and linear-probe AUROC on frozen features."""
    on = console.choice("--device", device, ("auto", "cpu", "cuda"))
    part = console.choice("--split", split, ("val", "test"))
    from pcrl_cli.stages.probe import probe_run
    from pcrl_cli.stages.workspace import Workspace

    result = probe_run(
        run,
        cache,
        task=task,
        split=part,
        workspace=Workspace(workspace),
        device=on,
        listener=console.Bars(quiet or json, verbose),
    )
    rows = {
        "weights": result.weights,
        "samples": f"{result.train} to learn from, {result.tested} to score ({result.positives} positive labels)",
        "k-NN AUROC": result.knn_auroc if result.reason is None else f"- ({result.reason})",
        "linear AUROC": result.linear_auroc if result.reason is None else f"- ({result.reason})",
    }
    console.show(result, as_json=json, quiet=quiet, rows=rows)
    if quiet and not json:
        print(result.linear_auroc)
