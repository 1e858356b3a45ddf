"""Phantom radiographs through prep, pre-training, fine-tuning and evaluation, in two dimensions."""

import csv
import json
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from pcrl_cli.core.errors import ConfigError, DataError, UsageError
from pcrl_cli.core.names import find
from pcrl_cli.data.cache import open_cache
from pcrl_cli.engine.distributed import World
from pcrl_cli.engine.run import Run
from pcrl_cli.networks.resnet2d import ResNet18Encoder
from pcrl_cli.networks.transfer import read_weights
from pcrl_cli.phantoms import radiograph
from pcrl_cli.pure.findings import mean_auroc
from pcrl_cli.readers.image_io import write_png
from pcrl_cli.readers.nih import CLASSES
from pcrl_cli.stages import cost
from pcrl_cli.stages.evaluate import evaluate, load_task, settings_of
from pcrl_cli.stages.export import export
from pcrl_cli.stages.finetune import finetune
from pcrl_cli.stages.prep import prep
from pcrl_cli.stages.pretrain import pretrain, pretrain_settings
from pcrl_cli.stages.probe import embed, probe_run
from pcrl_cli.stages.workflows import Work, images
from pcrl_cli.stages.workspace import Workspace
from pcrl_cli.tasks import TASKS
from tests.stages.chain import Heard, settings

VIEWS = {"images": {"global_side": 32, "local_side": 32, "cutout_side": 6}}
PRE = settings(learner={"width": 4, **VIEWS}, train={"steps": 3, "batch": 6, "check_every": 2}, set_aside=0.5)
FINE = settings(learner={"side": 32, "resize": 40}, train={"steps": 4, "batch": 8}, ratio=0.5)


@dataclass(frozen=True)
class Chain:
    workspace: Workspace
    prepared: object
    pretrained: object
    tuned: object
    evaluated: object

    @property
    def cache(self):
        return self.prepared.cache


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    workspace = Workspace(tmp_path_factory.mktemp("images"))
    radiograph.make(workspace.data("nih"), 40)
    prepared = prep("nih", workspace=workspace, layers=settings(size=48), jobs=1)
    pre = pretrain(workspace=workspace, dim="2d", layers=PRE)
    tuned = finetune(task="chest", workspace=workspace, weights=pre.run, layers=FINE)
    return Chain(workspace, prepared, pre, tuned, evaluate(tuned.run, workspace=workspace))


def test_pre_training_takes_every_image_of_the_patients_that_are_left(chain):
    cache = open_cache(chain.cache)
    aside = set(cache.split.first(0.5))
    left = [p for p in cache.split.train if p not in aside]
    owners = cache.owners("images", "label", cache.cases())
    assert chain.pretrained.patients == len(left)
    assert chain.pretrained.samples == sum(p in left for p in owners) > len(left)
    assert chain.pretrained.start == "random"
    assert set(chain.pretrained.outcome["last"]) == {"restore", "compare", "local"}


def test_the_weights_say_that_they_are_of_a_resnet_and_of_radiographs(chain):
    contract = read_weights(chain.pretrained.weights).contract
    a, d = contract.architecture, contract.domain
    assert (a.dim, a.encoder, a.width, a.poolings) == (2, "resnet18", 4, 5)
    assert (d.channels, d.spacing_mm, d.axis_order) == (1, None, "rows, columns")


def test_fine_tuning_loads_the_whole_encoder_and_counts_what_it_learns_from(chain):
    transfer = chain.tuned.transfer
    assert transfer["share"] == 1
    assert len(transfer["loaded"]) == 120
    assert chain.tuned.labels["images"] >= chain.tuned.labelled_patients
    assert chain.tuned.metric == "auroc"
    assert chain.tuned.overlap == {"labelled": 0, "val": 0, "test": 0}


def rows_of(result):
    with result.predictions.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_scores_follow_from_the_csv_with_a_row_an_image(chain):
    result, rows = chain.evaluated, rows_of(chain.evaluated)
    cache = open_cache(chain.cache)
    test = set(cache.split.test)
    assert {row["patient"] for row in rows} == test
    assert (
        len(rows) == sum(p in test for p in cache.owners("images", "label", cache.cases())) == result.counts["images"]
    )
    labels = np.array([[int(row[f"label {name}"]) for name in CLASSES] for row in rows])
    scores = np.array([[float(row[f"probability {name}"]) for name in CLASSES] for row in rows])
    assert result.metrics["auroc"].value == pytest.approx(mean_auroc(labels, scores), abs=1e-4)
    assert result.metrics["auroc"].low <= result.metrics["auroc"].value <= result.metrics["auroc"].high
    assert "patients" in result.metrics["auroc"].interval
    stored = cache.read("images", ("label", "id"), cache.cases()).arrays
    by_id = dict(zip(stored["id"], stored["label"], strict=True))
    assert all(np.array_equal(by_id[row["id"].encode()], y) for row, y in zip(rows, labels, strict=True))


