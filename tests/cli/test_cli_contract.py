"""The command line that scripts rely on: the shape of every `--json`, versioned; where values come from; hostile places."""

import importlib
import json
import os
import pkgutil
import subprocess
import sys
import types
import typing
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

import pcrl_cli.stages
from pcrl_cli.cli.app import app
from pcrl_cli.stages.results import Result

SNAPSHOTS = Path(__file__).parent / "snapshots"
WRITE = os.environ.get("PCRL_SNAPSHOTS") == "write"
"""PCRL_SNAPSHOTS=write: takes them anew, for a change of shape that comes with a new version of its schema."""


def results() -> dict[str, type[Result]]:
    """Every result that a command prints, by its schema."""
    for module in pkgutil.walk_packages(pcrl_cli.stages.__path__, "pcrl_cli.stages."):
        importlib.import_module(module.name)
    found, todo = {}, [Result]
    while todo:
        for model in todo.pop().__subclasses__():
            todo.append(model)
            if model.__module__.startswith("pcrl_cli."):
                found[model.schema_name] = model
    return found


def shape(kind: Any) -> Any:
    """A type as plain values: models by their fields, containers by what they hold."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return {name: shape(field.annotation) for name, field in kind.model_fields.items()}
    parts = [shape(part) for part in typing.get_args(kind) if part is not ...]
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return {"one of": parts}
    if typing.get_origin(kind) is not None:
        return {getattr(typing.get_origin(kind), "__name__", str(typing.get_origin(kind))): parts}
    if kind is type(None):
        return "null"
    fields = getattr(kind, "__dataclass_fields__", None)
    if fields:
        return {name: shape(typing.get_type_hints(kind)[name]) for name in fields}
    return getattr(kind, "__name__", repr(kind))


@pytest.mark.parametrize("schema", sorted(results()))
def test_the_shape_of_a_result_is_the_one_of_its_version(schema):
    path = SNAPSHOTS / f"{schema.replace('/', '-')}.json"
    now = json.loads(json.dumps(shape(results()[schema])))
    if WRITE:
        path.write_text(json.dumps(now, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    assert path.exists(), f"{schema} is new: take its snapshot with PCRL_SNAPSHOTS=write"
    assert now == json.loads(path.read_text("utf-8")), f"{schema} has another shape: give it a new version"


def test_every_snapshot_is_of_a_result_that_is_printed():
    names = {schema.replace("/", "-") for schema in results()}
    assert {path.stem for path in SNAPSHOTS.glob("*.json")} == names
    assert all(schema.startswith("pcrl.") and schema.rpartition("/")[2].isdigit() for schema in results())


def test_a_changed_shape_would_be_noticed():
    class Old(BaseModel):
        a: int
        b: list[str] | None

    class New(BaseModel):
        a: float
        b: list[str] | None

    assert shape(Old) == {"a": "int", "b": {"one of": [{"list": ["str"]}, "null"]}}
    assert shape(Old) != shape(New)


def pcrl(*arguments: object, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own, without a terminal."""
    root = Path(pcrl_cli.stages.__path__[0]).parents[1]
    variables = {key: value for key, value in os.environ.items() if not key.startswith(("PCRL_", "LC_", "LANG"))}
    variables |= {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(
        [sys.executable, "-m", "pcrl_cli", *map(str, arguments)],
        cwd=cwd, env=variables, capture_output=True, encoding="utf-8", timeout=200, stdin=subprocess.DEVNULL,
    )  # fmt: skip


def test_config_show_names_the_source_of_every_value(tmp_path):
    (tmp_path / "c.yaml").write_text("train: {lr: 0.2}\n", encoding="utf-8")
    done = pcrl(
        "config", "show", "pretrain", "--config", tmp_path / "c.yaml", "--set", "train.batch=5", "--json",
        cwd=tmp_path, PCRL_TRAIN__MOMENTUM="0.3",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    value = json.loads(done.stdout)
    assert value["origin"]["train.lr"] == str(tmp_path / "c.yaml")
    assert value["origin"]["train.momentum"] == "environment"
    assert value["origin"]["train.batch"] == "--set"
    assert value["origin"]["train.epochs"] == "recipe paper"
    assert value["settings"]["train"]["lr"] == 0.2


@pytest.mark.parametrize(
    "environment",
    [{"LC_ALL": "C"}, {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}, {"LC_ALL": "C.UTF-8", "TERM": "dumb"}],
    ids=["C", "C without Python's help", "UTF-8, dumb"],
)  # fmt: skip
def test_any_locale_and_path_give_plain_text(chain, tmp_path, environment):
    folder = tmp_path / "ein Ordner – ü"
    folder.mkdir()
    (folder / "cache").symlink_to(chain.cache)
    done = pcrl("inspect", folder / "cache", cwd=tmp_path, NO_COLOR="1", COLUMNS="70", **environment)
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    assert done.stderr == ""
    wrong = pcrl("inspect", folder / "nothing", cwd=tmp_path, NO_COLOR="1", **environment)
    assert wrong.returncode == 3
    assert wrong.stdout == ""
    assert wrong.stderr.count("\n") == 1
    assert wrong.stderr.startswith("pcrl: ")


def test_colour_is_for_terminals(chain, tmp_path):
    done = pcrl("inspect", chain.cache, cwd=tmp_path)
    assert "\x1b" not in done.stdout + done.stderr


@pytest.mark.skipif(os.geteuid() == 0 if hasattr(os, "geteuid") else True, reason="root may write anywhere")
def test_a_current_folder_that_cannot_be_written_is_no_hindrance_to_reading(chain, tmp_path):
    tmp_path.chmod(0o500)
    try:
        assert pcrl("inspect", chain.cache, cwd=tmp_path).returncode == 0
        assert pcrl("config", "show", "pretrain", cwd=tmp_path).returncode == 0
    finally:
        tmp_path.chmod(0o700)


def test_a_read_only_current_folder_is_no_hindrance_when_the_work_is_elsewhere(chain, tmp_path):
    """Also for root: the folder is on a file system mounted read-only."""
    ro = tmp_path / "ro"
    ro.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "ro,size=1m", "none", str(ro)]
    try:
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("this user may not mount a tmpfs")
    try:
        assert pcrl("inspect", chain.cache, cwd=ro).returncode == 0
        done = pcrl("export", chain.pretrained.run, "--to", tmp_path / "e.safetensors", "-q", cwd=ro)
        assert (done.returncode, done.stdout.strip()) == (0, str(tmp_path / "e.safetensors"))
        here = pcrl("export", chain.pretrained.run, "--to", "e.safetensors", cwd=ro)
        assert here.returncode == 6
        assert here.stderr.count("\n") == 1
    finally:
        subprocess.run(["umount", str(ro)], check=True)


def test_wrong_words_get_one_sentence_and_2(tmp_path):
    for arguments in (["pretrain", "--stepz", "3"], ["nonsense"], ["pretrain", "--width", "0"], ["export", "x"]):
        done = pcrl(*arguments, cwd=tmp_path)
        assert done.returncode == 2, arguments
        assert done.stdout == ""
        assert done.stderr.count("\n") == 1
        assert done.stderr.startswith("pcrl: ")
        assert "--help`" in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_value_out_of_range_is_a_usage_error_whoever_notices(tmp_path):
    for arguments in (["pretrain", "--keep", "1"], ["pretrain", "--width", "0"], ["pretrain", "--batch", "1"]):
        assert pcrl(*arguments, "--dry-run", cwd=tmp_path).returncode == 2, arguments


@pytest.mark.parametrize("arguments", [["inspect"], ["inspect", "--json"], ["--help"]])
def test_a_pipe_that_is_closed_at_once_is_no_traceback(chain, tmp_path, arguments):
    words = [*arguments, str(chain.cache)] if "inspect" in arguments else arguments
    root = Path(pcrl_cli.stages.__path__[0]).parents[1]
    line = f'"{sys.executable}" -m pcrl_cli {" ".join(words)} | true'
    done = subprocess.run(
        ["bash", "-c", line], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(root)}, capture_output=True,
        encoding="utf-8", timeout=200,
    )  # fmt: skip
    assert done.stderr == ""


def test_every_command_has_a_help_that_says_what_it_does():
    assert all(command.callback is not None and command.callback.__doc__ for command in app.registered_commands)
