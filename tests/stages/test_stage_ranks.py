"""`pretrain` by two processes, as torchrun starts them."""

import json
import os
import shutil
import socket
from pathlib import Path

import pytest
import torch
from chain import contents, pretrain_layers
from torch import multiprocessing

from pcrl_cli.core.errors import PcrlError
from pcrl_cli.engine.run import Run, read_metrics
from pcrl_cli.stages.pretrain import pretrain
from pcrl_cli.stages.workspace import Workspace

RANKS = 2


def work(rank: int, root: Path, caches: dict[str, Path]) -> None:
    torch.set_num_threads(1)
    said = {}
    for name, layers in (("damaged", pretrain_layers(1)), ("other", pretrain_layers(2)), ("good", pretrain_layers(1))):
        port = (root / f"{name}.port").read_text("utf-8")
        os.environ.update(RANK=str(rank), WORLD_SIZE=str(RANKS), MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
        try:
            done = pretrain(caches[name], out=root / "r" / name, workspace=Workspace(root), layers=layers, device="cpu")
            said[name] = str(done.outcome["steps"])
        except PcrlError as error:
            said[name] = type(error).__name__
        said[name] += " left" if not torch.distributed.is_initialized() else " still there"
    (root / f"rank{rank}.json").write_text(json.dumps(said))
    os._exit(0)  # the interpreter's own teardown meets gloo's threads and aborts now and then (docs/LOG.md)


@pytest.fixture(scope="module")
def said(chain, tmp_path_factory) -> tuple[Path, list[dict[str, str]]]:
    """A cache with a damaged shard, a folder with another run, and a run that can be done."""
    root = tmp_path_factory.mktemp("ranks")
    shutil.copytree(chain.cache, root / "damaged")
    shard = next((root / "damaged/shards").glob("*.h5"))
    content = bytearray(shard.read_bytes())
    content[-1000] ^= 1
    shard.write_bytes(content)
    shutil.copytree(chain.pretrained.run, root / "r/other")
    caches = {"damaged": root / "damaged", "other": chain.cache, "good": chain.cache}
    for name in caches:
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            (root / f"{name}.port").write_text(str(s.getsockname()[1]))
    multiprocessing.spawn(work, (root, caches), nprocs=RANKS)
    return root, [json.loads((root / f"rank{r}.json").read_text("utf-8")) for r in range(RANKS)]


def test_what_rank_0_refuses_ends_every_rank_and_writes_nothing(said):
    assert [s["damaged"] for s in said[1]] == ["IntegrityError left", "MachineError left"]
    assert not (said[0] / "r/damaged").exists()


def test_a_folder_with_another_run_is_left_as_it_was(said, chain):
    assert [s["other"] for s in said[1]] == ["ConfigError left", "MachineError left"]
    assert contents(said[0] / "r/other") == contents(chain.pretrained.run)


def test_two_ranks_pretrain_together_and_one_of_them_writes(said):
    assert [s["good"] for s in said[1]] == ["1 left"] * 2
    assert Run.load(said[0] / "r/good").finished
    assert [row["step"] for row in read_metrics(said[0] / "r/good/metrics.jsonl")] == [0]
