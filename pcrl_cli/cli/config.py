"""pcrl config"""

from typing import Annotated

import typer

from pcrl_cli.cli import console, options


@console.command
def command(
    action: Annotated[str, typer.Argument(metavar="show", help="show: settings and where each comes from")],
    verb: Annotated[str, typer.Argument(metavar="prep|pretrain|finetune", help="Whose settings")],
    name: Annotated[str | None, typer.Argument(help="Data set or task (default: luna)")] = None,
    recipe: options.Recipe = None,
    config: options.Config = None,
    set_: options.Set = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Show the resolved settings of a command and where each value comes from."""
    console.choice("the action", action, ("show",))
    console.choice("the verb", verb, ("prep", "pretrain", "finetune"))
    from pcrl_cli.core.config import leaves
    from pcrl_cli.stages.config import resolved

    result = resolved(verb, name, recipe, console.layers(config, set_, {}))
    values = dict(leaves(result.settings))
    rows = {key: f"{value}  ({result.origin.get(key, 'default')})" for key, value in values.items()}
    console.show(result, as_json=json, quiet=quiet, rows=rows)
