"""pcrl finetune"""

from pathlib import Path
from typing import Annotated

import typer

from pcrl_cli.cli import console, options


@console.command
def command(
    cache: Annotated[Path | None, typer.Argument(help="Cache with labels (default: the workspace's only one)")] = None,
    task: options.Task = None,
    weights: Annotated[
        Path | None, typer.Option("--weights", help="Run or file to start from (default: from scratch)")
    ] = None,
    init: options.Init = None,
    ratio: Annotated[
        float | None, typer.Option("--ratio", help="Share of labelled training patients (default: 1)")
    ] = None,
    allow_overlap: Annotated[
        bool, typer.Option("--allow-overlap", help="Accept weights that saw the test patients")
    ] = False,
    recipe: options.Recipe = None,
    out: Annotated[Path | None, typer.Option("--out", help="Run folder (default: runs/finetune-...)")] = None,
    epochs: options.Epochs = None,
    steps: options.Steps = None,
    batch: options.Batch = None,
    width: options.Width = None,
    device: options.Device = "auto",
    precision: options.Precision = None,
    cache_on: options.CacheOn = "auto",
    seed: options.Seed = None,
    keep: options.Keep = None,
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
    """Train a task from pre-trained weights, or from scratch without."""
    on = console.choice("--device", device, ("auto", "cpu", "cuda"))
    where = console.choice("--cache-on", cache_on, ("auto", "gpu", "ram", "disk"))
    from pcrl_cli.stages.finetune import finetune
    from pcrl_cli.stages.results import Plan
    from pcrl_cli.stages.workspace import Workspace

    flags = console.given(recipe=recipe, task=task, ratio=ratio, width=width)
    flags |= {"allow_overlap": True} if allow_overlap else {}
    flags["train"] = console.training(epochs, steps, batch, precision, seed, keep)
    result = finetune(
        cache,
        task=task,
        weights=weights,
        init=init,
        recipe=recipe,
        layers=console.layers(config, set_, flags),
        out=out,
        workspace=Workspace(workspace),
        device=on,
        cache_on=where,
        overwrite=overwrite,
        dry_run=dry_run,
        listener=console.Bars(quiet or json, verbose),
    )
    if isinstance(result, Plan):
        return console.show_plan(result, json, quiet)
    rows = {
        "start": result.start,
        "labelled patients": result.labelled_patients,
        "labels": result.labels,
        **console.outcome(result.outcome),
        "kept": result.kept,
        f"best validation {result.metric}": result.best_validation,
        "report": result.report,
    }
    console.show(result, as_json=json, quiet=quiet, rows=rows, path=result.run)
