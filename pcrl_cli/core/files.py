"""Files that are whole or not there: atomic writes, JSON that says when it is torn, hashes and fingerprints."""

import errno
import hashlib
import json
import os
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pcrl_cli.core.errors import IntegrityError, MachineError

REMOVE = "remove it and run the command that made it again"
_OF_THE_MACHINE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO}
_TEMPORARY = re.compile(r"^\..+\.(?P<host>[^.]+)-(?P<pid>\d+)\.tmp$")


def temporary(path: Path) -> Path:
    """The name under which this process writes `path` before renaming it: hidden, with host and pid."""
    return path.with_name(f".{path.name}.{_host()}-{os.getpid()}.tmp")


@contextmanager
def blame_machine(path: Path) -> Iterator[None]:
    """Turns a full disk or a missing permission below it into a `MachineError`, a folder in a file's place into an
    `IntegrityError`; other errors pass.
    """
    try:
        yield
    except OSError as error:
        if error.errno == errno.EISDIR:
            raise IntegrityError(f"{path} is a folder where a file belongs: {REMOVE}") from error
        if error.errno in _OF_THE_MACHINE:
            what = (error.strerror or "cannot write").lower()
            raise MachineError(
                f"cannot write {path}: {what}; free some space or choose a place that you may write to, and run again"
            ) from error
        raise


def seal(draft: Path, path: Path) -> None:
    """Makes a written temporary file durable under its final name: fsync, rename, fsync of the folder."""
    sync(draft)
    draft.replace(path)
    sync(path.parent)


def write_atomic(path: Path, content: bytes) -> None:
    """Writes a file that is either as before or complete, whenever the process or the machine stops.

    Raises:
        MachineError: the disk is full or the place may not be written to.
    """
    draft = temporary(path)
    with blame_machine(path):
        try:
            draft.write_bytes(content)
            seal(draft, path)
        finally:
            draft.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """`write_atomic` of indented JSON with sorted keys: equal values give equal bytes."""
    text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    write_atomic(path, (text + "\n").encode())


def read_json(path: Path) -> Any:
    """The value in a JSON file.

    Raises:
        IntegrityError: the file is missing or torn.
    """
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise IntegrityError(f"{path} is missing: run the command that made it again") from error
    except IsADirectoryError as error:
        raise IntegrityError(f"{path} is a folder where a file belongs: {REMOVE}") from error
    except (ValueError, RecursionError) as error:
        raise IntegrityError(f"{path} is torn or no JSON ({error}): run the command that made it again") from error


SEAL = "seal"
"""The key under which a sealed object holds its own fingerprint."""


def write_sealed(path: Path, value: dict[str, Any]) -> None:
    """`write_json` of an object with its own fingerprint: a changed byte is found when it is read."""
    write_json(path, {**value, SEAL: _seal_of(value)})


def read_sealed(path: Path) -> dict[str, Any]:
    """What `write_sealed` wrote, without the seal.

    Raises:
        IntegrityError: the file is missing, torn, or was changed.
    """
    value = read_json(path)
    if not isinstance(value, dict) or value.pop(SEAL, None) != _seal_of(value):
        raise IntegrityError(
            f"{path} is torn or was changed (its own seal differs): run the command that made it again"
        )
    return value


def _seal_of(value: dict[str, Any]) -> str:
    return fingerprint(json.loads(json.dumps({k: v for k, v in value.items() if k != SEAL})))  # as it will be read


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file's bytes in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def fingerprint(value: Any) -> str:
    """16 hexadecimal digits that are equal for equal JSON values, whatever the order of their keys."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def remove_leftovers(folder: Path) -> int:
    """Deletes the temporary files and folders of processes of this host that are gone; returns how many."""
    removed = 0
    for path in folder.glob(".*.tmp"):
        match = _TEMPORARY.match(path.name)
        if match and match["host"] == _host() and not alive(int(match["pid"])):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
            removed += 1
    return removed


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9]", "_", socket.gethostname()) or "host"


def alive(pid: int) -> bool:
    """Whether this host has a process of that number."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


def sync(path: Path) -> None:
    """Makes a file's content, or a folder's list of names, durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
