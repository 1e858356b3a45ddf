import json
import math
import shutil

import numpy as np
import pandas as pd
import pytest
from chain import Chain, contents, finetune_layers, prep_layers
from sklearn.metrics import roc_auc_score

from pcrl_cli.core.errors import ConfigError, DataError, IntegrityError, ThresholdError, UsageError
from pcrl_cli.core.files import write_sealed
from pcrl_cli.data.cache import open_cache
from pcrl_cli.engine.run import Run
from pcrl_cli.phantoms import chest
from pcrl_cli.stages.evaluate import EvaluateResult, evaluate, require
from pcrl_cli.stages.finetune import finetune
from pcrl_cli.stages.prep import prep
from pcrl_cli.stages.workspace import Workspace


@pytest.fixture(scope="module")
def complete(chain) -> EvaluateResult:
    """The test part with every candidate of its scans."""
    return evaluate(chain.tuned.run, workspace=chain.workspace, options={"all_candidates": True})


def predictions(result: EvaluateResult) -> pd.DataFrame:
    return pd.read_csv(result.predictions)


def test_the_newest_fine_tuned_run_is_taken(chain):
    assert evaluate(task="luna", workspace=chain.workspace).run == chain.tuned.run


def test_every_cached_candidate_has_one_row(chain):
    cache = open_cache(chain.cache)
    items = cache.read("candidates", ("id", "label", "world"), cache.cases("test")).arrays
    table = predictions(chain.evaluated)
    assert table["id"].tolist() == [name.decode() for name in items["id"]]
    assert table["label"].tolist() == items["label"].tolist()
    np.testing.assert_allclose(table[["x_mm", "y_mm", "z_mm"]], items["world"], atol=1e-4)
    assert set(table["patient"]) == set(cache.split.test)
    assert table["id"].is_unique


@pytest.mark.parametrize("which", ["cached", "complete"])
def test_the_auroc_is_what_scikit_learn_gets_from_the_table(chain, complete, which):
    result = chain.evaluated if which == "cached" else complete
    table = predictions(result)
    assert result.metrics["auroc"].value == pytest.approx(
        roc_auc_score(table["label"], table["probability"]), abs=1e-12
    )
    assert result.counts["nodules among them"] == table["label"].sum()
    assert result.counts["candidates"] == len(table)


def test_the_written_evaluation_is_the_result(chain):
    written = json.loads(chain.evaluated.evaluation.read_text("utf-8"))
    assert written == json.loads(json.dumps(chain.evaluated.to_json()))
    assert written["schema"] == "pcrl.evaluate/1"


def test_the_froc_needs_all_candidates_and_says_so(chain, complete):
    assert chain.evaluated.metrics["cpm"].value is None
    assert "use --all-candidates" in chain.evaluated.metrics["cpm"].reason
    assert 0 <= complete.metrics["cpm"].value <= 1
    assert complete.metrics["cpm"].reason is None
    assert list(complete.details["sensitivity_at"]) == ["0.125", "0.25", "0.5", "1", "2", "4", "8"]
    annotated = pd.read_csv(chain.raw / "annotations.csv")
    assert complete.counts["annotated nodules"] == annotated["seriesuid"].isin(predictions(complete)["case"]).sum()


def test_all_candidates_agree_with_the_cached_and_add_the_rest(chain, complete):
    cached, every = (predictions(result).set_index("id") for result in (chain.evaluated, complete))
    assert set(cached.index) < set(every.index)
    np.testing.assert_allclose(cached["probability"], every.loc[cached.index, "probability"], atol=1e-6)
    rows = pd.read_csv(chain.raw / "candidates_V2.csv")
    assert len(every) == rows["seriesuid"].isin(every["case"]).sum()


def test_all_candidates_need_the_raw_scans(chain, tmp_path):
    chest.make(tmp_path / "raw", 3, seed=5)
    prep("luna", data=tmp_path / "raw", out=tmp_path / "c", layers=prep_layers(1), jobs=1)
    for path in (tmp_path / "raw/subset0").glob(f"{open_cache(tmp_path / 'c').cases('test')[0]}.*"):
        path.unlink()
    with pytest.raises(DataError, match=r"needs the raw scans, and .* lacks 1 of 1"):
        evaluate(chain.tuned.run, tmp_path / "c", options={"all_candidates": True}, workspace=chain.workspace)


