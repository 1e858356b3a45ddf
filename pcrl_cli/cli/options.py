"""Options that several commands share, under one name each."""

from pathlib import Path
from typing import Annotated

import typer

from pcrl_cli.methods import METHODS
from pcrl_cli.readers import READERS
from pcrl_cli.tasks import TASKS


def names(known: dict[str, str]):  # type: ignore[no-untyped-def]
    """Completion of a name."""
    return lambda incomplete: [name for name in sorted(known) if name.startswith(incomplete)]


EVERYWHERE = "Everywhere"
TRAINING = "Training"

WorkspaceDir = Annotated[
    Path | None,
    typer.Option(
        "--workspace",
        help="Folder with data/, cache/ and runs/ (default: PCRL_WORKSPACE or .)",
        rich_help_panel=EVERYWHERE,
    ),
]
Config = Annotated[
    Path | None, typer.Option("--config", help="YAML settings, e.g. a run's config.yaml", rich_help_panel=EVERYWHERE)
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="One setting; may be repeated", rich_help_panel=EVERYWHERE),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Redo what is there", rich_help_panel=EVERYWHERE)]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan, do nothing", rich_help_panel=EVERYWHERE)]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object", rich_help_panel=EVERYWHERE)]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Print the path only; no bars", rich_help_panel=EVERYWHERE)]
Verbose = Annotated[
    bool,
    typer.Option(
        "-v", "--verbose", help="More on stderr: settings and origins, versions, every step", rich_help_panel=EVERYWHERE
    ),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks", rich_help_panel=EVERYWHERE)]

Recipe = Annotated[
    str | None, typer.Option("--recipe", metavar="paper|released", help="Whose settings (default: paper)")
]
Task = Annotated[
    str | None, typer.Option("--task", metavar="|".join(TASKS), help="Downstream task", autocompletion=names(TASKS))
]
Method = Annotated[
    str | None,
    typer.Option("--method", metavar="|".join(METHODS), help="(default: pcrlv2)", autocompletion=names(METHODS)),
]
DataSet = Annotated[
    str, typer.Argument(metavar="NAME", help=f"Data set: {', '.join(READERS)}", autocompletion=names(READERS))
]

Init = Annotated[
    str | None,
    typer.Option("--init", metavar="imagenet=FILE", help="2D: start from a local torchvision resnet18 state dict"),
]

Epochs = Annotated[int | None, typer.Option("--epochs", min=1, help="Length of the training", rich_help_panel=TRAINING)]
Steps = Annotated[
    int | None, typer.Option("--steps", min=1, help="Length, in place of --epochs", rich_help_panel=TRAINING)
]
Batch = Annotated[int | None, typer.Option("--batch", help="Samples a step", rich_help_panel=TRAINING)]
Width = Annotated[
    int | None,
    typer.Option("--width", min=1, help="Base number of filters (default: 32; 2D: 64)", rich_help_panel=TRAINING),
]
Device = Annotated[str, typer.Option("--device", metavar="auto|cpu|cuda", rich_help_panel=TRAINING)]
Precision = Annotated[str | None, typer.Option("--precision", metavar="auto|fp32|bf16", rich_help_panel=TRAINING)]
Compile = Annotated[bool, typer.Option("--compile", help="torch.compile of the network", rich_help_panel=TRAINING)]
CacheOn = Annotated[
    str, typer.Option("--cache-on", metavar="auto|gpu|ram|disk", help="Where the cache lies", rich_help_panel=TRAINING)
]
Seed = Annotated[int | None, typer.Option("--seed", min=0, help="Of everything random (default: 0)")]
Keep = Annotated[int | None, typer.Option("--keep", help="Checkpoints kept (default: 2)", rich_help_panel=TRAINING)]
