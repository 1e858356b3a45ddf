"""Fine-tuned networks as they are run: layouts and compilers change nothing but rounding, bfloat16 what is stated."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_learners import TASK_CASES, batch_of, build, settle, views_at
from torch import nn
from toys import CPU

from pcrl_cli.core.errors import ConfigError, MachineError, Preempted
from pcrl_cli.core.learner import Progress, Task
from pcrl_cli.engine import compiling
from pcrl_cli.engine.inference import Inference, ready
from pcrl_cli.engine.layout import arrange, memory_format

BF16_ERROR = 0.02
"""Largest difference of a probability that bfloat16 makes in these small networks; what is stated in docs/performance.md."""

tasks = pytest.mark.parametrize("case", TASK_CASES, ids=lambda c: c[1])


def settled(case):
    """A task with running statistics of its own batch, so that its outputs are spread."""
    return settle(build(case), batch_of(case)).eval()


@tasks
def test_as_it_is_a_network_gives_its_own_numbers_in_the_layout_that_training_has(case):
    task, batch = settled(case), batch_of(case)
    expected = task.predict(batch)
    found = ready(task, CPU, Inference())
    assert not found.training
    torch.testing.assert_close(found.predict(batch), expected, rtol=0, atol=1e-6)
    weights = [p for p in found.parameters() if p.dim() > 3 and p.shape[1] > 1]
    assert weights
    assert all(p.is_contiguous(memory_format=memory_format(found)) for p in weights)


@tasks
def test_bfloat16_moves_probabilities_by_less_than_is_stated_also_on_a_cpu(case):
    task, batch = settled(case), batch_of(case)
    expected = task.predict(batch)
    found = ready(task, CPU, Inference("bf16")).predict(batch)
    assert found.dtype == torch.float32
    assert 0 < (found - expected).abs().max() < BF16_ERROR
    assert expected.std() > 5 * (found - expected).abs().mean()  # there was something to change


def test_a_whole_volume_is_predicted_as_the_network_is_run():
    case = next(case for case in TASK_CASES if case[1] == "lits")
    image = batch_of(case)["image"][0]
    plain, half = (
        ready(settled(case), CPU, how).infer(image, settled(case).config.model_copy(update={"crop": (8, 8, 8)}))
        for how in (Inference(), Inference("bf16"))
    )
    assert 0 < (half - plain).abs().max() < BF16_ERROR


class Own(Task):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 1)


def test_a_task_without_a_network_is_run_as_it_is():
    ready(Own(), CPU, Inference())
    with pytest.raises(ConfigError, match="Own has no part called network"):
        ready(Own(), CPU, Inference("bf16"))


def test_what_differs_from_the_defaults_is_marked_and_said():
    assert (Inference().mark, Inference().notes) == ("", [])
    both = Inference("bf16", compile=True)
    assert both.mark == "bf16-compile"
    assert [note.split(",")[0] for note in both.notes] == [
        "the network was run in bfloat16",
        "the network was compiled",
    ]


# ------------------------------------------------------------------------------------------------------ fine-tuning


def gradients(task, views):
    task.train().zero_grad()
    terms = task.losses(views, Progress(0, 1))
    torch.stack(list(terms.values())).sum().backward()
    return terms, {name: p.grad.clone() for name, p in task.named_parameters() if p.grad is not None}


@tasks
def test_channels_last_gives_a_tasks_losses_and_gradients(case):
    """In float64, since batch norms over a few samples magnify the rounding of float32; the loss itself is float32."""
    plain = build(case).to(memory_format=torch.contiguous_format).double()
    views = views_at(build(case), batch_of(case))
    views = views | {"x": views["x"].double()}
    (terms, grads), (others, moved) = gradients(plain, views), gradients(arrange(build(case).double(), CPU), views)
    for name in terms:
        torch.testing.assert_close(others[name], terms[name], rtol=1e-6, atol=1e-7)
    assert grads.keys() == moved.keys()
    for name in grads:
        torch.testing.assert_close(moved[name], grads[name], rtol=1e-5, atol=1e-6)


# ------------------------------------------------------------------------------------------------------- compiling


@pytest.fixture(scope="module")
def compiled():
    """What compiled_tasks.py found, in a process of its own: the shape checks of this one cannot be traced."""
    tests = Path(__file__).parents[1]
    path = os.pathsep.join(map(str, (tests.parent, tests, tests / "engine")))
    command = [sys.executable, str(tests / "engine/compiled_tasks.py")]
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, encoding="utf-8", check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.timeout(600)
@tasks
def test_a_compiled_network_gives_the_same_probabilities_for_any_number_of_samples(case, compiled):
    found = compiled[f"{case[1]} {case[3]}"]
    assert found["probabilities"] < 1e-6
    assert found["graphs"] <= 2  # of the first number, and of any; none where a task before had the same network
    assert compiled["chest 2d"]["graphs"] > 0


@pytest.mark.timeout(600)
@tasks
def test_a_compiled_task_fine_tunes_as_it_does_eagerly(case, compiled):
    assert compiled[f"{case[1]} {case[3]}"]["steps"] == 3
    assert compiled[f"{case[1]} {case[3]}"]["losses"] < 1e-5


@pytest.mark.timeout(600)
def test_windows_of_a_compiled_network_and_a_missing_compiler(compiled):
    assert compiled["volume"] < 1e-6
    assert compiled["broken"].endswith("(no compiler); leave --compile out")


class Small(Task):
    def __init__(self):
        super().__init__()
        self.network = nn.Linear(2, 1)


def run_compiled():
    """The first call of a compiled network, which compiles it."""
    return ready(Small(), CPU, Inference(compile=True)).network(torch.zeros(1, 2))


@pytest.fixture
def preempting():
    """SIGTERM is answered as the command line does."""

    def stop(number, frame):
        raise Preempted("stopped by a signal")

    old = signal.signal(signal.SIGTERM, stop)
    yield
    signal.signal(signal.SIGTERM, old)
    torch._dynamo.reset()


def test_a_signal_while_the_compiler_works_stops_and_is_no_fault_of_the_compiler(preempting, monkeypatch):
    def backend(graph, inputs):
        signal.raise_signal(signal.SIGTERM)
        return graph.forward

    monkeypatch.setattr(compiling, "BACKEND", backend)
    with pytest.raises(Preempted, match="stopped by a signal"):
        run_compiled()


def of_dynamo(inner):
    """Raises as torch does where its tracing fails: the first error is only the context."""
    from torch._dynamo.exc import InternalTorchDynamoError

    try:
        raise inner
    except Exception as error:
        raise InternalTorchDynamoError(f"{type(error).__name__}: {error}") from None


def test_a_signal_while_the_network_is_traced_stops_and_other_faults_of_tracing_stay_what_they_are(monkeypatch):
    from torch._dynamo.exc import InternalTorchDynamoError

    def failing(inner):
        return lambda forward, **_: lambda x: of_dynamo(inner)

    monkeypatch.setattr(torch, "compile", failing(Preempted("stopped by a signal")))
    with pytest.raises(Preempted, match="stopped by a signal"):
        run_compiled()
    monkeypatch.setattr(torch, "compile", failing(ValueError("a bug")))
    with pytest.raises(InternalTorchDynamoError, match="a bug"):
        run_compiled()


def test_a_compiler_that_fails_by_itself_is_still_said_not_to_work(preempting, monkeypatch):
    def backend(graph, inputs):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(compiling, "BACKEND", backend)
    with pytest.raises(MachineError, match="no working compiler here"):
        run_compiled()
