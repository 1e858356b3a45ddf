"""Several ranks: each remembers the keys of all, and a mean over what counts is one process's."""

import json
import os
import socket
from pathlib import Path

import pytest
import torch
from torch import Tensor, multiprocessing

from pcrl_cli.core.learner import Learner, Progress, Stored
from pcrl_cli.core.rng import Rng
from pcrl_cli.engine.distributed import World
from pcrl_cli.pure.volumes import PADDED

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


def chest() -> Learner:
    from pcrl_cli.networks.resnet2d import ResNet18Encoder
    from pcrl_cli.tasks.chest import Chest, Config

    torch.manual_seed(0)
    return Chest(
        ResNet18Encoder(3, 2), Config(side=32, resize=40), Stored(2, 1, (1 / 255, 0.0), ("a", "b", "c"))
    ).eval()


def lesion() -> Learner:
    from pcrl_cli.networks.unet3d import UNet3dEncoder
    from pcrl_cli.tasks import lits

    torch.manual_seed(0)
    config = lits.Config(crop=(4, 4, 4), loss="dice_bce")
    return lits.TASK(UNet3dEncoder(1, 2, 1), config, Stored(3, 1, (1 / 400, 0.5))).eval()


def masked() -> dict[str, Tensor]:
    """Crops whose padding lies on the odd ones, which are rank 1's."""
    g = torch.Generator().manual_seed(2)
    mask = torch.randint(0, 2, (4, 4, 4, 4), generator=g, dtype=torch.uint8)
    mask[1::2, 1:] = PADDED
    return {"x": torch.randn(4, 1, 4, 4, 4, generator=g), "mask": mask}


LABELS = torch.tensor([[1, 0, 1], [-1, -1, 0], [0, 1, 1], [-1, -1, -1]], dtype=torch.int8)
MASKED = {
    "labels": (chest, {"x": torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(2)), "label": LABELS}),
    "voxels": (lesion, masked()),
}


def gradients(task: Learner, views: dict[str, Tensor], world: World) -> tuple[Tensor, Tensor]:
    """The loss and all its gradients, of this rank's rows."""
    if world.size > 1:
        task.together = world.gather  # type: ignore[method-assign]
    mine = {name: rows[world.rank :: world.size] for name, rows in views.items()}
    loss = torch.stack([*task.losses(mine, Progress(0, 1)).values()]).sum()
    loss.backward()
    found = [p.grad.flatten() for p in task.parameters() if p.grad is not None]
    return loss.detach(), torch.cat(found)


def work(rank: int, folder: Path, port: int) -> None:
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(RANKS), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    world = World.join(torch.device("cpu"))
    c2l = learner()
    c2l.together = world.gather  # type: ignore[method-assign]
    step(c2l, slice(rank, None, RANKS))
    means = {name: gradients(make(), views, world) for name, (make, views) in MASKED.items()}
    said = {
        "means": {name: [world.mean(g).tolist() for g in found] for name, found in means.items()},
        "keys": c2l.contrast.queue.keys.tolist(),
        "pointer": int(c2l.contrast.queue.pointer),
        "z": float(c2l.contrast.z),
    }
    (folder / f"{rank}.json").write_text(json.dumps(said), "utf-8")
    world.leave()
    os._exit(0)  # the interpreter's own teardown meets gloo's threads and aborts now and then (docs/LOG.md)


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """What each rank said."""
    folder = tmp_path_factory.mktemp("together")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    multiprocessing.spawn(work, (folder, port), nprocs=RANKS)
    return [json.loads((folder / f"{rank}.json").read_text("utf-8")) for rank in range(RANKS)]


def test_every_rank_remembers_the_keys_of_all(said):
    one, other = said
    assert one == other
    assert one["pointer"] == 4
    assert one["z"] > 0


@pytest.mark.parametrize("name", MASKED)
def test_a_mean_over_what_counts_is_one_processs_however_it_is_dealt_out(said, name):
    make, views = MASKED[name]
    loss, gradient = gradients(make(), views, World())
    for rank in said:
        theirs = [torch.tensor(value) for value in rank["means"][name]]
        torch.testing.assert_close(theirs[0], loss, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(theirs[1], gradient, rtol=1e-4, atol=1e-6)


def test_alone_there_are_ones_own_keys():
    c2l = learner()
    step(c2l, slice(0, 2))
    assert int(c2l.contrast.queue.pointer) == 2
    rows = torch.rand(3, 2)
    assert c2l.together(rows) is rows
    assert World().gather(rows) is rows
