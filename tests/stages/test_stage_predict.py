"""`pcrl predict`: masks in the grid of each input, whatever its format and orientation."""

import csv
import json
import shutil
from dataclasses import replace
from itertools import permutations, product
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from chain import Heard
from typer.testing import CliRunner

from pcrl_cli.cli.app import app
from pcrl_cli.core.errors import ConfigError, DataError, MachineError, UsageError
from pcrl_cli.core.plan import Grid
from pcrl_cli.data.volume import Volume, index_to_world
from pcrl_cli.engine.inference import Inference
from pcrl_cli.engine.run import Run
from pcrl_cli.phantoms.paint import turned
from pcrl_cli.readers.volume_io import read_volume, write_mask, write_mhd, write_nifti
from pcrl_cli.stages import predict as stage
from pcrl_cli.stages.evaluate import evaluate, settings_of
from pcrl_cli.stages.finetune import finetune
from pcrl_cli.stages.predict import predict, require
from pcrl_cli.stages.prep import prep
from pcrl_cli.tasks import brats, lits
from pcrl_cli.tasks.base import Segmentation

SHAPE, SPACING = (22, 18, 12), (1.0, 1.0, 2.0)  # every voxel is one of the 1 mm grid too
GRID = Grid(SHAPE, np.array(SPACING), np.array([-11.0, 4.5, -300.0]), np.eye(3))
AXES = [np.eye(3)[list(o)] * np.array(s) for o in permutations(range(3)) for s in product((1.0, -1.0), repeat=3)]
TINY = {
    "learner": {"crop": [16, 16, 16], "overlap": 0.0},
    "train": {"steps": 40, "batch": 2, "lr": 0.1, "check_every": 40},
    "width": 2,
    "poolings": 2,
}


def body(seed: int = 0) -> np.ndarray:
    """HU: air, and a bright organ of its own shape a seed."""
    hu = np.random.default_rng(seed).integers(-990, -300, SHAPE).astype(np.int16)
    hu[4:13, 5 + seed : 12, 3:9] = 150
    hu[4:7, 5 + seed : 12, 3:5] = -400  # no symmetry
    return hu


def head(seed: int = 0) -> dict[str, np.ndarray]:
    """Two sequences of a brain."""
    found = {}
    for k, name in enumerate(("flair", "t1ce")):
        array = np.zeros(SHAPE, np.int16)
        array[2:20, 2:16, 1:11] = np.random.default_rng([seed, k]).integers(100, 200, (18, 14, 10))
        array[5:11, 4:9, 3:8] = 900 + 100 * k
        found[name] = array
    return found


def raw_lits(root: Path) -> Path:
    root.mkdir()
    for n in range(3):
        write_nifti(Volume(body(n), GRID.spacing, GRID.origin, GRID.direction), root / f"volume-{n}.nii.gz")
        write_mask((body(n) > 100).astype(np.uint8), GRID, root / f"segmentation-{n}.nii.gz")
    return root


def raw_brats(root: Path) -> Path:
    for n in range(3):
        write_head(root / f"HGG/c{n}", f"c{n}", n)
        mask = np.zeros(SHAPE, np.uint8)
        mask[5:11, 4:9, 3:8], mask[6:9, 5:8, 4:7], mask[7, 6, 5] = 2, 4, 1
        write_mask(mask, GRID, root / f"HGG/c{n}/c{n}_seg.nii.gz")
    return root


def write_head(folder: Path, name: str, seed: int = 0, direction: np.ndarray | None = None) -> Path:
    folder.mkdir(parents=True)
    for what, array in head(seed).items():
        write_nifti(
            turned(array, GRID, np.eye(3) if direction is None else direction), folder / f"{name}_{what}.nii.gz"
        )
    return folder


def tuned(raw: Path, root: Path, name: str, **settings) -> Path:
    cache = prep(name, data=raw, out=root / "cache" / name, jobs=1, layers=[("test", settings)]).cache
    return finetune(cache, task=name, out=root / "runs" / name, device="cpu", layers=[("test", TINY)]).run


