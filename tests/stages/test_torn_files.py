"""Every file that pcrl reads again, cut, flipped or replaced by a folder: found before use, named, with the way out."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from chain import contents, finetune_layers, prep_layers, pretrain_layers

from pcrl_cli.core.config import file_layer
from pcrl_cli.core.errors import ConfigError, IntegrityError, PcrlError
from pcrl_cli.core.listener import Listener
from pcrl_cli.core.plan import Grid
from pcrl_cli.data.cache import open_cache, read_record
from pcrl_cli.engine import lock
from pcrl_cli.engine.run import Run, unseal
from pcrl_cli.stages import training
from pcrl_cli.stages.finetune import finetune
from pcrl_cli.stages.predict import Book, New
from pcrl_cli.stages.prep import prep
from pcrl_cli.stages.pretrain import pretrain
from pcrl_cli.stages.report import join_reports
from pcrl_cli.stages.workspace import Workspace

Damage = Callable[[Path], None]


def cut(share: float) -> Damage:
    def damage(path: Path) -> None:
        content = path.read_bytes()
        path.write_bytes(content[: min(int(len(content) * share), len(content) - 1)])

    return damage


def flip(nth: int) -> Damage:
    def damage(path: Path) -> None:
        content = bytearray(path.read_bytes())
        place = random.Random(nth).randrange(len(content))
        content[place] ^= 1 << (nth % 8)
        path.write_bytes(content)

    return damage


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


CUTS = {f"cut at {share:.1%}": cut(share) for share in (0, 0.01, 0.3, 0.999)}
FLIPS = {f"flip {n}": flip(n) for n in range(20)}
DAMAGES: dict[str, Damage] = CUTS | FLIPS | {"a folder": folder}


class Said(Listener):
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)


def sentence(error: PcrlError, path: Path) -> None:
    """One line that names the file (or, where the file is what makes a folder one, the folder) and the way out."""
    text = str(error)
    assert "\n" not in text
    assert str(path) in text or str(path.parent) in text
    assert any(word in text for word in ("again", "--overwrite", "remove", "give ", "choose", "copy", "delete", "mend"))


def same_value(path: Path, before: bytes) -> bool:
    """A flip in JSON's white space changes nothing that is read."""
    import json

    try:
        return json.loads(path.read_bytes()) == json.loads(before)
    except (ValueError, OSError):
        return False


@pytest.mark.parametrize("name", ["manifest.json", "split.json"])
def test_a_caches_papers(chain, tmp_path, name):
    sound = contents(chain.cache)
    for i, damage in enumerate(DAMAGES.values()):
        cache = tmp_path / str(i)
        shutil.copytree(chain.cache, cache)
        damage(cache / name)
        if (cache / name).is_file() and same_value(cache / name, sound[name]):
            continue
        with pytest.raises((IntegrityError, ConfigError)) as caught:
            open_cache(cache)
        sentence(caught.value, cache / name)
        shutil.rmtree(cache)


def test_a_shard_is_found_by_its_hash_and_made_again_alone(chain, tmp_path):
    cache = tmp_path / "c"
    shutil.copytree(chain.cache, cache)
    shard = sorted((cache / "shards").glob("*.h5"))[0]
    content = shard.read_bytes()
    for damage in DAMAGES.values():
        damage(shard)
        with pytest.raises(IntegrityError) as caught:
            training.open_verified(cache, tmp_path / "none/verified.json")
        sentence(caught.value, shard)
        shutil.rmtree(shard) if shard.is_dir() else shard.unlink()
        shard.write_bytes(content)


def test_a_shards_record_that_is_damaged_counts_as_absent(chain, tmp_path):
    record = tmp_path / "r.json"
    original = sorted((chain.cache / "shards").glob("*.json"))[0].read_bytes()
    for name, damage in DAMAGES.items():
        shutil.rmtree(record) if record.is_dir() else record.unlink(missing_ok=True)
        record.write_bytes(original)
        damage(record)
        assert read_record(record) is None or same_value(record, original), name


@pytest.mark.parametrize("damage", [CUTS["cut at 30.0%"], FLIPS["flip 3"]], ids=["cut", "flip"])
@pytest.mark.parametrize("name", ["manifest.json", "record", "shard"])
def test_preparing_again_mends_a_cache(chain, tmp_path, name, damage):
    cache = tmp_path / "c"
    shutil.copytree(chain.cache, cache)
    suffix = {"record": "*.json", "shard": "*.h5"}.get(name)
    path = sorted((cache / "shards").glob(suffix))[0] if suffix else cache / name
    damage(path)
    if name == "shard" and path.stat().st_size == len(contents(chain.cache)[f"shards/{path.name}"]):
        path.unlink()  # what the sentence of a shard that fails its hash leads to
    prep("luna", data=chain.raw, out=cache, layers=prep_layers(), jobs=1)
    assert contents(cache) == contents(chain.cache)


@pytest.mark.parametrize("name", ["model.safetensors", "optim.safetensors", "state.json"])
def test_a_checkpoint(chain, tmp_path, name):
    newest = Run.load(chain.pretrained.run).checkpoints[-1]
    for i, (what, damage) in enumerate(DAMAGES.items()):
        copy = tmp_path / str(i)
        shutil.copytree(newest, copy)
        damage(copy / name)
        if (copy / name).is_file() and name == "state.json" and same_value(copy / name, (newest / name).read_bytes()):
            continue
        with pytest.raises(IntegrityError) as caught:
            unseal(copy)
        assert str(copy / name) in str(caught.value), what
        shutil.rmtree(copy)


