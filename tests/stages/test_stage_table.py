"""`pcrl table` on the phantoms: every cell once, killed and continued, in shards, and what is written."""

import json

import numpy as np
import pytest
import yaml
from chain import contents

from pcrl_cli.core import files
from pcrl_cli.core.errors import ConfigError
from pcrl_cli.pure import compare
from pcrl_cli.stages import statistics
from pcrl_cli.stages import table as stage
from pcrl_cli.stages.results import Plan
from pcrl_cli.stages.table import TableSpec, table

TINY = {"learner": {"width": 2, "poolings": 2}, "train": {"steps": 2, "batch": 4, "check_every": 2}}
SPEC = {
    "name": "tiny",
    "task": "luna",
    "methods": {
        "TS": {"finetune": {"width": 2, "poolings": 2}},
        "MG": {"method": "genesis", "pretrain": {"learner": {"rates": {"windows": 20}}}},
        "PCRLv2": {"method": "pcrlv2", "config": "row.yaml"},
    },
    "ratios": [0.4, 0.6],
    "seeds": [0, 1],
    "set_aside": "ratio",
    "pretrain": TINY,
    "finetune": {"learner": {"side": 24}, "train": {"steps": 2, "batch": 4}},
    "paper_table": 5,
    "bootstrap": 200,
}
ROW = {"learner": {"restore_scales": [1], "compare_scales": [0], "crop": "none"}}


@pytest.fixture
def write(tmp_path, chain):
    """A spec file of these changes."""

    def write_(**changes):
        values = SPEC | {"cache": str(chain.cache)} | changes
        (tmp_path / "row.yaml").write_text(yaml.safe_dump(ROW), "utf-8")
        path = tmp_path / "spec.yaml"
        path.write_text(yaml.safe_dump(values), "utf-8")
        return path

    return write_


@pytest.fixture(scope="session")
def whole(tmp_path_factory, chain):
    """An undisturbed table."""
    folder = tmp_path_factory.mktemp("table")
    (folder / "row.yaml").write_text(yaml.safe_dump(ROW), "utf-8")
    path = folder / "spec.yaml"
    path.write_text(yaml.safe_dump(SPEC | {"cache": str(chain.cache)}), "utf-8")
    return table(path, out=folder / "out", workspace=chain.workspace)


def numbers(folder, ratio=0.4):
    """All of a ratio that must not depend on how the table came about."""
    kept = ("predictions.csv", "model.safetensors")
    return {
        name: data
        for name, data in contents(folder).items()
        if name.endswith(kept) and (f"/{ratio}/" in name or f"-aside-{ratio}-" in name)
    }


def test_every_cell_is_there_with_mean_deviation_and_interval(whole):
    assert (whole.done, whole.cells, whole.missing, whole.failed) == (12, 12, [], {})
    for by_ratio in whole.entries.values():
        assert list(by_ratio) == ["0.4", "0.6"]
        for entry in by_ratio.values():
            assert len(entry["values"]) == 2
            assert entry["mean"] == pytest.approx(np.mean(entry["values"]))
            assert entry["sd"] == pytest.approx(np.std(entry["values"], ddof=1))
    assert whole.metric == "auroc_clustered"


def test_pre_training_left_out_the_labelled_patients_of_its_ratio(whole):
    aside = {}
    for folder in sorted((whole.out / "pretrain").iterdir()):
        record = files.read_json(folder / "run.json")
        aside[folder.name] = (record["settings"]["set_aside"], record["result"]["patients"])
    assert {name: share for name, (share, _) in aside.items()} == {
        f"{method}-aside-{ratio}-seed-0": ratio for method in ("MG", "PCRLv2") for ratio in (0.4, 0.6)
    }
    for method in ("MG", "PCRLv2"):
        assert aside[f"{method}-aside-0.4-seed-0"][1] > aside[f"{method}-aside-0.6-seed-0"][1]
    for run in (whole.out / "finetune").glob("*/*/*/run.json"):
        assert files.read_json(run)["result"]["overlap"].get("labelled", 0) == 0


