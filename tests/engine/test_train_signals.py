import contextlib
import os
import signal
import threading

import pytest
from toys import Noise, Source, Toy, everything, rows, same, stop_at, trainer

from pcrl_cli.core.errors import Preempted

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


def kill_at(number, at):
    return lambda step: os.kill(os.getpid(), number) if step == at else None


@pytest.fixture
def handlers():
    """What the three signals did before the test; also what they must do after it."""
    return {number: signal.getsignal(number) for number in SIGNALS}


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_the_step_saves_it_and_raises_preempted(tmp_path, handlers, number):
    t = trainer(tmp_path, source=Source(hook=kill_at(number, 7)))
    with pytest.raises(Preempted, match=r"at step 8 of 20, everything is saved in .*; run the same command again"):
        t.fit()
    newest = t.run.newest(pytest.fail)
    assert newest.state["step"] == 8
    assert same(
        {f"model/{k}": v for k, v in newest.model.items()}, {k: v for k, v in everything(t).items() if "model" in k}
    )
    assert [row["step"] for row in rows(tmp_path)] == list(range(8))
    assert {number: signal.getsignal(number) for number in SIGNALS} == handlers


def test_handlers_are_restored_and_the_source_is_closed_however_training_ends(tmp_path, handlers):
    for name, hook in {"error": stop_at(3), "preempted": kill_at(signal.SIGTERM, 3), "end": None}.items():
        source = Source(hook=hook)
        with contextlib.suppress(Noise, Preempted):
            trainer(tmp_path / name, source=source).fit()
        assert {number: signal.getsignal(number) for number in SIGNALS} == handlers
        assert source.closed == 1, name


def test_a_second_ctrl_c_stops_at_once_and_loses_nothing_sealed(tmp_path, handlers):
    def twice(step):
        if step == 7:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    t = trainer(tmp_path, source=Source(hook=twice))
    with pytest.raises(KeyboardInterrupt):
        t.fit()
    assert t.run.newest(pytest.fail).state["step"] == 5
    assert {number: signal.getsignal(number) for number in SIGNALS} == handlers


def test_a_signal_during_validation_is_kept_for_its_end(tmp_path):
    def validate(learner, step):
        os.kill(os.getpid(), signal.SIGTERM)
        return {"auroc": 0.5}

    t = trainer(tmp_path, validate=validate, best="auroc")
    with pytest.raises(Preempted, match="at step 5"):
        t.fit()
    assert rows(tmp_path)[-1]["auroc"] == 0.5


def test_a_stopped_trainer_can_be_called_again(tmp_path):
    source = Source(hook=kill_at(signal.SIGTERM, 2))
    t = trainer(tmp_path, source=source)
    with pytest.raises(Preempted):
        t.fit()
    source.hook = None
    assert t.fit().steps == 20
    assert [row["step"] for row in rows(tmp_path)] == list(range(20))


def test_training_in_another_thread_leaves_signals_alone(tmp_path, handlers):
    seen = []

    def hook(step):
        seen.append({number: signal.getsignal(number) for number in SIGNALS} == handlers)

    thread = threading.Thread(target=trainer(tmp_path, Toy(), Source(hook=hook)).fit)
    thread.start()
    thread.join()
    assert len(seen) == 20
    assert all(seen)