@pytest.fixture(scope="module")
def lits_run(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("lits")
    run = tuned(raw_lits(root / "raw"), root, "lits")
    evaluate(run, split="all", device="cpu")
    shutil.rmtree(root / "cache")  # a network goes where its cache does not
    return run


@pytest.fixture(scope="module")
def brats_run(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("brats")
    return tuned(raw_brats(root / "raw"), root, "brats", modalities=["flair", "t1ce"])


@pytest.fixture
def bright(monkeypatch):
    """A network that finds what is bright: each region is less of it."""

    def infer(self, image, config=None):
        x = self.input(image)[0]
        return torch.stack([(x > 0.8 + 0.5 * k).float() for k in range(len(self.regions))])

    monkeypatch.setattr(Segmentation, "infer", infer)


def scan(path: Path, direction: np.ndarray | None = None, seed: int = 0) -> Path:
    write_nifti(turned(body(seed), GRID, np.eye(3) if direction is None else direction), path)
    return path


def affine(path: Path) -> np.ndarray:
    return nibabel.load(path).affine


def test_a_mask_has_exactly_the_geometry_of_its_input(lits_run, tmp_path):
    path = scan(tmp_path / "a.nii.gz")
    done = predict(lits_run, [path], tmp_path / "out", device="cpu")
    mask = nibabel.load(done.files["a"])
    assert (done.made, done.failed) == (["a"], {})
    assert mask.get_data_dtype() == np.uint8
    assert mask.shape == SHAPE
    np.testing.assert_array_equal(mask.affine, affine(path))
    assert set(np.unique(mask.dataobj)) <= {0, 1}


def test_a_mask_is_what_evaluate_scored(lits_run, tmp_path):
    """To every voxel: the same rounding, windows and way back to the file's grid, with and without a cache."""
    raw = lits_run.parents[1] / "raw"
    done = predict(lits_run, sorted(raw.glob("volume-*.nii.gz")), tmp_path / "out", device="cpu")
    rows = csv.DictReader((lits_run / "evaluation/all/predictions.csv").read_text("utf-8").splitlines())
    for row in rows:
        mask = np.asarray(nibabel.load(done.files[row["case"]]).dataobj) > 0
        truth = np.asarray(nibabel.load(raw / f"{row['case'].replace('volume', 'segmentation')}.nii.gz").dataobj) > 0
        assert float(row["dice_liver"]) == pytest.approx(
            2 * (mask & truth).sum() / (mask.sum() + truth.sum()), abs=1e-5
        )
        assert float(row["predicted_ml_liver"]) == pytest.approx(done.volumes[row["case"]]["liver"], abs=1e-5)
        assert 0 < mask.mean() < 1


def test_a_prediction_is_where_the_organ_is_and_its_volume_is_told(lits_run, tmp_path, bright):
    done = predict(lits_run, [scan(tmp_path / "a.nii.gz")], tmp_path / "out", device="cpu")
    found = np.asarray(nibabel.load(done.files["a"]).dataobj)
    np.testing.assert_array_equal(found, body() > 100)
    ml = (body() > 100).sum() * np.prod(SPACING) / 1000
    assert done.volumes["a"]["liver"] == pytest.approx(ml)
    (row,) = csv.DictReader((tmp_path / "out/predictions.csv").read_text("utf-8").splitlines())
    assert (row["case"], row["file"]) == ("a", "a_pred.nii.gz")
    assert float(row["liver_ml"]) == pytest.approx(ml)
    assert float(row["seconds"]) > 0


@pytest.mark.parametrize("direction", [AXES[k] for k in (0, 3, 10, 17, 29, 38, 47)])
def test_a_turned_copy_of_a_scan_gives_the_anatomically_same_mask(lits_run, tmp_path, direction):
    """With the real network: every voxel of the mask lies at the same place of the patient."""
    plain, other = scan(tmp_path / "plain.nii.gz"), scan(tmp_path / "other.nii.gz", direction)
    layers = [("test", {"learner": {"threshold": _middle(lits_run, plain)}})]
    done = predict(lits_run, [plain, other], tmp_path / "out", device="cpu", layers=layers)
    np.testing.assert_array_equal(affine(done.files["other"]), affine(other))
    masks = {name: read_volume(path) for name, path in done.files.items()}
    points = {name: _places(volume) for name, volume in masks.items()}
    assert 100 < len(points["plain"]) < np.prod(SHAPE) - 100
    np.testing.assert_allclose(points["other"], points["plain"], atol=1e-3)


def _places(mask: Volume) -> np.ndarray:
    """Where the foreground is, in mm, sorted."""
    world = index_to_world(mask, np.argwhere(mask.array > 0)).round(2)
    return world[np.lexsort(world.T)]


def _middle(run: Path, path: Path) -> float:
    """A threshold that about half of the voxels exceed."""
    seen = []
    real = stage.native_regions

    def spy(probability, *rest):
        seen.append(float(np.median(probability)))
        return real(probability, *rest)

    stage.native_regions = spy
    try:
        predict(run, [path], path.parent / "middle", device="cpu")
    finally:
        stage.native_regions = real
    return seen[0]


def test_every_format_gives_the_same_mask(lits_run, tmp_path, bright):
    image = read_volume(scan(tmp_path / "a.nii.gz"))
    write_mhd(image, tmp_path / "b.mhd")
    sitk.WriteImage(sitk.ReadImage(str(tmp_path / "a.nii.gz")), str(tmp_path / "c.nrrd"))
    _write_dicom(tmp_path / "d", image)
    inputs = [tmp_path / name for name in ("a.nii.gz", "b.mhd", "c.nrrd", "d")]
    done = predict(lits_run, inputs, tmp_path / "out", device="cpu")
    assert sorted(done.files) == ["a", "b", "c", "d"]
    for path in done.files.values():
        np.testing.assert_allclose(affine(path), affine(tmp_path / "a.nii.gz"), atol=1e-4)
        np.testing.assert_array_equal(np.asarray(nibabel.load(path).dataobj), body() > 100)


def _write_dicom(folder: Path, image: Volume) -> None:
    folder.mkdir()
    for k in range(image.array.shape[2]):
        plane = sitk.GetImageFromArray(np.ascontiguousarray(image.array[:, :, k : k + 1].T))
        plane.SetSpacing(image.spacing.tolist())
        x, y, z = image.origin + np.array([0, 0, k * image.spacing[2]])
        tags = {
            "0008|0060": "CT", "0020|000d": "1.2.99", "0020|000e": "1.2.3", "0008|0018": f"1.2.3.{k + 1}",
            "0008|0016": "1.2.840.10008.5.1.4.1.1.2", "0020|0013": str(k), "0020|0032": f"{x}\\{y}\\{z}",
            "0020|0037": "1\\0\\0\\0\\1\\0", "0028|1052": "0", "0028|1053": "1",
        }  # fmt: skip
        for key, value in tags.items():
            plane.SetMetaData(key, value)
        writer = sitk.ImageFileWriter()
        writer.KeepOriginalImageUIDOn()
        writer.SetImageIO("GDCMImageIO")
        writer.SetFileName(str(folder / f"{k:03d}.dcm"))
        writer.Execute(plane)


def test_bad_inputs_are_told_and_the_others_go_on(lits_run, tmp_path, bright):
    good = scan(tmp_path / "good.nii.gz")
    torn = tmp_path / "torn.nii.gz"
    torn.write_bytes(good.read_bytes()[:500])
    empty = tmp_path / "empty"
    empty.mkdir()
    heard = Heard()
    done = predict(lits_run, [torn, tmp_path / "none.nii", empty, good], tmp_path / "out", device="cpu", listener=heard)
    assert done.made == ["good"]
    assert sorted(Path(name).name for name in done.failed) == ["empty", "none.nii", "torn.nii.gz"]
    assert all("\n" not in reason for reason in done.failed.values())
    assert len(heard.warnings) == 3
    with pytest.raises(DataError, match=r"and 2 more could not be used") as caught:
        require(done)
    assert caught.value.exit_code == 4


def test_finished_masks_are_not_made_again_and_changed_inputs_are(lits_run, tmp_path, bright):
    inputs = [scan(tmp_path / f"{name}.nii.gz", seed=k) for k, name in enumerate("ab")]
    first = predict(lits_run, inputs[:1], tmp_path / "out", device="cpu")
    before = first.files["a"].stat().st_mtime_ns
    again = predict(lits_run, inputs, tmp_path / "out", device="cpu")
    assert (again.made, again.skipped) == (["b"], ["a"])
    assert first.files["a"].stat().st_mtime_ns == before
    assert len((tmp_path / "out/predictions.csv").read_text("utf-8").splitlines()) == 3
    scan(inputs[0], seed=2)
    first.files["a"].with_name("b_pred.nii.gz").unlink()
    third = predict(lits_run, inputs, tmp_path / "out", device="cpu")
    assert third.made == ["a", "b"]
    assert predict(lits_run, inputs, tmp_path / "out", device="cpu", overwrite=True).made == ["a", "b"]


def test_an_interrupted_call_leaves_whole_masks_and_goes_on(lits_run, tmp_path, bright, monkeypatch):
    inputs = [scan(tmp_path / f"{name}.nii.gz", seed=k) for k, name in enumerate("abc")]
    real, calls = stage.Book.write, []

    def stopping(self, case, *rest):
        calls.append(case.name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        real(self, case, *rest)

    monkeypatch.setattr(stage.Book, "write", stopping)
    with pytest.raises(KeyboardInterrupt):
        predict(lits_run, inputs, tmp_path / "out", device="cpu")
    monkeypatch.setattr(stage.Book, "write", real)
    done = predict(lits_run, inputs, tmp_path / "out", device="cpu")
    assert (done.made, done.skipped) == (["b", "c"], ["a"])


def test_masks_of_other_settings_or_weights_are_not_mixed(lits_run, brats_run, tmp_path, bright):
    path = scan(tmp_path / "a.nii.gz")
    predict(lits_run, [path], tmp_path / "out", device="cpu")
    other = [("flags", {"learner": {"threshold": 0.7}})]
    with pytest.raises(ConfigError, match="of another run or with other settings"):
        predict(lits_run, [path], tmp_path / "out", device="cpu", layers=other)
    with pytest.raises(ConfigError, match="of another run"):
        predict(brats_run, [write_head(tmp_path / "h", "h")], tmp_path / "out", device="cpu")
    done = predict(lits_run, [path], tmp_path / "out", device="cpu", layers=other, overwrite=True)
    assert done.made == ["a"]


def test_a_folder_that_is_taken_over_keeps_no_mask_of_the_run_before(lits_run, tmp_path, bright):
    inputs, out = [scan(tmp_path / f"{name}.nii.gz", seed=k) for k, name in enumerate("ab")], tmp_path / "out"
    predict(lits_run, inputs, out, device="cpu")
    (out / "mine.txt").write_text("kept", encoding="utf-8")
    other = [("flags", {"learner": {"threshold": 0.7}})]
    predict(lits_run, inputs[:1], out, device="cpu", layers=other, overwrite=True)
    assert sorted(p.name for p in out.iterdir()) == [
        "a_pred.nii.gz", "mine.txt", "predictions.csv", "predictions.json",
    ]  # fmt: skip


def test_another_patients_mask_of_the_same_name_is_not_replaced(lits_run, tmp_path, bright):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    first, other = scan(tmp_path / "one" / "ct.nii.gz"), scan(tmp_path / "two" / "ct.nii.gz", seed=1)
    made = predict(lits_run, [first], tmp_path / "out", device="cpu")
    before = made.files["ct"].read_bytes()
    again = predict(lits_run, [other], tmp_path / "out", device="cpu")
    assert "holds a prediction called ct of" in again.failed[str(other)]
    assert made.files["ct"].read_bytes() == before
    predict(lits_run, [other], tmp_path / "out", device="cpu", overwrite=True)
    assert made.files["ct"].read_bytes() != before


def test_a_window_that_was_set_is_the_same_setting_when_the_command_runs_again(lits_run, tmp_path, bright):
    path, layers = scan(tmp_path / "a.nii.gz"), [("--set", {"learner": {"window": [16, 16, 8]}})]
    predict(lits_run, [path], tmp_path / "out", device="cpu", layers=layers)
    assert predict(lits_run, [path], tmp_path / "out", device="cpu", layers=layers).skipped == ["a"]


def test_the_record_says_whether_half_precision_decided_the_masks(lits_run):
    opened = Run.load(lits_run)
    settings = settings_of(opened, lits_run, None)
    made = stage.load(opened, settings, lits, (), torch.device("cpu"), Inference())
    assert stage._facts(opened, made)["autocast"] is False
    assert "compile" not in stage._facts(opened, made)  # as before there was the option: old folders are gone on with
    assert stage._facts(opened, replace(made, inference=Inference("bf16")))["autocast"] is True
    assert stage._facts(opened, replace(made, inference=Inference(compile=True)))["compile"] is True


def test_masks_of_another_precision_are_not_mixed_with_a_runs_own(lits_run, tmp_path):
    path, out = scan(tmp_path / "a.nii.gz"), tmp_path / "out"
    predict(lits_run, [path], out, device="cpu")
    assert predict(lits_run, [path], out, device="cpu", precision="fp32").skipped == ["a"]
    with pytest.raises(ConfigError, match="of another run or with other settings"):
        predict(lits_run, [path], out, device="cpu", precision="bf16")
    assert predict(lits_run, [path], tmp_path / "half", device="cpu", precision="bf16").made == ["a"]


def test_regions_that_a_network_does_not_nest_are_written_as_they_are_scored(brats_run, tmp_path, monkeypatch):
    """ET where TC is not, and TC where WT is not."""

    def infer(self, image, config=None):
        x = self.input(image)[0]
        return torch.stack([(x > 1).float(), (x < -0.4).float(), ((x > -0.3) & (x < -0.1)).float()])

    monkeypatch.setattr(Segmentation, "infer", infer)
    raw, root = brats_run.parents[1] / "raw", brats_run.parents[1]
    found = evaluate(brats_run, root / "cache/brats", split="all", device="cpu")
    done = predict(brats_run, sorted((raw / "HGG").iterdir()), tmp_path / "out", device="cpu")
    for row in csv.DictReader(found.predictions.read_text("utf-8").splitlines()):
        mask = np.asarray(nibabel.load(done.files[row["case"]]).dataobj)
        truth = np.asarray(nibabel.load(next((raw / "HGG" / row["case"]).glob("*_seg.nii.gz"))).dataobj)
        for name, labels in brats.REGIONS.items():
            a, b = np.isin(mask, labels), np.isin(truth, labels)
            assert float(row[f"dice_{name}"]) == pytest.approx(2 * (a & b).sum() / (a.sum() + b.sum()), abs=1e-5)
            assert float(row[f"predicted_ml_{name}"]) == pytest.approx(done.volumes[row["case"]][name], abs=1e-5)
            assert float(row[f"predicted_ml_{name}"]) > 0


def test_brats_regions_become_its_label_map(brats_run, tmp_path, bright):
    folder = write_head(tmp_path / "case7", "x", direction=AXES[29])
    done = predict(brats_run, [folder], tmp_path / "out", device="cpu")
    mask = read_volume(done.files["case7"])
    assert set(np.unique(mask.array)) <= {0, 1, 2, 4}
    assert (mask.array > 0).any()
    np.testing.assert_array_equal(affine(done.files["case7"]), affine(folder / "x_flair.nii.gz"))
    sizes = done.volumes["case7"]
    assert sizes["WT"] >= sizes["TC"] >= sizes["ET"]
    voxel = np.prod(SPACING) / 1000
    assert sizes["WT"] == pytest.approx((mask.array > 0).sum() * voxel)
    assert sizes["TC"] == pytest.approx(np.isin(mask.array, (1, 4)).sum() * voxel)


def test_sequences_may_be_named_one_by_one(brats_run, tmp_path, bright):
    folder = write_head(tmp_path / "case7", "x")
    named = {"t1ce": folder / "x_t1ce.nii.gz", "flair": folder / "x_flair.nii.gz"}
    one = predict(brats_run, [folder], tmp_path / "one", device="cpu")
    two = predict(brats_run, [], tmp_path / "two", device="cpu", modalities=named)
    assert list(two.files) == ["x"]
    np.testing.assert_array_equal(
        np.asarray(nibabel.load(one.files["case7"]).dataobj), np.asarray(nibabel.load(two.files["x"]).dataobj)
    )
    for wrong, message in (({"flair": named["flair"]}, "t1ce=FILE is missing"), ({"t2": named["flair"]}, "t2 is not")):
        with pytest.raises(UsageError, match=message):
            predict(brats_run, [], tmp_path / "three", device="cpu", modalities=wrong)


def test_a_case_that_lacks_a_sequence_is_told_which(brats_run, tmp_path, bright):
    folder = write_head(tmp_path / "case7", "x")
    (folder / "x_t1ce.nii.gz").unlink()
    done = predict(brats_run, [folder, folder / "x_flair.nii.gz"], tmp_path / "out", device="cpu")
    assert "holds no image of t1ce" in done.failed[str(folder)]
    assert "is one image, and the network sees flair, t1ce" in done.failed[str(folder / "x_flair.nii.gz")]


def test_inputs_that_would_share_a_mask_are_refused(lits_run, tmp_path):
    (tmp_path / "b").mkdir()
    two = [scan(tmp_path / "a.nii.gz"), scan(tmp_path / "b/a.nii.gz")]
    with pytest.raises(UsageError, match=r"would both become a_pred\.nii\.gz"):
        predict(lits_run, two, tmp_path / "out", device="cpu")
    with pytest.raises(UsageError, match="name an image"):
        predict(lits_run, [], tmp_path / "out", device="cpu")


def test_settings_of_training_are_refused(lits_run, tmp_path):
    path = scan(tmp_path / "a.nii.gz")
    for values, message in (
        ({"learner": {"crop": [8, 8, 8]}}, r"learner\.crop \(from flags\) changes nothing"),
        ({"train": {"lr": 1}}, r"train \(from flags\) changes nothing"),
        ({"learner": {"overlap": 2}}, "overlap"),
    ):
        with pytest.raises((ConfigError, UsageError), match=message):
            predict(lits_run, [path], tmp_path / "out", device="cpu", layers=[("flags", values)])


def test_variables_of_other_verbs_are_passed_over_and_those_of_inference_are_not(lits_run, tmp_path, bright):
    layer = ("environment", {"train": {"lr": 1}, "learner": {"crop": [8, 8, 8], "threshold": 0.7}})
    predict(lits_run, [scan(tmp_path / "a.nii.gz")], tmp_path / "out", device="cpu", layers=[layer])
    record = json.loads((tmp_path / "out/predictions.json").read_text("utf-8"))
    assert record["facts"]["inference"]["threshold"] == 0.7
    assert record["facts"]["inference"]["crop"] == [16, 16, 16]


def test_a_run_that_predicts_no_masks_is_refused(chain, tmp_path):
    for run in (chain.tuned.run, chain.pretrained.run):
        with pytest.raises(ConfigError, match=r"task luna, which has no masks|predicts nothing"):
            predict(run, [tmp_path / "a.nii"], tmp_path / "out", device="cpu")


def test_values_that_are_no_hu_and_heads_with_skull_are_doubted(lits_run, brats_run, tmp_path, bright):
    write_nifti(Volume(body() + np.int16(1024), GRID.spacing, GRID.origin, GRID.direction), tmp_path / "a.nii.gz")
    done = predict(lits_run, [tmp_path / "a.nii.gz"], tmp_path / "out", device="cpu")
    assert "no value under 0" in done.notes[0]
    folder = write_head(tmp_path / "h", "h")
    for path in folder.iterdir():
        image = read_volume(path)
        write_nifti(Volume(image.array + np.int16(7), image.spacing, image.origin, image.direction), path)
    done = predict(brats_run, [folder], tmp_path / "out2", device="cpu")
    assert "without skull" in done.notes[0]


def test_want_of_memory_ends_the_command(lits_run, tmp_path, monkeypatch):
    def infer(self, image, config=None):
        raise MachineError("not enough memory on cpu for a window; try less") from MemoryError()

    monkeypatch.setattr(Segmentation, "infer", infer)
    with pytest.raises(MachineError, match="not enough memory"):
        predict(lits_run, [scan(tmp_path / "a.nii.gz")], tmp_path / "out", device="cpu")


def test_want_of_memory_names_the_input(lits_run, tmp_path, monkeypatch):
    def full(*_, **__):
        raise MemoryError

    monkeypatch.setattr(stage, "prepare_images", full)
    with pytest.raises(MachineError, match=r"not enough memory for .*a\.nii\.gz; ") as caught:
        predict(lits_run, [scan(tmp_path / "a.nii.gz")], tmp_path / "out", device="cpu")
    assert caught.value.exit_code == 6


def test_the_record_says_what_was_read(lits_run, tmp_path, bright):
    path = scan(tmp_path / "a.nii.gz")
    predict(lits_run, [path], tmp_path / "out", device="cpu")
    record = json.loads((tmp_path / "out/predictions.json").read_text("utf-8"))
    assert record["cases"]["a"]["source"][0]["path"] == str(path.resolve())
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "a_pred.nii.gz", "predictions.csv", "predictions.json",
    ]  # fmt: skip


def typed(*arguments: str | Path):
    result = CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "80"})
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def test_the_command_prints_its_folder_last_and_ends_with_4_where_an_input_failed(lits_run, tmp_path, bright):
    path, out = scan(tmp_path / "a.nii.gz"), tmp_path / "out"
    done = typed("predict", lits_run, path, "--out", out, "--device", "cpu")
    assert (done.exit_code, done.stdout.splitlines()[-1]) == (0, str(out))
    assert typed("predict", lits_run, path, "--out", out, "--device", "cpu", "-q").stdout == f"{out}\n"
    done = typed("predict", lits_run, path, tmp_path / "no.nii", "--out", out, "--device", "cpu", "--json")
    assert done.exit_code == 4
    found = json.loads(done.stdout)
    assert (found["schema"], found["skipped"], list(found["failed"])) == (
        "pcrl.predict/1",
        ["a"],
        [str(tmp_path / "no.nii")],
    )
    assert "no.nii is not there" in done.stderr


