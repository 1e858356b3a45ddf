"""Settings: pydantic models, recipes, and the order in which sources override each other.

    defaults < recipe < --config FILE < PCRL_* variables < --set a.b=c < flags

A recipe is data (`recipes/*.yaml`), never a branch in the code: each of its rows is one option that can be set alone.
"""

import difflib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from pcrl_cli.core.errors import ConfigError, IntegrityError, UsageError
from pcrl_cli.core.files import read_sealed

RECIPES = ("paper", "released")
PRESETS = ("matched", "native")
ENVIRONMENT = "environment"
RESERVED = ("PCRL_WORKSPACE", "PCRL_DATA")  # variables that are not settings
NO_YAML = (yaml.YAMLError, ValueError, RecursionError)
"""What PyYAML raises: its own, but also what `datetime` and `float` say of 2024-13-45 or `._`, and brackets without end."""
GROUPS = frozenset(
    (
        "reader",
        "recipe",
        "preset",
        "words",
        "thumbnails",
        "cubes",
        "seed",
        "spacing_mm",
        "intensity",
        "pairs",
        "candidates",
        "prepare",
        "modalities",
        "regions",
        "volumes",
        "method",
        "dim",
        "learner",
        "train",
        "set_aside",
        "init",
        "any_recipe",
        "probe_every_epochs",
        "task",
        "ratio",
        "width",
        "poolings",
        "stem",
        "transfer",
        "allow_overlap",
    )
)
"""First keys that some verb knows: a PCRL_* variable of another verb is passed over, not an error."""


class Settings(BaseModel):
    """Base of every settings model: frozen, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


Model = TypeVar("Model", bound=BaseModel)
Layer = tuple[str, dict[str, Any]]
"""Where values come from (for messages and `config`), and the nested values."""


def recipe(name: str, *path: str) -> dict[str, Any]:
    """The values that a recipe holds at a path, such as ("pretrain", "pcrlv2", "3d"); empty where it holds none."""
    if name not in RECIPES:
        raise ConfigError(f"there is no recipe {name!r}; the recipes are {', '.join(RECIPES)}")
    return _values(name, path)


def preset(name: str, *path: str) -> dict[str, Any]:
    """The values that a preset holds for a (method, dimension); empty for PCRLv2, whose recipes say everything."""
    if name not in PRESETS:
        raise ConfigError(f"there is no preset {name!r}; the presets are {', '.join(PRESETS)}")
    return _values("presets", (name, *path))


def _values(file: str, path: Iterable[str]) -> dict[str, Any]:
    tree: Any = yaml.safe_load(resources.files("pcrl_cli").joinpath("recipes", f"{file}.yaml").read_text("utf-8"))
    for key in path:
        tree = (tree or {}).get(key, {})
    return dict(tree or {})


def file_layer(path: Path) -> Layer:
    """The values of a `--config` file."""
    try:
        values = read_yaml(path)
    except ConfigError as error:
        raise ConfigError(f"{error}; give a YAML file such as a run's config.yaml, or leave it out") from None
    if _settings_beside(path) not in (None, values):
        raise IntegrityError(
            f"{path} is torn or was edited (run.json beside it holds other settings); copy it elsewhere to change it, or run "
            "the run's own command again to mend it"
        )
    return str(path), values


def read_yaml(path: Path) -> dict[str, Any]:
    """What a YAML file says by name; an empty one says nothing.

    Raises:
        ConfigError: it is not there, is a folder, is torn or no YAML, or holds something else; the caller says what to do.
    """
    try:
        values = yaml.safe_load(path.read_text("utf-8"))
        json.dumps(values, default=str, skipkeys=True)  # refuses what holds itself
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist") from None
    except (OSError, *NO_YAML) as error:
        why = error.strerror if isinstance(error, OSError) else str(error).partition("\n")[0]
        raise ConfigError(f"{path} cannot be read as YAML ({(why or type(error).__name__).lower()})") from None
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise ConfigError(f"{path} holds no settings, which are lines such as 'train: {{lr: 0.001}}'")
    return values


def _settings_beside(path: Path) -> Any:
    """The settings in the run.json beside a run's own config.yaml; None where the file is nobody's."""
    record = path.parent / "run.json"
    if path.name != "config.yaml" or not record.is_file():
        return None
    try:
        return read_sealed(record).get("settings")
    except IntegrityError:
        return None  # opening that run says so


def environment_layer(environ: Mapping[str, str] | None = None) -> Layer:
    """`PCRL_TRAIN__LR=0.01` is train.lr = 0.01: the prefix, then keys in any case, two underscores for a dot."""
    values: dict[str, Any] = {}
    for name, text in sorted((os.environ if environ is None else environ).items()):
        if name.startswith("PCRL_") and name not in RESERVED:
            try:
                value = _value(text)
            except NO_YAML:
                raise ConfigError(
                    f"the value {text!r} of {name} is no YAML; correct it or unset the variable"
                ) from None
            put(values, name.removeprefix("PCRL_").lower().replace("__", "."), value)
    return ENVIRONMENT, values


def set_layer(pairs: Iterable[str]) -> Layer:
    """`--set a.b=c`, c read as YAML: numbers, booleans, lists and text."""
    values: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise UsageError(f"--set {pair!r} is not KEY=VALUE; write for example --set train.lr=0.001")
        try:
            value = _value(text)
        except NO_YAML:
            raise UsageError(f"--set {pair!r}: {text!r} is no YAML; put text with such signs in quotes") from None
        put(values, key.strip(), value)
    return "--set", values


def _value(text: str) -> Any:
    """A YAML scalar, and `1e-3` too, which YAML 1.1 takes for text."""
    value = yaml.safe_load(text) if text else ""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def put(tree: dict[str, Any], dotted: str, value: Any) -> None:
    """tree["a"]["b"] = value for "a.b"."""
    path, _, last = dotted.rpartition(".")
    (_group(tree, path) if path else tree)[last] = value


def _group(tree: dict[str, Any], dotted: str) -> dict[str, Any]:
    """The nested group of that name, made where it is missing."""
    for key in dotted.split("."):
        tree = tree.setdefault(key, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"{dotted}: {key} is a value, not a group of settings")
    return tree


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """("a.b", value) for every leaf of nested mappings."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def merge(layers: Iterable[Layer]) -> tuple[dict[str, Any], dict[str, str]]:
    """Later layers win, leaf by leaf; also says for every leaf which layer it came from."""
    values: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for name, tree in layers:
        for key, value in leaves(tree):
            if isinstance(value, Mapping):  # an empty group names itself and overrides nothing
                _group(values, key)
            else:
                put(values, key, value)
                origin[key] = name
    return values, origin