# ---------------------------------------------------------------------------------------------------- other caches

FROC_NOTE = "annotations_excluded.csv was not there"


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory, chain) -> Chain:
    """A cache of three other patients with all of their candidates."""
    root = tmp_path_factory.mktemp("elsewhere")
    chest.make(root / "raw", 3, seed=9)
    prep("luna", data=root / "raw", out=root / "other", layers=prep_layers(1, negatives=99), jobs=1)
    return root / "other"


def test_another_cache_is_an_external_test_on_all_its_patients(chain, elsewhere):
    result = evaluate(chain.tuned.run, elsewhere, split="all", workspace=chain.workspace)
    assert result.evaluation.parent.name == "all-other"
    assert result.patients == 3
    assert [note.split(":")[0] for note in result.notes] == ["3 patients", FROC_NOTE]
    assert 0 <= result.metrics["cpm"].value <= 1  # all of its candidates are cached
    assert (
        result.metrics["auroc_clustered"].low <= result.metrics["auroc"].value <= result.metrics["auroc_clustered"].high
    )


def test_an_external_cache_with_patients_that_were_seen_is_refused(chain, tmp_path):
    prep("luna", data=chain.raw, out=tmp_path / "again", layers=prep_layers(1), jobs=1)
    with pytest.raises(ConfigError, match=r"6 of 7 patients of the all part of .* were trained on, or chose the epoch"):
        evaluate(chain.tuned.run, tmp_path / "again", split="all", workspace=chain.workspace)
    notes = evaluate(chain.tuned.run, tmp_path / "again", workspace=chain.workspace).notes
    assert not any("trained on" in note for note in notes)


def test_a_cache_of_another_spacing_is_noted(chain, tmp_path):
    chest.make(tmp_path / "raw", 3, seed=9)
    layers = prep_layers(1, spacing_mm=1.25)
    prep("luna", data=tmp_path / "raw", out=tmp_path / "c", layers=layers, jobs=1)
    result = evaluate(chain.tuned.run, tmp_path / "c", workspace=chain.workspace)
    assert f"spacing_mm: the run was trained on 1.0, {tmp_path / 'c'} has 1.25" in result.notes


def test_the_training_part_is_scored_with_a_note(chain, heard):
    result = evaluate(chain.tuned.run, split="train", workspace=chain.workspace, listener=heard)
    assert "numbers say nothing about new patients" in result.notes[0]
    assert heard.warnings == result.notes


def test_a_copied_cache_is_the_same_cache(chain, tmp_path):
    shutil.copytree(chain.cache, tmp_path / "luna")
    moved = evaluate(chain.tuned.run, tmp_path / "luna", workspace=chain.workspace)
    assert moved.metrics == chain.evaluated.metrics


def test_a_cache_that_is_gone_is_named(chain, tmp_path):
    shutil.copytree(chain.cache, tmp_path / "c")
    layers = finetune_layers(1, width=4)
    done = finetune(tmp_path / "c", task="luna", workspace=Workspace(tmp_path), layers=layers)
    shutil.rmtree(tmp_path / "c")
    with pytest.raises(ConfigError, match=r"the cache of .*, is gone; give its new place"):
        evaluate(done.run, workspace=Workspace(tmp_path))


def test_a_part_of_one_class_gives_null_and_the_reason(chain, tmp_path):
    chest.make(tmp_path / "raw", 3, seed=9)
    table = tmp_path / "raw/candidates_V2.csv"
    header, *rows = table.read_text("utf-8").splitlines()
    table.write_text("\n".join([header, *(row for row in rows if row.endswith(",0"))]) + "\n")
    prep("luna", data=tmp_path / "raw", out=tmp_path / "c", layers=prep_layers(1, negatives=99), jobs=1)
    result = evaluate(chain.tuned.run, tmp_path / "c", workspace=chain.workspace)
    assert result.metrics["auroc"].value is None
    assert "class" in result.metrics["auroc"].reason
    assert "null" in result.report.read_text("utf-8") or result.metrics["auroc"].reason in result.report.read_text(
        "utf-8"
    )
    with pytest.raises(ThresholdError, match=r"auroc is null \(.*\), so --fail-under auroc=0.1 is not met"):
        require(result, {"auroc": 0.1})


