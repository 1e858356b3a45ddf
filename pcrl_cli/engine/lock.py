"""One writer a run folder: a second process is refused in one sentence, and a dead one's lock is nobody's.

The lock is the kernel's (`flock` on RUN/.lock), so it ends with the process that holds it, however that ends; what the
file says (host and process) is for the message only. Where the file system has no such locks, what the file says
decides: a process of this host that is alive holds it.
"""

import contextlib
import json
import os
import socket
from pathlib import Path

from pcrl_cli.core import files
from pcrl_cli.core.errors import MachineError

try:
    import fcntl
except ImportError:  # not a Unix: what the file says has to do
    fcntl = None  # type: ignore[assignment]

NAME = ".lock"
_held: dict[Path, tuple[int, int]] = {}
"""Folder -> (process, descriptor); a process may take its own lock again, and a forked child holds nothing."""


def hold(folder: Path) -> None:
    """Makes this process the folder's only writer until `release`; does nothing if it is that already.

    Raises:
        MachineError: another process is, or the lock's file cannot be written.
    """
    key = folder.resolve()
    if key in _held and _held[key][0] == os.getpid():
        return
    path = folder / NAME
    while True:
        with files.blame_machine(path):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _take(descriptor, path, folder)
            if _is_there(descriptor, path):
                break
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # its last holder removed it between our two calls: the next file is the lock
    _held[key] = (os.getpid(), descriptor)
    with contextlib.suppress(OSError):  # a full disk is no reason not to hold it
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps({"host": socket.gethostname(), "pid": os.getpid()}).encode(), 0)


def release() -> None:
    """Gives back every lock of this process."""
    for key, (pid, descriptor) in list(_held.items()):
        del _held[key]
        if pid == os.getpid():
            with contextlib.suppress(OSError):
                (key / NAME).unlink()
            os.close(descriptor)


def _take(descriptor: int, path: Path, folder: Path) -> None:
    try:
        if fcntl is None:
            raise OSError("no kernel locks")
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return
    except BlockingIOError:
        pass
    except OSError:  # the file system has none
        owner = _owner(path)
        ours = owner.get("host") == socket.gethostname()
        if not ours or owner["pid"] == str(os.getpid()) or not files.alive(int(owner["pid"])):
            return
    owner = _owner(path)
    who = f" (process {owner['pid']} on {owner['host']})" if owner else ""
    raise MachineError(
        f"{folder} is being written by another process{who}; wait until it ends, or choose another --out"
    )


def _is_there(descriptor: int, path: Path) -> bool:
    try:
        return os.fstat(descriptor).st_ino == path.stat().st_ino
    except FileNotFoundError:
        return False


def _owner(path: Path) -> dict[str, str]:
    """Who wrote that it holds the lock; nobody where the file is empty or torn."""
    try:
        value = json.loads(path.read_text("utf-8"))
        return {"host": str(value["host"]), "pid": str(int(value["pid"]))}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
