"""Whole processes: streams, pipes, signals."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path

import psutil
import pytest
from chain import contents, prep_layers, pretrain_layers

import pcrl_cli.__main__
from pcrl_cli.engine.run import Run, read_metrics
from pcrl_cli.phantoms import chest
from pcrl_cli.stages.prep import prep
from pcrl_cli.stages.pretrain import pretrain
from pcrl_cli.stages.workspace import Workspace

PCRL = [sys.executable, "-m", "pcrl_cli"]
PREP = ["--pairs", "4", "--negatives", "3", "--set", "pairs.global_shape=[32,32,16]", "--set", "pairs.n_locals=2"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "80"}


def start(*arguments: str | Path, cwd: Path | None = None) -> subprocess.Popen[str]:
    """As from a terminal: in a group of its own, and hearing Ctrl-C also where the tests run in the background."""
    return subprocess.Popen(
        [*PCRL, *map(str, arguments)],
        env=ENVIRONMENT, cwd=cwd, encoding="utf-8", stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def wait_for(happened: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


def family(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def test_results_go_to_stdout_and_the_rest_to_stderr_whatever_the_path(tmp_path):
    workspace = tmp_path / "mein Ordner ü"
    chest.make(workspace / "data/luna", 3, seed=3)
    arguments = ["prep", "luna", *PREP, "--workspace", workspace, "--jobs", "1"]
    made = start(*arguments)
    out, err = made.communicate(timeout=120)
    assert (made.returncode, out.splitlines()[-1]) == (0, str(workspace / "cache/luna"))
    assert err.startswith("3 of 3 scans from ")
    again = start(*arguments, "--json")
    out, err = again.communicate(timeout=120)
    assert again.returncode == 0
    assert err == ""
    assert json.loads(out)["cache"] == str(workspace / "cache/luna")


@pytest.mark.parametrize("arguments", [["inspect"], ["inspect", "--json"]])
def test_a_closed_pipe_is_no_traceback(chain, arguments):
    with start(*arguments, chain.tuned.run) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()  # as `| head -0` does
        err = process.stderr.read()
        assert process.wait(60) == 0
    assert err == ""


def test_ctrl_c_while_preparing_keeps_what_is_finished_and_leaves_no_orphan(chain, tmp_path):
    out = tmp_path / "c"
    process = start("prep", "luna", "--data", chain.raw, "--out", out, *PREP, "--jobs", "2")
    wait_for(lambda: len(list(out.glob("shards/*.h5"))) >= 1, process)
    workers = family(process)
    assert workers
    os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to the whole group
    stdout, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stdout == ""
    assert "interrupted; what was finished is kept" in err
    assert "Traceback" not in err
    assert psutil.wait_procs(workers, timeout=10)[1] == []
    finished = len(list(out.glob("shards/*.h5")))
    assert 1 <= finished < 7
    assert len(json.loads((out / "manifest.json").read_text("utf-8"))["cases"]) == finished
    again = prep("luna", data=chain.raw, out=out, layers=prep_layers(), jobs=1)
    assert (again.made, again.skipped) == (7 - finished, finished)
    assert contents(out) == contents(chain.cache)


def test_sigterm_while_preparing_leaves_no_orphan_and_nothing_torn(chain, tmp_path):
    out = tmp_path / "c"
    process = start("prep", "luna", "--data", chain.raw, "--out", out, *PREP, "--jobs", "2")
    wait_for(lambda: len(list(out.glob("shards/*.h5"))) >= 1, process)
    workers = family(process)
    process.kill()  # worse than SIGTERM: nothing can be tidied up
    process.communicate(timeout=60)
    assert psutil.wait_procs(workers, timeout=10)[1] == []
    prep("luna", data=chain.raw, out=out, layers=prep_layers(), jobs=1)
    assert contents(out) == contents(chain.cache)


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_while_training_saves_and_the_same_command_goes_on(chain, tmp_path, number):
    layers = pretrain_layers(6)
    flags = ["--width", "4", "--steps", "6", "--batch", "4", "--set-aside", "0.5", "--set", "train.check_every=2"]
    out = tmp_path / "run"
    process = start("pretrain", chain.cache, "--out", out, "--workspace", tmp_path, *flags)
    wait_for(lambda: (out / "metrics.jsonl").exists() and (out / "metrics.jsonl").stat().st_size > 0, process)
    process.send_signal(number)
    stdout, err = process.communicate(timeout=60)
    assert process.returncode == 75, err
    assert stdout == ""
    assert "run the same command again" in err.splitlines()[-1]
    stopped_at = int(Run.load(out).checkpoints[-1].name.removeprefix("step_"))
    assert 1 <= stopped_at < 6
    done = pretrain(chain.cache, out=out, workspace=Workspace(tmp_path), layers=layers)
    assert done.outcome["steps"] == 6
    assert [row["step"] for row in read_metrics(out / "metrics.jsonl")] == list(range(6))


def test_the_installed_command_is_the_module() -> None:
    (command,) = entry_points(group="console_scripts", name="pcrl")
    assert command.load() is pcrl_cli.__main__.main


def test_an_interrupt_during_the_imports_is_an_exit_code_and_no_traceback() -> None:
    script = (
        "import sys\n"
        "class Interrupt:\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name == 'pcrl_cli.cli.app':\n"
        "            raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupt())\n"
        "from pcrl_cli.__main__ import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")
