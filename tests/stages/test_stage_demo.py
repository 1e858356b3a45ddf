import pytest

from pcrl_cli.core.errors import ConfigError
from pcrl_cli.core.listener import Listener
from pcrl_cli.phantoms import chest
from pcrl_cli.stages import demo as module
from pcrl_cli.stages.demo import demo


def make(raw, patients=2, seed=0) -> None:
    module._make_phantoms(chest, raw, patients, seed, Listener())


def stamps(raw) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in raw.rglob("*") if path.is_file()}


@pytest.fixture
def raw(tmp_path):
    make(tmp_path / "data/luna")
    return tmp_path / "data/luna"


def test_the_same_phantoms_are_not_made_twice(raw):
    before = stamps(raw)
    make(raw)
    assert stamps(raw) == before


@pytest.mark.parametrize("settings", [{"patients": 5}, {"seed": 1}])
def test_other_phantoms_are_not_mixed_with_those_that_are_there(raw, tmp_path, settings):
    before = stamps(raw)
    with pytest.raises(ConfigError, match=r"holds phantoms of other settings .*; choose another --out"):
        demo(tmp_path, **({"patients": 2} | settings))
    assert stamps(raw) == before


def test_phantoms_of_another_version_are_refused(raw, monkeypatch):
    monkeypatch.setattr(chest, "VERSION", chest.VERSION + 1)
    with pytest.raises(ConfigError, match="'version': 1"):
        make(raw)


def test_scans_of_ones_own_are_never_overwritten(tmp_path):
    (tmp_path / "annotations.csv").write_text("mine")
    with pytest.raises(ConfigError, match="holds scans that this command did not make; choose another --out"):
        make(tmp_path)
    assert (tmp_path / "annotations.csv").read_text("utf-8") == "mine"


def test_an_interrupted_making_is_finished(raw):
    (raw / chest.LAST).unlink()
    make(raw)
    assert (raw / chest.LAST).is_file()
