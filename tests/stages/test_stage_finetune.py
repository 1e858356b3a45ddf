import math
import shutil

import numpy as np
import pytest
import torch
from chain import contents, finetune_layers, prep_layers, settings

from pcrl_cli.core.errors import ConfigError, DataError, UsageError
from pcrl_cli.data.cache import open_cache
from pcrl_cli.engine.run import Run, read_metrics
from pcrl_cli.networks.transfer import read_weights, write_weights
from pcrl_cli.stages import patients
from pcrl_cli.stages.finetune import finetune
from pcrl_cli.stages.prep import prep
from pcrl_cli.stages.results import Plan
from pcrl_cli.stages.workspace import Workspace
from pcrl_cli.tasks import luna


def runs(workspace: Workspace) -> set[str]:
    return {path.name for path in workspace.root.glob("runs/*")}


@pytest.fixture
def leaky(chain, tmp_path):
    """The pre-trained weights, with a contract that says that they saw the test patient and a validation patient."""
    weights, cache = read_weights(chain.pretrained.weights), open_cache(chain.cache)
    seen = patients.hashed(cache, cache.split.test + cache.split.val, weights.contract.patients.salt)
    path = tmp_path / "leaky.safetensors"
    write_weights(path, weights.tensors, weights.contract.model_copy(update={"patients": seen}), "safetensors")
    return path


def test_weights_that_saw_a_test_patient_are_refused_and_nothing_is_written(chain, leaky):
    before = runs(chain.workspace)
    for dry_run in (False, True):
        with pytest.raises(ConfigError, match=r"trained on 2 patients of the validation or test part.*--allow-overlap"):
            finetune(task="luna", workspace=chain.workspace, weights=leaky, layers=finetune_layers(), dry_run=dry_run)
    assert runs(chain.workspace) == before


def test_an_allowed_overlap_is_in_the_result_and_in_the_evaluation(chain, leaky, tmp_path, heard):
    from pcrl_cli.stages.evaluate import evaluate

    done = finetune(
        chain.cache, task="luna", workspace=Workspace(tmp_path), weights=leaky, listener=heard,
        layers=finetune_layers(1, allow_overlap=True),
    )  # fmt: skip
    assert done.overlap == {"labelled": 0, "val": 1, "test": 1}
    assert any("a leak, allowed by --allow-overlap" in note for note in done.notes)
    assert any("a leak" in text for text in heard.warnings)
    scored = evaluate(done.run, workspace=Workspace(tmp_path))
    assert scored.overlap == 2
    assert any("a leak, allowed by --allow-overlap" in note for note in scored.notes)


def test_labelled_patients_that_were_seen_are_no_leak_but_noted(chain, tmp_path):
    layers = finetune_layers(1, ratio=1.0)
    done = finetune(
        chain.cache, task="luna", workspace=Workspace(tmp_path), weights=chain.pretrained.run, layers=layers
    )
    assert done.overlap == {"labelled": 2, "val": 0, "test": 0}
    assert "not the semi-supervised protocol" in done.notes[0]
    assert chain.tuned.notes == []


def test_a_ratio_takes_the_first_patients_of_the_order(chain):
    cache = open_cache(chain.cache)
    assert chain.tuned.labelled_patients == math.ceil(0.5 * 5)
    contract = read_weights(chain.scratch.weights).contract
    first, rest = cache.split.order[:3], cache.split.order[3:]
    assert patients.seen(contract.patients, cache, first) == list(first)
    assert patients.seen(contract.patients, cache, rest) == []


def test_fine_tuned_weights_remember_both_sets_of_patients(chain):
    cache, contract = open_cache(chain.cache), read_weights(chain.tuned.weights).contract
    assert len(patients.seen(contract.patients, cache, cache.split.train)) == 5


def test_scratch_and_pretrained_differ_in_their_start_alone(chain):
    scratch, tuned = (Run.load(result.run).record for result in (chain.scratch, chain.tuned))
    a, b = scratch["settings"], tuned["settings"]
    assert {key for key in a if a[key] != b[key]} == {"width", "weights"}  # the weights bring their width
    assert scratch["architecture"] == tuned["architecture"]
    assert chain.scratch.labels == chain.tuned.labels
    assert chain.scratch.start == "scratch"
    assert chain.tuned.start == str(chain.pretrained.weights)
    assert chain.scratch.transfer is None
    assert chain.tuned.transfer is not None
    assert chain.tuned.transfer["share"] == 1.0


def test_both_arms_see_the_same_candidates_in_the_same_order(chain):
    config = luna.Config(side=24)
    cache = open_cache(chain.cache)
    labels = cache.read("candidates", ("label",), cache.cases(patients=cache.split.first(0.5))).arrays["label"]
    orders = [luna.epoch_order(labels, config, 0, 3) for _ in range(2)]
    np.testing.assert_array_equal(*orders)
    rows = [read_metrics(result.run / "metrics.jsonl") for result in (chain.scratch, chain.tuned)]
    assert [[row[key] for key in ("step", "epoch", "lr")] for row in rows[0]] == [
        [row[key] for key in ("step", "epoch", "lr")] for row in rows[1]
    ]
    assert rows[0][0]["loss/bce"] != rows[1][0]["loss/bce"]


def test_the_transferred_encoder_is_where_training_starts(chain, tmp_path):
    layers = finetune_layers(1, train={"steps": 1, "batch": 4, "lr": 1e-30})
    done = finetune(
        chain.cache, task="luna", workspace=Workspace(tmp_path), weights=chain.pretrained.run, layers=layers
    )
    before, after = (read_weights(result.weights).tensors for result in (chain.pretrained, done))
    assert before.keys() == after.keys()
    learned = [key for key in before if "running" not in key and "num_batches" not in key]
    assert all(torch.equal(before[key], after[key]) for key in learned)


