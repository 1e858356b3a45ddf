"""pcrl prep"""

from pathlib import Path
from typing import Annotated, Any

import typer

from pcrl_cli.cli import console, options
from pcrl_cli.core.errors import UsageError


@console.command
def command(
    name: options.DataSet,
    data: Annotated[Path | None, typer.Option("--data", help="The raw data set (default: data/NAME)")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="The cache to make (default: cache/NAME)")] = None,
    recipe: options.Recipe = None,
    seed: options.Seed = None,
    pairs: Annotated[int | None, typer.Option("--pairs", min=0, help="Crop pairs a scan (default: 16)")] = None,
    negatives: Annotated[
        int | None, typer.Option("--negatives", min=0, help="Candidates of class 0 a scan (default: 20)")
    ] = None,
    modality: Annotated[
        str | None, typer.Option("--modality", metavar="ct|mr", help="Of a folder's scans (default: ct)")
    ] = None,
    modalities: Annotated[
        str | None, typer.Option("--modalities", metavar="NAME,...", help="MR sequences to use (default: all four)")
    ] = None,
    patients: Annotated[Path | None, typer.Option("--patients", help="CSV that groups scans by patient")] = None,
    candidates: Annotated[Path | None, typer.Option("--candidates", help="CSV in place of candidates_V2.csv")] = None,
    size: Annotated[
        int | None, typer.Option("--size", min=8, help="Rows and columns of radiographs (default: 256)")
    ] = None,
    aspect: Annotated[
        str | None, typer.Option("--aspect", metavar="stretch|pad", help="How they become square (default: stretch)")
    ] = None,
    labels: Annotated[
        Path | None, typer.Option("--labels", help="CSV of a folder: path, patient, part, classes or label")
    ] = None,
    masks: Annotated[
        Path | None, typer.Option("--masks", help="Folder of a folder's masks, named as its scans or pictures")
    ] = None,
    regions: Annotated[
        str | None,
        typer.Option(
            "--regions", metavar="NAME=1+2,...|FILE", help="What the masks' labels are (default: each its own)"
        ),
    ] = None,
    uncertain: Annotated[
        str | None, typer.Option("--uncertain", metavar="zero|one|ignore", help="CheXpert's -1 (default: zero)")
    ] = None,
    view: Annotated[
        str | None, typer.Option("--view", metavar="frontal|lateral|all", help="Of CheXpert (default: all)")
    ] = None,
    official_split: Annotated[
        bool, typer.Option("--official-split", help="Parts by the data set's own lists (nih, chexpert)")
    ] = False,
    jobs: Annotated[str, typer.Option("--jobs", metavar="N|auto", help="Processes")] = "auto",
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Only the first N scans or images")] = None,
    shard: Annotated[
        str | None, typer.Option("--shard", metavar="I/N", help="This process's share of the work")
    ] = None,
    max_bad: Annotated[
        float, typer.Option("--max-bad", min=0, max=1, help="Share of scans or images that may be unusable")
    ] = 0.05,
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
    """Turn raw scans into a cache of crops, or of images: resumable, parallel, sealed with hashes."""
    workers, part = _jobs(jobs), _shard(shard)
    from pcrl_cli.stages.prep import prep, require
    from pcrl_cli.stages.results import Plan
    from pcrl_cli.stages.workspace import Workspace

    flags: dict[str, Any] = console.given(
        recipe=recipe,
        seed=seed,
        pairs={"pairs": pairs} if pairs is not None else None,
        candidates={"negatives": negatives} if negatives is not None else None,
        modalities=[name.strip().lower() for name in modalities.split(",")] if modalities is not None else None,
        **_of_kind(modality and console.choice("--modality", modality, ("ct", "mr")), size, masks),
        aspect=console.choice("--aspect", aspect, ("stretch", "pad")) if aspect else None,
        uncertain=console.choice("--uncertain", uncertain, ("zero", "one", "ignore")) if uncertain else None,
        view=console.choice("--view", view, ("frontal", "lateral", "all")) if view else None,
        official_split=official_split or None,
    )
    result = prep(
        name,
        data=data,
        out=out,
        workspace=Workspace(workspace),
        recipe=recipe,
        layers=console.layers(config, set_, flags),
        jobs=workers,
        limit=limit,
        shard=part,
        options=console.given(patients=patients, candidates=candidates, labels=labels, masks=masks, regions=regions),
        dry_run=dry_run,
        overwrite=overwrite,
        listener=console.Bars(quiet or json, verbose),
    )
    if isinstance(result, Plan):
        return console.show_plan(result, json, quiet)
    console.show(result, as_json=json, quiet=quiet, rows=_rows(result), path=result.cache)
    require(result, max_bad)


def _of_kind(modality: str | None, size: int | None, masks: Path | None) -> dict[str, Any]:
    """Where the settings of a cache with masks, and of others, hold these two."""
    if masks is None:
        return {"intensity": {"modality": modality} if modality else None, "size": size}
    prepare = {name: value for name, value in (("modality", modality), ("size", size)) if value}
    return {"prepare": prepare or None}


def _rows(result: Any) -> dict[str, Any]:
    done = result.unit if result.unit not in result.totals else f"{result.unit}, this call"
    return {
        done: f"{result.made} made, {result.skipped} there already, {result.bad} left out",
        **({"left out": result.refused} if result.refused else {}),
        "patients": result.patients,
        **({"copies": result.copies} if result.copies["same"] else {}),
        **dict(result.totals.items()),
        f"rows of absent {result.unit}": result.absent_rows,
        "size": f"{result.bytes / 1e9:.2f} GB",
        "seconds": result.seconds,
    }


def _jobs(text: str) -> Any:
    if text == "auto":
        return text
    if not text.isdecimal() or int(text) < 1:
        raise UsageError(f"--jobs is a number of processes or auto, not {text!r}")
    return int(text)


def _shard(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    first, slash, last = text.partition("/")
    if not (slash and first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
        raise UsageError(f"--shard is I/N with I from 1 to N, such as 3/16, not {text!r}")
    return int(first), int(last)
