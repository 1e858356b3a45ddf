"""Segmentation end to end on scans of a few voxels: what is trained on, how whole scans are scored, what is left behind."""

import csv
import io
import json
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from chain import Heard, contents, settings
from torch import nn

from pcrl_cli.core.contract import Architecture, Contract, Domain, Patients
from pcrl_cli.core.errors import ConfigError, DataError, MachineError, UsageError
from pcrl_cli.core.names import find
from pcrl_cli.core.plan import Grid
from pcrl_cli.data.cache import Cache, open_cache
from pcrl_cli.data.volume import Volume
from pcrl_cli.engine.run import Run, read_metrics
from pcrl_cli.networks.transfer import read_weights, write_weights
from pcrl_cli.networks.unet3d import UNet3dEncoder
from pcrl_cli.pure.regions import Agreement, masks_of
from pcrl_cli.readers.volume_io import write_mask, write_nifti
from pcrl_cli.stages.evaluate import EvaluateResult, evaluate, require_alike
from pcrl_cli.stages.finetune import FinetuneResult, finetune, finetune_settings
from pcrl_cli.stages.prep import prep
from pcrl_cli.stages.workflows import Work, volumes
from pcrl_cli.stages.workspace import Workspace
from pcrl_cli.tasks import TASKS

SHAPE, SPACING = (24, 20, 14), np.array([1.5, 1.5, 2.0])
GRID = Grid(SHAPE, SPACING, np.array([3.0, -7.0, 40.0]), np.eye(3))
EMPTY = 4
"""The patient whose mask has no foreground."""


def write_lits(root: Path, patients=6) -> Path:
    """Bright boxes of another place and size each."""
    root.mkdir(parents=True)
    for i in range(patients):
        rng = np.random.default_rng(i)
        hu, mask = rng.integers(-90, -60, SHAPE).astype(np.int16), np.zeros(SHAPE, np.uint8)
        start = rng.integers(2, 6, 3)
        inside = tuple(slice(a, a + n) for a, n in zip(start, (12, 10, 6), strict=True))
        hu[inside], mask[inside] = 120, 1
        mask[tuple(start + 2)] = 2
        if i == EMPTY:
            mask[:] = 0
        write_nifti(Volume(hu, SPACING, GRID.origin, GRID.direction), root / f"volume-{i}.nii.gz")
        write_mask(mask, GRID, root / f"segmentation-{i}.nii.gz")
    return root


def write_brats(root: Path, patients=5) -> Path:
    """Nested boxes in a brain; the last patient's tumour does not enhance."""
    place = replace(GRID, spacing=np.ones(3))
    for i in range(patients):
        folder, rng = root / "HGG" / f"patient-{i}", np.random.default_rng(i)
        folder.mkdir(parents=True)
        mask = np.zeros(SHAPE, np.uint8)
        mask[6:16, 6:14, 4:10], mask[8:14, 8:12, 5:9] = 2, 1
        if i != patients - 1:
            mask[9:12, 9:11, 6:8] = 4
        for k, name in enumerate(("flair", "t1", "t1ce", "t2")):
            image = np.zeros(SHAPE, np.int16)
            image[2:22, 2:18, 1:13] = rng.integers(200, 260, (20, 16, 12))
            image[mask > 0] += 100 * (k + 1) * mask[mask > 0].astype(np.int16)
            volume = Volume(image, place.spacing, place.origin, place.direction)
            write_nifti(volume, folder / f"patient-{i}_{name}.nii.gz")
        write_mask(mask, place, folder / f"patient-{i}_seg.nii.gz")
    return root


def layers(steps=4, **more):
    learner = {"crop": [16, 16, 16], "overlap": 0.25} | more.pop("learner", {})
    train = {"steps": steps, "batch": 2, "lr": 1e-2, "optimiser": "adam"} | more.pop("train", {})
    return settings(width=2, poolings=2, learner=learner, train=train, **more)