def test_the_focus_and_every_method_are_compared_and_holm_is_over_all(whole):
    kinds = [(c["ratio"], c["first"], c["second"]) for c in whole.comparisons]
    expected = [(r, *pair) for r in (0.4, 0.6) for pair in (("MG", "TS"), ("PCRLv2", "TS"), ("PCRLv2", "MG"))]
    assert sorted(kinds) == sorted(expected)
    for c in whole.comparisons:
        if c["p"] is not None:
            assert c["adjusted"] >= c["p"]
            assert c["low"] <= c["high"]


def test_the_same_call_again_does_nothing_again(whole, chain, monkeypatch):
    before = contents(whole.out)
    monkeypatch.setattr(stage, "pretrain", lambda *a, **k: pytest.fail("pre-trained again"))
    monkeypatch.setattr(stage, "finetune", lambda *a, **k: pytest.fail("fine-tuned again"))
    table(whole.out.parent / "spec.yaml", out=whole.out, workspace=chain.workspace)
    assert contents(whole.out) == before


def test_killed_and_continued_equals_undisturbed(whole, chain, write, tmp_path, monkeypatch):
    spec, out, real, calls = write(ratios=[0.4]), tmp_path / "out", stage.finetune, []

    def dies(*args, **kwargs):
        calls.append(kwargs["out"])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(stage, "finetune", dies)
    with pytest.raises(KeyboardInterrupt):
        table(spec, out=out, workspace=chain.workspace)
    monkeypatch.setattr(stage, "finetune", real)
    continued = table(spec, out=out, workspace=chain.workspace)
    assert (continued.done, continued.cells) == (6, 6)
    assert len(numbers(out)) >= 6 * 2
    assert numbers(out) == numbers(whole.out)
    assert [e["0.4"] for e in continued.entries.values()] == [e["0.4"] for e in whole.entries.values()]


def test_shards_make_it_together(whole, chain, write, tmp_path):
    spec, out = write(ratios=[0.4]), tmp_path / "out"
    first = table(spec, out=out, workspace=chain.workspace, shard=(1, 2))
    assert 0 < first.done < first.cells
    assert len(first.missing) == first.cells - first.done
    last = table(spec, out=out, workspace=chain.workspace, shard=(2, 2))
    assert last.missing == []
    assert numbers(out) == numbers(whole.out)
    with pytest.raises(ConfigError, match="shard 3/2"):
        table(spec, out=out, workspace=chain.workspace, shard=(3, 2))


def test_what_is_written_can_be_read(whole):
    page = whole.report.read_text("utf-8")
    assert all(name in page for name in ("Label efficiency", "Comparisons", "PCRLv2, printed", "Cost", "p (Holm)"))
    assert whole.latex.read_text("utf-8").count("\\\\") == 1 + 3 + 3
    text = (whole.out / "table.md").read_text("utf-8")
    assert "| method | 40 % | 60 % |" in text
    assert text.count("| PCRLv2 - TS |") == 2
    rows = whole.csv.read_text("utf-8").splitlines()
    assert len(rows) == 7
    saved = json.loads((whole.out / "table.json").read_text("utf-8"))
    assert saved["schema"] == "pcrl.table/1"
    assert saved["costs"]["MG"]["passes a step"] == 1
    assert saved["costs"]["PCRLv2"]["passes a step"] == 2
    assert saved["costs"]["TS"]["pretrain_samples"] == 0
    assert saved["costs"]["MG"]["pretrain_samples"] == 2 * 2 * 4
    assert saved["costs"]["MG"]["finetune_samples"] == 4 * 2 * 4
    assert saved["costs"]["MG"]["device"] == "cpu"


def test_a_plan_counts_cells_and_does_nothing(chain, write, tmp_path):
    plan = table(write(), out=tmp_path / "out", workspace=chain.workspace, dry_run=True)
    assert isinstance(plan, Plan)
    assert (plan.figures["pre-trainings"], plan.figures["cells"], plan.figures["cells done"]) == (4, 12, 0)
    assert plan.figures["pre-training hours left (arithmetic alone)"] >= 0
    assert "hours not known of" not in plan.figures
    assert not (tmp_path / "out").exists()


