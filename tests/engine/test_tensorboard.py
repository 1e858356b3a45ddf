import importlib.util

import pytest
from toys import Noise, Source, rows, stop_at, trainer

from pcrl_cli.core.errors import MachineError


def events(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder / "tensorboard"))
    found.Reload()
    return {tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def validate(learner, step):
    return {"auroc": None if step == 5 else 0.5, "words": "none"}


def test_every_number_of_every_row_is_written(tmp_path):
    trainer(tmp_path, tensorboard=True, validate=validate).fit()
    found, logged = events(tmp_path), rows(tmp_path)
    numbers = {key for row in logged for key, value in row.items() if isinstance(value, int | float)} - {"step"}
    assert found.keys() == numbers
    assert {"loss/agree", "loss/copy", "lr", "samples_per_second", "gradient_norm", "auroc"} <= numbers
    for name in numbers:
        expected = [(row["step"], pytest.approx(row[name])) for row in logged if row.get(name) is not None]
        assert found[name] == expected


def test_a_resumed_run_shows_every_step_once(tmp_path):
    for stop in (7, 13):
        with pytest.raises(Noise):
            trainer(tmp_path, source=Source(hook=stop_at(stop)), tensorboard=True).fit()
    trainer(tmp_path, tensorboard=True).fit()
    assert [step for step, _ in events(tmp_path)["loss/copy"]] == list(range(20))


def test_without_the_setting_nothing_is_written(tmp_path):
    trainer(tmp_path).fit()
    assert not (tmp_path / "tensorboard").exists()


def test_a_missing_tensorboard_is_the_machines_error_before_any_step(tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tensorboard" else find(name))
    with pytest.raises(MachineError, match=r"run `pip install pcrl\[tensorboard\]`"):
        trainer(tmp_path, tensorboard=True)
    trainer(tmp_path, epochs=1).fit()  # nobody else needs it