def test_findings_of_one_class_are_left_out_of_the_mean_and_named(chain):
    result, rows = chain.evaluated, rows_of(chain.evaluated)
    lacking = [n for n in CLASSES if len({row[f"label {n}"] for row in rows}) < 2]
    assert lacking, "the phantoms have all findings in the test part: make fewer"
    assert result.details["left_out_of_the_mean"] == lacking
    note = next(n for n in result.notes if n.startswith("the mean AUROC"))
    for name in lacking:
        metric = result.metrics["auroc_" + name.lower()]
        assert metric.value is None
        assert metric.reason
        assert f"{name} (no positive)" in note
    assert result.counts["findings in the mean"] == 14 - len(lacking)


def test_the_report_holds_figures_the_papers_rows_and_the_pointing_game(chain):
    result = chain.evaluated
    page = result.report.read_text("utf-8")
    for wanted in ("PCRLv2, Table 4", "ROC curves", "Calibration", "Where it looks", "AUROC by finding"):
        assert wanted in page
    assert 0 <= result.metrics["pointing"].value <= 1
    boxes = sum(g["boxes"] for g in result.details["pointing"].values())
    assert boxes > 0
    assert 0 < result.details["pointing_by_chance"] < 1
    assert json.loads(result.evaluation.read_text("utf-8"))["metrics"]["auroc"]["value"] is not None


@pytest.fixture
def box_list(chain):
    """The list of boxes, which a test may change or remove."""
    path = chain.workspace.data("nih") / "BBox_List_2017.csv"
    before = path.read_bytes()
    yield path
    path.write_bytes(before)


def test_without_a_list_of_boxes_there_is_no_pointing_game(chain, box_list):
    box_list.unlink()
    result = evaluate(chain.tuned.run, workspace=chain.workspace)
    assert result.metrics["pointing"].value is None
    assert "no list of boxes" in result.metrics["pointing"].reason
    assert str(box_list.parent) in result.metrics["pointing"].reason
    assert result.metrics["auroc"] == chain.evaluated.metrics["auroc"]


def test_a_box_in_the_rim_that_the_network_does_not_see_is_left_out_and_counted(chain, box_list):
    one, two = (row["id"] for row in rows_of(chain.evaluated)[:2])
    rim, seen = (
        f"{one},Mass,0,0,90,1024,,,",
        f"{two},Hernia,90,90,400,400,,,",
    )  # 4 of 40 pixels, 102 of 1024, are cut off
    box_list.write_text("\n".join(["head", rim, seen]), encoding="utf-8")
    result = evaluate(chain.tuned.run, workspace=chain.workspace)
    assert {name: game["boxes"] for name, game in result.details["pointing"].items()} == {"Hernia": 1}
    assert result.details["pointing_left_out"] == 1
    assert any(note.startswith("1 findings with boxes only in the rim") for note in result.notes)
    box_list.write_text("\n".join(["head", rim]), encoding="utf-8")
    assert "cut-off rim" in evaluate(chain.tuned.run, workspace=chain.workspace).metrics["pointing"].reason
    box_list.write_text("head\nnobody.png,Mass,1,2,3,4\n", encoding="utf-8")
    result = evaluate(chain.tuned.run, workspace=chain.workspace)
    assert result.metrics["pointing"].reason == "no image of this part has a box"


def test_a_damaged_list_of_boxes_is_told_before_anything_is_predicted(chain, box_list, monkeypatch):
    monkeypatch.setattr(images, "predict_part", lambda *_: pytest.fail("predicted"))
    box_list.write_text("head\na.png,Mass,1\n", encoding="utf-8")
    with pytest.raises(DataError, match="line 2 is no box"):
        evaluate(chain.tuned.run, workspace=chain.workspace)


def test_validation_deals_its_shards_to_the_ranks(chain):
    class Ranks(World):
        """Two ranks, one after the other, that know of each other's cases by their ids alone."""

        def by_case(self, cases, work):
            dealt.extend(cases)
            done = {case: work(case) for rank in (1, 0) for case in cases[rank::2]}
            return {case: done[case] for case in cases}

    run, cache, dealt = Run.load(chain.tuned.run), open_cache(chain.cache), []
    found = settings_of(run, chain.tuned.run, None)
    task = load_task(run, found, cache).eval()
    alone = Work(find("task", "chest", TASKS), found, cache, torch.device("cpu"))
    together = replace(alone, world=Ranks())
    assert images.validate(together, task) == images.validate(alone, task)
    assert dealt == list(cache.cases("val"))
    found, wanted = (images.predict_part(work, task, "val") for work in (together, alone))
    assert found.id == wanted.id
    np.testing.assert_array_equal(found.probability, wanted.probability)