class Chain:
    """raw -> cache -> fine-tuned -> evaluated on all patients."""

    def __init__(self, root: Path, task: str) -> None:
        self.workspace, self.task = Workspace(root), task
        (write_lits if task == "lits" else write_brats)(self.workspace.data(task))
        tight = settings(prepare={"margin": 2}) if task == "lits" else ()
        self.cache: Cache = open_cache(prep(task, workspace=self.workspace, layers=tight, jobs=1).cache)
        self.tuned: FinetuneResult = finetune(task=task, workspace=self.workspace, layers=layers())
        self.evaluated: EvaluateResult = evaluate(self.tuned.run, workspace=self.workspace, split="all")

    def work(self, **more) -> Work:
        values = {"out": None, "listener": Heard()} | more
        module = find("task", self.task, TASKS)
        found = finetune_settings(self.task, None, layers())[0]
        return Work(module, found, values.pop("cache", self.cache), torch.device("cpu"), **values)


@cache
def build(root: Path, task: str) -> Chain:
    return Chain(root, task)


@pytest.fixture(params=["lits", "brats"])
def chain(request, tmp_path_factory) -> Chain:
    return build(tmp_path_factory.getbasetemp() / f"volumes-{request.param}", request.param)


@pytest.fixture
def lits(tmp_path_factory) -> Chain:
    return build(tmp_path_factory.getbasetemp() / "volumes-lits", "lits")


@pytest.fixture
def brats(tmp_path_factory) -> Chain:
    return build(tmp_path_factory.getbasetemp() / "volumes-brats", "brats")


class Bright(nn.Module):
    """Says "foreground" where the first channel is bright, which is what the phantoms' foreground is."""

    def __init__(self, regions=1, at=0.5):
        super().__init__()
        self.regions, self.at = regions, at
        self.nothing = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return (100 * (x[:, :1] - self.at)).expand(-1, self.regions, -1, -1, -1)


def task_of(chain, network=None):
    """An untrained task in eval mode, with another network if one is given."""
    from pcrl_cli.stages import training
    from pcrl_cli.stages.finetune import build_task

    found = finetune_settings(chain.task, None, layers())[0]
    small = Architecture(dim=3, encoder="unet3d", width=2, poolings=2)
    task = build_task(found, small, training.stored(chain.cache))
    if network is not None:
        task.network = network
    return task.eval()


# ---------------------------------------------------------------------------------------------------------- chain


def test_the_chain_learns_validates_and_scores_every_patient(chain):
    assert chain.evaluated.counts["scans"] == len(chain.cache.cases())
    assert chain.evaluated.headline == "dice"
    assert 0 < chain.evaluated.metrics["dice"].value < 1
    rows = [row for row in read_metrics(chain.tuned.run / "metrics.jsonl") if "val_dice" in row]
    assert rows
    assert chain.tuned.best_validation == max(row["val_dice"] for row in rows)
    regions = find("task", chain.task, TASKS).REGIONS
    assert all(f"val_dice_{name}" in rows[0] for name in regions)


def test_a_region_that_no_labelled_mask_holds_is_named(lits, brats):
    work = brats.work()
    empty = [p for p in work.cache.patients() if p.endswith("-4")]
    (said,) = volumes.doubts(work, empty)
    assert said.startswith("no mask of the 1 labelled training scans holds ET, which cannot be learned")
    assert volumes.doubts(work, work.cache.patients()) == []
    assert volumes.doubts(lits.work(), lits.work().cache.patients()) == []


def test_only_metrics_of_which_more_is_better_can_be_held_against_a_least_value(chain):
    names = volumes.metric_names(chain.work())
    assert set(names) < set(chain.evaluated.metrics)
    assert {n.split("_")[0] for n in names} == {"dice", "nsd"}
    assert {n.split("_")[0] for n in set(chain.evaluated.metrics) - set(names)} == {"hd95", "assd", "ravd"}
    region = names[-1].split("_")[1]
    with pytest.raises(UsageError, match="--fail-under hd95"):
        evaluate(chain.tuned.run, workspace=chain.workspace, split="all", fail_under={f"hd95_{region}": 5.0})


def test_dice_is_the_mean_over_regions_and_the_box_is_a_number_of_lits_alone(lits, brats):
    values = {name: e.value for name, e in brats.evaluated.metrics.items()}
    assert values["dice"] == pytest.approx(np.mean([values[f"dice_{r}"] for r in ("WT", "TC", "ET")]))
    assert "dice_box" not in values
    everywhere = volumes.score(lits.work(), task_of(lits, Bright(at=-1.0)), "all", {}).metrics
    assert everywhere["dice_box"].value > 1.2 * everywhere["dice"].value > 0  # fewer voxels to be wrong in


