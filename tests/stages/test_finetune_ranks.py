"""Fine-tuning by two and three processes, as torchrun starts them: one process's training, validation and weights."""

import os
import signal
import socket
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chain import settings
from test_workflow_volumes import write_lits
from torch import multiprocessing

from pcrl_cli.data.cache import open_cache
from pcrl_cli.engine.run import Run, read_metrics
from pcrl_cli.engine.trainer import Trainer
from pcrl_cli.phantoms import radiograph
from pcrl_cli.stages.finetune import finetune
from pcrl_cli.stages.prep import prep
from pcrl_cli.stages.workspace import Workspace

pytestmark = pytest.mark.timeout(600)  # three times processes are started: seconds on idle cores, minutes on busy ones
BATCH, STEPS = 6, 6
OTHERS = ("chest-two", "lits-two", "luna-killed")
SMALL: dict[str, dict[str, Any]] = {
    "luna": {"learner": {"side": 16}, "poolings": 2},
    "chest": {"learner": {"side": 32, "resize": 40}},
    "lits": {"learner": {"crop": [16, 16, 16], "overlap": 0.25, "loss": "dice_bce"}, "poolings": 2},
}
"""Settings of each task; the loss of lits has a mean over voxels that count, of which every rank has another number."""


def tuned(task: str, cache: Path, root: Path, name: str) -> None:
    train = {
        "steps": STEPS,
        "batch": BATCH,
        "lr": 1e-3,
        "optimiser": "sgd",
        "sync_batch_norm": True,
        "checkpoint_minutes": 1e-9,
    }
    layers = settings(width=2, train=train, **SMALL[task])
    finetune(cache, task=task, layers=layers, out=root / f"{task}-{name}", workspace=Workspace(root), device="cpu")


def work(rank: int, ranks: int, port: int, root: Path, caches: dict[str, Path], kill: bool) -> None:
    """chest and lits; or luna, to be killed in its fifth step, which has four checkpoints by then, or to be gone on with."""
    torch.set_num_threads(1)
    os.fsync = lambda handle: None
    variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in variables.items()})
    if kill:
        was = Trainer._gradients

        def gradients(self: Trainer, *args: Any) -> Any:
            if self.step == 4:
                time.sleep(0.5)  # until the other has left the barrier too
                os.kill(os.getpid(), signal.SIGKILL)
            return was(self, *args)

        Trainer._gradients = gradients  # type: ignore[method-assign]
    if ranks == 2 and not kill:
        for task in ("chest", "lits"):
            os.environ["MASTER_PORT"] = (root / f"{task}.port").read_text("utf-8")
            tuned(task, caches[task], root, "two")
    else:
        tuned("luna", caches["luna"], root, "killed")
    os._exit(0)  # the interpreter's own teardown meets gloo's threads and aborts now and then (docs/LOG.md)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@pytest.fixture(scope="module")
def caches(chain, tmp_path_factory) -> dict[str, Path]:
    workspace = Workspace(tmp_path_factory.mktemp("caches"))
    radiograph.make(workspace.data("nih"), 24)
    write_lits(workspace.data("lits"), 9)
    tight = settings(prepare={"margin": 2})
    return {
        "luna": chain.cache,
        "chest": prep("nih", workspace=workspace, layers=settings(size=48), jobs=1).cache,
        "lits": prep("lits", workspace=workspace, layers=tight, jobs=1).cache,
    }


@pytest.fixture(scope="module")
def runs(caches, tmp_path_factory) -> Path:
    """TASK-one by one process, TASK-two by two; luna-killed: two were killed, three went on."""
    root = tmp_path_factory.mktemp("runs")
    for task, cache in caches.items():
        tuned(task, cache, root, "one")
        (root / f"{task}.port").write_text(str(free_port()))
    start = partial(multiprocessing.spawn, work)
    start((2, 0, root, caches, False), nprocs=2)
    with pytest.raises(multiprocessing.ProcessExitedException, match="SIGKILL"):
        start((2, free_port(), root, caches, True), nprocs=2)
    assert Run.load(root / "luna-killed").record["status"] != "finished"
    start((3, free_port(), root, caches, False), nprocs=3)
    return root


def rows(run: Path) -> list[dict[str, Any]]:
    return read_metrics(run / "metrics.jsonl")


@pytest.mark.parametrize("other", OTHERS)
def test_several_ranks_fine_tune_as_one_process_with_the_same_global_batch(runs, other):
    one, many = rows(runs / f"{other.split('-')[0]}-one"), rows(runs / other)
    assert [row["step"] for row in many] == list(range(STEPS))
    for a, b in zip(one, many, strict=True):
        terms = [key for key in a if key.startswith("loss/")]
        assert terms
        for key in terms:
            rounding = 1e-5 if a["step"] == 0 else 1e-4  # which grows from step to step
            assert b[key] == pytest.approx(a[key], rel=rounding, abs=1e-6)


@pytest.mark.parametrize("other", OTHERS)
def test_the_weights_and_running_statistics_are_one_processs(runs, other):
    one, many = (Run.load(runs / name).newest(pytest.fail).model for name in (f"{other.split('-')[0]}-one", other))
    assert one.keys() == many.keys()
    for key in one:
        torch.testing.assert_close(many[key], one[key], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("other", "metric"), [*zip(OTHERS, ("auroc", "dice", "auroc"), strict=True)])
def test_validation_gathers_every_case_once(runs, caches, other, metric):
    """A case that were counted twice, or not, would move the mean over cases or the ranking."""
    task = other.split("-")[0]
    assert len(open_cache(caches[task]).cases("val")) > 0
    one, many = ([row.get(f"val_{metric}") for row in rows(runs / name)] for name in (f"{task}-one", other))
    assert [v is None for v in one] == [v is None for v in many]
    found = np.array([[a, b] for a, b in zip(one, many, strict=True) if a is not None])
    assert len(found) > 0
    np.testing.assert_allclose(found[:, 1], found[:, 0], atol=1e-5)


def test_the_result_is_of_the_whole_run_whoever_finished_it(runs):
    record = Run.load(runs / "luna-killed").record
    assert record["status"] == "finished"
    assert record["result"]["outcome"]["steps"] == STEPS
    assert record["result"]["best_validation"] == Run.load(runs / "luna-one").record["result"]["best_validation"]
