"""`pcrl --version`: this package, its commit, torch and CUDA."""

import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pcrl_cli import __version__


def text() -> str:
    """One line; found without importing torch."""
    try:
        torch = version("torch")
    except PackageNotFoundError:
        torch = "missing"
    return f"pcrl {__version__} (commit {_commit()}, torch {torch}, CUDA {_cuda()})"


def _commit() -> str:
    """Of the checkout that the package is run from, or that its wheel was built from (setup.py notes it)."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        noted = root / "pcrl_cli" / "COMMIT"
        return noted.read_text("utf-8").strip() if noted.is_file() else "unknown"
    try:
        found = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty"],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return found.stdout.strip()


def _cuda() -> str:
    """The CUDA version that torch was built for, read from its version file."""
    try:
        from importlib.util import find_spec

        spec = find_spec("torch")
        folder = Path(spec.origin).parent if spec and spec.origin else None
        lines = (folder / "version.py").read_text().splitlines() if folder else []
    except (OSError, ImportError):
        return "unknown"
    found = [line.split("=", 1)[1].strip().strip("'\"") for line in lines if line.startswith("cuda")]
    return "none" if not found or found[0] == "None" else found[0]