def test_the_csv_has_a_row_a_case_whose_mean_is_the_metric(chain):
    rows = list(csv.DictReader(io.StringIO(chain.evaluated.predictions.read_text("utf-8"))))
    assert [row["case"] for row in rows] == list(chain.cache.cases())
    mean = np.mean([float(row["dice"]) for row in rows])
    assert mean == pytest.approx(chain.evaluated.metrics["dice"].value, abs=1e-5)
    region = next(iter(find("task", chain.task, TASKS).REGIONS))
    for field in Agreement.__dataclass_fields__:
        assert all(np.isfinite(float(row[f"{field}_{region}"])) for row in rows)


def test_every_case_has_an_overlay_and_the_report_shows_the_ends(chain):
    folder = chain.evaluated.evaluation.parent
    assert sorted(p.stem for p in (folder / "overlays").iterdir()) == sorted(chain.cache.cases())
    page = chain.evaluated.report.read_text("utf-8")
    assert page.count("<figure>") == 1 + 2 * volumes.SHOWN
    assert not list(folder.glob(".*"))


def test_an_evaluation_again_gives_the_same_bytes(lits):
    folder = lits.evaluated.evaluation.parent
    before = contents(folder)
    evaluate(lits.tuned.run, workspace=lits.workspace, split="all")
    assert contents(folder) == before


def test_settings_of_inference_can_be_others_than_the_runs_and_no_other_settings_can(brats):
    def again(**learner):
        return evaluate(
            brats.tuned.run,
            workspace=brats.workspace,
            split="val",
            options={"set": {"learner": learner} if learner else {}},
        )

    plain, sure = again(), again(threshold=0.999)
    assert sure.details["threshold"] == 0.999
    assert sure.metrics["dice"].value != plain.metrics["dice"].value
    assert sure.evaluation.parent.name.startswith("val-set-")
    assert plain.evaluation.parent.name == "val"
    with pytest.raises(ConfigError, match=r"learner\.crop \(from --set\) changes nothing"):
        again(crop=[8, 8, 8])
    with pytest.raises(ConfigError, match=r"overlap.*less than 1"):
        again(overlap=2)


def test_images_that_mean_something_else_to_the_network_are_not_scored(lits, brats, tmp_path):
    def prepared(chain, **values):
        return prep(chain.task, workspace=chain.workspace, out=tmp_path / "c", layers=settings(**values), jobs=1).cache

    with pytest.raises(ConfigError, match=r"images of 2 channels, and the run was trained on 4"):
        evaluate(brats.tuned.run, prepared(brats, modalities=["t1", "t2"]), workspace=brats.workspace)
    shutil.rmtree(tmp_path / "c")
    with pytest.raises(ConfigError, match=r"\(prepare.hu_max 100.0 instead of 200.0\)"):
        evaluate(lits.tuned.run, prepared(lits, prepare={"hu_max": 100}), workspace=lits.workspace, split="all")


def test_channels_of_other_names_are_refused_and_a_margin_is_no_matter(lits, brats):
    run, contract = Run.load(brats.tuned.run), read_weights(brats.tuned.weights).contract
    assert contract.domain.channel_names == ("flair", "t1", "t1ce", "t2")
    require_alike(run, contract, brats.cache)
    turned = brats.cache.manifest | {"channel_names": ["t1", "flair", "t1ce", "t2"]}
    with pytest.raises(ConfigError, match="are t1, flair, t1ce, t2, and the run was trained on flair, t1, t1ce, t2"):
        require_alike(run, contract, replace(brats.cache, manifest=turned))
    run, contract = Run.load(lits.tuned.run), read_weights(lits.tuned.weights).contract
    other = json.loads(json.dumps(lits.cache.manifest))
    other["settings"]["prepare"] |= {"margin": 7, "normalise": "minmax"}  # of MR
    require_alike(run, contract, replace(lits.cache, manifest=other))


def write_encoder(path: Path, channels: int) -> UNet3dEncoder:
    torch.manual_seed(0)
    encoder = UNet3dEncoder(channels, 2, 2)
    domain = Domain(channels=channels, modality="ct", spacing_mm=1.0, intensity={}, normalisation="z")
    small = Architecture(dim=3, encoder="unet3d", width=2, poolings=2)
    known = Contract(architecture=small, domain=domain, patients=Patients.of(["somebody"], "salt"))
    write_weights(path, encoder, known, "safetensors")
    return encoder