def build(model: type[Model], layers: Iterable[Layer]) -> tuple[Model, dict[str, str]]:
    """A validated model from layers, and each value's origin.

    Raises:
        ConfigError: an unknown key (with the nearest known one) or a value that does not fit, and where it came from.
        UsageError: a flag's value does not fit.
    """
    layers = [(name, _meant_for(model, tree) if name == ENVIRONMENT else tree) for name, tree in layers]
    values, origin = merge(layers)
    for key in origin:
        _check_known(model, key, origin[key])
    return validate(model, values, origin), origin


def validate(model: type[Model], values: Mapping[str, Any], origin: Mapping[str, str] | None = None) -> Model:
    """The model, with pydantic's complaint turned into one sentence."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"] if not str(part).startswith("function-"))
        source = (origin or {}).get(key)
        where = f" (from {source})" if source else ""
        what = first["msg"].removeprefix("Value error, ")
        given = "" if first["type"] in ("missing", "value_error") else f", not {first['input']!r}"
        kind = (
            UsageError if source == "flags" else ConfigError
        )  # whoever notices it, a wrong word on the command line is one
        raise kind(f"{key or model.__name__}{where}: {what[:1].lower()}{what[1:]}{given}") from None


def picked(layers: Iterable[Layer], key: str, default: Any) -> Any:
    """The top-level value that the layers give a key, before there is a model."""
    return merge(layers)[0].get(key, default)


def _meant_for(model: type[BaseModel], tree: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in tree.items() if key in model.model_fields or key not in GROUPS}


def _check_known(model: type[BaseModel], dotted: str, origin: str) -> None:
    part: Any = model
    for i, key in enumerate(dotted.split(".")):
        if not (isinstance(part, type) and issubclass(part, BaseModel)):
            return  # inside a free-form value; pydantic judges it
        if key not in part.model_fields:
            prefix = ".".join(dotted.split(".")[:i])
            known = [f"{prefix}.{name}" if prefix else name for name in part.model_fields]
            every = all_keys(model)
            near = [other for other in every if other.rpartition(".")[2] == dotted.rpartition(".")[2]]
            near += difflib.get_close_matches(dotted, [*known, *every], n=1, cutoff=0.5)
            lasts = {other.rpartition(".")[2]: other for other in every}
            near += [lasts[last] for last in difflib.get_close_matches(dotted.rpartition(".")[2], lasts, n=1)]
            hint = f"did you mean {near[0]}?" if near else f"known keys are {', '.join(known)}"
            raise ConfigError(f"unknown setting {dotted} (from {origin}); {hint}")
        part = part.model_fields[key].annotation


def all_keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    """Every dotted key of a settings model."""
    keys = []
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            keys += all_keys(kind, f"{prefix}{name}.")
        else:
            keys.append(prefix + name)
    return keys


def told(model: BaseModel, origin: Mapping[str, str]) -> list[str]:
    """Every setting in a line: what it is, and who said so."""
    values = leaves(model.model_dump(mode="json"))
    return [f"{key}: {value} ({origin.get(key, 'default')})" for key, value in values]


def dump_yaml(model: BaseModel) -> str:
    """The settings as `--config` reads them back."""
    return yaml.safe_dump(model.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=100)
