"""No number without a warning where it would mislead: leaks under other names, parts with holes, runs on the way."""

import json

import pytest
from chain import finetune_layers, prep_layers, pretrain_layers, settings

from pcrl_cli.core.config import file_layer
from pcrl_cli.core.errors import ConfigError, UsageError
from pcrl_cli.core.files import write_sealed
from pcrl_cli.stages.evaluate import evaluate
from pcrl_cli.stages.export import export
from pcrl_cli.stages.finetune import finetune
from pcrl_cli.stages.prep import prep
from pcrl_cli.stages.pretrain import pretrain
from pcrl_cli.stages.report import join_reports
from pcrl_cli.stages.workflows import candidates
from pcrl_cli.stages.workspace import Workspace


def test_a_scan_that_comes_through_another_reader_is_still_a_leak(chain, tmp_path):
    other = Workspace(tmp_path)
    same = prep(
        "folder", data=chain.raw / "subset0", workspace=other, layers=prep_layers(seed=1), jobs=1, out=tmp_path / "f"
    )
    run = pretrain(same.cache, dim="3d", workspace=other, layers=pretrain_layers(steps=1, set_aside=0.0)).run
    with pytest.raises(ConfigError, match="patients of the validation or test part"):
        finetune(chain.cache, task="luna", weights=run, workspace=other, layers=finetune_layers(steps=1), dry_run=True)


def test_froc_is_null_when_scans_of_the_part_were_refused(chain, tmp_path, monkeypatch):
    manifest = json.loads((chain.cache / "manifest.json").read_text("utf-8"))
    split = json.loads((chain.cache / "split.json").read_text("utf-8"))
    manifest["refused"] = [{"case": "x", "patient": split["test"][0], "reason": "torn", "slug": "unreadable"}]
    original = (chain.cache / "manifest.json").read_bytes()
    try:
        write_sealed(chain.cache / "manifest.json", manifest)
        result = evaluate(chain.tuned.run, workspace=chain.workspace, options={"all_candidates": True})
    finally:
        (chain.cache / "manifest.json").write_bytes(original)
    assert result.metrics["cpm"].value is None
    assert "could not be prepared" in result.metrics["cpm"].reason


def test_the_part_that_chose_the_epoch_is_scored_with_a_note(chain):
    notes = evaluate(chain.tuned.run, split="val", workspace=chain.workspace).notes
    chose = chain.tuned.kept.startswith("best")
    assert any("the epoch was chosen by this part" in note for note in notes) is chose


def test_few_patients_are_said_to_say_little(chain):
    assert any("the interval by patient says little" in note for note in chain.evaluated.notes)


def test_the_config_of_a_fine_tuning_repeats_its_start(chain):
    layers = [file_layer(chain.tuned.run / "config.yaml")]
    plan = finetune(chain.cache, workspace=chain.workspace, layers=layers, dry_run=True)
    assert plan.out.resolve() == chain.tuned.run.resolve()
    assert plan.state.startswith("finished")


def test_the_weights_own_width_is_no_other_run(chain):
    layers = finetune_layers(width=4)
    plan = finetune(
        chain.cache, task="luna", weights=chain.pretrained.run, workspace=chain.workspace, layers=layers, dry_run=True
    )
    assert plan.out.resolve() == chain.tuned.run.resolve()


def test_an_unfinished_run_is_exported_with_a_word(chain, tmp_path, monkeypatch):
    record = chain.pretrained.run / "run.json"
    original = record.read_bytes()
    try:
        write_sealed(record, {**json.loads(original), "status": "running"})
        result = export(chain.pretrained.run, tmp_path / "e.safetensors")
    finally:
        record.write_bytes(original)
    assert "is not finished" in result.notes[0]
    assert result.notes[0] in result.card.read_text("utf-8")
    assert export(chain.pretrained.run, tmp_path / "f.safetensors").notes == []


def test_a_report_replaces_reports_only(chain, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="is no report of pcrl"):
        join_reports([chain.tuned.run], tmp_path / "thesis.txt")
    assert (tmp_path / "thesis.txt").read_text("utf-8") == "years of work"
    for _ in range(2):
        join_reports([chain.tuned.run], tmp_path / "r.html")


def test_a_threshold_is_judged_before_the_work(chain, monkeypatch):
    monkeypatch.setattr(candidates, "score", lambda *_: pytest.fail("it worked before it judged"))
    with pytest.raises(
        UsageError, match="--fail-under aurok: the metrics of this task are auroc, auroc_clustered, cpm"
    ):
        evaluate(chain.tuned.run, workspace=chain.workspace, fail_under={"aurok": 0.5})


def test_a_misspelt_inner_key_names_the_inner_key(chain):
    with pytest.raises(ConfigError, match=r"did you mean learner\.width"):
        pretrain(chain.cache, dim="3d", workspace=chain.workspace, layers=settings(widht=4))
