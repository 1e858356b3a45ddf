"""Folders point one way, libraries stay where they belong, and start-up loads nothing heavy."""

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "pcrl_cli"
FOLDERS = frozenset(p.name for p in PACKAGE.iterdir() if (p / "__init__.py").exists())

MAY_IMPORT: dict[str, frozenset[str]] = {
    "core": frozenset(),
    "pure": frozenset({"core"}),
    "networks": frozenset({"core", "pure"}),
    "augment": frozenset({"core", "pure"}),
    "data": frozenset({"core", "pure"}),
    "readers": frozenset({"core", "data"}),
    "methods": frozenset({"core", "pure", "networks", "augment"}),
    "tasks": frozenset({"core", "pure", "networks", "augment"}),
    "engine": frozenset({"core", "pure"}),  # pure: the collapse statistics
    "report": frozenset({"core", "pure"}),
    "phantoms": frozenset({"core", "readers", "data", "pure"}),
    "stages": FOLDERS - {"cli", "stages"},
    "cli": frozenset({"core", "stages"}),
}
SIBLINGS = {  # what a file may import of its own folder, where that is not everything
    "methods": frozenset[str](),
    "tasks": frozenset({"base", "findings"}),
    "readers": frozenset(
        {"volume_io", "headers", "image_io", "label_table", "shards", "tables", "masks", "folder", "image_folder"}
    ),
}
NAMES_ONLY = frozenset({"methods", "tasks", "readers"})  # cli reads their lists of names, nothing below
ONLY_IN = {  # library -> files or folders of the package
    "typer": ("cli/",),
    "click": (),
    "rich": ("cli/",),
    "h5py": ("data/",),
    "SimpleITK": ("readers/",),
    "nibabel": ("readers/",),
    "PIL": ("readers/",),
    "pydicom": ("readers/",),
    "monai": ("tasks/",),
    "sklearn": ("tasks/",),
    "torchio": ("augment/reference.py",),
    "matplotlib": ("report/",),
    "safetensors": ("engine/run.py", "networks/transfer.py", "networks/open_torch.py"),  # the last: a child process
    "tensorboard": ("engine/",),
    "torch.utils.tensorboard": ("engine/",),
    "torch.distributed": ("engine/",),
}
HEAVY = {"torch", "torchio", "SimpleITK", "monai", "matplotlib"}


def imports(source: str) -> Iterator[tuple[str, bool]]:
    """(dotted name, whether inside a function) of everything that a module imports, by statement or by import_module."""

    def visit(node: ast.AST, inside: bool) -> Iterator[tuple[str, bool]]:
        if isinstance(node, ast.Import):
            yield from ((alias.name, inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield from ((name, inside) for name in (module, *(f"{module}.{alias.name}" for alias in node.names)))
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) == "import_module":
            yield from ((arg.value, inside) for arg in node.args[:1] if isinstance(arg, ast.Constant))
        inside = inside or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, inside)

    yield from visit(ast.parse(source), False)


def violations(file: str, source: str) -> list[str]:
    """What is wrong with the imports of a file; `file` is its path below the package, such as core/config.py."""
    found = []
    for name, inside in imports(source):
        if name.startswith("."):
            found.append(f"{file}: {name} is relative")
        elif name.partition(".")[0] == "pcrl_cli":
            found += _of_ours(file, name.split(".")[1:], inside)
        found += [
            f"{file}: {name} belongs in {places or 'no file'}"
            for library, places in ONLY_IN.items()
            if (name == library or name.startswith(f"{library}.")) and not file.startswith(tuple(places))
        ]
    return found


def _of_ours(file: str, target: list[str], inside: bool) -> list[str]:
    folder, _, rest = file.partition("/")
    if not rest or not target or target[0] not in FOLDERS:
        return []  # the package's own __init__ and __main__; `from pcrl_cli import __version__`
    other, below = target[0], target[1:]
    if other == folder:
        allowed = SIBLINGS.get(folder)
        return [f"{file}: sibling {below[0]}"] if below and allowed is not None and below[0] not in allowed else []
    if folder == "cli" and other in NAMES_ONLY:
        is_module = below and (PACKAGE / other / f"{below[0]}.py").exists()
        return [f"{file}: {'.'.join(target)} is more than names"] if is_module else []
    if folder == "cli" and other == "stages" and not inside:
        return [f"{file}: {'.'.join(target)} at the top, not inside the command"]
    return [] if other in MAY_IMPORT[folder] else [f"{file}: {folder} may not import {other}"]


def modules() -> dict[str, str]:
    return {p.relative_to(PACKAGE).as_posix(): p.read_text("utf-8") for p in sorted(PACKAGE.rglob("*.py"))}


def test_every_folder_has_its_row_in_the_table():
    assert set(MAY_IMPORT) == FOLDERS


