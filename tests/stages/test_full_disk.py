"""A disk that is full, at every place that writes: one sentence, exit code 6, nothing torn, and it goes on with room.

The disk is a tmpfs of some MiB, which takes a user who may mount one; preparing and training on such disks of every size
is `benchmarks/reliability`.
"""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import yaml
from chain import contents, finetune_layers, prep_layers, pretrain_layers
from original import random_model, save

from pcrl_cli.core import files
from pcrl_cli.core.errors import MachineError
from pcrl_cli.core.listener import Listener
from pcrl_cli.data.volume import Volume
from pcrl_cli.engine import lock
from pcrl_cli.engine.run import Run
from pcrl_cli.readers.volume_io import read_volume, write_nifti
from pcrl_cli.stages.evaluate import evaluate
from pcrl_cli.stages.export import export
from pcrl_cli.stages.finetune import finetune
from pcrl_cli.stages.import_ import import_weights
from pcrl_cli.stages.predict import predict
from pcrl_cli.stages.prep import prep
from pcrl_cli.stages.pretrain import pretrain
from pcrl_cli.stages.probe import embed
from pcrl_cli.stages.report import join_reports
from pcrl_cli.stages.slurm import Job, slurm
from pcrl_cli.stages.table import table
from pcrl_cli.stages.workspace import Workspace


