"""The `pcrl` command. Nothing here imports torch: a command imports its stage when it runs."""

import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from pcrl_cli.cli import (
    config,
    console,
    demo,
    discover,
    doctor,
    embed,
    evaluate,
    export,
    finetune,
    import_,
    inspect,
    predict,
    prep,
    pretrain,
    probe,
    replay,
    report,
    slurm,
    table,
)


class OneSentence(TyperGroup):
    """A wrong word on the command line gets one sentence and exit code 2, like every other mistake."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        try:
            code = super().main(args, prog_name, complete_var, False, windows_expand_args, **extra)
        except typer.Abort:
            code = console.INTERRUPTED
        except Exception as error:
            if not standalone_mode or not hasattr(error, "format_message"):
                raise
            code = _usage(error)
        if not standalone_mode:
            return code
        sys.exit(code if isinstance(code, int) else 0)


def _usage(error: Any) -> int:
    """Says what is wrong with the command line; returns the exit code."""
    if type(error).__name__ == "NoArgsIsHelpError":  # the help has been printed
        return int(error.exit_code)
    text = " ".join(str(error.format_message()).split()).rstrip(".")
    context = getattr(error, "ctx", None)
    where = f"; see `{context.command_path} --help`" if context is not None else ""
    console.stderr().print(f"pcrl: {text[:1].lower()}{text[1:]}{where}", markup=False)
    return int(error.exit_code)


app = typer.Typer(
    name="pcrl",
    cls=OneSentence,
    help="Pre-train on your own scans with PCRLv2, fine-tune, evaluate, and take the weights away.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done, 1 our bug, 2 usage, 3 configuration, 4 data, 5 numerical, 6 machine, 7 integrity, "
    "8 threshold not met, 75 stopped and saved: run the same command again, 130 interrupted.",
)

for module in (
    prep,
    discover,
    pretrain,
    finetune,
    evaluate,
    table,
    predict,
    probe,
    embed,
    export,
    import_,
    inspect,
    replay,
    report,
    slurm,
    doctor,
    config,
    demo,
):
    app.command(module.__name__.rpartition(".")[2].rstrip("_"))(module.command)


def _version(wanted: bool) -> bool:
    if wanted:
        from pcrl_cli.cli.version import text

        print(text())
        raise typer.Exit
    return wanted


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Versions, and exit")
    ] = False,
) -> None:
    """Pre-train on your own scans with PCRLv2, fine-tune, evaluate, and take the weights away."""


def main() -> None:
    """The command. Under torchrun the process ends here, since gloo's threads abort an interpreter that tidies up."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        app()
    try:
        app()
    except SystemExit as end:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(end.code if isinstance(end.code, int) else 0 if end.code is None else 1)
