"""pcrl demo"""

from pathlib import Path
from typing import Annotated

import typer

from pcrl_cli.cli import console, options


@console.command
def command(
    task: Annotated[str, typer.Option("--task", metavar="luna", help="Which chain")] = "luna",
    out: Annotated[Path, typer.Option("--out", help="Workspace to make")] = Path("demo"),
    patients: Annotated[int, typer.Option("--patients", min=5, help="Scans to make")] = 40,
    steps: Annotated[int, typer.Option("--steps", min=2, help="Of pre-training")] = 60,
    epochs: Annotated[int, typer.Option("--epochs", min=1, help="Of fine-tuning")] = 12,
    width: Annotated[int, typer.Option("--width", min=1, help="Base number of filters")] = 4,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Run the whole chain on scans that the program makes itself; a few minutes on two cores."""
    console.choice("--task", task, ("luna",))
    from pcrl_cli.stages.demo import demo

    result = demo(
        out,
        patients=patients,
        pretrain_steps=steps,
        finetune_epochs=epochs,
        width=width,
        seed=seed,
        listener=console.Bars(quiet or json),
    )
    rows: dict[str, object] = {
        f"AUROC, {name}": _with_interval(value, result.intervals[name]) for name, value in result.auroc.items()
    }
    rows |= {"encoder": result.encoder, "seconds": result.seconds}
    console.show(result, as_json=json, quiet=quiet, rows=rows, path=result.report)


def _with_interval(value: float | None, interval: tuple[float | None, float | None]) -> str:
    if value is None or None in interval:
        return "-" if value is None else f"{value:.3f}"
    return f"{value:.3f} (95 % {interval[0]:.3f} to {interval[1]:.3f}, by patient)"
