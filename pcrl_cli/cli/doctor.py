"""pcrl doctor"""

import typer

from pcrl_cli.cli import console, options
from pcrl_cli.core.errors import MachineError


@console.command
def command(
    workspace: options.WorkspaceDir = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Say whether this machine is fit: torch, CUDA, cuDNN, a bf16 convolution, memory, disk."""
    from pcrl_cli.stages.doctor import doctor
    from pcrl_cli.stages.workspace import Workspace

    result = doctor(Workspace(workspace).root)
    rows = {check.name: f"{check.state}: {check.detail}" for check in result.checks}
    rows |= {name: value for name, value in result.facts.items() if name not in ("torch", "cuda", "cudnn", "gpu")}
    console.show(result, as_json=json, quiet=quiet, rows=rows)
    if not result.fit:
        if json:
            raise typer.Exit(MachineError.exit_code)
        bad = ", ".join(check.name for check in result.checks if check.state == "failed")
        raise MachineError(f"this machine is not fit to train ({bad}); what to do is said above")
