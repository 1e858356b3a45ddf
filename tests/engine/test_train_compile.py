"""`train.compile`: the same losses, a graph a scale, and no more graphs than stated.

In a process of its own: the tests' type checks of shapes cannot be traced.
"""

import json
import subprocess
import sys

import pytest

from pcrl_cli.engine.compiling import GRAPHS

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
    differences += [abs(float(a[k]) - float(b[k])) for k in a]
    graphs.append(compiling.graphs())
print(json.dumps([max(differences), graphs]))
"""


@pytest.mark.timeout(300)
def test_a_compiled_forward_pass_gives_the_same_losses_and_compiles_a_scale_once():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    worst, graphs = json.loads(done.stdout.splitlines()[-1])
    assert worst < 1e-5
    assert 0 < graphs[0] < graphs[1] <= GRAPHS
    assert graphs[1:] == [graphs[1]] * 5  # nothing is compiled twice, whatever the step
