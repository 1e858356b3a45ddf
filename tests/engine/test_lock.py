import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from pcrl_cli.core.errors import MachineError
from pcrl_cli.engine import lock
from pcrl_cli.engine.run import Run


@pytest.fixture(autouse=True)
def _free():
    yield
    lock.release()


def holder(folder: Path, then: str = "time.sleep(60)") -> subprocess.Popen[str]:
    """Another process that holds the lock when its line comes."""
    code = f"""
        import pathlib, sys, time
        from pcrl_cli.engine import lock
        lock.hold(pathlib.Path(sys.argv[1]))
        print("held", flush=True)
        {then}
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), str(folder)], stdout=subprocess.PIPE, text=True, encoding="utf-8"
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def opened(folder: Path, overwrite: bool = False) -> Run:
    return Run.open(folder, "pretrain", {"a": 1}, "f00d", "a: 1\n", overwrite)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_second_process_is_refused_and_changes_nothing(tmp_path, overwrite):
    opened(tmp_path)
    lock.release()
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with holder(tmp_path) as other:
        with pytest.raises(MachineError, match=rf"is being written by another process \(process {other.pid} on "):
            opened(tmp_path, overwrite)
        after = {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.name != lock.NAME}
        other.kill()
    assert after == before


def test_a_killed_processs_lock_is_taken_over(tmp_path):
    with holder(tmp_path) as other:
        other.send_signal(signal.SIGKILL)
    assert (tmp_path / lock.NAME).exists()
    assert opened(tmp_path).record["status"] == "running"


def test_a_released_lock_leaves_no_file_and_serves_the_next(tmp_path):
    opened(tmp_path)
    opened(tmp_path)  # this process has it already
    lock.release()
    assert not (tmp_path / lock.NAME).exists()
    with holder(tmp_path, "lock.release()") as other:
        assert other.wait(60) == 0
    lock.hold(tmp_path)


@pytest.mark.parametrize(
    ("pid", "free"), [(os.getpid(), True), (2**22 + 1, True), (1, False)], ids=["own", "nobody", "another"]
)
def test_without_kernel_locks_what_the_file_says_decides(tmp_path, monkeypatch, pid, free):
    def none(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(lock.fcntl, "flock", none)
    (tmp_path / lock.NAME).write_text(json.dumps({"host": socket.gethostname(), "pid": pid}), encoding="utf-8")
    if free:
        lock.hold(tmp_path)
    else:
        with pytest.raises(MachineError, match=r"process 1 on"):
            lock.hold(tmp_path)