@pytest.mark.parametrize(
    ("extra", "code", "message"),
    [
        (["--modality", "flair"], 2, "--modality is NAME=FILE"),
        (["--modality", "ct=a", "--modality", "CT=b"], 2, "names CT twice"),
        (["--device", "tpu"], 2, "--device is one of"),
        (["--overlap", "1.5"], 2, "overlap"),
        (["--set", "learner.skip=false"], 3, "changes nothing in a prediction"),
    ],
)
def test_wrong_words_of_predict_end_in_one_sentence(lits_run, tmp_path, extra, code, message):
    done = typed("predict", lits_run, scan(tmp_path / "a.nii.gz"), "--out", tmp_path / "out", *extra)
    assert done.exit_code == code
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_predict_needs_a_folder_for_its_masks(lits_run, tmp_path):
    done = typed("predict", lits_run, scan(tmp_path / "a.nii.gz"))
    assert (done.exit_code, "--out DIR" in done.stderr) == (2, True)


@pytest.mark.real
def test_masks_of_real_scans_lie_in_their_files_grids(lits_run, brats_run, real_data, tmp_path, bright):
    scans = sorted(real_data.glob("LiTS/volume-*.nii.gz"))
    done = predict(lits_run, scans, tmp_path / "lits", device="cpu")
    heads = sorted(real_data.glob("BraTS/*/*"))[::3]
    more = predict(brats_run, heads, tmp_path / "brats", device="cpu")
    sources = {p.name.removesuffix(".nii.gz"): p for p in scans}
    sources |= {h.name: next(h.glob("*_flair.nii.gz")) for h in heads}
    assert sorted(done.files | more.files) == sorted(sources)
    for name, path in (done.files | more.files).items():
        mask, source = nibabel.load(path), nibabel.load(sources[name])
        np.testing.assert_allclose(mask.affine, source.affine, rtol=1e-6, atol=1e-5)
        assert mask.shape == source.shape
    hu = np.asarray(nibabel.load(sources["volume-2"]).dataobj)
    bone = np.asarray(nibabel.load(done.files["volume-2"]).dataobj) > 0
    assert np.median(hu[bone]) > 120  # 0.8 of the window: it is what is bright in this scan
    assert (hu > 150)[bone].sum() > 0.9 * (hu > 150).sum()
