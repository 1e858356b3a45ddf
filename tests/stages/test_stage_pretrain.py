import dataclasses
import importlib.util
import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from chain import contents, prep_layers, pretrain_layers, settings, write_scan

from pcrl_cli.core.config import file_layer
from pcrl_cli.core.errors import ConfigError, IntegrityError, MachineError
from pcrl_cli.data.cache import open_cache
from pcrl_cli.data.loader import Loader
from pcrl_cli.engine.distributed import World
from pcrl_cli.engine.run import Run, read_metrics
from pcrl_cli.methods import pcrlv2
from pcrl_cli.networks.transfer import read_weights
from pcrl_cli.stages import cost, patients, training
from pcrl_cli.stages import pretrain as stage
from pcrl_cli.stages.prep import prep
from pcrl_cli.stages.pretrain import PretrainResult, pretrain, pretrain_settings, training_patients
from pcrl_cli.stages.probe import probe_run
from pcrl_cli.stages.results import Plan
from pcrl_cli.stages.workspace import Workspace


def runs(workspace: Workspace) -> set[str]:
    return {path.name for path in workspace.root.glob("runs/*")}


def test_every_term_is_logged_at_every_step_and_the_report_shows_them(chain):
    rows = read_metrics(chain.pretrained.run / "metrics.jsonl")
    assert [row["step"] for row in rows] == [0, 1, 2]
    assert all(np.isfinite([row[f"loss/{term}"] for term in ("restore", "compare", "local")]).all() for row in rows)
    assert {"lr", "samples_per_second", "data_wait", "gradient_norm"} <= rows[0].keys()
    page = chain.pretrained.report.read_text("utf-8")
    assert all(
        heading in page for heading in ("Losses", "Views as the network saw them", "Is it learning?", "Settings")
    )


def test_a_finished_run_is_a_no_op_with_the_same_result(chain, heard):
    before = contents(chain.pretrained.run)
    again = pretrain(workspace=chain.workspace, layers=pretrain_layers(), listener=heard)
    assert again == chain.pretrained
    assert contents(chain.pretrained.run) == before
    assert "nothing to do" in heard.lines[0]


def test_its_config_finds_the_same_run(chain):
    layers = [file_layer(chain.pretrained.run / "config.yaml")]
    assert pretrain(workspace=chain.workspace, layers=layers) == chain.pretrained


def test_a_stopped_run_goes_on_to_the_same_weights(chain, tmp_path):
    straight = pretrain(chain.cache, out=tmp_path / "a", layers=pretrain_layers(), workspace=Workspace(tmp_path))
    half = {"checkpoint_minutes": 1e-9, "steps": 3, "batch": 4, "check_every": 2}
    layers = pretrain_layers(train=half)
    pretrain(chain.cache, out=tmp_path / "b", layers=layers, workspace=Workspace(tmp_path))
    run = Run.load(tmp_path / "b")
    shutil.rmtree(run.checkpoints[-1])
    run.write_record(status="running", result=None)
    resumed = pretrain(chain.cache, out=tmp_path / "b", layers=layers, workspace=Workspace(tmp_path))
    a, b = read_weights(straight.weights).tensors, read_weights(resumed.weights).tensors
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert resumed.outcome["last"] == straight.outcome["last"]


def test_patients_set_aside_are_not_in_the_contract(chain):
    cache, known = open_cache(chain.cache), read_weights(chain.pretrained.weights).contract.patients
    aside = cache.split.first(0.5)
    assert len(aside) == 3
    assert patients.seen(known, cache, aside) == []
    assert patients.seen(known, cache, cache.split.val + cache.split.test) == []
    used = training_patients(cache, 0.5)
    assert len(patients.seen(known, cache, used)) == len(known.hashes) == len(used) == 2
    assert set(used) | set(aside) == set(cache.split.train)