def own_folder(folder, findings):
    """Images of another source with a table of these findings, a third of them positive."""
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    lines = ["path,patient," + ",".join(findings)]
    for i in range(12):
        write_png(rng.integers(0, 255, (48, 48)).astype(np.uint8), folder / "images" / f"{i}.png")
        lines.append(f"images/{i}.png,other{i}," + ",".join(str(int((i + k) % 3 == 0)) for k in range(len(findings))))
    (folder / "labels.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def other_cache(chain, tmp_path, findings):
    raw = own_folder(tmp_path / "raw", findings)
    options = {"labels": raw / "labels.csv"}
    return prep("folder", data=raw, out=tmp_path / "cache", layers=settings(size=48), options=options, jobs=1).cache


def test_an_external_test_scores_the_findings_that_both_name_and_says_which_are_missing(chain, tmp_path):
    cache = other_cache(chain, tmp_path, ["Hernia", "Broken rib", "Mass"])
    result = evaluate(chain.tuned.run, cache, split="all", workspace=chain.workspace)
    scored = {f for f in CLASSES if result.metrics["auroc_" + f.lower()].value is not None}
    assert scored == {"Hernia", "Mass"}
    assert "Edema (no label)" in next(n for n in result.notes if n.startswith("the mean AUROC"))
    with result.predictions.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["label Mass"] for row in rows].count("1") == 4
    assert {row["label Edema"] for row in rows} == {""}


def test_the_metrics_of_an_external_test_are_those_of_the_findings_that_the_run_learned(chain, tmp_path):
    cache = other_cache(chain, tmp_path, ["Hernia", "Broken rib"])
    with pytest.raises(UsageError, match="auroc_broken_rib"):
        evaluate(chain.tuned.run, cache, split="all", workspace=chain.workspace, fail_under={"auroc_broken_rib": 0.1})
    result = evaluate(chain.tuned.run, cache, split="all", workspace=chain.workspace, fail_under={"auroc_edema": 0.1})
    assert {"auroc_edema", "auroc_hernia"} <= result.metrics.keys()


def test_an_external_test_without_a_common_finding_is_refused(chain, tmp_path):
    with pytest.raises(ConfigError, match="none is common"):
        evaluate(chain.tuned.run, other_cache(chain, tmp_path, ["Broken rib"]), split="all", workspace=chain.workspace)


def test_weights_that_saw_the_test_part_are_refused(chain):
    cache = open_cache(chain.cache)
    other = chain.workspace.root / "other"
    prep("nih", workspace=chain.workspace, out=other, layers=settings(size=40, seed=5), jobs=1)
    assert set(open_cache(other).split.test) & set(cache.split.train)
    with pytest.raises(ConfigError, match="leak"):
        finetune(other, task="chest", workspace=chain.workspace, weights=chain.pretrained.run, layers=FINE)


def test_a_smaller_ratio_learns_from_fewer_patients_which_the_larger_holds(chain):
    plans = [
        finetune(
            chain.cache, task="chest", workspace=chain.workspace, dry_run=True, layers=[*FINE, ("r", {"ratio": r})]
        )
        for r in (0.05, 0.4, 1.0)
    ]
    numbers = [plan.figures["labelled patients"] for plan in plans]
    assert numbers == sorted(numbers)
    assert numbers[0] < numbers[1] < numbers[2]


def test_a_ratio_at_which_no_finding_has_both_classes_is_refused(chain):
    layers = [*FINE, ("r", {"ratio": 0.01})]
    cache = open_cache(chain.cache)
    first = cache.split.first(0.01)
    rows = cache.rows("images", "label", cache.cases(patients=first), first)
    labels = cache.read("images", ("label",), cache.cases(patients=first), rows=rows).arrays["label"]
    if ((labels == 1).any(0) & (labels == 0).any(0)).any():
        pytest.skip("this phantom's visits differ in their findings")
    with pytest.raises(DataError, match="no finding has both"):
        finetune(chain.cache, task="chest", workspace=chain.workspace, layers=layers)


def test_an_exported_encoder_carries_a_card_without_millimetres(chain, tmp_path):
    export(chain.pretrained.run, tmp_path / "e.safetensors")
    card = next(tmp_path.glob("*.md")).read_text("utf-8")
    assert "resnet18, 2D" in card
    assert " mm " not in card


# ---- where the encoder starts from -----------------------------------------------------------------------------------


def imagenet(path, width=4, seed=9):
    torch.manual_seed(seed)
    state = ResNet18Encoder(3, width).state_dict()
    torch.save(state | {"fc.weight": torch.zeros(10, 8 * width), "fc.bias": torch.zeros(10)}, path)
    return f"imagenet={path}", state


