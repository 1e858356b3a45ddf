"""A workspace holds data/NAME, cache/NAME and runs/NAME, so that every path has a default."""

import json
import os
from pathlib import Path
from typing import Any

from pcrl_cli.core.errors import ConfigError


class Workspace:
    """The current folder, `--workspace`, or PCRL_WORKSPACE."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = Path(root or os.environ.get("PCRL_WORKSPACE") or ".")

    def data(self, name: str) -> Path:
        return self.root / "data" / name

    def cache(self, name: str) -> Path:
        return self.root / "cache" / name

    @property
    def verified(self) -> Path:
        """Where hashes of shards are noted."""
        return self.root / "runs" / ".verified.json"

    def run(self, verb: str, name: str, fingerprint: str) -> Path:
        """A run's default folder: the same settings find their own run again."""
        return self.root / "runs" / f"{verb}-{name}-{fingerprint[:8]}"

    def caches(self) -> list[tuple[Path, dict[str, Any]]]:
        """Every prepared cache and its manifest."""
        found = []
        for path in sorted(self.root.glob("cache/*/manifest.json")):
            manifest = _object(path)
            if manifest is not None:  # opening it says what is wrong; looking for another must not fail on it
                found.append((path.parent, manifest))
        return found

    def find_cache(self, dim: int | None, group: str, data_set: str = "") -> Path:
        """The one cache of a dimension (None: of any) that holds a group of arrays; of several the one of `data_set`.

        Raises:
            ConfigError: there is none, or more than one (they are listed).
        """
        found = [
            (path, m)
            for path, m in self.caches()
            if m.get("dim") == (dim or m.get("dim")) and group in m.get("groups", [])
        ]
        fits = [path for path, _ in found]
        named = [path for path, m in found if m.get("reader", {}).get("name") == data_set]
        if len(fits) == 1 or len(named) == 1:
            return fits[0] if len(fits) == 1 else named[0]
        if fits:
            raise ConfigError(f"several caches fit: {', '.join(map(str, fits))}; say which one")
        others = [f"{path} ({m.get('dim')}D)" for path, m in self.caches()]
        seen = f"; there are {', '.join(others)}" if others else ""
        raise ConfigError(
            f"there is no {f'{dim}D ' if dim else ''}cache with {group} in {self.root / 'cache'}{seen}; "
            "make one with `pcrl prep` or give its path"
        )

    def find_run(self, verb: str, task: str | None = None) -> Path:
        """The newest finished run of a verb (and task).

        Raises:
            ConfigError: there is none.
        """
        fits = []
        for path in self.root.glob("runs/*/run.json"):
            record = _object(path) or {}
            done = record.get("verb") == verb and record.get("status") == "finished"
            if done and task in (None, record.get("settings", {}).get("task")):
                fits.append((record.get("finished_at", ""), path.parent))
        if not fits:
            what = f"finished `pcrl {verb}` run" + (f" of task {task}" if task else "")
            raise ConfigError(f"there is no {what} in {self.root / 'runs'}; make one, or give its folder")
        return max(fits)[1]


def _object(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file, or None where there is none to be read."""
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None
