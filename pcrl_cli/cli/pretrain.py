"""pcrl pretrain"""

from pathlib import Path
from typing import Annotated

import typer

from pcrl_cli.cli import console, options

CROPS = ("sub", "multi", "none")


@console.command
def command(
    cache: Annotated[
        Path | None, typer.Argument(help="Cache (default: the workspace's only one of this dimension)")
    ] = None,
    dim: Annotated[str | None, typer.Option("--dim", metavar="2d|3d", help="(default: 3d)")] = None,
    crop: Annotated[
        str | None, typer.Option("--crop", metavar="sub|multi|none", help="Local views (default: sub; 2D: multi)")
    ] = None,
    method: options.Method = None,
    recipe: options.Recipe = None,
    preset: Annotated[
        str | None,
        typer.Option("--preset", metavar="matched|native", help="Training of a compared method (default: matched)"),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Run folder (default: runs/pretrain-...)")] = None,
    set_aside: Annotated[
        float | None, typer.Option("--set-aside", help="Share of training patients kept for fine-tuning")
    ] = None,
    init: options.Init = None,
    augment: Annotated[
        str | None, typer.Option("--augment", metavar="batched|torchio", help="torchio: slow, for comparison")
    ] = None,
    probe_every: Annotated[
        int | None,
        typer.Option(
            "--probe-every", min=0, metavar="EPOCHS", help="Probe after so many (default: a tenth of all; 0: never)"
        ),
    ] = None,
    stop_on_collapse: Annotated[
        bool, typer.Option("--stop-on-collapse", help="End with 5 when the features collapse")
    ] = False,
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
    """Pre-train an encoder on a cache; run the same command again to continue."""
    on = console.choice("--device", device, ("auto", "cpu", "cuda"))
    where = console.choice("--cache-on", cache_on, ("auto", "gpu", "ram", "disk"))
    dim = console.choice("--dim", dim, ("2d", "3d")) if dim else None
    crop = console.choice("--crop", crop, CROPS) if crop else None
    preset = console.choice("--preset", preset, ("matched", "native")) if preset else None
    from pcrl_cli.stages.pretrain import pretrain
    from pcrl_cli.stages.results import Plan
    from pcrl_cli.stages.workspace import Workspace

    flags = console.given(
        recipe=recipe,
        preset=preset,
        method=method,
        dim=dim,
        set_aside=set_aside,
        init=init,
        probe_every_epochs=probe_every,
    )
    flags["train"] = console.training(epochs, steps, batch, precision, seed, keep)
    flags["train"] |= {"stop_on_collapse": True} if stop_on_collapse else {}
    flags["learner"] = console.given(crop=crop, width=width, augmentation=augment)
    result = pretrain(
        cache,
        dim=dim,
        method=method,
        recipe=recipe,
        preset=preset,
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
        "patients": result.patients,
        "samples an epoch": result.samples,
        "parameters": f"{result.parameters:,}",
        **console.outcome(result.outcome),
        "start": result.start,
        "weights": result.weights,
        "report": result.report,
    }
    console.show(result, as_json=json, quiet=quiet, rows=rows, path=result.run)