def test_a_part_without_scans_gives_null_and_the_reason(chain, tmp_path):
    chest.make(tmp_path / "raw", 2, seed=9)  # two patients: none validates
    prep("luna", data=tmp_path / "raw", out=tmp_path / "c", layers=prep_layers(1), jobs=1)
    result = evaluate(chain.tuned.run, tmp_path / "c", split="val", workspace=chain.workspace)
    assert (result.metrics["auroc"].value, result.counts["candidates"], result.metrics["cpm"].value) == (None, 0, None)
    assert result.metrics["auroc"].reason


# ----------------------------------------------------------------------------------------------------- thresholds


def test_thresholds_are_held(chain):
    value = chain.evaluated.metrics["auroc"].value
    require(chain.evaluated, {"auroc": value})
    with pytest.raises(ThresholdError, match=r"auroc is .*, under"):
        require(chain.evaluated, {"auroc": math.nextafter(value, 2)})
    with pytest.raises(ThresholdError, match="cpm is null"):
        require(chain.evaluated, {"cpm": 0.0})
    with pytest.raises(UsageError, match="--fail-under dice: the metrics of this task are auroc, auroc_clustered, cpm"):
        require(chain.evaluated, {"dice": 0.5})


# ----------------------------------------------------------------------------------------------------- wrong runs


def test_a_pretraining_run_predicts_nothing(chain):
    with pytest.raises(ConfigError, match="is a pretrain run, which predicts nothing"):
        evaluate(chain.pretrained.run, workspace=chain.workspace)


def test_a_run_of_another_task_a_missing_run_and_no_run_are_named(chain, tmp_path):
    with pytest.raises(ConfigError, match="is of task luna, not lits"):
        evaluate(chain.tuned.run, task="lits", workspace=chain.workspace)
    with pytest.raises(ConfigError, match="does not exist"):
        evaluate(tmp_path / "none", workspace=chain.workspace)
    with pytest.raises(ConfigError, match="there is no finished `pcrl finetune` run of task luna"):
        evaluate(task="luna", workspace=Workspace(tmp_path))
    with pytest.raises(UsageError, match="say which"):
        evaluate(workspace=Workspace(tmp_path))


def test_a_run_that_never_saved_weights_says_what_to_do(chain, tmp_path):
    run = Run.load(chain.tuned.run).record
    for name, record in (("a", {k: v for k, v in run.items() if k != "cache"}), ("b", run)):
        (tmp_path / name).mkdir()
        write_sealed(tmp_path / name / "run.json", record)
        with pytest.raises(ConfigError, match="holds no weights yet"):
            evaluate(tmp_path / name, workspace=chain.workspace)


def test_torn_weights_are_an_integrity_error(chain, tmp_path):
    shutil.copytree(chain.tuned.run, tmp_path / "r")
    weights = tmp_path / "r/best/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(IntegrityError):
        evaluate(tmp_path / "r", workspace=chain.workspace)


def test_another_precision_is_scored_beside_the_runs_own_numbers_and_says_so(chain, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(chain.tuned.run, run)
    own = contents(run / "evaluation/test")
    half = evaluate(run, workspace=chain.workspace, precision="bf16")
    assert half.evaluation.parent.name == "test-bf16"
    assert any("bfloat16" in note for note in half.notes)
    assert contents(run / "evaluation/test") == own
    assert not any("bfloat16" in note for note in chain.evaluated.notes)
    a, b = (predictions(result)["probability"] for result in (chain.evaluated, half))
    assert (a != b).any()
    np.testing.assert_allclose(a, b, atol=0.02)


def test_float32_is_the_runs_own_precision(chain):
    assert evaluate(chain.tuned.run, workspace=chain.workspace, precision="fp32") == chain.evaluated
