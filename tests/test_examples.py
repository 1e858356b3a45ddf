"""What examples/ promises: the template trains, the pipeline runs."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import torch

from pcrl_cli.core.learner import Learner, Progress, Stored
from pcrl_cli.core.rng import Rng
from pcrl_cli.phantoms import chest

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


def test_the_semi_supervised_pipeline_runs_from_raw_scans_to_a_report(tmp_path):
    workspace = tmp_path / "with a space"
    chest.make(workspace / "data" / "luna", patients=5, seed=0)
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PCRL_WORKSPACE": str(workspace),
        "OMP_NUM_THREADS": "1",
        "RATIO": "0.4",
        "PRETRAIN": "--width 2 --batch 4 --steps 1 --set learner.restore_scales=[1] --set learner.compare_scales=[1]",
        "FINETUNE": "--steps 1 --batch 4",
        "SCRATCH": "--width 2",
    }
    script = ROOT / "examples" / "luna_semi_supervised.sh"
    done = subprocess.run(
        ["bash", str(script)], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert [line.split(":")[0].split("/")[-1] for line in done.stdout.splitlines() if "auroc" in line] == [
        "model.safetensors",
        "scratch",
    ]
    assert (tmp_path / "encoder.safetensors").stat().st_size > 1000
    assert "auroc" in (tmp_path / "report.html").read_text("utf-8")