def test_a_spec_may_grow_but_not_change(whole, chain, write, tmp_path):
    out = tmp_path / "out"
    small = write(methods={"TS": SPEC["methods"]["TS"]}, ratios=[0.4], seeds=[0])
    assert table(small, out=out, workspace=chain.workspace).cells == 1
    grown = write(methods={"TS": SPEC["methods"]["TS"]}, ratios=[0.4, 0.6], seeds=[0])
    assert table(grown, out=out, workspace=chain.workspace).cells == 2
    other = write(methods={"TS": {"finetune": {"width": 3, "poolings": 2}}}, ratios=[0.4], seeds=[0])
    with pytest.raises(ConfigError, match=r"another spec \(different: methods\.TS\)"):
        table(other, out=out, workspace=chain.workspace)
    with pytest.raises(ConfigError, match="something else than a table"):
        table(small, out=chain.cache, workspace=chain.workspace)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"methods": {"X": {"method": "nothing"}}}, "no method 'nothing'"),
        ({"methods": {"X": {"method": "genesis", "weights": "a"}}}, "a method or weights, not both"),
        ({"methods": {"X": {"pretrain": {"train": {"lr": 1}}}}}, "belong to a row with a method"),
        ({"ratios": [0.4, 1.0]}, "leaves nobody to pre-train on"),
        ({"ratios": [0.0]}, r"\(0, 1\]"),
        ({"pretrain": {"train": {"rl": 1}}}, "did you mean train.lr"),
        ({"paper_table": 3}, "paper's tables"),
        ({"task": "nothing"}, "no task"),
        ({"evaluate": {"resolution": 3}}, "not for the task luna"),
        ({"metric": "hd95_liver"}, "less is better"),
        ({"colour": 1}, "colour"),
    ],
)
def test_a_spec_that_does_not_fit_is_refused_in_a_sentence_before_anything_is_done(
    changes, what, chain, write, tmp_path
):
    from pcrl_cli.core.errors import PcrlError

    with pytest.raises(PcrlError, match=what) as caught:
        table(write(**changes), out=tmp_path / "out", workspace=chain.workspace)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_method_that_breaks_down_is_a_fail_in_its_row_and_the_others_go_on(chain, write, tmp_path, monkeypatch):
    from pcrl_cli.core.errors import NumericalError

    real = stage.pretrain

    def breaks(*args, **kwargs):
        if kwargs["method"] == "genesis":
            raise NumericalError("restore is not finite at step 3")
        return real(*args, **kwargs)

    monkeypatch.setattr(stage, "pretrain", breaks)
    found = table(write(ratios=[0.4], seeds=[0]), out=tmp_path / "out", workspace=chain.workspace)
    assert found.failed == {"MG-aside-0.4-seed-0": "restore is not finite at step 3"}
    with pytest.raises(NumericalError, match="tries the failed ones again"):
        stage.require(found)
    assert stage.frame(found).loc["MG", "0.4"] == "fail"
    assert found.entries["PCRLv2"]["0.4"]["mean"] is not None
    monkeypatch.setattr(stage, "pretrain", real)
    again = table(tmp_path / "spec.yaml", out=tmp_path / "out", workspace=chain.workspace)
    assert again.failed == {}
    assert again.missing == []
    stage.require(again)


