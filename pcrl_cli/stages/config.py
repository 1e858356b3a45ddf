"""The settings that a command would run with."""

from collections.abc import Sequence
from typing import Any, ClassVar

from pcrl_cli.core.config import Layer
from pcrl_cli.stages.finetune import finetune_settings
from pcrl_cli.stages.prep import prep_settings
from pcrl_cli.stages.pretrain import pretrain_settings
from pcrl_cli.stages.results import Result


class ConfigResult(Result):
    """`origin`: the source of every value that is not a default."""

    schema_name: ClassVar[str] = "pcrl.config/1"
    verb: str
    settings: dict[str, Any]
    origin: dict[str, str]


def resolved(verb: str, name: str | None, recipe: str | None, layers: Sequence[Layer]) -> ConfigResult:
    """The settings of `prep`, `pretrain` or `finetune`; name: of a data set (prep) or a task (finetune)."""
    if verb == "prep":
        settings, origin = prep_settings(name or "luna", recipe, layers)
    elif verb == "pretrain":
        settings, origin = pretrain_settings(None, recipe, None, layers)  # type: ignore[assignment]
    else:
        settings, origin = finetune_settings(name or "luna", recipe, layers)  # type: ignore[assignment]
    return ConfigResult(verb=verb, settings=settings.model_dump(mode="json"), origin=origin)
