"""pcrl demo"""

from pathlib import Path
from typing import Annotated, Any

import typer

from pcrl_cli.cli import console, options

TASKS = ("luna", "lits", "brats", "chest")
"""Those that have phantoms."""


@console.command
def command(
    task: Annotated[str, typer.Option("--task", metavar="|".join(TASKS), help="Which chain")] = "luna",
    out: Annotated[Path | None, typer.Option("--out", help="Workspace to make (default: demo, or demo-TASK)")] = None,
    patients: Annotated[int | None, typer.Option("--patients", min=5, help="Patients to make")] = None,
    steps: Annotated[int | None, typer.Option("--steps", min=2, help="Of pre-training")] = None,
    epochs: Annotated[int | None, typer.Option("--epochs", min=1, help="Of fine-tuning")] = None,
    width: Annotated[int | None, typer.Option("--width", min=1, help="Base number of filters")] = None,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Run the whole chain on images that the program makes itself; a few minutes on two cores."""
    console.choice("--task", task, TASKS)
    from pcrl_cli.stages.demo import demo

    result = demo(
        out or Path("demo" if task == "luna" else f"demo-{task}"),
        task=task,
        patients=patients,
        pretrain_steps=steps,
        finetune_epochs=epochs,
        width=width,
        seed=seed,
        listener=console.Bars(quiet or json, verbose),
    )
    name = result.metric.replace("_", " ")
    rows: dict[str, Any] = {f"{name}, {start}": console.estimate(e) for start, e in result.scores.items()}
    rows |= {"encoder": result.encoder, "seconds": result.seconds}
    console.show(result, as_json=json, quiet=quiet, rows=rows, path=result.report)
