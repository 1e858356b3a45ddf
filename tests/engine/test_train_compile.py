"""`train.compile`: the same losses, a graph a scale, and no more graphs than stated; who cannot be compiled refuses.

In a process of its own: the tests' type checks of shapes cannot be traced.
"""

import json
import subprocess
import sys

import pytest
from toys import config, trainer

from pcrl_cli.core.errors import ConfigError
from pcrl_cli.engine.compiling import GRAPHS
from pcrl_cli.engine.trainer import require_trainable
from pcrl_cli.methods.c2l import C2L
from pcrl_cli.methods.pcrlv1 import PCRLv1
from pcrl_cli.methods.rubik import Rubik

SCRIPT = """
import json
import torch
from pcrl_cli.core.learner import Progress, Stored
from pcrl_cli.engine import compiling
from pcrl_cli.methods.pcrlv2 import Config, PCRLv2, Scales

torch.set_num_threads(1)
compiling.BACKEND = "eager"  # the tracing is what is tested; no compiler is needed
learner = PCRLv2(Config(width=2, poolings=2), Stored(3, 1, (1.0, 0.0)))
fast = compiling.compiled(learner)
views = {n: torch.rand(4, 2, 1, 16, 16, 8) for n in ("x", "g")} | {"l": torch.rand(4, 2, 1, 8, 8, 8)}
differences, graphs = [], []
for step, scale in enumerate((1, 2, 1, 2, 1, 2)):
    at = {**views, "scales": Scales(scale, scale, ((scale,) * 2,) * 2)}
    a, b = (f(at, Progress(step, 6), "main") for f in (learner, fast))
    differences += [abs(float(a[k].detach()) - float(b[k].detach())) for k in a]
    graphs.append(compiling.graphs())
from pcrl_cli.networks.resnet2d import ResNet18Encoder
from pcrl_cli.networks.unet3d import UNet3dEncoder
from pcrl_cli.tasks import chest, lits, luna

unit = (1 / 255, 0.0)
tasks = {
    "lits": (lits.TASK(UNet3dEncoder(1, 2, 1), lits.Config(crop=(8, 8, 8)), Stored(3, 1, unit)),
        {"x": torch.rand(2, 1, 8, 8, 8), "mask": torch.randint(0, 2, (2, 8, 8, 8), dtype=torch.uint8)}),
    "chest": (chest.TASK(ResNet18Encoder(3, 2), chest.Config(side=32), Stored(2, 1, unit, ("a", "b"))),
        {"x": torch.rand(2, 3, 32, 32), "label": torch.tensor([[0, 1], [-1, 1]])}),
    "luna": (luna.TASK(UNet3dEncoder(1, 2, 1), luna.Config(), Stored(3, 1, unit)),
        {"x": torch.rand(2, 1, 8, 8, 8), "label": torch.tensor([0, 1])}),
}
added = {}
for name, (task, views) in tasks.items():
    fast, added[name] = compiling.compiled(task), []
    for step in range(3):
        a, b = (f(views, Progress(step, 3), "main") for f in (task, fast))
        differences += [abs(float(a[k].detach()) - float(b[k].detach())) for k in a]
        added[name].append(compiling.graphs())
print(json.dumps([max(differences), graphs, added]))
"""


@pytest.mark.timeout(300)
def test_a_compiled_forward_pass_gives_the_same_losses_and_compiles_a_scale_once():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    worst, graphs, tasks = json.loads(done.stdout.splitlines()[-1])
    assert worst < 1e-5
    assert 0 < graphs[0] < graphs[1] <= GRAPHS
    assert graphs[1:] == [graphs[1]] * 5  # nothing is compiled twice, whatever the step
    assert all(counts == [counts[0]] * 3 for counts in tasks.values())


@pytest.mark.parametrize("method", [C2L, PCRLv1, Rubik])
def test_a_method_that_cannot_be_compiled_says_so_before_anything_is_made(method):
    with pytest.raises(ConfigError, match=f"train.compile is not for {method.__name__}"):
        require_trainable(config(compile=True), method)
    require_trainable(config(), method)


def test_the_trainer_refuses_it_too(tmp_path):
    with pytest.raises(ConfigError, match=r"train\.compile is not for Toy"):
        trainer(tmp_path / "run", compile=True)