@pytest.fixture(scope="module")
def disk(tmp_path_factory):
    folder = tmp_path_factory.mktemp("disk")
    command = ["mount", "-t", "tmpfs", "-o", "size=64m", "none", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("this user may not mount a tmpfs")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def full(disk):
    """The disk, emptied, and a function that fills it but for so many bytes."""
    for path in disk.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    def fill(left: int) -> None:
        free = shutil.disk_usage(disk).free
        (disk / "filler").write_bytes(b"\1" * max(free - left, 0))

    yield disk, fill
    lock.release()


def others(disk: Path) -> dict[str, bytes]:
    return {name: content for name, content in contents(disk).items() if name != "filler"}


@pytest.fixture(scope="module")
def released(tmp_path_factory) -> Path:
    return save(tmp_path_factory.mktemp("released") / "w.pt", random_model(4).state_dict())


@pytest.fixture(scope="module")
def segmenting(tmp_path_factory) -> Path:
    """A run of LiTS, with its raw scans beside it."""
    root = tmp_path_factory.mktemp("lits")
    (root / "raw").mkdir()
    for n in range(3):
        hu = np.random.default_rng(n).integers(-900, 100, (20, 18, 12)).astype(np.int16)
        for name, array in (("volume", hu), ("segmentation", (hu > 0).astype(np.int16))):
            write_nifti(Volume(array, np.ones(3), np.zeros(3), np.eye(3)), root / f"raw/{name}-{n}.nii.gz")
    cache = prep("lits", data=root / "raw", out=root / "cache", jobs=1).cache
    learner = {"crop": [16, 16, 16], "overlap": 0.0}
    layers = [("test", {"learner": learner, "train": {"steps": 1, "batch": 2}, "width": 2, "poolings": 2})]
    return finetune(cache, task="lits", out=root / "run", layers=layers, workspace=Workspace(root)).run


@pytest.mark.parametrize("left", [0, 4096])
def test_masks_that_do_not_fit_are_predicted_when_there_is_room(segmenting, full, left):
    disk, fill = full
    scans = sorted((segmenting.parent / "raw").glob("volume-*.nii.gz"))
    fill(left)
    with pytest.raises(MachineError) as caught:
        predict(segmenting, scans, disk / "o", device="cpu")
    assert str(disk) in str(caught.value)
    there = [path for path in (disk / "o").rglob("*") if path.is_file()]
    assert [path.name for path in there] == (["volume-0_pred.nii.gz"] if left else [])  # whole; its entry did not fit
    assert all(read_volume(path).array.shape == (20, 18, 12) for path in there)
    (disk / "filler").unlink()
    done = predict(segmenting, scans, disk / "o", device="cpu")
    assert done.made == ["volume-0", "volume-1", "volume-2"]
    assert done.table.exists()


@pytest.mark.parametrize("at", ["the spec", "a cell", "the page"])
def test_a_table_on_a_full_disk_keeps_its_cells_and_goes_on(chain, full, tmp_path, at):
    disk, fill = full
    spec = {"task": "luna", "methods": {"TS": {"finetune": {"width": 2, "poolings": 2}}}, "ratios": [0.6], "seeds": [0]}
    tuning = {"learner": {"side": 24}, "train": {"steps": 1, "batch": 4}}
    path = tmp_path / "spec.yaml"
    path.write_text(yaml.safe_dump(spec | {"name": "t", "cache": str(chain.cache), "finetune": tuning}), "utf-8")

    class Filling(Listener):
        def say(self, text):
            if at == "a cell" and text.startswith("fine-tuning"):
                fill(0)

    if at == "the spec":
        fill(0)
    elif at == "the page":
        table(path, out=disk / "t", workspace=Workspace(tmp_path))
        for name in ("table.json", "table.csv", "table.tex", "report.html"):
            (disk / "t" / name).unlink()
        fill(0)
    before = others(disk)
    with pytest.raises(MachineError) as caught:
        table(path, out=disk / "t", workspace=Workspace(tmp_path), listener=Filling())
    assert str(disk) in str(caught.value)
    after = others(disk)
    assert {name: after[name] for name in before if "spec" not in name} == {
        name: content for name, content in before.items() if "spec" not in name
    }
    assert not [name for name in after if name.endswith(".tmp")]
    (disk / "filler").unlink()
    assert table(path, out=disk / "t", workspace=Workspace(tmp_path)).done == 1
    assert (disk / "t/report.html").exists()


@pytest.mark.parametrize("left", [0, 8192])
@pytest.mark.parametrize("what", ["export", "torch export", "embed", "embed as text", "report", "import"])
def test_a_file_that_does_not_fit_is_not_there_and_later_it_is(chain, full, released, what, left):
    disk, fill = full
    work = {
        "export": lambda: export(chain.pretrained.run, disk / "o/e.safetensors"),
        "torch export": lambda: export(chain.pretrained.run, disk / "o/e.pt"),
        "embed": lambda: embed(chain.pretrained.run, out=disk / "o/f.npz", workspace=chain.workspace),
        "embed as text": lambda: embed(chain.pretrained.run, out=disk / "o/f.csv", workspace=chain.workspace),
        "report": lambda: join_reports([chain.pretrained.run, chain.tuned.run], disk / "o/r.html"),
        "import": lambda: import_weights(released, disk / "o"),
    }[what]
    fill(left)
    with pytest.raises(MachineError) as caught:
        work()
    assert "\n" not in str(caught.value)
    assert str(disk) in str(caught.value)
    left_there = [p for p in (disk / "o").rglob("*") if p.is_file()] if (disk / "o").is_dir() else []
    assert all(p.suffix == ".json" for p in left_there)  # the contract of a torch file, which comes first, is whole
    (disk / "filler").unlink()
    work()
    assert any((disk / "o").iterdir())


def test_a_batch_file_that_does_not_fit_is_not_there(full):
    disk, fill = full
    fill(0)
    with pytest.raises(MachineError, match="no space left"):
        slurm(["pretrain", "cache"], Job(), disk / "job.sh")
    assert sorted(path.name for path in disk.iterdir()) == ["filler"]
    (disk / "filler").unlink()
    assert slurm(["pretrain", "cache"], Job(), disk / "job.sh").path == disk / "job.sh"


def test_an_evaluation_that_does_not_fit_leaves_the_run_as_it_was(chain, full):
    disk, fill = full
    shutil.copytree(chain.tuned.run, disk / "run", ignore=shutil.ignore_patterns("evaluation", "report.html"))
    before = others(disk)
    fill(4096)
    with pytest.raises(MachineError):
        evaluate(disk / "run", workspace=chain.workspace)
    after = others(disk)
    assert {name: after[name] for name in before} == before
    assert not [name for name in after if name.endswith(".tmp")]
    (disk / "filler").unlink()
    assert evaluate(disk / "run", workspace=chain.workspace).report.exists()


@pytest.mark.parametrize("left", [0, 4096, 200_000])
def test_preparing_keeps_what_is_finished_and_goes_on(chain, full, left):
    disk, fill = full
    prep("luna", data=chain.raw, out=disk / "c", layers=prep_layers(), jobs=1, limit=2)
    before = {name: content for name, content in others(disk).items() if name.endswith(".h5")}
    fill(left)
    with pytest.raises(MachineError):
        prep("luna", data=chain.raw, out=disk / "c", layers=prep_layers(), jobs=1)
    after = others(disk)
    assert {name: after[name] for name in before} == before
    assert not [name for name in after if name.endswith(".tmp")]
    (disk / "filler").unlink()
    prep("luna", data=chain.raw, out=disk / "c", layers=prep_layers(), jobs=1)
    assert contents(disk / "c") == contents(chain.cache)


@pytest.mark.parametrize("left", [0, 4096, 300_000])
def test_training_that_cannot_save_goes_on_from_its_last_checkpoint(chain, full, left):
    disk, fill = full
    layers = pretrain_layers(3, train={"steps": 3, "batch": 4, "checkpoint_minutes": 1e-9})
    workspace = Workspace(disk / "ws")
    arguments = {"out": disk / "run", "workspace": workspace, "layers": layers}

    class Filling(Listener):
        def advance(self, done, **figures):
            if done == 2:
                fill(left)

    with pytest.raises(MachineError):
        pretrain(chain.cache, **arguments, listener=Filling())
    run = Run.load(disk / "run")
    assert not run.finished
    assert run.newest(pytest.fail).state["step"] >= 1
    (disk / "filler").unlink()
    assert pretrain(chain.cache, **arguments).outcome["steps"] == 3


def test_fine_tuning_on_a_full_disk_makes_no_half_run(chain, full):
    disk, fill = full
    fill(0)
    layers = finetune_layers(1, width=4)
    with pytest.raises(MachineError):
        finetune(chain.cache, task="luna", out=disk / "run", workspace=Workspace(disk / "ws"), layers=layers)
    (disk / "filler").unlink()
    done = finetune(chain.cache, task="luna", out=disk / "run", workspace=Workspace(disk / "ws"), layers=layers)
    assert done.outcome["steps"] == 1


@pytest.mark.parametrize("before", [None, b"old"])
def test_an_atomic_write_is_as_before_or_complete(full, before):
    disk, fill = full
    path = disk / "x"
    if before is not None:
        path.write_bytes(before)
    fill(4096)
    with pytest.raises(MachineError, match="no space left"):
        files.write_atomic(path, b"new" * 100_000)
    assert (path.read_bytes() if path.exists() else None) == before
    assert sorted(p.name for p in disk.iterdir()) == sorted(["filler", *(["x"] if before else [])])
