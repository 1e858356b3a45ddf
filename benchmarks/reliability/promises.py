"""One function a promise: so many trials, and what went wrong in them."""

import ctypes
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.reliability.workshop import (
    PER_EPOCH,
    STEPS,
    Promise,
    Workshop,
    ending,
    hashes,
    saved,
    steps_done,
    wait,
)
from pcrl_cli.engine.trainer import Trainer

OFTEN: dict[str, dict[str, Any]] = {"whole": {}, "often": {"checkpoint_minutes": 1e-9}}
"""Runs that save every epoch, and after every step."""


ROOT = Path(__file__).parents[2]
_REFERENCES = set[Path]()


def exact_resume(shop: Workshop, trials: int = 50) -> Promise:
    """Stopped at random steps, twice in one epoch or exactly at an epoch's end; the cache in memory or on disk."""
    promise = Promise("exact resume", "0 differing bytes")
    wanted = _reference(shop, "whole")
    for i in range(trials):
        rng = random.Random(i)
        kind, where = ("random", "twice", "end")[i % 3], ("ram", "disk")[i // 3 % 2]
        stops = {
            "random": [rng.randrange(1, STEPS)],
            "twice": sorted(rng.sample(range(PER_EPOCH + 1, 2 * PER_EPOCH), 2)),
            "end": [PER_EPOCH * rng.randint(1, 2)],
        }[kind]
        out = shop.fresh("resumed")
        codes = []
        for stop in [*stops, None]:
            codes.append(shop.child(partial(shop.train, out, where, _signal_at(stop))))
            if stop is not None:
                promise.expect(saved(out) == stop, f"trial {i}: stopped at {stop}, saved {saved(out)}")
        promise.expect(codes == [75] * len(stops) + [0], f"trial {i}: codes {codes}: {shop.said()[-200:]}")
        if codes[-1] == 0:
            promise.expect(ending(out) == wanted, f"trial {i} ({kind}, {where}): the end differs")
        promise.tried()
    promise.note = "a third each: one stop, two in one epoch, at an epoch's end; half with the cache read from disk"
    return promise


def killed_training(shop: Workshop, trials: int = 100, first: int = 0) -> Promise:
    """SIGKILL at a random moment of three checkpoint periods, then the same command again.

    first: number of the first trial: to go on with what was cut short.
    """
    promise = Promise("`kill -9` while training", "all resume, at most one interval lost")
    wanted = {name: _reference(shop, name, **often) for name, often in OFTEN.items()}
    early = 0
    for i in range(first, first + trials):
        kind = ("whole", "often")[i % 2]
        often, interval = OFTEN[kind], (PER_EPOCH, 1)[i % 2]
        out = shop.fresh("killed")
        where = ("ram", "disk")[i // 2 % 2]
        pid = shop.start(partial(shop.train, out, where, **often))
        _wait_for_step(out, pid, random.Random(i).randrange(STEPS + 1))
        time.sleep(random.Random(i).uniform(0, 0.2))  # a step and its checkpoint take about so long
        os.kill(pid, signal.SIGKILL)
        wait(pid)
        done, kept = steps_done(out), saved(out)
        early += kept == 0
        promise.expect(done - kept <= interval, f"trial {i}: {done} steps were done and {kept} kept")
        code = shop.child(partial(shop.train, out, **often))
        promise.expect(code == 0, f"trial {i}: ended with {code}: {shop.said()[-200:]}")
        said = out.with_suffix(".said").read_text("utf-8")
        if 0 < kept < STEPS:
            promise.expect(f"continuing at step {kept} of" in said, f"trial {i}: did not continue at {kept}")
        if code == 0:
            promise.expect(ending(out) == wanted[kind], f"trial {i}: the end differs")
            promise.expect(not list(out.rglob(".*")), f"trial {i}: left {[p.name for p in out.rglob('.*')]}")
        promise.note = (
            f"trials {first} to {i}: at a random step of 12; half of them save after every step; in {early} nothing had been "
            "saved yet"
        )
        promise.tried()
    return promise


def _wait_for_step(out: Path, pid: int, step: int) -> None:
    """Until so many steps are logged, or the process has ended."""
    while steps_done(out) < step and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)


def killed_preparing(shop: Workshop, trials: int = 100) -> Promise:
    """SIGKILL at a random moment, every third time inside a shard's write."""
    promise = Promise("`kill -9` while preparing", "final hashes equal, no temporary file left")
    wanted = hashes(shop.cache)
    began = time.monotonic()
    shop.child(lambda: shop.prepare(shop.fresh("prepared")))
    whole = time.monotonic() - began
    for i in range(trials):
        out = shop.fresh("prepared")
        jobs = 2 if i % 10 == 9 else 1
        inside = i % 3 == 2 and jobs == 1
        rng = random.Random(i)
        if inside:
            nth = rng.randrange(7)
            pid = shop.start(partial(_die_writing, shop, out, nth))
        else:
            pid = shop.start(partial(shop.prepare, out, jobs))
            time.sleep(rng.uniform(0, whole if jobs == 1 else 3 * whole))
            workers = psutil.Process(pid).children(recursive=True) if psutil.pid_exists(pid) else []
            os.kill(pid, signal.SIGKILL)
            promise.expect(not psutil.wait_procs(workers, timeout=15)[1], f"trial {i}: a worker outlived its parent")
        code = wait(pid)
        promise.expect(code in (-9, 0), f"trial {i}: ended with {code} before it was killed: {shop.said()[-200:]}")
        code = shop.child(partial(shop.prepare, out))
        promise.expect(code == 0, f"trial {i}: ended with {code}: {shop.said()[-200:]}")
        promise.expect(hashes(out) == wanted, f"trial {i}: other files than an uninterrupted run's")
        promise.tried()
    promise.note = "a third inside a shard's write, a tenth with two worker processes"
    return promise


def _die_writing(shop: Workshop, out: Path, nth: int) -> None:
    """Prepares, and is killed when half of the nth shard is written."""
    write, seen = Path.write_bytes, [0]

    def half(path: Path, content: Any) -> int:
        if ".h5." in path.name:
            seen[0] += 1
            if seen[0] > nth:
                write(path, content[: len(content) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
        return write(path, content)

    Path.write_bytes = half  # type: ignore[method-assign, assignment]
    shop.prepare(out)


def signals(shop: Workshop, trials: int = 24) -> Promise:
    """SIGTERM or SIGUSR1 to one rank of one or two: at a random step, during a save, twice."""
    promise = Promise("SIGTERM, SIGUSR1", "checkpoint of that step, exit 75, no orphan")
    wanted = {1: _reference(shop, "whole"), 2: _reference(shop, "whole2", 2)}
    for i in range(trials):
        ranks, number = (1, 2)[i % 2], (signal.SIGTERM, signal.SIGUSR1)[i // 2 % 2]
        kind = ("random", "save", "twice")[i // 4 % 3]
        step = PER_EPOCH if kind == "save" else random.Random(i).randrange(1, STEPS - 1)
        out = shop.fresh("stopped")
        asked = i // 2 % ranks  # the rank that is told
        codes = _ranks(shop, out, ranks, asked, partial(_stop, shop, out, kind, step, number))
        name = f"trial {i} ({ranks} ranks, {number.name}, {kind})"
        promise.expect(codes == [75] * ranks, f"{name}: codes {codes}: {shop.said()[-300:]}")
        promise.expect(saved(out) == steps_done(out), f"{name}: {steps_done(out)} steps done, {saved(out)} saved")
        codes = _ranks(shop, out, ranks, -1, lambda: None)
        promise.expect(codes == [0] * ranks, f"{name}: went on with {codes}: {shop.said()[-300:]}")
        if codes == [0] * ranks:
            promise.expect(ending(out) == wanted[ranks], f"{name}: the end differs")
        promise.tried()
    promise.note = "half with two ranks, of which one is told; a third each: random step, during a save, twice"
    return promise


def _stop(shop: Workshop, out: Path, kind: str, step: int, number: int) -> None:
    """Trains, and sends this process the signal: when so many steps are done (twice: two of them), or during a save.

    By the trainer's own methods, since only one of several ranks talks to a listener.
    """
    name = "save" if kind == "save" else "_save_or_stop"
    method, told = getattr(Trainer, name), [False]

    def interrupted(trainer: Trainer, *args: Any) -> None:
        if not told[0] and trainer.step >= step:
            told[0] = True
            for _ in range(2 if kind == "twice" else 1):
                os.kill(os.getpid(), number)
        method(trainer, *args)

    setattr(Trainer, name, interrupted)
    shop.train(out)


def _ranks(shop: Workshop, out: Path, ranks: int, asked: int, stop: Callable[[], None], **train: Any) -> list[int]:
    """Exit codes of a run's ranks, of which `asked` does `stop` in place of plain training."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = str(s.getsockname()[1])
    pids = []
    for rank in range(ranks):
        environment = {"RANK": str(rank), "WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        kind = stop if rank == asked or (asked >= 0 and ranks == 1) else lambda: shop.train(out, **train)
        pids.append(shop.start(kind, **(environment if ranks > 1 else {})))
    return [wait(pid) for pid in pids]


SETTLED = 500
"""Steps before memory is judged: caches of kernels have filled and every part of the libraries has been used once."""


def memory(shop: Workshop, trials: int = 12_000) -> Promise:
    """Resident memory over many steps, the cache in memory and read from disk by the loader's threads.

    What the allocator has handed out is noted beside it. trials: steps, in one run for each.
    """
    steps = trials
    promise = Promise("memory", "resident: slope < 1 MB per 1,000 steps")
    runs = {}
    for where in ("ram", "disk"):  # both at once
        out, sizes = shop.fresh(f"long_{where}"), shop.root / f"sizes_{where}.txt"
        sizes.unlink(missing_ok=True)
        runs[where] = shop.start(partial(shop.train, out, where, partial(_weigh, sizes), steps, check_every=50)), sizes
    slopes = []
    for where, (pid, sizes) in runs.items():
        code = wait(pid, 7200)
        promise.expect(code == 0, f"{where}: ended with {code}: {shop.said()[-200:]}")
        table = np.loadtxt(sizes)
        table = table[table[:, 0] >= min(SETTLED, steps // 4)]
        slope, start, spread = _line(table[:, 0], table[:, 1])
        used = _line(table[:, 0], table[:, 2])[0]
        slopes.append(f"{where} {slope:+.2f} MB (from {start:.0f} MB, spread {spread:.1f}; in use {used:+.3f} MB)")
        promise.expect(slope < 1.0, f"{where}: {slope:.2f} MB per 1,000 steps")
        promise.tried()
    promise.note = f"{steps:,} steps each, least squares from step {SETTLED} on: {', '.join(slopes)}"
    return promise


def _weigh(sizes: Path, done: int) -> None:
    """Writes down what this process holds, every 20 steps."""
    if done % 20 == 0:
        with sizes.open("a", encoding="utf-8") as file:
            file.write(f"{done} {psutil.Process().memory_info().rss} {_in_use()}\n")


def _line(steps: np.ndarray, size: np.ndarray) -> tuple[float, float, float]:
    """Slope per 1,000 steps, value where the steps begin, and standard deviation about the line, in MB of bytes given."""
    slope, intercept = np.polyfit(steps, size / 1e6, 1)
    rest = size / 1e6 - (slope * steps + intercept)
    return float(slope) * 1000, float(slope * steps[0] + intercept), float(rest.std())


class _Mallinfo(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in [
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        ]
    )


def _in_use() -> int:
    """Bytes that this process has been given by the C library and not given back; resident memory elsewhere."""
    mallinfo = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if mallinfo is None:
        return int(psutil.Process().memory_info().rss)
    mallinfo.restype = _Mallinfo
    found = mallinfo()
    return int(found.uordblks + found.hblkhd)


def several_writers(shop: Workshop, trials: int = 10) -> Promise:
    """Four processes prepare the same cases into one folder at once."""
    promise = Promise("several writers", "the same hashes as one process")
    wanted = hashes(shop.cache)
    for i in range(trials):
        out = shop.fresh("together")
        pids = [shop.start(partial(shop.prepare, out)) for _ in range(4)]
        codes = [wait(pid) for pid in pids]
        promise.expect(codes == [0] * 4, f"trial {i}: codes {codes}: {shop.said()[-200:]}")
        promise.expect(hashes(out) == wanted, f"trial {i}: other files than one process makes")
        promise.tried()
    promise.note = "4 processes, all 7 cases each"
    return promise


def full_disk(shop: Workshop, trials: int = 52) -> Promise:
    """Prepare or train on a tmpfs of 0.25-13 MiB until it is full, then again with room."""
    promise = Promise("full disk", "exit 6, nothing torn, continues once there is room")
    disk = shop.root / "disk"
    disk.mkdir(exist_ok=True)
    works: tuple[tuple[str, Callable[[], None], Callable[[Path], Any], Any], ...] = (
        ("prep", lambda: shop.prepare(disk / "out"), hashes, hashes(shop.cache)),
        ("pretrain", lambda: shop.train(disk / "out", **OFTEN["often"]), ending, _reference(shop, "often", **OFTEN["often"])),
    )  # fmt: skip
    stopped = 0
    for i in range(trials):
        name, work, result, wanted = works[i % 2]
        size = 256 + 512 * (i // 2) * 26 // max(trials // 2, 1)  # KiB
        if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}k", "none", disk], check=False).returncode:
            promise.note = "not run: this user may not mount a tmpfs"
            return promise
        try:
            code = shop.child(work)
            promise.expect(code in (0, 6), f"{name} on {size} KiB: ended with {code}: {shop.said()[-300:]}")
            stopped += code == 6
            left = list(disk.rglob(".*.tmp"))
            promise.expect(not left, f"{name} on {size} KiB: left {left[:3]}")
            subprocess.run(["mount", "-o", "remount,size=256m", disk], check=True)
            code = shop.child(work)
            promise.expect(code == 0, f"{name} after {size} KiB: ended with {code}: {shop.said()[-300:]}")
            promise.expect(code != 0 or result(disk / "out") == wanted, f"{name} after {size} KiB: another end")
        finally:
            subprocess.run(["umount", disk], check=True)
        promise.tried()
    promise.note = f"half `prep`, half `pretrain`, on 0.25 to 13 MiB; {stopped} commands met a full disk"
    return promise


def no_network(shop: Workshop, trials: int = 1) -> Promise:
    """Key commands with every system call that could leave the machine traced."""
    promise = Promise("no network", "0 connection attempts")
    if shutil.which("strace") is None:
        promise.note = "not run: strace is not here"
        return promise
    trace = shop.root / "trace.txt"
    trace.unlink(missing_ok=True)
    ws = shop.fresh("offline")
    small = ["--width", "2", "--steps", "1", "--batch", "4"]
    prep = ["--pairs", "4", "--negatives", "3", "--set", "pairs.global_shape=[32,32,16]", "--set", "pairs.n_locals=2"]
    commands = [
        ["--version"],
        ["prep", "luna", "--data", str(shop.raw), "--jobs", "2", *prep],
        ["pretrain", *small, "--out", str(ws / "pre")],
        ["finetune", "--task", "luna", "--weights", str(ws / "pre"), *small[2:], "--set", "learner.side=24",
         "--allow-overlap", "--out", str(ws / "tuned")],
        ["evaluate", str(ws / "tuned"), "--split", "all"],
        ["export", str(ws / "pre"), "--to", str(ws / "e.safetensors")],
        ["inspect", str(ws / "e.safetensors")],
        ["report", str(ws / "pre"), str(ws / "tuned"), "--out", str(ws / "r.html")],
        ["doctor"],
    ]  # fmt: skip
    environment = os.environ | {"PCRL_WORKSPACE": str(ws), "OMP_NUM_THREADS": "1"}
    for arguments in commands:
        strace = ["strace", "-f", "-qq", "-A", "-o", str(trace), "-e", "trace=connect,sendto,sendmsg"]
        run = [*strace, sys.executable, "-m", "pcrl_cli", *arguments]
        done = subprocess.run(run, env=environment, capture_output=True, text=True, encoding="utf-8")
        promise.expect(done.returncode == 0, f"{arguments[0]}: ended with {done.returncode}: {done.stderr[-200:]}")
        promise.tried()
    lines = [line for line in trace.read_text("utf-8").splitlines() if "AF_INET" in line]
    promise.expect(not lines, f"{len(lines)} attempts, the first: {lines[:1]}")
    promise.note = "traced commands: " + ", ".join(arguments[0] for arguments in commands)
    return promise


def by_tests(name: str, target: str, what: str, *files: str) -> Callable[..., Promise]:
    """A promise that ordinary tests hold, each of which is a trial; with the slow ones.

    what: of the note. files: below tests/.
    """

    def run(shop: Workshop, trials: int | None = None) -> Promise:
        """All tests; there is nothing to have more or fewer of."""
        promise = Promise(name, target)
        paths = [str(ROOT / "tests" / file) for file in files]
        command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-m", "not soak", "-p", "no:cacheprovider", *paths]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, encoding="utf-8")
        counts = counted(done.stdout)
        failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
        promise.trials = counts["passed"] + counts["failed"] + counts["errors"]
        promise.failures = failed or ([] if done.returncode == 0 else [f"pytest ended with {done.returncode}"])
        skipped = f"; {counts['skipped']} skipped here" if counts["skipped"] else ""
        promise.note = f"tests, each a trial: {what}{skipped}"
        return promise

    return run


def counted(said: str) -> dict[str, int]:
    """How many tests passed, failed, were skipped or could not begin, by pytest's last line."""
    last = said.strip().rsplit("\n", 1)[-1]
    found = {word.removesuffix("s"): int(n) for n, word in re.findall(r"(\d+) (passed|failed|skipped|errors?)\b", last)}
    return {name: found.get(name.removesuffix("s"), 0) for name in ("passed", "failed", "skipped", "errors")}


def _signal_at(step: int | None, number: int = signal.SIGTERM, times: int = 1) -> Callable[[int], None]:
    """What a listener does: sends this process a signal when so many steps are done."""

    def at(done: int) -> None:
        if done == step:
            for _ in range(times):
                os.kill(os.getpid(), number)

    return at


def _reference(shop: Workshop, name: str, ranks: int = 1, **train: Any) -> dict[str, Any]:
    """The end of the run that nobody disturbed."""
    out = shop.root / name
    if out not in _REFERENCES:  # made anew by every call of the program: the code may have changed
        _REFERENCES.add(out)
        codes = _ranks(shop, shop.fresh(name), ranks, -1, lambda: None, **train)
        assert codes == [0] * ranks, shop.said()
    return ending(out)


PROMISES: dict[str, Callable[..., Promise]] = {
    "exact_resume": exact_resume,
    "killed_training": killed_training,
    "killed_preparing": killed_preparing,
    "signals": signals,
    "full_disk": full_disk,
    "memory": memory,
    "several_writers": several_writers,
    "no_network": no_network,
    "torn_files": by_tests(
        "torn files",
        "found before use, named, with the way out",
        "every file that is read again, cut at 4 places, 20 flips, a folder in its place",
        "stages/test_torn_files.py",
    ),
    "not_finite": by_tests(
        "NaN, Inf",
        "weights unchanged, batch kept, exit 5, `replay` shows it",
        "in a voxel, a loss, a gradient, a weight; looked at every step or every n",
        "engine/test_train_finite.py",
        "engine/test_train_blind.py",
        "engine/test_replay.py",
        "stages/test_stage_replay.py",
    ),
    "malformed": by_tests(
        "malformed input",
        "0 crashes, 0 hangs",
        "lying, truncated and flipped scans and pictures in child processes under limits; 600 headers by hypothesis",
        "readers/test_malformed.py",
        "readers/test_headers.py",
    ),
    "untrusted": by_tests(
        "untrusted weights",
        "nothing runs, exit 7",
        "pickles that call, lying headers, archives that lead out, released weights",
        "networks/test_untrusted.py",
        "stages/test_stage_import.py",
    ),
}
