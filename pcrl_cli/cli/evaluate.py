"""pcrl evaluate"""

from pathlib import Path
from typing import Annotated

import typer

from pcrl_cli.cli import console, options
from pcrl_cli.core.config import set_layer
from pcrl_cli.core.errors import UsageError


@console.command
def command(
    run: Annotated[
        Path | None, typer.Argument(help="Fine-tuned run (default: the newest finished one of the task)")
    ] = None,
    cache: Annotated[
        Path | None, typer.Argument(help="Another cache, an external test (default: the run's own)")
    ] = None,
    task: options.Task = None,
    split: Annotated[str, typer.Option("--split", metavar="train|val|test|all", help="Part to score")] = "test",
    all_candidates: Annotated[
        bool, typer.Option("--all-candidates", help="Score every candidate, from the raw scans")
    ] = False,
    fail_under: Annotated[
        list[str] | None, typer.Option("--fail-under", metavar="METRIC=F", help="End with 8 if under F or null")
    ] = None,
    device: options.Device = "auto",
    precision: options.Precision = None,
    compile: options.Compile = False,
    workspace: options.WorkspaceDir = None,
    set_: options.Set = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Score a fine-tuned run: the task's metrics with intervals, a CSV row a case, report.html."""
    on = console.choice("--device", device, ("auto", "cpu", "cuda"))
    number = console.choice("--precision", precision or "auto", ("auto", "fp32", "bf16"))
    part = console.choice("--split", split, ("train", "val", "test", "all"))
    least = _thresholds(fail_under or [])
    from pcrl_cli.stages.evaluate import evaluate, require
    from pcrl_cli.stages.workspace import Workspace

    result = evaluate(
        run,
        cache,
        task=task,
        split=part,
        options={"all_candidates": all_candidates, "set": set_layer(set_ or [])[1]},
        fail_under=least,
        workspace=Workspace(workspace),
        device=on,
        precision=number,
        compile=compile,
        listener=console.Bars(quiet or json, verbose),
    )
    rows = {
        "run": f"{result.run} (start: {result.start})",
        "part": f"{result.split}: {result.patients} patients, "
        + ", ".join(f"{n} {name}" for name, n in result.counts.items()),
        **{name.replace("_", " "): console.estimate(e) for name, e in result.metrics.items()},
        "predictions": result.predictions,
        "report": result.report,
    }
    console.show(result, as_json=json, quiet=quiet, rows=rows, path=result.evaluation)
    require(result, least)


def _thresholds(pairs: list[str]) -> dict[str, float]:
    found = {}
    for pair in pairs:
        name, _, value = pair.partition("=")
        try:
            found[name] = float(value)
        except ValueError:
            raise UsageError(f"--fail-under is METRIC=NUMBER, such as auroc=0.8, not {pair!r}") from None
    return found
