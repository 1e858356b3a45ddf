"""One's own labels: scans and images with a table through prep, pre-training, fine-tuning, evaluation and prediction."""

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chain import settings, write_dicom
from typer.testing import CliRunner

from pcrl_cli.cli.app import app
from pcrl_cli.core import files
from pcrl_cli.core.errors import ConfigError, DataError, UsageError
from pcrl_cli.data.cache import open_cache
from pcrl_cli.data.volume import Volume
from pcrl_cli.engine.run import Run
from pcrl_cli.pure.findings import mean_auroc
from pcrl_cli.readers.image_io import write_png
from pcrl_cli.readers.volume_io import write_nifti
from pcrl_cli.stages.evaluate import evaluate
from pcrl_cli.stages.finetune import finetune
from pcrl_cli.stages.predict import PredictLabelsResult, predict, require
from pcrl_cli.stages.prep import prep
from pcrl_cli.stages.pretrain import pretrain
from pcrl_cli.stages.probe import embed, probe_run
from pcrl_cli.stages.table import table
from pcrl_cli.stages.workspace import Workspace

SHAPE, N = (22, 20, 18), 12
PAIRS = {
    "pairs": 2, "global_sizes": [[12, 12, 12]], "global_shape": [16, 16, 8], "local_sizes": [[8, 8, 8]],
    "local_shape": [8, 8, 8], "n_locals": 2,
}  # fmt: skip
PREP = {
    "3d": settings(pairs=PAIRS, whole={"shape": [16, 16, 16]}),
    "2d": settings(size=40),
}
PRE = {
    "3d": {"learner": {"width": 2}},
    "2d": {"learner": {"width": 4, "images": {"global_side": 32, "local_side": 32, "cutout_side": 6}}},
}
LEARNER: dict[str, dict[str, Any]] = {"3d": {}, "2d": {"side": 32, "resize": 40}}
PARTS = ["train", "train", "val", "test"]


