"""A tiny data set, runs of seconds on it, and child processes that are stopped, killed and started again.

Children are forked from a process that has imported everything and computed nothing, so a trial costs no imports.
"""

import hashlib
import json
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch

from pcrl_cli.core.errors import PcrlError
from pcrl_cli.core.listener import Listener
from pcrl_cli.engine.run import Run, read_metrics
from pcrl_cli.phantoms import chest
from pcrl_cli.stages.prep import prep
from pcrl_cli.stages.pretrain import pretrain
from pcrl_cli.stages.workspace import Workspace

PATIENTS, PAIRS, BATCH, STEPS = 7, 4, 4, 12
PER_EPOCH = 5
"""Steps: 5 training patients of 7, 4 pairs each, batches of 4; a checkpoint an epoch."""
PREP: dict[str, Any] = {
    "pairs": {"pairs": PAIRS, "global_shape": [32, 32, 16], "n_locals": 2},
    "candidates": {"negatives": 2},
}
LEARNER: dict[str, Any] = {"width": 2, "restore_scales": [1, 2], "compare_scales": [1, 2]}

Work = Callable[[], None]


@dataclass
class Promise:
    """What came of one promise: how often it was tried, and every failure in a line."""

    name: str
    target: str
    trials: int = 0
    failures: list[str] = field(default_factory=list)
    note: str = ""
    keep: ClassVar[Callable[["Promise"], None]] = lambda promise: None
    """Called after every trial, so that what was tried is known when somebody loses patience."""

    def tried(self) -> None:
        self.trials += 1
        type(self).keep(self)

    def expect(self, right: bool, what: str) -> None:
        if not right:
            self.failures.append(what)


class Told(Listener):
    """Appends every sentence to a file, and calls `at` with each step done."""

    def __init__(self, log: Path, at: Callable[[int], None] = lambda step: None) -> None:
        self.log, self.at = log, at

    def say(self, text: str) -> None:
        with self.log.open("a", encoding="utf-8") as file:
            file.write(text + "\n")

    def warn(self, text: str) -> None:
        self.say(f"warning: {text}")

    def advance(self, done: int, **figures: float | str) -> None:
        self.at(done)


@dataclass(frozen=True)
class Workshop:
    """A folder for the trials, with raw scans and a sound cache in it."""

    root: Path

    @property
    def raw(self) -> Path:
        return self.root / "raw"

    @property
    def cache(self) -> Path:
        return self.root / "cache"

    @property
    def log(self) -> Path:
        return self.root / "log.txt"

    @classmethod
    def open(cls, root: Path) -> "Workshop":
        shop = cls(root)
        torch.set_num_threads(1)
        root.mkdir(parents=True, exist_ok=True)
        if not (shop.cache / "manifest.json").exists():
            chest.make(shop.raw, PATIENTS)
            assert shop.child(lambda: shop.prepare(shop.cache)) == 0, shop.said()
        return shop

    def prepare(self, out: Path, jobs: int = 1) -> None:
        prep("luna", data=self.raw, out=out, layers=[("trial", PREP)], jobs=jobs)

    def train(
        self,
        out: Path,
        cache_on: str = "ram",
        at: Callable[[int], None] = lambda step: None,
        steps: int = STEPS,
        cache: Path | None = None,
        **train: Any,
    ) -> None:
        settings = {
            "learner": LEARNER,
            "probe_every_epochs": 0,
            "train": {"steps": steps, "batch": BATCH, "check_every": 1000} | train,
        }
        workspace = Workspace(self.root / "ws")
        (self.root / "ws" / "runs").mkdir(parents=True, exist_ok=True)  # where hashes are remembered
        pretrain(
            cache or self.cache, out=out, workspace=workspace, layers=[("trial", settings)], device="cpu",
            cache_on=cache_on, listener=Told(out.with_suffix(".said"), at),  # type: ignore[arg-type]
        )  # fmt: skip

    def start(self, work: Work, **environment: str) -> int:
        """A child process; its exit code is the error's, and what it prints goes to the log."""
        pid = os.fork()
        if pid:
            return pid
        code = 1
        try:
            log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            os.environ.update(environment)
            work()
            code = 0
        except PcrlError as error:
            print(f"{type(error).__name__}: {error}", flush=True)
            code = error.exit_code
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def child(self, work: Work) -> int:
        return wait(self.start(work))

    def said(self) -> str:
        """The log's last lines."""
        return self.log.read_text("utf-8")[-600:] if self.log.exists() else ""

    def fresh(self, name: str) -> Path:
        """A path where nothing is."""
        path = self.root / name
        shutil.rmtree(path, ignore_errors=True)
        path.with_suffix(".said").unlink(missing_ok=True)
        return path


def wait(pid: int, seconds: float = 120) -> int:
    """A child's exit code (negative: its signal); one that hangs is killed."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return -999


def ending(run: Path) -> dict[str, Any]:
    """All that must be equal after the same run: tensors' files, state, and every loss of every step."""
    newest = Run.load(run).checkpoints[-1]
    state = json.loads((newest / "state.json").read_text("utf-8"))
    timed = ("samples_per_second", "data_wait")
    rows = [{k: v for k, v in row.items() if k not in timed} for row in read_metrics(run / "metrics.jsonl")]
    return {
        "files": {p.name: _sha(p) for p in sorted(newest.glob("*.safetensors"))},
        "state": {k: v for k, v in state.items() if k not in ("spent", "sha256")},
        "rows": rows,
    }


def steps_done(run: Path) -> int:
    """How many steps the run has logged."""
    path = run / "metrics.jsonl"
    rows = read_metrics(path) if path.exists() else []
    return int(rows[-1]["step"]) + 1 if rows else 0


def saved(run: Path) -> int:
    """The step of the newest checkpoint; 0 without one."""
    folder = run / "checkpoints"
    names = [p.name for p in folder.iterdir()] if folder.is_dir() else []
    found = [n.removeprefix(".").removesuffix(".old") for n in names]
    return max((int(n.removeprefix("step_")) for n in found if n.removeprefix("step_").isdigit()), default=0)


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder, hidden ones too."""
    return {p.relative_to(folder).as_posix(): _sha(p) for p in sorted(folder.rglob("*")) if p.is_file()}


def _sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
