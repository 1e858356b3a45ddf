"""pcrl predict"""

from pathlib import Path
from typing import Annotated, Any

import typer

from pcrl_cli.cli import console, options
from pcrl_cli.core.errors import UsageError

SHOWN = 20
"""Cases whose probabilities are printed; the table has all."""


@console.command
def command(
    run: Annotated[Path, typer.Argument(help="Fine-tuned run, of any task but luna")],
    inputs: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="INPUT...",
            help="Image files, DICOM folders, folders with CASE_flair.nii.gz; of labels, folders of images",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for the masks, or the table of labels")] = None,
    modality: Annotated[
        list[str] | None,
        typer.Option("--modality", metavar="NAME=FILE", help="One case, a file for each sequence; repeat it"),
    ] = None,
    overlap: Annotated[float | None, typer.Option("--overlap", help="Of neighbouring windows (default: 0.5)")] = None,
    tta: Annotated[bool, typer.Option("--tta", help="Mean over all mirrorings: 8 passes")] = False,
    device: options.Device = "auto",
    precision: options.Precision = None,
    compile: options.Compile = False,
    config: options.Config = None,
    set_: options.Set = None,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Predict new images: a mask in each input's own grid, or the classes' probabilities, and predictions.csv."""
    on = console.choice("--device", device, ("auto", "cpu", "cuda"))
    number = console.choice("--precision", precision or "auto", ("auto", "fp32", "bf16"))
    if out is None:
        raise UsageError("say where the predictions go: --out DIR")
    files = _modalities(modality or [])
    learner: dict[str, Any] = console.given(overlap=overlap, tta=True if tta else None)
    layers = console.layers(config, set_, {"learner": learner} if learner else {})
    from pcrl_cli.stages.predict import PredictResult, predict, require

    result = predict(
        run,
        inputs or [],
        out,
        modalities=files,
        layers=layers,
        device=on,
        precision=number,
        compile=compile,
        overwrite=overwrite,
        listener=console.Bars(quiet or json, verbose),
    )
    found: dict[str, Any]
    if isinstance(result, PredictResult):
        unit = "pictures" if result.unit == "px" else "scans"
        found = {n: {f"{k} {result.unit}": v for k, v in sizes.items()} for n, sizes in result.volumes.items()}
        found["labels"] = result.labels
    else:
        unit, found = "cases", dict(list(result.probabilities.items())[:SHOWN])
        if len(result.probabilities) > SHOWN:
            found["and"] = f"{len(result.probabilities) - SHOWN} others, see the table"
    rows = {
        "run": f"{result.run} (task {result.task})",
        unit: f"{len(result.made)} predicted, {len(result.skipped)} there already, {len(result.failed)} left out",
        **found,
        "table": result.table,
    }
    console.show(result, as_json=json, quiet=quiet, rows=rows, path=result.out)
    require(result)


def _modalities(pairs: list[str]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for pair in pairs:
        name, equals, file = pair.partition("=")
        if not (name and equals and file):
            raise UsageError(f"--modality is NAME=FILE, such as flair=scan_flair.nii.gz, not {pair!r}")
        if name.lower() in found:
            raise UsageError(f"--modality names {name} twice; give one file for each sequence")
        found[name.lower()] = Path(file)
    return found