def test_an_encoder_whose_first_convolution_does_not_fit_is_warned_of(brats, tmp_path):
    write_encoder(tmp_path / "two.safetensors", 2)
    heard = Heard()
    finetune(
        task="brats",
        workspace=brats.workspace,
        weights=tmp_path / "two.safetensors",
        out=tmp_path / "run",
        layers=settings(learner={"crop": [16, 16, 16]}, train={"steps": 1, "batch": 2}),
        listener=heard,
    )
    assert any("levels.0.0.0.weight" in text and "starts random" in text for text in heard.warnings)


@pytest.mark.parametrize(("stem", "share"), [("divide", 1 / 4), ("repeat", 1)])
def test_a_pre_trained_encoder_of_one_channel_starts_a_task_of_four(brats, tmp_path, stem, share):
    encoder = write_encoder(tmp_path / "encoder.safetensors", 1)
    found = finetune(
        task="brats",
        workspace=brats.workspace,
        weights=tmp_path / "encoder.safetensors",
        out=tmp_path / "run",
        layers=settings(learner={"crop": [16, 16, 16]}, train={"steps": 1, "batch": 2, "lr": 1e-12}, stem=stem),
    )
    assert found.transfer["share"] == 1.0
    assert "4 channels" in found.transfer["adapted"][0]
    first = next(v for k, v in read_weights(found.weights).tensors.items() if v.dim() == 5 and v.shape[1] == 4)
    of_one = next(v for v in encoder.state_dict().values() if v.dim() == 5)
    assert torch.allclose(first, of_one.expand(-1, 4, -1, -1, -1) * share, atol=1e-6)


def test_the_released_recipe_does_not_divide_the_first_convolution():
    assert {finetune_settings(task, "released")[0].stem for task in TASKS} == {"repeat"}
    assert finetune_settings("brats")[0].stem == "divide"


# ------------------------------------------------------------------------------------------------------- training


def test_volumes_without_foreground_are_counted_and_nothing_else_is_nothing_to_learn(lits):
    work = lits.work()
    found = volumes.counts(work, lits.cache.patients())
    assert found == {"volumes": 6, "without foreground": 1, "smaller than a crop, padded": 0}
    empty = next(p for p in lits.cache.patients() if str(EMPTY) in p)
    with pytest.raises(DataError, match="none of the 1 labelled training scans"):
        volumes.counts(work, [empty])


def test_crops_that_ask_for_foreground_pass_over_volumes_without(lits):
    settings_ = finetune_settings("lits", None, layers(learner={"foreground": 1.0, "crop": [8, 8, 8]}))[0]
    work = replace(lits.work(), settings=settings_)
    source = volumes.source(work, lits.cache.patients(), "ram", _alone())
    batches = source.batches(0)
    seen = [next(batches)[1]["mask"] for _ in range(12)]
    empty = sum(not (mask > 0).any() for masks in seen for mask in masks)
    assert 0 < empty <= 12 * 2 // 6 + 2  # the volume without foreground, an epoch of 3 steps


def test_what_lies_beyond_a_volume_is_what_the_network_sees_as_0(chain):
    settings_ = finetune_settings(chain.task, None, layers(learner={"crop": [64, 64, 64]}))[0]
    source = volumes.source(replace(chain.work(), settings=settings_), chain.cache.patients(), "ram", _alone())
    _, batch = next(source.batches(0))
    x = task_of(chain).input(batch["image"])
    outside = batch["mask"] == 255
    assert outside.any()
    assert (x.movedim(1, -1)[outside].abs() < 1e-6).all()


def test_crops_are_padded_with_what_the_cache_says(lits):
    assert volumes.source(lits.work(), lits.cache.patients(), "ram", _alone()).pad == -200
    other = replace(lits.cache, manifest=lits.cache.manifest | {"pad": -7})
    assert volumes.source(lits.work(cache=other), lits.cache.patients(), "ram", _alone()).pad == -7


