"""Queues of several ranks: every rank remembers the keys of all, so that a checkpoint of one is that of each."""

import json
import os
import socket
from pathlib import Path

import torch
from torch import multiprocessing

from pcrl_cli.core.learner import Learner, Progress, Stored
from pcrl_cli.core.rng import Rng
from pcrl_cli.engine.distributed import World

RANKS = 2


def learner() -> Learner:
    from pcrl_cli.methods.c2l import C2L, Config

    torch.manual_seed(0)
    config = Config(width=2, poolings=2, queue=10, features=4, criterion="nce", samples=20)
    return C2L(config, Stored(3, 1, (1 / 2000, 0.5)))


def step(c2l: Learner, rows: slice) -> None:
    """One step on these of four samples."""
    crops = torch.randint(-1000, 1000, (4, 2, 1, 16, 16, 8), generator=torch.Generator().manual_seed(1)).to(torch.int16)
    with torch.no_grad():
        views = c2l.views({"globals": crops[rows]}, Rng.at(0, 0, torch.arange(4)[rows]))
        c2l.losses(views, Progress(0, 1))
        c2l.after_step(Progress(0, 1))


def work(rank: int, folder: Path, port: int) -> None:
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(RANKS), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    world = World.join(torch.device("cpu"))
    c2l = learner()
    c2l.together = world.gather  # type: ignore[method-assign]
    step(c2l, slice(rank, None, RANKS))
    said = {
        "keys": c2l.contrast.queue.keys.tolist(),
        "pointer": int(c2l.contrast.queue.pointer),
        "z": float(c2l.contrast.z),
    }
    (folder / f"{rank}.json").write_text(json.dumps(said), "utf-8")
    world.leave()
    os._exit(0)  # the interpreter's own teardown meets gloo's threads and aborts now and then (docs/LOG.md)


def test_every_rank_remembers_the_keys_of_all(tmp_path):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    multiprocessing.spawn(work, (tmp_path, port), nprocs=RANKS)
    one, other = (json.loads((tmp_path / f"{rank}.json").read_text("utf-8")) for rank in range(RANKS))
    assert one == other
    assert one["pointer"] == 4
    assert one["z"] > 0


def test_alone_there_are_ones_own_keys():
    c2l = learner()
    step(c2l, slice(0, 2))
    assert int(c2l.contrast.queue.pointer) == 2
    rows = torch.rand(3, 2)
    assert c2l.together(rows) is rows
    assert World().gather(rows) is rows