def test_a_finished_run_is_a_no_op_with_the_same_result(chain, heard):
    before = contents(chain.tuned.run)
    again = finetune(
        task="luna", workspace=chain.workspace, weights=chain.pretrained.run, layers=finetune_layers(), listener=heard
    )
    assert again == chain.tuned
    assert contents(chain.tuned.run) == before


def test_the_best_epoch_by_validation_is_kept(chain):
    rows = read_metrics(chain.tuned.run / "metrics.jsonl")
    scores = [row["val_auroc"] for row in rows if "val_auroc" in row]
    assert chain.tuned.kept == "best epoch by validation AUROC"
    assert chain.tuned.best_validation == max(scores)
    assert chain.tuned.weights.parent.name == "best"


@pytest.mark.parametrize("name", ["width", "poolings"])
def test_an_architecture_that_differs_from_the_weights_is_refused(chain, name):
    before = runs(chain.workspace)
    with pytest.raises(ConfigError, match=rf"{name} 3 was asked for, but .* has {name} [45]"):
        finetune(
            task="luna", workspace=chain.workspace, weights=chain.pretrained.run, layers=finetune_layers(**{name: 3})
        )
    assert runs(chain.workspace) == before


@pytest.mark.parametrize(
    ("layers", "error", "message"),
    [
        (finetune_layers(ratio=0.0), ConfigError, "ratio .*greater than 0"),
        (finetune_layers(ratio=1.5), ConfigError, "ratio .*less than or equal to 1"),
        (finetune_layers(batch=64), ConfigError, r"the batch \(64\) is larger than an epoch"),
        (
            settings(task="nodule"),
            UsageError,
            "there is no task 'nodule'; the tasks are brats, chest, classify, lits, luna",
        ),
        (finetune_layers(learner={"side": 65}), ConfigError, "larger than the cached blocks"),
    ],
)
def test_settings_that_do_not_fit_are_refused_and_nothing_is_written(chain, layers, error, message):
    before = runs(chain.workspace)
    with pytest.raises(error, match=message):
        finetune(workspace=chain.workspace, layers=[*settings(task="luna", width=4), *layers])
    assert runs(chain.workspace) == before


def test_the_task_must_be_named(chain):
    with pytest.raises(UsageError, match="say which task: --task luna"):
        finetune(workspace=chain.workspace)


def test_weights_that_are_no_weights_are_refused(chain, tmp_path):
    (tmp_path / "empty").mkdir()
    for path, message in ((tmp_path / "none", "there is no weights file"), (tmp_path / "empty", "is not a run folder")):
        with pytest.raises(ConfigError, match=message):
            finetune(task="luna", workspace=chain.workspace, weights=path)


def test_a_cache_without_candidates_is_refused(chain, tmp_path):
    from chain import write_scan

    write_scan(tmp_path / "raw/a.mhd")
    prep("folder", data=tmp_path / "raw", out=tmp_path / "c", layers=settings(pairs={"pairs": 1}), jobs=1)
    with pytest.raises(ConfigError, match="holds no candidates, which task luna needs"):
        finetune(tmp_path / "c", task="luna", workspace=chain.workspace)


def test_labels_of_one_class_teach_nothing(chain, tmp_path):
    shutil.copytree(chain.raw, tmp_path / "raw")
    table = tmp_path / "raw/candidates_V2.csv"
    header, *rows = table.read_text("utf-8").splitlines()
    table.write_text("\n".join([header, *(row for row in rows if row.endswith(",1"))]) + "\n")
    prep("luna", data=tmp_path / "raw", out=tmp_path / "c", layers=prep_layers(1), jobs=1)
    with pytest.raises(DataError, match="and 0 others, so there is nothing to learn"):
        finetune(tmp_path / "c", task="luna", workspace=Workspace(tmp_path), layers=finetune_layers(width=4))


def test_a_plan_counts_and_touches_nothing(chain):
    before = contents(chain.root)
    plan = finetune(task="luna", workspace=chain.workspace, layers=finetune_layers(9, width=4), dry_run=True)
    assert isinstance(plan, Plan)
    assert plan.figures["labelled patients"] == 3
    assert contents(chain.root) == before


def test_without_validation_cases_the_last_epoch_is_kept_and_said_so(chain, tmp_path, heard):
    prep("luna", data=chain.raw, out=tmp_path / "c", layers=prep_layers(1), jobs=1)
    cache = open_cache(tmp_path / "c")
    for case in cache.cases("val"):  # as if the scan had been refused
        for path in (tmp_path / "c/shards").glob(f"{case}.*"):
            path.unlink()
    raw = tmp_path / "raw"
    shutil.copytree(chain.raw, raw)
    for case in cache.cases("val"):
        (raw / f"subset0/{case}.raw").write_bytes(b"")
    prep("luna", data=raw, out=tmp_path / "c", layers=prep_layers(1), jobs=1)
    layers = finetune_layers(1, width=4)
    done = finetune(tmp_path / "c", task="luna", workspace=Workspace(tmp_path), layers=layers, listener=heard)
    assert done.kept.startswith("last epoch: the validation part lacks")
    assert done.kept in heard.warnings
    assert done.weights.parent.name == "step_000001"


def test_pretraining_layers_are_no_settings_of_finetune(chain):
    with pytest.raises(ConfigError, match=r"unknown setting .*set_aside"):
        finetune(task="luna", workspace=chain.workspace, layers=finetune_layers(set_aside=0.5))