def test_a_validation_part_without_foreground_chooses_no_epoch(lits):
    can, kept = volumes.can_validate(lits.work())
    assert can == (not all(str(EMPTY) in case for case in lits.cache.cases("val")))
    counts = {"counts": {"volumes": {"without_foreground": 1}}}
    records = {case: record | counts for case, record in lits.cache.records.items()}
    blind = replace(lits.cache, manifest=lits.cache.manifest | {"cases": list(records.values())})
    can, kept = volumes.can_validate(replace(lits.work(), cache=blind))
    assert not can
    assert kept.startswith("last epoch")


def test_validation_looks_inside_the_box(lits):
    task = task_of(lits, Bright(at=0.6))
    found = volumes.validate(lits.work(), task)
    assert found["val_dice"] == found["val_dice_liver"] > 0.9


def _alone():
    from pcrl_cli.engine.distributed import World

    return World.join(torch.device("cpu"))


# -------------------------------------------------------------------------------------------------------- scoring


def test_a_perfect_prediction_on_the_working_grid_is_nearly_perfect_on_the_scans_own(lits):
    task = task_of(lits, Bright(at=0.6))
    case = next(c for c in lits.cache.cases() if str(EMPTY) not in c)
    found = volumes.score_case(lits.work(), task, case)
    assert found.dice > 0.93
    assert found.regions["liver"].max_mm <= np.linalg.norm(SPACING)
    truth = masks_of(lits.cache.read_box(case, "volumes", "native_mask"), task.regions)
    assert truth[0].shape == SHAPE
    assert found.regions["liver"].true_ml == pytest.approx(truth[0].sum() * SPACING.prod() / 1000)


def test_scans_without_foreground_follow_the_policy_and_are_named(lits):
    empty = next(c for c in lits.cache.cases() if str(EMPTY) in c)
    silent, loud = task_of(lits, Bright(at=2.0)), task_of(lits, Bright(at=-1.0))
    assert volumes.score_case(lits.work(), silent, empty).dice == 1
    invented = volumes.score_case(lits.work(), loud, empty)
    assert invented.dice == 0
    assert invented.regions["liver"].hd95_mm == pytest.approx(np.linalg.norm(np.array(SHAPE) * SPACING))
    scores = volumes.score(lits.work(), silent, "all", {})
    assert scores.details["empty"]["liver"] == {"in neither": 1, "missed": 5, "invented": 0}
    assert any("1 in neither, 5 missed" in note for note in scores.notes)
    assert scores.metrics["dice"].value == pytest.approx(1 / 6)
    assert scores.metrics["hd95_liver"].value == pytest.approx(5 / 6 * np.linalg.norm(np.array(SHAPE) * SPACING))


def test_regions_that_no_patient_has_are_not_missed(brats):
    scores = volumes.score(brats.work(), task_of(brats, Bright(3, at=1e3)), "all", {})
    assert scores.details["empty"]["ET"]["in neither"] == 1
    assert scores.details["empty"]["WT"] == {"in neither": 0, "missed": 5, "invented": 0}


def test_scans_smaller_than_a_window_are_counted(lits):
    task = task_of(lits)
    task.config = task.config.model_copy(update={"window": (64, 64, 64)})
    scores = volumes.score(lits.work(), task, "all", {})
    assert scores.details["padded"] == list(lits.cache.cases())
    assert any("smaller than a window" in note for note in scores.notes)


def test_only_the_largest_component_is_kept_if_asked(lits):
    case = next(c for c in lits.cache.cases() if str(EMPTY) not in c)
    task = task_of(lits, Bright(at=0.6))
    both = volumes.score_case(lits.work(), task, case)
    task.config = task.config.model_copy(update={"largest_component": True})
    assert (
        volumes.score_case(lits.work(), task, case).regions["liver"].predicted_ml <= both.regions["liver"].predicted_ml
    )


def test_dice_in_the_box_is_of_the_prediction_that_is_scored(lits):
    case = next(c for c in lits.cache.cases() if str(EMPTY) not in c)
    start, _ = lits.cache.read_box(case, "volumes", "box").tolist()
    mask = lits.cache.read_box(case, "volumes", "mask")
    found = (mask > 0).astype(np.float32)[None]
    found[0][tuple(start)] = 1  # a speck in the corner of the box, two voxels and more from the organ
    task = task_of(lits)
    with_speck = volumes._box_dice(lits.cache, case, task, found)
    task.config = task.config.model_copy(update={"largest_component": True})
    assert with_speck < volumes._box_dice(lits.cache, case, task, found) == 1


