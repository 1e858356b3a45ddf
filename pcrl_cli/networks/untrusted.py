"""Torch files from elsewhere: opened in a child process without pickle's power, under limits of memory and time."""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from pcrl_cli.core.errors import ConfigError, IntegrityError, blame_reading
from pcrl_cli.networks.transfer import read_tensors

SECONDS = 300.0
"""Longest that the child may take."""
KEPT = ("PATH", "PYTHONPATH", "HOME", "TMPDIR", "TEMP", "SYSTEMROOT", "LD_LIBRARY_PATH", "VIRTUAL_ENV")
"""Variables that the child sees; no credentials, no proxies."""


@dataclass(frozen=True)
class Opened:
    """What a torch file held.

    tensors: on the CPU, by name. facts: `top` (its keys), `epoch`, `options` (of the training that made it),
    `left_out` (entries that are no tensors), `format` (zip or legacy).
    """

    tensors: dict[str, Tensor]
    facts: dict[str, Any]


def open_untrusted(path: Path, seconds: float = SECONDS) -> Opened:
    """The named tensors of a torch file; nothing that the file holds is run.

    Raises:
        ConfigError: there is no such file.
        IntegrityError: it is torn, wants to run code, or wants more memory or time than it may have.
        MachineError: it may not be read.
    """
    if not path.is_file():
        raise ConfigError(f"there is no file {path}; give the weights to import")
    with blame_reading(path), path.open("rb") as file:
        file.read(1)
    with tempfile.TemporaryDirectory(prefix="pcrl-import-") as scratch:
        folder = Path(scratch)
        _run(path, folder, seconds)
        error = folder / "error.json"
        if error.exists():
            raise IntegrityError(f"{path} {json.loads(error.read_text('utf-8'))}; get the file again from its authors")
        facts = json.loads((folder / "facts.json").read_text("utf-8"))
        return Opened(read_tensors(folder / "tensors.safetensors"), facts)


def _run(path: Path, folder: Path, seconds: float) -> None:
    """The child; it leaves its answer in the folder, or is reported here."""
    script = Path(__file__).with_name("open_torch.py")
    environment = {key: os.environ[key] for key in KEPT if key in os.environ} | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-P", str(script), str(path.resolve()), str(folder)]
    try:
        done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        raise IntegrityError(
            f"{path} was not opened within {seconds:g} s; get the file again from its authors"
        ) from None
    answered = any((folder / name).exists() for name in ("error.json", "facts.json"))
    if done.returncode or not answered:
        raise IntegrityError(
            f"{path} brought down the process that opened it (code {done.returncode}), so it is torn or unsafe, or asks "
            "for more memory than it may have; get the file again from its authors"
        )
