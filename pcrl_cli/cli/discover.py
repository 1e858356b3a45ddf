"""pcrl discover"""

from pathlib import Path
from typing import Annotated, Any

import typer

from pcrl_cli.cli import console, options
from pcrl_cli.cli.prep import _jobs as processes


@console.command
def command(
    cache: Annotated[
        Path | None, typer.Argument(help="Cache of crop pairs or images (default: the workspace's only one)")
    ] = None,
    dim: Annotated[
        str | None, typer.Option("--dim", metavar="2d|3d", help="Of the default cache (default: 3d)")
    ] = None,
    data: Annotated[Path | None, typer.Option("--data", help="3D: the raw scans, if they were moved")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for the words (default: cache/NAME-words)")] = None,
    classes: Annotated[int | None, typer.Option("--classes", min=2, help="Visual words (default: 44)")] = None,
    neighbours: Annotated[
        int | None, typer.Option("--neighbours", min=1, help="Patients a word (default: 200)")
    ] = None,
    set_aside: Annotated[
        float | None, typer.Option("--set-aside", help="Share of training patients kept for fine-tuning")
    ] = None,
    jobs: Annotated[str, typer.Option("--jobs", metavar="N|auto", help="Worker processes")] = "auto",
    epochs: options.Epochs = None,
    steps: options.Steps = None,
    batch: options.Batch = None,
    width: options.Width = None,
    device: options.Device = "auto",
    seed: options.Seed = None,
    workspace: options.WorkspaceDir = None,
    config: options.Config = None,
    set_: options.Set = None,
    overwrite: options.Overwrite = False,
    dry_run: options.DryRun = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Find visual words in the training scans or images, for `pcrl pretrain --method transvw`."""
    on = console.choice("--device", device, ("auto", "cpu", "cuda"))
    dim = console.choice("--dim", dim, ("2d", "3d")) if dim else None
    from pcrl_cli.stages.discover import discover_words
    from pcrl_cli.stages.results import Plan
    from pcrl_cli.stages.workspace import Workspace

    flags = console.given(seed=seed, width=width, set_aside=set_aside)
    flags["words"] = console.given(classes=classes, neighbours=neighbours)
    flags["train"] = console.given(epochs=epochs, steps=steps, batch=batch)
    result = discover_words(
        cache,
        dim=dim,
        out=out,
        data=data,
        workspace=Workspace(workspace),
        layers=console.layers(config, set_, flags),
        jobs=processes(jobs),
        device=on,
        overwrite=overwrite,
        dry_run=dry_run,
        listener=console.Bars(quiet or json, verbose),
    )
    if isinstance(result, Plan):
        return console.show_plan(result, json, quiet)
    rows: dict[str, Any] = {"words": result.words, "patients a word": result.instances, "cubes": result.cubes}
    rows |= {"patients": result.patients, "report": result.report}
    console.show(result, as_json=json, quiet=quiet, rows=rows, path=result.cache)