def test_a_cell_that_fails_takes_no_other_with_it(chain, write, tmp_path, monkeypatch):
    from pcrl_cli.core.errors import DataError, NumericalError

    real = stage.finetune
    broken = {(0.4, 0): NumericalError("not finite"), (0.6, 1): DataError("no patient is labelled")}

    def breaks(*args, **kwargs):
        values = dict(kwargs["layers"])["the table"]
        error = broken.get((values["ratio"], values["train"]["seed"]))
        if error is not None:
            raise error
        return real(*args, **kwargs)

    monkeypatch.setattr(stage, "finetune", breaks)
    spec, out = write(methods={"TS": SPEC["methods"]["TS"]}, pretrain_seeds="one"), tmp_path / "out"
    found = table(spec, out=out, workspace=chain.workspace)
    assert (found.done, found.exit_code) == (2, 5)
    assert found.failed == {"TS 0.4 seed 0": "not finite", "TS 0.6 seed 1": "no patient is labelled"}
    assert [len(e["values"]) for e in found.entries["TS"].values()] == [1, 1]
    del broken[0.4, 0]
    refused = table(spec, out=out, workspace=chain.workspace)
    assert list(refused.failed) == refused.missing == ["TS 0.6 seed 1"]
    with pytest.raises(DataError, match="no patient is labelled"):
        stage.require(refused)


def test_a_cell_is_done_by_the_evaluation_that_the_spec_asks_for_alone(chain, write, tmp_path):
    spec = write(methods={"TS": SPEC["methods"]["TS"]}, ratios=[0.4], seeds=[0])
    work = stage.Table(stage.read_spec(spec), tmp_path, tmp_path / "out", chain.workspace)
    (cell,) = work.cells()
    for other in ("test-abroad", "test-all", "test-set-123456", "val"):
        place = work.folder(cell) / "evaluation" / other / "evaluation.json"
        place.parent.mkdir(parents=True)
        place.touch()
    assert work.evaluation(cell) is None
    own = work.folder(cell) / "evaluation" / "test" / "evaluation.json"
    own.parent.mkdir()
    own.touch()
    assert work.evaluation(cell) == own
    work.spec = work.spec.model_copy(update={"evaluate": {"all_candidates": True}})
    assert work.evaluation(cell).parent.name == "test-all"


def test_more_seeds_rename_no_pre_training(chain, write, tmp_path):
    names = []
    for seeds in ([0], [0, 1]):
        spec = stage.read_spec(write(seeds=seeds, pretrain_seeds="each"))
        names.append({unit.name for unit in stage.Table(spec, tmp_path, tmp_path, chain.workspace).units()})
    assert names[0] < names[1]


def test_workers_that_begin_at_once_do_not_take_each_other_for_strangers(write, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / ".spec.yaml.host-1.tmp").touch()  # of another worker, which writes the spec right now
    stage._keep(out, stage.read_spec(write()))
    assert (out / "spec.yaml").exists()


def test_predictions_of_every_kind_of_task_are_scored(tmp_path):
    def read(text, metric, value):
        path = tmp_path / "p.csv"
        path.write_text(text, "utf-8")
        return statistics.Predicted.read(path, metric, value)

    luna = read("patient,label,probability\na,1,0.9\na,0,0.1\nb,1,0.2\nb,0,0.3\n", "auroc", 0.75)
    assert luna.scorer is not None
    assert luna.patients == ("a", "a", "b", "b")
    chest = "patient,label X,label Y,probability X,probability Y\na,1,,0.9,0.5\nb,0,1,0.1,0.9\nc,0,0,0.95,0.1\n"
    assert read(chest, "auroc", 0.75).scorer is not None
    assert read(chest, "auroc_x", 0.5).scorer is not None
    assert read(chest, "auroc_y", 1.0).scorer is not None
    assert read(chest, "auroc_z", 0.5).scorer is None
    assert read("case,patient,dice\n1,a,0.5\n2,b,0.7\n", "dice", 0.6).scorer is not None
    assert read("case,patient,dice\n1,a,0.5\n2,b,0.7\n", "dice", 0.65).scorer is None, "not what was reported"
    assert read("case,patient,dice\n1,a,0.5\n2,b,0.7\n", "cpm", 0.6).scorer is None


def scored(values, patients="abcd"):
    """A cell whose samples, one a patient, have these values."""
    values = np.array(values)
    return statistics.Predicted(float(values.mean()), tuple(patients), compare.mean_scorer(values))