def test_folders_point_one_way_and_libraries_stay_where_they_belong():
    assert [v for file, source in modules().items() for v in violations(file, source)] == []


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("core/bad.py", "from pcrl_cli.pure.crops import Box"),
        ("core/bad.py", "def f():\n    import pcrl_cli.data.cache"),
        ("pure/bad.py", "from pcrl_cli import networks"),
        ("engine/bad.py", "from pcrl_cli.data.cache import Cache"),
        ("engine/bad.py", "from importlib import import_module\nimport_module('pcrl_cli.methods.pcrlv2')"),
        ("methods/bad.py", "from pcrl_cli.methods.pcrlv2 import Config"),
        ("tasks/bad.py", "from pcrl_cli.tasks.luna import Luna"),
        ("readers/bad.py", "from pcrl_cli.readers.luna import cases"),
        (
            "report/bad.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from pcrl_cli.engine.run import Run",
        ),
        ("stages/bad.py", "from pcrl_cli.cli.console import show"),
        ("cli/bad.py", "from pcrl_cli.stages.prep import prep"),
        ("cli/bad.py", "from pcrl_cli.readers import luna"),
        ("cli/bad.py", "def f():\n    from pcrl_cli.data.cache import open_cache"),
        ("data/bad.py", "from . import cache"),
        ("stages/bad.py", "import h5py"),
        ("stages/bad.py", "def f():\n    from sklearn.metrics import roc_auc_score"),
        ("pure/bad.py", "import matplotlib.pyplot as plt"),
        ("data/bad.py", "import SimpleITK as sitk"),
        ("augment/spatial.py", "import torchio"),
        ("data/bad.py", "from torch import distributed"),
        ("stages/bad.py", "from safetensors.torch import load"),
        ("stages/bad.py", "import typer"),
    ],
)
def test_a_bad_import_is_refused(file, source):
    assert len(violations(file, source)) > 0


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("engine/good.py", "from pcrl_cli.pure.spread import effective_rank\nimport torch.distributed"),
        ("tasks/good.py", "from pcrl_cli.tasks.base import Classification\nimport sklearn.metrics"),
        ("readers/good.py", "from pcrl_cli.readers.volume_io import read_volume\nimport SimpleITK"),
        ("cli/good.py", "from pcrl_cli.readers import READERS\ndef f():\n    from pcrl_cli.stages.prep import prep"),
        ("stages/good.py", "from pcrl_cli import __version__\nfrom pcrl_cli.stages.prep import prep"),
        ("augment/reference.py", "import torchio"),
    ],
)
def test_a_good_import_is_not_refused(file, source):
    assert violations(file, source) == []


def test_modules_import_each_other_in_no_cycle():
    known = {f"pcrl_cli.{file.removesuffix('.py').replace('/', '.').removesuffix('.__init__')}" for file in modules()}
    graph = {}
    for file, source in modules().items():
        name = f"pcrl_cli.{file.removesuffix('.py').replace('/', '.').removesuffix('.__init__')}"
        tree = ast.parse(source)
        tree.body = [
            node for node in tree.body if "TYPE_CHECKING" not in ast.unparse(getattr(node, "test", ast.Pass()))
        ]
        graph[name] = {target for target, _ in imports(ast.unparse(tree)) if target in known and target != name}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"import cycle: {' -> '.join(error.args[1])}")


LOADED = """
import json, sys
from pcrl_cli.cli.app import main
sys.argv = {argv!r}
try:
    main()
except SystemExit:
    pass
print(json.dumps(sorted({{name.partition('.')[0] for name in sys.modules}})), file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("argv", "variables", "shown"),
    [
        (["pcrl", "--help"], {}, "pretrain"),
        (["pcrl", "pretrain", "--help"], {}, "--stop-on-collapse"),
        (["pcrl"], {"_PCRL_COMPLETE": "complete_bash", "COMP_WORDS": "pcrl prep lu", "COMP_CWORD": "2"}, "luna"),
        (["pcrl"], {"_PCRL_COMPLETE": "complete_bash", "COMP_WORDS": "pcrl pre", "COMP_CWORD": "1"}, "pretrain"),
        (["pcrl"], {"_PCRL_COMPLETE": "complete_zsh", "_TYPER_COMPLETE_ARGS": "pcrl prep lu"}, "luna"),
        (
            ["pcrl"],
            {
                "_PCRL_COMPLETE": "complete_fish",
                "_TYPER_COMPLETE_ARGS": "pcrl fine",
                "_TYPER_COMPLETE_FISH_ACTION": "get-args",
            },
            "finetune",
        ),
        (["pcrl"], {"_PCRL_COMPLETE": "source_bash"}, "complete -o"),
        (["pcrl"], {"_PCRL_COMPLETE": "source_zsh"}, "compdef"),
        (["pcrl"], {"_PCRL_COMPLETE": "source_fish"}, "complete --command"),
        (["pcrl", "--version"], {}, "torch 2"),
    ],
)
def test_help_completion_and_version_load_nothing_heavy(argv, variables, shown):
    environment = {**os.environ, **variables, "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, "-c", LOADED.format(argv=argv)],
        env=environment,
        capture_output=True,
        encoding="utf-8",
        timeout=60,
    )
    assert shown in done.stdout
    assert HEAVY & set(json.loads(done.stderr.splitlines()[-1])) == set()
