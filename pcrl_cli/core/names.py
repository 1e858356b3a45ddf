"""From a name to the module that implements it, and names as metrics have them."""

import difflib
import re
from collections.abc import Mapping
from importlib import import_module
from types import ModuleType

from pcrl_cli.core.errors import UsageError


def find(kind: str, name: str, known: Mapping[str, str]) -> ModuleType:
    """The module of a method, task or reader.

    Raises:
        UsageError: an unknown name; lists the known ones.
    """
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"the {kind}s are {', '.join(sorted(known))}"
        raise UsageError(f"there is no {kind} {name!r}; {hint}")
    return import_module(known[name])


def plain(name: str) -> str:
    """Its letters and digits, small, with `_` for what is between: pleural_thickening of Pleural-Thickening."""
    return re.sub(r"\W+", "_", name).strip("_").lower()