def test_only_seeds_that_both_have_are_compared_and_only_whole_rows_can_be_best():
    base = np.array([0.1, 0.2, 0.3, 0.4])
    predicted = {("TS", i): scored(base + 0.1 * i) for i in range(3)}
    predicted |= {("ours", i): scored(base + 0.1 * i + 0.05) for i in range(3)}
    predicted |= {("other", i): scored(base + 0.1 * i + 0.01) for i in range(3)}
    predicted["lucky", 2] = scored(base + 0.2 + 0.02)  # the seed that is best for everybody
    wanted = {m: {0.1: [(m, i) for i in range(3)]} for m in ("TS", "ours", "other", "lucky")}
    entries, rows = statistics.entries_of(predicted, wanted, {("lucky", 0): "not finite"}, 200)
    found, notes = statistics.compared(rows, entries, "TS", "ours")
    by_pair = {(c.first, c.second): c for c in found}
    assert set(by_pair) == {("ours", "TS"), ("other", "TS"), ("lucky", "TS"), ("ours", "other")}
    assert by_pair["lucky", "TS"].value == pytest.approx(0.02)
    assert (by_pair["lucky", "TS"].seeds, by_pair["ours", "TS"].seeds) == (1, 3)
    assert by_pair["lucky", "TS"].low == pytest.approx(0.02)
    assert any("lucky and TS at 10 %: over 1 of 3 seeds" in note for note in notes)
    assert any(note.startswith("lucky at 10 %: seeds are missing") for note in notes)
    assert (entries["lucky"][0.1].text(), entries["lucky"][0.1].failed) == ("47.0 (1/3)", "not finite")


def test_settings_of_a_spec_have_defaults_that_say_what_they_are():
    spec = TableSpec(task="luna", methods={"TS": {}}, ratios=(0.1,))
    assert (spec.methods["TS"].method, spec.methods["TS"].weights) == (None, None)
    assert spec.seeds == (0, 1, 2)


BROKEN = {
    "empty": b"",
    "bytes": bytes(range(256)),
    "control": b"\0\1\2",
    "list": b"- task\n- methods",
    "text": b"luna",
    "numbers for names": b"1: 2",
    "a day that no month has": b"name: 2024-13-45",
    "brackets without end": b"[" * 5000,
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_what_is_no_spec_is_refused_in_one_sentence_that_names_the_file(tmp_path, content):
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"mine\.yaml .* examples/tables") as caught:
        table(path, out=tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_folder_and_nothing_are_no_spec(tmp_path):
    for path, why in ((tmp_path, "is a directory"), (tmp_path / "none.yaml", "does not exist")):
        with pytest.raises(ConfigError, match=rf"{why}.*give the spec of a table"):
            table(path)


def test_a_spec_cut_anywhere_is_a_smaller_one_or_refused(write):
    whole_text, path, said = write().read_bytes(), write(), []
    for n in range(0, len(whole_text), 7):
        path.write_bytes(whole_text[:n])
        try:
            assert stage.read_spec(path).ratios
        except ConfigError as error:
            said.append(str(error))
    assert said
    assert all("\n" not in text and str(path) in text for text in said)


@pytest.mark.parametrize("content", [*BROKEN.values(), None], ids=[*BROKEN, "folder"])
def test_a_torn_copy_in_the_tables_folder_is_named_and_mended_by_the_spec(tmp_path, content):
    spec = TableSpec(task="luna", methods={"TS": {}}, ratios=(0.1,))
    stage._keep(tmp_path / "out", spec)
    copy = tmp_path / "out/spec.yaml"
    good = copy.read_bytes()
    copy.unlink()
    copy.write_bytes(content) if content is not None else copy.mkdir()
    with pytest.raises(ConfigError, match=r"spec\.yaml no longer says what the cells beside it were made by") as caught:
        stage._keep(tmp_path / "out", spec)
    assert "\n" not in str(caught.value)
    copy.rmdir() if content is None else copy.unlink()
    copy.write_text("task: luna\nmethods: {TS: {}}\nratios: [0.1]\n", "utf-8")  # as the user wrote it
    stage._keep(tmp_path / "out", spec)
    assert copy.read_bytes() == good