def test_a_run_with_a_damaged_newest_checkpoint_goes_on_from_the_one_before(chain, tmp_path):
    layers = pretrain_layers(4, train={"steps": 4, "batch": 4, "check_every": 2, "checkpoint_minutes": 1e-9})
    arguments = {"out": tmp_path / "run", "workspace": Workspace(tmp_path), "layers": layers}
    whole = pretrain(chain.cache, **arguments)
    steps = [row["step"] for row in Run.load(whole.run).checkpoints and _rows(whole.run)]
    assert steps == [0, 1, 2, 3]
    last = unseal(Run.load(whole.run).checkpoints[-1])
    record = Run.load(whole.run)
    record.write_record(status="running", result=None)
    cut(0.3)(Run.load(whole.run).checkpoints[-1] / "model.safetensors")
    said = Said()
    again = pretrain(chain.cache, **arguments, listener=said)
    assert any("falling back to the checkpoint before it" in text for text in said.warnings)
    end = unseal(Run.load(again.run).checkpoints[-1])
    assert all((end.model[k] == last.model[k]).all() for k in last.model)


def _rows(run: Path):
    from pcrl_cli.engine.run import read_metrics

    return read_metrics(run / "metrics.jsonl")


def test_the_figures_of_a_finished_run(chain, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(chain.pretrained.run, run)
    path = run / "metrics.jsonl"
    original = path.read_bytes()
    assert Run.load(run).rows()
    for damage in DAMAGES.values():
        damage(path)
        with pytest.raises(IntegrityError) as caught:
            Run.load(run).rows()
        sentence(caught.value, path)
        with pytest.raises(IntegrityError):
            join_reports([run], tmp_path / "r.html")
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        path.write_bytes(original)


def test_the_figures_of_an_unfinished_run_lose_their_damaged_rows_alone(tmp_path):
    """The weights do not depend on them, so the run goes on."""
    run = Run.open(tmp_path / "run", "pretrain", {}, "f00d", "", False)
    for step in range(6):
        run.log({"step": step, "loss/x": 1.5})
    original = run.metrics_path.read_bytes()
    lock.release()
    for name, damage in (CUTS | FLIPS).items():
        run.metrics_path.write_bytes(original)
        damage(run.metrics_path)
        left = run.rows()
        run.rewind_metrics(6)
        assert run.rows() == [row for row in left if row["step"] < 6]
        assert len(left) >= 4 or "cut" in name  # a flipped end of line costs the two that it joins
        assert all(line.startswith(b"{") for line in run.metrics_path.read_bytes().splitlines())


def test_the_record_of_predictions(tmp_path):
    grid = Grid((4, 3, 2), np.ones(3), np.zeros(3), np.eye(3))
    book = Book.open(tmp_path / "o", {"weights": "w"}, False)
    book.write(New("a", "a.nii", {}), np.zeros((4, 3, 2), np.uint8), grid, {"liver": 1.0}, 0.5)
    path = tmp_path / "o/predictions.json"
    original = path.read_bytes()
    for damage in DAMAGES.values():
        damage(path)
        if not (path.is_file() and same_value(path, original)):
            with pytest.raises(IntegrityError) as caught:
                Book.open(tmp_path / "o", {"weights": "w"}, False)
            sentence(caught.value, path)
            if path.is_file():
                assert Book.open(tmp_path / "o", {"weights": "w"}, True).cases == {}
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        path.write_bytes(original)
    assert list(Book.open(tmp_path / "o", {"weights": "w"}, False).cases) == ["a"]


def test_a_runs_record(chain, tmp_path):
    original = (chain.pretrained.run / "run.json").read_bytes()
    for i, damage in enumerate(DAMAGES.values()):
        run = tmp_path / str(i)
        run.mkdir()
        (run / "run.json").write_bytes(original)
        damage(run / "run.json")
        if (run / "run.json").is_file() and same_value(run / "run.json", original):
            continue
        with pytest.raises((IntegrityError, ConfigError)) as caught:
            Run.load(run)
        sentence(caught.value, run / "run.json")


def test_a_runs_settings_given_again_are_held_against_its_record(chain, tmp_path):
    import yaml

    run = tmp_path / "run"
    run.mkdir()
    for name in ("run.json", "config.yaml"):
        (run / name).write_bytes((chain.pretrained.run / name).read_bytes())
    config = run / "config.yaml"
    original = config.read_bytes()
    assert file_layer(config)[1] == yaml.safe_load(original)
    found = 0
    for damage in DAMAGES.values():
        shutil.rmtree(config) if config.is_dir() else config.unlink()
        config.write_bytes(original)
        damage(config)
        try:
            values = file_layer(config)[1]
        except (IntegrityError, ConfigError) as error:
            found += 1
            sentence(error, config)
        else:
            assert values == yaml.safe_load(original)  # white space
    assert found >= 20


def test_a_finished_runs_damaged_settings_are_mended(chain, tmp_path):
    out = tmp_path / "run"
    layers = finetune_layers(1, width=4)
    for _ in range(2):
        finetune(chain.cache, task="luna", out=out, workspace=Workspace(tmp_path), layers=layers)
        original = (out / "config.yaml").read_bytes()
        (out / "config.yaml").write_bytes(original[:30])
        Run.load(out).write_record(status="running", result=None)
    finetune(chain.cache, task="luna", out=out, workspace=Workspace(tmp_path), layers=layers)
    assert (out / "config.yaml").read_bytes() == original
