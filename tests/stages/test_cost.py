"""What a step costs, counted without doing it."""

import subprocess
from types import SimpleNamespace

import pytest
import torch

from pcrl_cli.methods.pcrlv2 import Config
from pcrl_cli.stages import cost

SMALL = {"globals": (2, 1, 16, 16, 16), "locals_sub": (2, 1, 8, 8, 8)}


def test_a_paper_step_stays_within_its_arithmetic_with_and_without_the_sub_pixel_form():
    assert cost.step_flops(Config(subpixel=0), 32) <= 21.5e12
    assert cost.step_flops(Config(subpixel=2), 32) <= 17.5e12


def test_composing_changes_nothing_but_the_finest_scales_arithmetic():
    plain, composed = (Config(width=4, subpixel=n) for n in (0, 2))
    assert cost.step_flops(plain, 2, 3) == cost.step_flops(composed, 2, 3)
    assert cost.step_flops(plain, 2, 5) > 1.3 * cost.step_flops(composed, 2, 5)


def test_memory_is_weights_gradients_momenta_and_what_the_forward_pass_keeps():
    config = Config(width=2, poolings=2)
    gb = cost.memory(config, 4, 2, False, SMALL)
    parameters = cost.parameter_count(config)
    assert gb["weights"] == gb["gradients"] == round(4 * parameters / 1e9, 3)
    assert gb["optimiser"] == round(8 * parameters / 1e9, 3)
    full, half = cost.activation_bytes(config, 4, SMALL), cost.activation_bytes(config, 2, SMALL)
    assert full == pytest.approx(2 * half, rel=0.05)
    voxels = 4 * 2 * 16**3  # of both globals; the finest stages alone keep maps of 4 channels more than once
    assert full > 4 * 4 * 4 * voxels


def test_activations_are_those_that_a_real_pass_saves():
    config = Config(width=2, poolings=2)
    saved: dict[int, int] = {}

    def keep(t):
        if not isinstance(t, torch.nn.Parameter):
            saved[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    from pcrl_cli.core.learner import Progress, Stored
    from pcrl_cli.methods.pcrlv2 import PCRLv2, Scales

    learner = PCRLv2(config, Stored(3, 1, (1.0, 0.0)))
    views = {n: torch.rand(4, *SMALL["globals"]) for n in ("x", "g")} | {"l": torch.rand(4, *SMALL["locals_sub"])}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        terms = learner.losses({**views, "scales": Scales(2, 2, ((2, 2),) * 2)}, Progress(0, 1))
    assert terms
    assert cost.activation_bytes(config, 4, SMALL) == pytest.approx(sum(saved.values()), rel=0.2)


def test_energy_is_said_only_where_something_reports_the_power(monkeypatch):
    assert cost.watts(torch.device("cpu")) is None
    shown = SimpleNamespace(uuid="00000000-0000-0000-0000-000000000003")  # torch's number of it is 0, nvidia-smi's 3
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: shown)
    answer, asked = subprocess.CompletedProcess([], 0, stdout="700.00\n"), []
    monkeypatch.setattr(subprocess, "run", lambda command, **k: asked.append(command) or answer)
    assert cost.watts(torch.device("cuda")) == 700.0
    assert f"--id=GPU-{shown.uuid}" in asked[0]
    answer.stdout = "[N/A]\n"
    assert cost.watts(torch.device("cuda")) is None
    answer.stdout, shown.uuid = "700.00\n", ""  # a version of torch that tells no UUID
    assert cost.watts(torch.device("cuda")) is None
