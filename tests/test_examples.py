"""What examples/ promises: the template trains, the pipeline runs."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pcrl_cli.core import files
from pcrl_cli.core.config import file_layer
from pcrl_cli.core.learner import Learner, Progress, Stored
from pcrl_cli.core.rng import Rng
from pcrl_cli.methods.pcrlv2 import PCRLv2
from pcrl_cli.phantoms import brain, chest, radiograph
from pcrl_cli.report.paper_numbers import TABLES as TABLES_OF_THE_PAPER
from pcrl_cli.stages.pretrain import pretrain_settings
from pcrl_cli.stages.table import Table, read_spec
from pcrl_cli.stages.table_report import printed_numbers
from pcrl_cli.stages.workspace import Workspace

ROOT = Path(__file__).parents[1]


def template():
    spec = importlib.util.spec_from_file_location("new_method", ROOT / "examples" / "new_method.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_template_is_a_learner_whose_encoder_moves():
    module = template()
    learner: Learner = module.LEARNER(module.Config(width=2), Stored(3, 1, (1 / 2000, 0.5))).train()
    batch = {"globals": torch.randint(-1000, 1000, (2, 2, 1, 16, 16, 8), dtype=torch.int16)}
    views = learner.views(batch, Rng.at(0, 0, torch.arange(2)))
    before = learner.encoder.levels[0][0][0].weight.detach().clone()
    optimiser = torch.optim.SGD(learner.parameters(), lr=0.1)
    first = learner(views, Progress(0, 10))
    assert set(first) == {"restore"}
    first["restore"].backward()
    optimiser.step()
    assert not torch.equal(before, learner.encoder.levels[0][0][0].weight)
    assert learner(views, Progress(1, 10))["restore"] < first["restore"]
    assert {name: image.dim() for name, image in learner.pictures(views).items()} == {"x": 4, "x'": 4, "restored": 4}


def ran(name: str, folder: Path, workspace: Path, **options: str) -> list[str]:
    """The lines that a pipeline prints about its arms; it may need no more than what its head says."""
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PCRL_WORKSPACE": str(workspace),
        "OMP_NUM_THREADS": "1",
        **options,
    }
    done = subprocess.run(
        ["bash", str(ROOT / "examples" / name)], cwd=folder, env=environment, capture_output=True, encoding="utf-8",
        timeout=400,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [line for line in done.stdout.splitlines() if ": " in line and line.endswith(("patients", ")"))]


TINY = "--width 2 --batch 4 --steps 1 --set learner.restore_scales=[1] --set learner.compare_scales=[1]"


def arms(lines: list[str]) -> list[str]:
    return [line.split(":")[0].split("/")[-1] for line in lines]


def test_the_semi_supervised_pipeline_runs_from_raw_scans_to_a_report(tmp_path):
    workspace = tmp_path / "with a space"
    chest.make(workspace / "data" / "luna", patients=5, seed=0)
    lines = ran(
        "luna_semi_supervised.sh", tmp_path, workspace,
        RATIO="0.4", PRETRAIN=TINY, FINETUNE="--steps 1 --batch 4", SCRATCH="--width 2",
    )  # fmt: skip
    assert arms(lines) == ["model.safetensors", "scratch"]
    assert all("auroc" in line for line in lines)
    assert (tmp_path / "encoder.safetensors").stat().st_size > 1000
    assert "auroc" in (tmp_path / "report.html").read_text("utf-8")


@pytest.mark.timeout(500)
def test_the_transfer_pipeline_runs_from_chest_to_brain(tmp_path):
    chest.make(tmp_path / "ws/data/luna", patients=5, seed=0)
    brain.make(tmp_path / "ws/data/brats", patients=5, seed=0)
    lines = ran(
        "luna_to_brats.sh", tmp_path, tmp_path / "ws",
        RATIOS="0.7", PRETRAIN=TINY, SCRATCH="--width 2",
        FINETUNE="--steps 1 --batch 2 --set learner.crop=[48,48,48]",
    )  # fmt: skip
    assert arms(lines) == ["model.safetensors", "scratch"]
    assert all("dice" in line for line in lines)
    assert "dice" in (tmp_path / "report.html").read_text("utf-8")


@pytest.mark.timeout(500)
def test_the_radiograph_pipeline_runs_from_images_to_a_report(tmp_path):
    radiograph.make(tmp_path / "ws/data/nih", patients=40, seed=0)
    small = "--set learner.images.global_side=32 --set learner.images.local_side=32"
    lines = ran(
        "nih_chest_xray.sh", tmp_path, tmp_path / "ws",
        RATIO="0.5", PREP="--size 40", SCRATCH="--width 2",
        PRETRAIN=f"--width 2 --batch 4 --steps 1 {small}",
        FINETUNE="--steps 1 --batch 4 --set learner.side=32 --set learner.resize=40",
    )  # fmt: skip
    assert arms(lines) == ["model.safetensors", "scratch"]
    assert all("auroc" in line for line in lines)
    assert (tmp_path / "encoder.safetensors").stat().st_size > 1000


@pytest.mark.parametrize("script", sorted((ROOT / "examples").rglob("*.sh")), ids=lambda path: path.name)
def test_every_pipeline_stops_at_the_first_error_and_can_be_run(script):
    assert "set -euo pipefail" in script.read_text("utf-8")
    assert os.access(script, os.X_OK)


ABLATIONS = sorted((ROOT / "examples" / "ablations").glob("*.yaml"))
TABLES = sorted((ROOT / "examples" / "tables").glob("*.yaml"))
EVIDENCE = [p for p in sorted((ROOT / "examples" / "evidence").glob("*.yaml")) if p.stem != "prep"]


@pytest.mark.parametrize("dim", ["2d", "3d"])
@pytest.mark.parametrize("path", ABLATIONS, ids=lambda p: p.stem)
def test_an_ablation_is_a_config_of_pretrain_whose_learner_can_be_built(path, dim):
    layers = [file_layer(path), ("test", {"learner": {"width": 4}})]
    settings, origin = pretrain_settings(layers=layers, dim=dim)
    assert origin["method"] == "choice"
    assert any(source == str(path) for source in origin.values())
    stored = Stored(3, 1, (1 / 2000, 0.5)) if dim == "3d" else Stored(2, 1, (1 / 255, 0.0))
    learner = PCRLv2(settings.learner, stored)
    asked = file_layer(path)[1]["learner"]
    assert {key: getattr(learner.config, key) for key in asked} == {
        key: tuple(value) if isinstance(value, list) else value for key, value in asked.items()
    }
    assert set(learner.restore) == {str(i) for i in learner.config.restore_at}
    assert set(learner.compare) == {str(i) for i in learner.config.compare_at}


def test_the_rows_of_the_papers_ablations_are_all_there_and_differ():
    rows = [p.stem.split("-")[0] for p in ABLATIONS]
    assert {name: rows.count(name) for name in set(rows)} == {"table1": 2, "table2": 2, "table3": 7}
    for table in ("table1", "table2", "table3"):
        settings = [str(file_layer(p)[1]["learner"]) for p in ABLATIONS if p.stem.startswith(table)]
        assert len(set(settings)) == len(settings)


@pytest.mark.parametrize("path", TABLES, ids=lambda p: p.stem)
def test_a_tables_spec_names_what_there_is_and_its_settings_resolve(path):
    spec = read_spec(path)
    Table(spec, path.parent, path.parent / "none", Workspace(path.parent)).check()
    assert spec.name == path.stem
    assert {spec.scratch, spec.focus} <= set(spec.methods)
    assert len(spec.seeds) >= 3
    if spec.paper_table:
        paper = TABLES_OF_THE_PAPER[spec.paper_table]
        assert spec.ratios == paper.ratios
        assert set(spec.methods) == set(printed_numbers(spec))
        missing = set(paper.values) - set(spec.methods)
        assert missing <= ({"TransVW"} if spec.task == "chest" else set())


@pytest.mark.parametrize("path", EVIDENCE, ids=lambda p: p.stem)
def test_a_spec_of_the_evidence_compares_alike_and_resolves(path, tmp_path):
    spec = read_spec(path)
    (tmp_path / "cache" / spec.cache).mkdir(parents=True)
    files.write_sealed(tmp_path / "cache" / spec.cache / "manifest.json", {"dim": 3})
    Table(spec, path.parent, tmp_path / "none", Workspace(tmp_path)).check()
    assert {"TS", "PCRLv2", "SimSiam", "MG"} <= set(spec.methods)
    assert (spec.preset, len(spec.seeds), spec.ratios[0], spec.ratios[-1]) == ("matched", 5, 0.1, 1.0)
    lengths = {arm.pretrain.get("train", {}).get("steps") for arm in spec.methods.values()}
    assert lengths == {None}  # all methods are trained for the same number of steps


def test_the_evidence_is_prepared_from_the_files_as_they_are_published(tmp_path):
    grey = np.random.default_rng(0)
    count = grey.integers(1, 15, 12)
    nodules = {
        "slices": grey.integers(0, 256, (count.sum(), 64, 64), dtype=np.uint8),
        "start": np.cumsum(count) - count,
        "count": count,
        "label": np.arange(12) % 2,
        "exam_id": np.array([f"exam {i // 2}" for i in range(12)]),
        "nodule_id": np.arange(12).astype(str),
    }
    np.savez(tmp_path / "nodules.npz", **nodules)
    adrenal = {
        f"{part}_images": grey.integers(0, 2, (n, 64, 64, 64), dtype=np.uint8) * 255 for part, n in PARTS.items()
    }
    adrenal |= {f"{part}_labels": (np.arange(n) % 2)[:, None] for part, n in PARTS.items()}
    np.savez(tmp_path / "adrenal.npz", **adrenal)
    radiograph.make(tmp_path / "films", patients=60, seed=0)
    given = {"NODULES": "nodules.npz", "ADRENAL": "adrenal.npz", "NIH": "films", "OPTIONS": "--dry-run --json"}
    ran("evidence/run.sh", tmp_path, tmp_path, **given)
    manifests = {
        name: files.read_sealed(tmp_path / "cache" / name / "manifest.json") for name in ("nodules", "adrenal")
    }
    assert {name: m["classes"] for name, m in manifests.items()} == {
        "nodules": ["malignant"],
        "adrenal": ["hyperplasia"],
    }
    assert {name: m["totals"]["counts"]["pairs"]["kept"] for name, m in manifests.items()} == {
        "nodules": 48,
        "adrenal": 24,
    }
    split = files.read_json(tmp_path / "cache" / "adrenal" / "split.json")
    assert {part: len(split[part]) for part in PARTS} == PARTS


PARTS = {"train": 8, "val": 2, "test": 2}


def test_all_tables_of_the_paper_have_a_spec():
    assert {p.stem.split("-")[0] for p in TABLES} == {f"table{i}" for i in range(1, 9)}