def test_an_interrupted_evaluation_goes_on_where_it_was(lits, tmp_path, monkeypatch):
    work, task, done = lits.work(out=tmp_path), task_of(lits), []
    plain = volumes.score_case

    def stops(work, task, case):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(case)
        return plain(work, task, case)

    monkeypatch.setattr(volumes, "score_case", stops)
    with pytest.raises(KeyboardInterrupt):
        volumes.score(work, task, "all", {})
    notes = tmp_path / ".cases.jsonl"
    assert len(notes.read_text("utf-8").splitlines()) == 3
    with notes.open("a", encoding="utf-8") as file:
        file.write('{"key": "torn')
    again = []
    monkeypatch.setattr(volumes, "score_case", lambda w, t, case: again.append(case) or plain(w, t, case))
    found = volumes.score(work, task, "all", {})
    assert done + again == list(lits.cache.cases())
    assert not notes.exists()
    whole = volumes.score(lits.work(), task, "all", {})
    assert (found.csv, found.metrics) == (whole.csv, whole.metrics)


def test_a_case_whose_overlay_is_gone_is_scored_again(lits, tmp_path, monkeypatch):
    work, task, plain = lits.work(out=tmp_path), task_of(lits), volumes.score_case
    first, second = lits.cache.cases()[:2]
    notebook = volumes._Notebook(work, task)
    for case in (first, second):
        notebook.add(volumes.score_case(work, task, case))
    (tmp_path / "overlays" / f"{first}.png").unlink()
    again = []
    monkeypatch.setattr(volumes, "score_case", lambda w, t, case: again.append(case) or plain(w, t, case))
    volumes.score(work, task, "all", {})
    assert first in again
    assert second not in again


def test_what_another_network_had_scored_is_not_taken_over(lits, tmp_path):
    case = lits.cache.cases()[0]
    one, other = task_of(lits), task_of(lits, Bright(at=0.6))
    notebook = volumes._Notebook(lits.work(out=tmp_path), one)
    notebook.add(volumes.score_case(lits.work(out=tmp_path), one, case))
    assert volumes._Notebook(lits.work(out=tmp_path), one).get(case) is not None
    assert volumes._Notebook(lits.work(out=tmp_path), other).get(case) is None
    one.config = one.config.model_copy(update={"threshold": 0.4})
    assert volumes._Notebook(lits.work(out=tmp_path), one).get(case) is None


def test_case_scores_survive_json(lits):
    found = volumes.score_case(lits.work(), task_of(lits), lits.cache.cases()[0])
    assert volumes.CaseScores.of_json(json.loads(json.dumps(found.to_json()))) == found


def test_the_picture_of_a_slice_shows_the_places_of_the_scans_own_grid(lits):
    case = next(c for c in lits.cache.cases() if str(EMPTY) not in c)
    image = lits.cache.read_box(case, "volumes", "image")[0]
    grid, native = (Grid.of_row(lits.cache.read_box(case, "volumes", name)) for name in ("grid", "native"))
    mask = lits.cache.read_box(case, "volumes", "native_mask")
    k = int(np.flatnonzero(mask.any((0, 1)))[3])
    shown = volumes.slice_on(image, grid, native, k)
    assert shown.shape == SHAPE[:2]
    inside = mask[:, :, k] > 0
    assert (shown[inside] > 0).mean() > 0.95
    assert (shown[~inside] < 0).mean() > 0.9


def test_a_part_without_cases_says_which_to_name(lits):
    nobody = replace(lits.cache, split=lits.cache.split.model_copy(update={"test": ()}))
    with pytest.raises(DataError, match="name another --split"):
        volumes.score(replace(lits.work(), cache=nobody), task_of(lits), "test", {})


def test_a_step_that_does_not_fit_says_which_batch_and_crop_to_try(lits, monkeypatch, tmp_path):
    from pcrl_cli.tasks.base import Segmentation

    def full(*_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes")

    monkeypatch.setattr(Segmentation, "losses", full)
    with pytest.raises(MachineError, match=r"--batch 2 or --set learner.crop=\[16,16,16\]"):
        finetune(task="lits", workspace=lits.workspace, out=tmp_path / "run", layers=layers(train={"batch": 4}))