def truth(i: int) -> list[Any]:
    """Two classes, the second not known of every fifth."""
    return [i % 2, "" if i % 5 == 4 else i // 2 % 2]


def scan(seed: int, bright: bool, dark: bool) -> np.ndarray:
    array = np.random.default_rng(seed).integers(-80, 80, SHAPE).astype(np.int16)
    if bright:
        array[3:9, 3:9, 3:9] += 600
    if dark:
        array[12:18, 10:16, 9:15] -= 500
    return array


def write_scans(folder: Path, **intensity: int) -> list[str]:
    folder.mkdir(parents=True)
    for i in range(N):
        array = scan(i, bool(i % 2), bool(i // 2 % 2)) + intensity.get("add", 0)
        write_nifti(Volume(array.astype(np.int16), np.ones(3), np.zeros(3), np.eye(3)), folder / f"s{i:02}.nii.gz")
    return [f"s{i:02}.nii.gz" for i in range(N)]


def write_images(folder: Path) -> list[str]:
    for i in range(N):
        grey = ((scan(i, bool(i % 2), bool(i // 2 % 2))[:, :, 6] + 600.0) / 5).clip(0, 255).astype(np.uint8)
        (folder / "a").mkdir(parents=True, exist_ok=True)
        write_png(np.kron(grey, np.ones((2, 2), np.uint8)), folder / "a" / f"s{i:02}.png")
    return [f"a/s{i:02}.png" for i in range(N)]


def write_table(path: Path, header: list[str], rows: list[list[Any]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def label_table(path: Path, names: list[str], key: str = "path") -> Path:
    rows = [[name, f"P{i}", *truth(i), PARTS[i // 2 % 4]] for i, name in enumerate(names)]
    return write_table(path, [key, "patient", "bright", "dark", "part"], rows)


@dataclass(frozen=True)
class Chain:
    dim: str
    workspace: Workspace
    table: Path
    names: list[str]
    prepared: Any
    pretrained: Any
    tuned: Any
    evaluated: Any

    @property
    def raw(self) -> Path:
        return self.workspace.data("folder")


@pytest.fixture(scope="module", params=["3d", "2d"])
def chain(request, tmp_path_factory) -> Chain:
    dim, workspace = request.param, Workspace(tmp_path_factory.mktemp(request.param))
    raw = workspace.data("folder")
    names = write_scans(raw) if dim == "3d" else write_images(raw)
    table = label_table(workspace.root / "labels.csv", names)
    prepared = prep("folder", workspace=workspace, options={"labels": table}, layers=PREP[dim], jobs=1)
    train = {"train": {"steps": 2, "batch": 4, "check_every": 2}}
    pre = pretrain(workspace=workspace, dim=dim, layers=settings(**PRE[dim], **train))
    layers = settings(learner=LEARNER[dim], train={"steps": 4, "batch": 4})
    tuned = finetune(task="classify", workspace=workspace, weights=pre.run, layers=layers)
    return Chain(dim, workspace, table, names, prepared, pre, tuned, evaluate(tuned.run, workspace=workspace))


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


# ------------------------------------------------------------------------------------------------------ preparing


def test_the_cache_holds_every_image_with_its_labels_and_the_users_own_split(chain):
    cache = open_cache(chain.prepared.cache)
    assert (cache.manifest["dim"], cache.manifest["classes"]) == (int(chain.dim[0]), ["bright", "dark"])
    items = cache.read("images", ("image", "label", "id", "patient"), cache.cases()).arrays
    ids = [name.removesuffix(".nii.gz") for name in chain.names]
    assert items["id"].tolist() == [name.encode() for name in ids]
    assert items["patient"].tolist() == [f"P{i}".encode() for i in range(N)]
    assert items["label"].tolist() == [[-1 if v == "" else v for v in truth(i)] for i in range(N)]
    assert items["image"].shape[1:] == ((1, 16, 16, 16) if chain.dim == "3d" else (1, 40, 40))
    for part in ("train", "val", "test"):
        assert set(cache.split.part(part)) == {f"P{i}" for i in range(N) if PARTS[i // 2 % 4] == part}
    counts = chain.prepared.totals["images"]
    assert (counts["kept"], counts["with bright"], counts["unknown dark"]) == (N, 6, 2)


def test_scans_with_labels_serve_pre_training_too(tmp_path):
    workspace = Workspace(tmp_path)
    table = label_table(tmp_path / "labels.csv", write_scans(workspace.data("folder")))
    cache = open_cache(prep("folder", workspace=workspace, options={"labels": table}, layers=PREP["3d"], jobs=1).cache)
    assert cache.groups == ("images", "pairs")
    assert cache.read("pairs", ("globals",), cache.cases()).arrays["globals"].shape == (2 * N, 2, 1, 16, 16, 8)


def test_without_a_table_a_cache_is_what_it_was(tmp_path):
    workspace = Workspace(tmp_path)
    write_scans(workspace.data("folder"))
    cache = open_cache(prep("folder", workspace=workspace, layers=settings(pairs=PAIRS), jobs=1, limit=2).cache)
    assert cache.groups == ("pairs",)
    assert "whole" not in cache.manifest["settings"]
    assert cache.manifest["classes"] == []
    assert [p["group"] for p in cache.manifest["plans"]] == ["pairs"]


def test_scans_too_small_for_pairs_can_be_classified_without_any(tmp_path, heard):
    raw = tmp_path / "raw"
    table = label_table(tmp_path / "labels.csv", write_scans(raw))
    make = {"data": raw, "out": tmp_path / "cache", "options": {"labels": table}, "jobs": 1}
    small = prep("folder", **make | {"out": tmp_path / "pairs"}, layers=settings(pairs={"pairs": 2}))
    assert small.bad == N
    made = prep("folder", **make, layers=settings(pairs={"pairs": 0}, whole={"shape": [16, 16, 16]}))
    cache = open_cache(made.cache)
    assert (made.made, cache.groups) == (N, ("images",))
    with pytest.raises(ConfigError, match="holds no pairs, which method pcrlv2 needs"):
        pretrain(made.cache, dim="3d", out=tmp_path / "run")
    with pytest.raises(ConfigError, match="--pairs 0 leaves nothing to prepare"):
        prep("folder", data=raw, out=tmp_path / "none", layers=settings(pairs={"pairs": 0}))


def test_mr_scans_are_cropped_in_their_middle_with_air_around(tmp_path):
    raw = tmp_path / "raw"
    table = label_table(tmp_path / "labels.csv", write_scans(raw, add=1000))
    whole = {"shape": [16, 16, 24], "fit": "crop"}
    layers = settings(pairs={"pairs": 0}, intensity={"modality": "mr"}, whole=whole)
    made = prep("folder", data=raw, out=tmp_path / "cache", options={"labels": table}, layers=layers, jobs=1)
    cache = open_cache(made.cache)
    image = cache.read("images", ("image",), cache.cases()).arrays["image"][:, 0]
    assert image.shape == (N, 16, 16, 24)
    assert not image[..., :3].any()
    assert not image[..., 21:].any()
    assert image[..., 3:21].max() == 30_000
    tuned = finetune(
        made.cache, task="classify", out=tmp_path / "run", layers=settings(width=2, train={"steps": 2, "batch": 4})
    )
    assert evaluate(tuned.run, split="test").metrics["auroc"].value is not None
    assert len(predict(tuned.run, [raw / "s03.nii.gz"], tmp_path / "out").made) == 1


def test_what_the_table_does_not_list_is_left_out_and_said(tmp_path, heard):
    raw = tmp_path / "raw"
    names = write_scans(raw)
    (raw / "s11.nii.gz").rename(raw / "s11_mask.nii.gz")
    table = label_table(tmp_path / "labels.csv", [*names[:4], "s11_mask.nii.gz", "gone.nii.gz"])
    layers = settings(pairs={"pairs": 0}, whole={"shape": [16, 16, 16]})
    made = prep(
        "folder", data=raw, out=tmp_path / "cache", options={"labels": table}, layers=layers, jobs=1, listener=heard
    )
    assert sorted(made.cases) == ["s00", "s01", "s02", "s03", "s11_mask"]
    assert made.absent_rows == 1
    assert any(w.startswith("7 scans are not in") and "s04.nii.gz" in w for w in heard.warnings)
    assert not any("named like masks" in w for w in heard.warnings)


def test_a_label_that_changed_makes_its_scan_again_and_no_other(tmp_path):
    raw = tmp_path / "raw"
    names = write_scans(raw)
    make = {"data": raw, "out": tmp_path / "cache", "jobs": 1}
    layers = settings(pairs={"pairs": 0}, whole={"shape": [8, 8, 8]})
    table = write_table(tmp_path / "labels.csv", ["path", "x"], [[name, i % 2] for i, name in enumerate(names)])
    prep("folder", **make, options={"labels": table}, layers=layers)
    write_table(table, ["path", "x"], [[name, i % 2 if i else 1] for i, name in enumerate(names)])
    again = prep("folder", **make, options={"labels": table}, layers=layers)
    assert (again.made, again.skipped) == (1, N - 1)
    cache = open_cache(again.cache)
    assert cache.read("images", ("label",), cache.cases()).arrays["label"][0] == 1


def test_a_part_that_changed_is_refused(tmp_path):
    raw = tmp_path / "raw"
    names = write_scans(raw)
    make = {"data": raw, "out": tmp_path / "cache", "jobs": 1}
    layers = settings(pairs={"pairs": 0}, whole={"shape": [8, 8, 8]})
    rows = [[name, i % 2, "test" if i < 4 else "train"] for i, name in enumerate(names)]
    table = write_table(tmp_path / "labels.csv", ["path", "x", "part"], rows)
    prep("folder", **make, options={"labels": table}, layers=layers)
    write_table(table, ["path", "x", "part"], [["s00.nii.gz", 0, "train"], *rows[1:]])
    with pytest.raises(ConfigError, match=r"s00.*another part.*another folder"):
        prep("folder", **make, options={"labels": table}, layers=layers)


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ({"whole": {"shape": [8, 8, 8]}}, False, "whole.shape is of scans with labels"),
        ({"whole": {"classes": ["x"]}}, True, "classes come from --labels"),
    ],
)
def test_settings_of_labels_that_nothing_reads_are_refused(tmp_path, values, options, message):
    raw = tmp_path / "raw"
    table = label_table(tmp_path / "labels.csv", write_scans(raw))
    with pytest.raises(ConfigError, match=message):
        prep(
            "folder", data=raw, out=tmp_path / "cache", layers=[("--set", values)],
            options={"labels": table} if options else {},
        )  # fmt: skip


# ------------------------------------------------------------------------------------------- learning and scoring


def test_fine_tuning_starts_from_the_whole_encoder_and_counts_what_it_learns_from(chain):
    unit = "scans" if chain.dim == "3d" else "images"
    assert chain.tuned.transfer["share"] == 1
    assert chain.tuned.labels[unit] == chain.tuned.labelled_patients > 0
    assert (chain.tuned.metric, chain.tuned.labels["findings to learn"]) == ("auroc", 2)
    assert "choose" not in chain.tuned.kept or chain.tuned.best_validation is not None


def test_classes_that_the_labelled_images_cannot_teach_are_named_with_what_they_lack(tmp_path, heard):
    workspace = Workspace(tmp_path)
    names = write_images(workspace.data("folder"))
    parts = ["train"] * 8 + ["val", "val", "test", "test"]
    rows = [[n, f"P{i}", i % 2, int(i > 7), 1, "", parts[i]] for i, n in enumerate(names)]
    header = ["path", "patient", "bright", "late", "always", "unknown", "part"]
    table = write_table(tmp_path / "labels.csv", header, rows)
    prep("folder", workspace=workspace, options={"labels": table}, layers=PREP["2d"], jobs=1)
    layers = settings(learner=LEARNER["2d"], train={"steps": 1, "batch": 4}, width=4)
    tuned = finetune(task="classify", workspace=workspace, layers=layers, listener=heard)
    said = (
        "3 of 4 findings cannot be learned from the 8 labelled training images: late (no positive), always (no negative), "
        "unknown (no label); prepare more, or leave their numbers aside"
    )
    assert said in heard.warnings
    assert said in tuned.notes


def test_where_every_class_can_be_learned_nothing_is_said(chain):
    assert not any("cannot be learned" in note for note in chain.tuned.notes)


def test_training_is_the_same_from_disk_and_from_memory(tmp_path, chain):
    layers = settings(learner=LEARNER[chain.dim], width=2, train={"steps": 3, "batch": 4})
    runs = [
        finetune(chain.prepared.cache, task="classify", out=tmp_path / on, layers=layers, cache_on=on)
        for on in ("ram", "disk")
    ]
    losses = [run.outcome["last"] for run in runs]
    assert losses[0] == losses[1]


def test_the_scores_follow_from_the_csv_and_have_no_pointing_game(chain):
    result, rows = chain.evaluated, read_csv(chain.evaluated.predictions)
    assert set(result.metrics) == {"auroc", "auroc_bright", "auroc_dark", "ece", "brier"}
    assert {row["patient"] for row in rows} == set(open_cache(result.cache).split.test)
    labels = np.array([[int(row[f"label {n}"] or -1) for n in ("bright", "dark")] for row in rows])
    scores = np.array([[float(row[f"probability {n}"]) for n in ("bright", "dark")] for row in rows])
    assert result.metrics["auroc"].value == pytest.approx(mean_auroc(labels, scores), abs=1e-4)
    page = result.report.read_text("utf-8")
    assert "ROC curves" in page
    assert "Beside the paper" not in page
    assert "Table 4" not in page


def test_a_threshold_may_name_a_class_and_nothing_else(chain):
    evaluate(chain.tuned.run, workspace=chain.workspace, fail_under={"auroc_dark": 0.0})
    with pytest.raises(UsageError, match=r"the metrics of this task are auroc, auroc_bright, auroc_dark$"):
        evaluate(chain.tuned.run, workspace=chain.workspace, fail_under={"pointing": 0.0})


def test_scans_of_another_shape_are_refused_by_evaluation(tmp_path, chain):
    if chain.dim == "2d":
        pytest.skip("images are brought to one size by the task")
    other = prep(
        "folder", data=chain.raw, out=tmp_path / "other", options={"labels": chain.table}, jobs=1,
        layers=settings(pairs={"pairs": 0}, whole={"shape": [16, 16, 20]}),
    )  # fmt: skip
    with pytest.raises(ConfigError, match=r"whole\.shape \[16, 16, 20\].*--set whole\.shape=\[16,16,16\]"):
        evaluate(chain.tuned.run, other.cache, workspace=chain.workspace)


def test_a_cache_of_other_axes_is_refused(tmp_path, chain):
    raw, other = tmp_path / "raw", "2d" if chain.dim == "3d" else "3d"
    table = label_table(tmp_path / "labels.csv", write_images(raw) if other == "2d" else write_scans(raw))
    layers = settings(size=40) if other == "2d" else settings(pairs={"pairs": 0}, whole={"shape": [16, 16, 16]})
    made = prep("folder", data=raw, out=tmp_path / "cache", options={"labels": table}, layers=layers, jobs=1)
    with pytest.raises(ConfigError, match=f"is a {other[0]}D cache, and the run was trained on {chain.dim[0]}D images"):
        evaluate(chain.tuned.run, made.cache, workspace=chain.workspace)
    with pytest.raises(
        ConfigError, match=f"is a {chain.dim[0]}D encoder, and the task classify is of {other[0]}D images"
    ):
        finetune(made.cache, task="classify", weights=chain.pretrained.run, out=tmp_path / "run")
    if other == "3d":
        with pytest.raises(ConfigError, match="is a 3D cache, and the task chest is of 2D images"):
            finetune(made.cache, task="chest", out=tmp_path / "run")


def test_probes_and_features_are_of_the_images(tmp_path, chain):
    found = probe_run(chain.pretrained.run, task="classify", workspace=chain.workspace)
    assert found.linear_auroc is not None
    made = embed(chain.pretrained.run, tmp_path / "f.csv", task="classify", workspace=chain.workspace)
    assert made.rows == N
    if chain.dim == "3d":  # the cache has no candidates, so that nothing else can be meant
        assert probe_run(chain.pretrained.run, workspace=chain.workspace) == found


def test_settings_of_the_other_number_of_axes_are_refused(tmp_path, chain):
    wrong = {"resize": 40} if chain.dim == "3d" else {"symmetries": "none"}
    with pytest.raises(ConfigError, match=rf"learner\.{next(iter(wrong))} changes nothing for {chain.dim[0]}D images"):
        finetune(chain.prepared.cache, task="classify", out=tmp_path / "run", layers=settings(learner=wrong))


def test_a_table_of_methods_may_be_of_ones_own_labels(tmp_path, chain):
    spec = {
        "name": "own", "task": "classify", "cache": str(chain.prepared.cache), "ratios": [1.0],
        "seeds": [0], "scratch": "TS", "set_aside": 0.0,
        "methods": {"TS": {}, "PCRLv2": {"method": "pcrlv2"}}, "bootstrap": 100,
        "pretrain": {**PRE[chain.dim], "train": {"steps": 2, "batch": 4}},
        "finetune": {"learner": LEARNER[chain.dim], "train": {"steps": 2, "batch": 4}},
    }  # fmt: skip
    spec["methods"]["TS"] = {"finetune": {"width": 2}}
    path = tmp_path / "spec.yaml"
    path.write_text(json.dumps(spec), encoding="utf-8")
    result = table(path, out=tmp_path / "table", workspace=chain.workspace)
    assert (result.metric, result.done, result.failed) == ("auroc", 2, {})


# ------------------------------------------------------------------------------------------------------ predicting


def test_new_images_get_the_probabilities_that_evaluation_gives(tmp_path, chain):
    rows = read_csv(chain.evaluated.predictions)
    inputs = [chain.raw / (row["id"] + (".nii.gz" if chain.dim == "3d" else "")) for row in rows]
    result = predict(chain.tuned.run, inputs, tmp_path / "out")
    assert isinstance(result, PredictLabelsResult)
    found = {row["case"]: row for row in read_csv(result.table)}
    for row in rows:
        name = Path(row["id"]).name
        for key in ("probability bright", "probability dark"):
            assert float(found[name][key]) == pytest.approx(float(row[key]), abs=2e-6)
            assert result.probabilities[name][key.split()[1]] == pytest.approx(float(row[key]), abs=2e-6)


def test_a_folder_is_predicted_by_the_names_of_the_cache_and_only_once(tmp_path, chain):
    one = predict(chain.tuned.run, [chain.raw], tmp_path / "out")
    ids = [name.removesuffix(".nii.gz") for name in chain.names]
    assert (one.made, one.skipped) == (ids, [])
    before = (tmp_path / "out/predictions.csv").read_bytes()
    again = predict(chain.tuned.run, [chain.raw], tmp_path / "out")
    assert (again.made, again.skipped) == ([], ids)
    assert (tmp_path / "out/predictions.csv").read_bytes() == before
    moved = chain.raw / chain.names[0]
    moved.touch()
    assert predict(chain.tuned.run, [chain.raw], tmp_path / "out").made == [ids[0]]


def test_images_are_predicted_alike_alone_and_together(tmp_path, chain):
    together = predict(chain.tuned.run, [chain.raw], tmp_path / "out").probabilities
    for i in (0, 5):
        alone = predict(chain.tuned.run, [chain.raw / chain.names[i]], tmp_path / f"alone{i}").probabilities
        (found,) = alone.values()
        (expected,) = [v for name, v in together.items() if Path(name).name == next(iter(alone))]
        assert found == pytest.approx(expected, abs=2e-6)


def test_bad_inputs_are_named_and_the_others_done(tmp_path, chain):
    bad = tmp_path / ("bad.nii.gz" if chain.dim == "3d" else "bad.png")
    bad.write_bytes(b"no image")
    good = chain.raw / chain.names[0]
    call = ["predict", str(chain.tuned.run), str(good), str(bad), str(tmp_path / "none"), "--out", str(tmp_path / "o")]
    done = CliRunner().invoke(app, [*call, "--json"])
    assert done.exit_code == DataError.exit_code
    result = json.loads(done.stdout)
    assert set(result["failed"]) == {str(bad), str(tmp_path / "none")}
    assert len(result["made"]) == 1
    assert len(read_csv(Path(result["table"]))) == 1
    with pytest.raises(DataError, match="and 1 more could not be used"):
        require(predict(chain.tuned.run, [bad, tmp_path / "none"], tmp_path / "o"))


def test_a_run_says_that_it_reads_pictures_or_scans_where_it_is_given_the_other(tmp_path, chain):
    other = tmp_path / "other"
    names = write_images(other) if chain.dim == "3d" else write_scans(other)
    done = predict(chain.tuned.run, [other, other / names[0]], tmp_path / "out")
    there, reads = ("picture", "scans (NIfTI") if chain.dim == "3d" else ("scan", "pictures (PNG")
    assert done.failed[str(other)].startswith(f"{other} holds {there}s, and this run reads {reads}")
    assert done.failed[str(other / names[0])].startswith(f"{other / names[0]} is a {there}, and this run reads {reads}")


def test_what_prediction_cannot_do_is_refused(tmp_path, chain):
    run, image, out = chain.tuned.run, chain.raw / chain.names[0], tmp_path / "out"
    with pytest.raises(UsageError, match="name an image or a scan"):
        predict(run, [], out)
    with pytest.raises(UsageError, match="would both become the row"):
        predict(run, [image, image], out)
    with pytest.raises(UsageError, match="--modality is for"):
        predict(run, [], out, modalities={"flair": image})
    with pytest.raises(ConfigError, match="no settings to predict with"):
        predict(run, [image], out, layers=settings(learner={"tta": True}))
    assert not out.exists()


def test_another_runs_predictions_are_not_mixed_with(tmp_path, chain):
    out = tmp_path / "out"
    predict(chain.tuned.run, [chain.raw / chain.names[0]], out)
    record = files.read_sealed(out / "predictions.json")
    record["facts"]["weights"] = "others"
    files.write_sealed(out / "predictions.json", record)
    with pytest.raises(ConfigError, match="of another run"):
        predict(chain.tuned.run, [chain.raw / chain.names[1]], out)
    again = predict(chain.tuned.run, [chain.raw / chain.names[1]], out, overwrite=True)
    assert list(again.probabilities) == again.made


def test_prediction_needs_no_cache(tmp_path, chain):
    assert "whole" in Run.load(chain.tuned.run).record["prepared"]["settings"] or chain.dim == "2d"
    cache = chain.prepared.cache
    cache.rename(cache.with_name("away"))
    try:
        assert len(predict(chain.tuned.run, [chain.raw / chain.names[2]], tmp_path / "out").made) == 1
    finally:
        cache.with_name("away").rename(cache)


def test_dicom_series_are_scans(tmp_path, chain):
    if chain.dim == "2d":
        pytest.skip("series are scans")
    series = write_dicom(tmp_path / "raw/one", "P", "1.2.3", slices=8, side=16)
    assert predict(chain.tuned.run, [series], tmp_path / "out").made == ["one"]