def test_the_checkpoint_carries_its_contract(chain):
    contract = read_weights(chain.pretrained.weights).contract
    architecture = contract.architecture
    assert (architecture.dim, architecture.width, architecture.poolings) == (3, 4, 5)
    assert (contract.method, contract.recipe, contract.steps) == ("pcrlv2", "paper", 3)
    assert contract.cache == open_cache(chain.cache).manifest["fingerprint"]
    assert contract.domain.intensity == {"hu_min": -1000.0, "hu_max": 1000.0}


def test_a_2d_request_on_a_3d_cache_is_refused(chain):
    with pytest.raises(ConfigError, match="is a 3D cache, but --dim 2d was asked for"):
        pretrain(chain.cache, dim="2d", workspace=chain.workspace)
    with pytest.raises(ConfigError, match=r"there is no 2D cache|not defined for --dim 2d"):
        pretrain(dim="2d", workspace=chain.workspace)


@pytest.fixture(scope="module")
def released(tmp_path_factory) -> Workspace:
    """A cache that says that it was made for recipe `released`, with the paper's crops, which fit small scans."""
    root = tmp_path_factory.mktemp("released")
    for i in range(3):
        write_scan(root / f"data/folder/p{i}.mhd", seed=i)
    paper = {"pair_rule": "overlap", "background_rule": "paper", "border_mm": [0, 0, 0], "local_rule": "inside"}
    pairs = {**prep_layers()[0][1]["pairs"], **paper}
    prep("folder", workspace=Workspace(root), recipe="released", layers=settings(pairs=pairs), jobs=1)
    return Workspace(root)


def test_a_cache_of_another_recipe_is_refused_unless_accepted_and_recorded(released):
    layers = pretrain_layers(1, 2, set_aside=0.0)
    with pytest.raises(ConfigError, match=r"made with recipe released, not paper.*any_recipe=true"):
        pretrain(workspace=released, layers=layers)
    assert runs(released) <= {".verified.json"}
    done = pretrain(workspace=released, layers=[*layers, ("set", {"any_recipe": True})])
    assert Run.load(done.run).record["settings"]["any_recipe"] is True
    assert read_weights(done.weights).contract.recipe == "paper"


def test_the_released_recipe_trains_on_its_own_cache(released):
    done = pretrain(workspace=released, recipe="released", layers=pretrain_layers(1, 2, set_aside=0.0))
    assert set(done.outcome["last"]) == {"restore", "full", "compare", "local"}
    assert read_weights(done.weights).contract.architecture.poolings == 3


def test_two_caches_that_fit_are_listed(chain, tmp_path):
    for name in ("one", "two"):
        shutil.copytree(chain.cache, tmp_path / "cache" / name)
    with pytest.raises(ConfigError, match=r"several caches fit: .*cache/one, .*cache/two; say which one"):
        pretrain(workspace=Workspace(tmp_path), layers=pretrain_layers())


def test_no_cache_says_how_to_make_one(tmp_path):
    with pytest.raises(ConfigError, match=r"there is no 3D cache with pairs.*`pcrl prep`"):
        pretrain(workspace=Workspace(tmp_path))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_refused_and_nothing_is_written(chain):
    before = runs(chain.workspace)
    with pytest.raises(MachineError, match="no CUDA GPU"):
        pretrain(workspace=chain.workspace, layers=pretrain_layers(7), device="cuda")
    assert runs(chain.workspace) == before


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (settings(train={"lrr": 1}), r"unknown setting train\.lrr .*did you mean train\.lr\?"),
        (settings(train={"lr": -1}), r"train\.lr"),
        (settings(learner={"restore_scales": [7]}), "must lie in 0..5"),
        (pretrain_layers(batch=9), r"the batch \(9\) is larger than an epoch \(8 "),
        (pretrain_layers(batch=1), r"train\.batch"),
        (pretrain_layers(set_aside=0.99), "no training patient"),
        (pretrain_layers(learner={"width": 4, "augment": {"swap_patch": [64, 64, 64]}}), "swap_patch"),
    ],
)
def test_settings_that_do_not_fit_are_refused_and_nothing_is_written(chain, layers, message):
    before = runs(chain.workspace)
    with pytest.raises(ConfigError, match=message):
        pretrain(workspace=chain.workspace, layers=layers, device="cpu")
    assert runs(chain.workspace) == before


