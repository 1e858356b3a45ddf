"""The `pcrl` command. Nothing here imports torch: a command imports its stage when it runs."""

from typing import Annotated

import typer

from pcrl_cli.cli import (
    config,
    demo,
    discover,
    doctor,
    embed,
    evaluate,
    export,
    finetune,
    inspect,
    prep,
    pretrain,
    probe,
    report,
    table,
)

app = typer.Typer(
    name="pcrl",
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
    probe,
    embed,
    export,
    inspect,
    report,
    doctor,
    config,
    demo,
):
    app.command(module.__name__.rpartition(".")[2])(module.command)


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
    app()
