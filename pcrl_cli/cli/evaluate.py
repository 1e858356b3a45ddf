"""pcrl evaluate"""

from pathlib import Path
from typing import Annotated

import typer

from pcrl_cli.cli import console, options
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
    workspace: options.WorkspaceDir = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Score a fine-tuned run: AUROC with intervals, FROC and CPM, a CSV row a candidate, report.html."""
    on = console.choice("--device", device, ("auto", "cpu", "cuda"))
    part = console.choice("--split", split, ("train", "val", "test", "all"))
    least = _thresholds(fail_under or [])
    from pcrl_cli.stages.evaluate import check_thresholds, evaluate, require
    from pcrl_cli.stages.workspace import Workspace

    check_thresholds(least)
    result = evaluate(
        run,
        cache,
        task=task,
        split=part,
        all_candidates=all_candidates,
        workspace=Workspace(workspace),
        device=on,
        listener=console.Bars(quiet or json),
    )
    rows = {
        "run": f"{result.run} (start: {result.start})",
        "part": f"{result.split}: {result.patients} patients, {result.candidates} candidates, {result.positives} nodules",
        "AUROC": _estimate(result.auroc, "DeLong"),
        "AUROC by patient": _estimate(result.auroc_clustered, "bootstrap"),
        "CPM": f"{result.froc.cpm:.4f}" if result.froc.cpm is not None else f"- ({result.froc.reason})",
        "predictions": result.predictions,
        "report": result.report,
    }
    console.show(result, as_json=json, quiet=quiet, rows=rows, path=result.evaluation)
    require(result, least)


def _estimate(e: object, how: str) -> str:
    value, low, high, reason = (getattr(e, name) for name in ("value", "low", "high", "reason"))
    if value is None:
        return f"- ({reason})"
    if low is None:
        return f"{value:.4f} (no interval: {reason})"
    return f"{value:.4f} (95 %: {low:.4f} to {high:.4f}, {how})"


def _thresholds(pairs: list[str]) -> dict[str, float]:
    found = {}
    for pair in pairs:
        name, _, value = pair.partition("=")
        try:
            found[name] = float(value)
        except ValueError:
            raise UsageError(f"--fail-under is METRIC=NUMBER, such as auroc=0.8, not {pair!r}") from None
    return found
