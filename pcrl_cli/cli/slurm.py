"""pcrl slurm"""

from pathlib import Path
from typing import Annotated

import typer

from pcrl_cli.cli import console, options


@console.command
def command(
    training: Annotated[
        list[str],
        typer.Argument(
            metavar="-- COMMAND ...", help="What to run, e.g. `-- pretrain cache/luna` or `-- table SPEC.yaml`"
        ),
    ],
    nodes: Annotated[int, typer.Option("--nodes", min=1, help="Machines")] = 1,
    gpus: Annotated[int, typer.Option("--gpus", min=1, help="GPUs a machine")] = 1,
    tasks: Annotated[int | None, typer.Option("--tasks", min=1, help="Of an array, for prep and table")] = None,
    hours: Annotated[float, typer.Option("--hours", help="Time limit; then saved and put back in the queue")] = 24.0,
    cpus: Annotated[int, typer.Option("--cpus", min=1, help="CPU cores a GPU")] = 8,
    memory: Annotated[int | None, typer.Option("--memory", min=1, metavar="GB", help="A machine")] = None,
    name: Annotated[str, typer.Option("--name", help="Of the job")] = "pcrl",
    partition: Annotated[str | None, typer.Option("--partition")] = None,
    account: Annotated[str | None, typer.Option("--account")] = None,
    setup: Annotated[
        str, typer.Option("--setup", help="Shell line before the start, e.g. 'source .venv/bin/activate'")
    ] = "",
    out: Annotated[Path | None, typer.Option("--out", help="Write it there (default: print it)")] = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Print a batch file: a training on one or many nodes, or an array for prep or table; it requeues itself."""
    from pcrl_cli.core.config import validate
    from pcrl_cli.stages.slurm import Job, slurm

    values = {
        "nodes": nodes,
        "gpus": gpus,
        "tasks": tasks,
        "hours": hours,
        "cpus_a_gpu": cpus,
        "memory_gb": memory,
        "name": name,
    }
    result = slurm(training, validate(Job, values | {"partition": partition, "account": account, "setup": setup}), out)
    if out is None and not json:
        print(result.text, end="")
    else:
        console.show(result, as_json=json, quiet=quiet, rows={"batch file": out}, path=out)