def test_a_missing_tensorboard_is_told_before_anything_is_written(chain, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tensorboard" else find(name))
    layers = pretrain_layers(train={"steps": 3, "batch": 4, "tensorboard": True})
    with pytest.raises(MachineError, match="TensorBoard is not installed"):
        pretrain(chain.cache, workspace=Workspace(tmp_path), layers=layers)
    assert not list(tmp_path.iterdir())


def test_a_refused_command_does_not_delete_what_it_would_overwrite(chain):
    before = contents(chain.pretrained.run)
    with pytest.raises(ConfigError, match="larger than an epoch"):
        pretrain(workspace=chain.workspace, out=chain.pretrained.run, layers=pretrain_layers(batch=9), overwrite=True)
    assert contents(chain.pretrained.run) == before


def test_an_explicit_folder_with_other_settings_is_refused_by_their_names(chain):
    with pytest.raises(ConfigError, match=r"different: train\.steps\)"):
        pretrain(workspace=chain.workspace, out=chain.pretrained.run, layers=pretrain_layers(4))


def test_a_plan_counts_the_work_and_touches_nothing(chain):
    before = contents(chain.root)
    layers = pretrain_layers(4, learner={"width": 4, "poolings": 2})
    plan = pretrain(workspace=chain.workspace, layers=layers, dry_run=True)
    assert isinstance(plan, Plan)
    assert plan.state == "new"
    assert plan.figures["steps"] == 4
    assert plan.figures["samples"] == 8
    assert plan.figures["tflop per step"] > 0
    assert plan.figures["hours (arithmetic alone)"] >= 0
    assert contents(chain.root) == before
    with pytest.raises(ConfigError, match="larger than an epoch"):
        pretrain(workspace=chain.workspace, layers=pretrain_layers(batch=9), dry_run=True)


def test_a_truncated_checkpoint_is_passed_over_for_the_one_before(chain, tmp_path, heard):
    layers = pretrain_layers(train={"steps": 3, "batch": 4, "checkpoint_minutes": 1e-9, "check_every": 5})
    pretrain(chain.cache, out=tmp_path / "r", layers=layers, workspace=Workspace(tmp_path))
    run = Run.load(tmp_path / "r")
    assert len(run.checkpoints) == 2
    run.write_record(status="running", result=None)
    newest = run.checkpoints[-1] / "model.safetensors"
    newest.write_bytes(newest.read_bytes()[:1000])
    again = pretrain(chain.cache, out=tmp_path / "r", layers=layers, workspace=Workspace(tmp_path), listener=heard)
    assert any("torn or was changed" in text for text in heard.warnings)
    assert again.outcome["steps"] == 3
    for checkpoint in run.checkpoints:
        (checkpoint / "optim.safetensors").write_bytes(b"")
    run.write_record(status="running", result=None)
    with pytest.raises(IntegrityError, match=r"no checkpoint in .* is sound"):
        pretrain(chain.cache, out=tmp_path / "r", layers=layers, workspace=Workspace(tmp_path))


def test_a_plan_and_a_probe_make_no_runs_folder(chain, tmp_path):
    pretrain(chain.cache, workspace=Workspace(tmp_path), layers=pretrain_layers(), dry_run=True)
    probe_run(chain.pretrained.run, chain.cache, workspace=Workspace(tmp_path))
    assert not list(tmp_path.iterdir())


def test_hashes_are_noted_where_there_is_a_folder_and_a_plan_notes_nothing(chain, tmp_path):
    memory = tmp_path / "runs/.verified.json"
    training.open_verified(chain.cache, memory)
    assert not list(tmp_path.iterdir())
    memory.parent.mkdir()
    training.open_by_all(World(), chain.cache, memory, plan_only=True)
    assert not memory.exists()
    training.open_verified(chain.cache, memory)
    assert len(json.loads(memory.read_text("utf-8"))) == 7
    assert open_cache(chain.cache).verify("full", memory) == 0


def test_a_note_that_cannot_be_written_stops_nothing(chain, tmp_path, monkeypatch):
    def full(path, value):
        raise MachineError("no space")

    monkeypatch.setattr("pcrl_cli.data.cache.write_json", full)
    assert training.open_verified(chain.cache, tmp_path / ".verified.json").path == chain.cache


def test_asking_for_a_finished_result_writes_nothing(chain, tmp_path):
    settings = pretrain_settings(layers=pretrain_layers())[0]
    ask = partial(training.finished_result, verb="pretrain", settings=settings, model=PretrainResult)
    assert ask(tmp_path / "new", fingerprint="f") is None
    assert not list(tmp_path.iterdir())
    half = Run.open(tmp_path / "half", "pretrain", settings.model_dump(mode="json"), "f", "", False)
    (half.folder / "config.yaml").unlink()
    before = contents(tmp_path)
    assert ask(half.folder, fingerprint="f") is None
    with pytest.raises(ConfigError, match="other settings"):
        ask(half.folder, fingerprint="g")
    assert contents(tmp_path) == before
    record = Run.load(chain.pretrained.run).record
    assert ask(chain.pretrained.run, fingerprint=record["fingerprint"]) == chain.pretrained


def test_a_plan_counts_the_caches_own_crops(chain):
    shapes = cost.item_shapes(open_cache(chain.cache), "pairs")
    assert shapes["globals"] == (2, 1, 32, 32, 16)
    assert shapes["locals_sub"] == (2, 1, 16, 16, 16)
    config = pcrlv2.Config(width=4, poolings=2)
    ours = cost.step_flops(config, 4, shapes=shapes)
    plan = pretrain(
        workspace=chain.workspace, layers=pretrain_layers(learner={"width": 4, "poolings": 2}), dry_run=True
    )
    assert plan.figures["tflop per step"] == round(ours / 1e12, 3)
    assert 4 < cost.step_flops(config, 4) / ours < 8  # the paper's globals are 8 times as large


def test_any_methods_steps_are_counted_from_its_own_losses_as_pcrlv2s_are(chain, monkeypatch):
    learner = {"width": 4, "restore_scales": [1], "compare_scales": [1], "crop": "none"}
    layers = pretrain_layers(4, learner=learner)
    ours = pretrain(workspace=chain.workspace, layers=layers, dry_run=True).figures["tflop per step"]
    monkeypatch.setattr(cost, "Config", type("Other", (), {}))
    assert pretrain(workspace=chain.workspace, layers=layers, dry_run=True).figures["tflop per step"] == ours

    def cannot(*args):
        raise NotImplementedError

    monkeypatch.setattr(cost, "learner_flops", cannot)
    plan = pretrain(workspace=chain.workspace, layers=layers, dry_run=True)
    assert plan.figures["steps"] == 4
    assert "tflop per step" not in plan.figures


def test_scales_that_differ_between_restoration_and_comparison_are_counted(chain):
    learner = {"width": 4, "restore_scales": [5], "compare_scales": [0], "crop": "none"}
    plan = pretrain(workspace=chain.workspace, layers=pretrain_layers(4, learner=learner), dry_run=True)
    assert plan.figures["tflop per step"] > 0


def probes(chain, monkeypatch, steps, cache=None, **more) -> list[int] | None:
    """After which steps a run with two steps an epoch would probe; None: never."""
    monkeypatch.setattr(stage, "probe_features", lambda *a: ({"knn_auroc": 0.5}, ()))
    settings = pretrain_settings(layers=pretrain_layers(steps, **more))[0]
    opened = cache or open_cache(chain.cache)
    cases, learner = opened.cases(patients=training_patients(opened, 0.5)), stage.build_learner(settings, opened)
    loader = Loader(opened, "pairs", settings.learner.arrays(3), cases, 4, 0, torch.device("cpu"))
    assert loader.steps_per_epoch == 2
    validate = stage._probing(settings, learner, opened, loader.device, loader)
    return None if validate is None else [s for s in range(1, steps + 1) if validate(learner, s)]


def test_probing_fires_at_epoch_ends_only(chain, monkeypatch):
    assert probes(chain, monkeypatch, 7, probe_every_epochs=1) == [2, 4, 6]
    assert probes(chain, monkeypatch, 9, probe_every_epochs=2) == [4, 8]
    assert probes(chain, monkeypatch, 9, probe_every_epochs=0) is None


def test_by_default_long_runs_probe_every_tenth_of_their_epochs(chain, monkeypatch):
    assert probes(chain, monkeypatch, 19) is None
    assert probes(chain, monkeypatch, 20) == list(range(2, 21, 2))
    assert probes(chain, monkeypatch, 61) == list(range(6, 61, 6))


def test_a_cache_without_labels_of_both_classes_is_not_probed_unless_asked_for(chain, monkeypatch):
    opened = open_cache(chain.cache)
    without = [{**r, "arrays": {"pairs": r["arrays"]["pairs"]}} for r in opened.manifest["cases"]]
    unlabelled = dataclasses.replace(opened, manifest={**opened.manifest, "cases": without})
    assert probes(chain, monkeypatch, 20, unlabelled) is None
    with pytest.raises(ConfigError, match=r"holds no candidates\); leave --probe-every out"):
        probes(chain, monkeypatch, 20, unlabelled, probe_every_epochs=1)
    nobody = dataclasses.replace(opened, split=opened.split.model_copy(update={"val": ()}))
    assert probes(chain, monkeypatch, 20, nobody) is None
    with pytest.raises(ConfigError, match="the val part lacks candidates of one class"):
        probes(chain, monkeypatch, 20, nobody, probe_every_epochs=1)


def test_probing_while_training_logs_both_probes(chain, tmp_path):
    layers = pretrain_layers(2, 8, probe_every_epochs=1)
    done = pretrain(chain.cache, out=tmp_path / "r", layers=layers, workspace=Workspace(tmp_path))
    last = read_metrics(done.run / "metrics.jsonl")[-1]
    assert 0 <= last["probe/knn_auroc"] <= 1
    assert 0 <= last["probe/linear_auroc"] <= 1


def test_a_shard_that_was_changed_is_an_integrity_error(chain, tmp_path):
    shutil.copytree(chain.cache, tmp_path / "cache/luna")
    shard = next((tmp_path / "cache/luna/shards").glob("*.h5"))
    content = bytearray(shard.read_bytes())
    content[-1000] ^= 1
    shard.write_bytes(content)
    with pytest.raises(IntegrityError, match=r"hash differs.*only the damaged case"):
        pretrain(workspace=Workspace(tmp_path), layers=pretrain_layers())
    shard.write_bytes(content[:-10])
    with pytest.raises(IntegrityError, match="is torn"):
        pretrain(workspace=Workspace(tmp_path), layers=pretrain_layers())


def test_a_cache_of_another_schema_is_refused(chain, tmp_path):
    shutil.copytree(chain.cache, tmp_path / "cache/luna")
    path: Path = tmp_path / "cache/luna/manifest.json"
    path.write_text(
        json.dumps({**json.loads(path.read_text(encoding="utf-8")), "schema": "pcrl.cache/0"}), encoding="utf-8"
    )
    with pytest.raises(ConfigError, match=r"is of schema pcrl.cache/0, and this version reads pcrl.cache/1"):
        pretrain(workspace=Workspace(tmp_path), layers=pretrain_layers())