def test_pre_training_starts_from_a_local_imagenet_file_with_every_key_accounted_for(chain, tmp_path):
    init, state = imagenet(tmp_path / "r.pth")
    layers = [*PRE, ("more", {"init": init, "train": {"steps": 1, "lr": 1e-12, "warmup_steps": 0}})]
    result = pretrain(chain.cache, dim="2d", workspace=chain.workspace, layers=layers)
    assert result.start == str(tmp_path / "r.pth")
    assert len(result.transfer["loaded"]) == 120
    assert result.transfer["not_encoder"] == ["fc.bias", "fc.weight"]
    kept = read_weights(result.weights).tensors
    assert torch.allclose(kept["layer3.0.conv1.weight"], state["layer3.0.conv1.weight"], atol=1e-6)


def test_fine_tuning_starts_from_it_too_and_the_files_place_does_not_decide(chain, tmp_path):
    init, state = imagenet(tmp_path / "r.pth")
    layers = [*FINE, ("more", {"train": {"steps": 1, "lr": 1e-12}})]
    result = finetune(chain.cache, task="chest", workspace=chain.workspace, init=init, layers=layers)
    assert result.transfer["share"] == 1
    assert result.overlap == {"labelled": 0, "val": 0, "test": 0}
    kept = read_weights(result.weights)
    assert torch.allclose(kept.tensors["conv1.weight"], state["conv1.weight"], atol=1e-6)
    assert kept.contract.patients.salt
    assert kept.contract.patients.hashes
    again, _ = imagenet(tmp_path / "copy.pth")
    plan = finetune(chain.cache, task="chest", workspace=chain.workspace, init=again, layers=layers, dry_run=True)
    assert plan.out == result.run


def test_a_wrong_init_is_refused_in_a_sentence(chain, tmp_path):
    init, _ = imagenet(tmp_path / "wide.pth", width=6)
    with pytest.raises(ConfigError, match="set --width 6"):
        pretrain(chain.cache, dim="2d", workspace=chain.workspace, layers=[*PRE, ("i", {"init": init})])
    with pytest.raises(ConfigError, match="downloads nothing"):
        pretrain(
            chain.cache, dim="2d", workspace=chain.workspace, layers=[*PRE, ("i", {"init": f"imagenet={tmp_path}/no"})]
        )
    with pytest.raises(UsageError, match="imagenet=FILE"):
        finetune(chain.cache, task="chest", workspace=chain.workspace, init="imagenet", layers=FINE)
    with pytest.raises(UsageError, match="one of them"):
        finetune(
            chain.cache, task="chest", workspace=chain.workspace, init=init, weights=chain.pretrained.run, layers=FINE
        )


def test_recipe_released_without_imagenet_warns_and_records_random(chain):
    heard = Heard()
    layers = settings(learner={"width": 4, **VIEWS}, train={"steps": 1, "batch": 6})
    result = pretrain(
        chain.cache, dim="2d", recipe="released", workspace=chain.workspace, layers=layers, listener=heard
    )
    assert result.start == "random"
    assert any("--init imagenet=FILE" in line for line in heard.warnings)
    assert set(result.outcome["last"]) == {"restore", "compare", "local", "full"}


# ---- what it costs ---------------------------------------------------------------------------------------------------


def test_a_step_of_the_papers_2d_recipe_is_counted():
    config = pretrain_settings(None, "paper", "2d")[0].learner
    flops = cost.step_flops(config, 2, shapes=cost.view_shapes(config), dim=2)
    encoder = 3 * 2 * 1.81e9  # forward and backward of ResNet-18 at 224 x 224, two FLOP a multiply-add
    assert 16 * encoder < flops < 40 * encoder


# ---- frozen features -------------------------------------------------------------------------------------------------


def test_probing_gives_the_mean_over_findings_and_embedding_a_row_an_image(chain, tmp_path):
    result = probe_run(chain.pretrained.run, workspace=chain.workspace)
    cache = open_cache(chain.cache)
    owners = cache.owners("images", "label", cache.cases())
    assert result.task == "chest"
    assert result.train == sum(p in cache.split.train for p in owners)
    assert result.tested == chain.evaluated.counts["images"]
    assert 0 <= result.linear_auroc <= 1
    assert 0 <= result.knn_auroc <= 1
    embed(chain.pretrained.run, tmp_path / "f.npz", workspace=chain.workspace)
    embed(chain.pretrained.run, tmp_path / "f.csv", workspace=chain.workspace)
    with np.load(tmp_path / "f.npz") as found:
        assert found["features"].shape == (len(owners), 32)
        assert found["label"].shape == (len(owners), 14)
    with (tmp_path / "f.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert len(rows) == len(owners) + 1
    assert all(len(row) == 3 + 14 + 32 for row in rows)


def test_a_task_of_other_images_is_refused(chain):
    with pytest.raises(ConfigError, match="2D encoder"):
        probe_run(chain.pretrained.run, workspace=chain.workspace, task="luna")
