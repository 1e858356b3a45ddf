"""One's own scans and pictures with masks, from a folder to masks of new ones: CT, MR of several channels, 2D."""

import csv
import io
import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from chain import Heard, contents, settings
from typer.testing import CliRunner

from pcrl_cli.cli.app import app
from pcrl_cli.core.errors import ConfigError, DataError, UsageError
from pcrl_cli.core.plan import Grid
from pcrl_cli.data.cache import Cache, open_cache
from pcrl_cli.data.volume import Volume
from pcrl_cli.engine.run import Run
from pcrl_cli.pure.regions import dice, masks_of
from pcrl_cli.readers.image_io import read_labels, write_png
from pcrl_cli.readers.volume_io import read_volume, write_mask, write_nifti
from pcrl_cli.stages.evaluate import EvaluateResult, evaluate
from pcrl_cli.stages.finetune import FinetuneResult, finetune
from pcrl_cli.stages.predict import PredictResult, predict
from pcrl_cli.stages.prep import prep
from pcrl_cli.stages.results import Plan
from pcrl_cli.stages.table import table as make_table
from pcrl_cli.stages.workspace import Workspace

SHAPE = (24, 20, 14)
GRID = Grid(SHAPE, np.array([1.5, 1.5, 2.0]), np.array([3.0, -7.0, 40.0]), np.diag([-1.0, -1.0, 1.0]))
PATIENTS = 6


def boxes(i: int, shape=SHAPE) -> tuple[np.ndarray, np.ndarray]:
    """An organ, and a lesion that lies partly in it."""
    rng = np.random.default_rng(i)
    start = rng.integers(2, 5, len(shape))
    organ, lesion = np.zeros(shape, bool), np.zeros(shape, bool)
    organ[tuple(slice(a, a + n // 2) for a, n in zip(start, shape, strict=True))] = True
    lesion[tuple(slice(a + 3, a + 3 + n // 2) for a, n in zip(start, shape, strict=True))] = True
    return organ, lesion


def write_ct(raw: Path) -> dict[str, object]:
    """Masks of labels 1, 2 and (both) 300 beside each other in a folder of their own; organ and lesion overlap."""
    for i in range(PATIENTS):
        organ, lesion = boxes(i)
        hu = np.random.default_rng(i).integers(-90, -60, SHAPE).astype(np.int16)
        hu[organ] += 100
        hu[lesion] += 110
        (raw / "scans").mkdir(parents=True, exist_ok=True)
        (raw / "masks").mkdir(parents=True, exist_ok=True)
        write_nifti(Volume(hu, GRID.spacing, GRID.origin, GRID.direction), raw / "scans" / f"case{i}.nii.gz")
        mask = (organ * 1 + lesion * 2).astype(np.uint16)
        mask[organ & lesion] = 300
        write_mask(mask, GRID, raw / "masks" / f"case{i}_seg.nii.gz")
    return {"masks": raw / "masks", "regions": "organ=1+300,lesion=2+300"}


def write_mr(raw: Path) -> dict[str, object]:
    """Two sequences a case, and a sub-folder of masks a region."""
    for i in range(PATIENTS):
        organ, lesion = boxes(i)
        for channel, name in enumerate(("t1", "t2")):
            values = np.zeros(SHAPE, np.int16)
            values[1:-1, 1:-1, 1:-1] = np.random.default_rng([i, channel]).integers(100, 130, [n - 2 for n in SHAPE])
            values[(lesion if channel else organ) & (values > 0)] += 200
            (raw / "scans").mkdir(parents=True, exist_ok=True)
            write_nifti(
                Volume(values, GRID.spacing, GRID.origin, GRID.direction), raw / "scans" / f"c{i}_{name}.nii.gz"
            )
        for name, mask in (("organ", organ), ("lesion", lesion)):
            (raw / "masks" / name).mkdir(parents=True, exist_ok=True)
            write_mask(mask.astype(np.uint8) * 255, GRID, raw / "masks" / name / f"c{i}.nii.gz")
    return {"masks": raw / "masks"}


def write_2d(raw: Path) -> dict[str, object]:
    """Pictures of several sizes with two regions apart, 10 and 255, as they are found."""
    for i in range(PATIENTS):
        shape = (70 + i, 90)
        organ, lesion = boxes(i, shape)
        pixels = np.random.default_rng(i).integers(20, 40, shape).astype(np.uint8)
        pixels[organ], pixels[lesion & ~organ] = 120, 220
        (raw / "scans").mkdir(parents=True, exist_ok=True)
        (raw / "masks").mkdir(parents=True, exist_ok=True)
        write_png(pixels, raw / "scans" / f"pic{i}.png")
        write_png((organ * 10 + (lesion & ~organ) * 255).astype(np.uint8), raw / "masks" / f"pic{i}.png")
    return {"masks": raw / "masks"}


WRITE = {"ct": write_ct, "mr": write_mr, "2d": write_2d}
PREP = {
    "ct": {"prepare": {"margin": 4}},
    "mr": {"prepare": {"modality": "mr"}, "modalities": ["t1", "t2"]},
    "2d": {"prepare": {"size": 48}},
}
REGIONS = {"ct": ["organ", "lesion"], "mr": ["lesion", "organ"], "2d": ["10", "255"]}


def layers(kind: str, steps=16, **more):
    crop = [32, 32] if kind == "2d" else [16, 16, 16]
    learner = {"crop": crop, "overlap": 0.25} | more.pop("learner", {})
    train = {"steps": steps, "batch": 2, "lr": 5e-2, "optimiser": "adam"} | more.pop("train", {})
    size = {"width": 2} if kind == "2d" else {"width": 2, "poolings": 2}
    return settings(**size, learner=learner, train=train, **more)


class Chain:
    """raw -> cache -> fine-tuned -> evaluated on all, and predicted."""

    def __init__(self, root: Path, kind: str) -> None:
        self.kind, self.workspace, self.raw, self.heard = kind, Workspace(root), root / "raw", Heard()
        self.options = WRITE[kind](self.raw)
        made = prep(
            "folder",
            data=self.raw / "scans",
            workspace=self.workspace,
            options=self.options,
            layers=settings(**PREP[kind]),
            jobs=1,
            listener=self.heard,
        )
        self.cache: Cache = open_cache(made.cache)
        self.tuned: FinetuneResult = finetune(task="segment", workspace=self.workspace, layers=layers(kind))
        self.evaluated: EvaluateResult = evaluate(self.tuned.run, workspace=self.workspace, split="all")
        self.predicted: PredictResult = predict(self.tuned.run, self.inputs(), root / "predicted")

    def inputs(self) -> list[Path]:
        """The scans; of several channels a folder a case."""
        if self.kind != "mr":
            return sorted((self.raw / "scans").iterdir())
        for path in sorted((self.raw / "scans").iterdir()):
            folder = self.workspace.root / "new" / path.name.partition("_")[0]
            folder.mkdir(parents=True, exist_ok=True)
            (folder / path.name).write_bytes(path.read_bytes())
        return sorted((self.workspace.root / "new").iterdir())


@cache
def build(root: Path, kind: str) -> Chain:
    return Chain(root, kind)


@pytest.fixture(params=["ct", "mr", "2d"])
def chain(request, tmp_path_factory) -> Chain:
    return build(tmp_path_factory.getbasetemp() / f"segment-{request.param}", request.param)


@pytest.fixture
def ct(tmp_path_factory) -> Chain:
    return build(tmp_path_factory.getbasetemp() / "segment-ct", "ct")


@pytest.fixture
def flat(tmp_path_factory) -> Chain:
    return build(tmp_path_factory.getbasetemp() / "segment-2d", "2d")


def test_a_cache_knows_its_regions_and_holds_both_where_they_overlap(chain):
    m = chain.cache.manifest
    assert m["classes"] == REGIONS[chain.kind]
    assert (m["dim"], m["channels"], m["modality"]) == {"ct": (3, 1, "ct"), "mr": (3, 2, "mr"), "2d": (2, 1, "xray")}[
        chain.kind
    ]
    assert (
        m["regions"]
        == {
            "ct": {"organ": [1, 3], "lesion": [2, 3]},
            "mr": {"lesion": [1, 3], "organ": [2, 3]},
            "2d": {"10": [1], "255": [2]},
        }[chain.kind]
    )
    for i, case in enumerate(chain.cache.cases()):
        shape = (70 + i, 90) if chain.kind == "2d" else SHAPE
        organ, lesion = boxes(i, shape)
        lesion = lesion & ~organ if chain.kind == "2d" else lesion
        found = chain.cache.read_box(case, "volumes", "native_mask")
        found = found[..., 0] if chain.kind == "2d" else found[::-1, ::-1]  # upright
        wanted = {"organ": organ, "lesion": lesion, "10": organ, "255": lesion}
        for name, mask in zip(m["regions"], masks_of(found, m["regions"]), strict=True):
            np.testing.assert_array_equal(mask, wanted[name])


def test_the_chain_learns_and_scores_every_case_by_region(chain):
    assert chain.evaluated.counts["pictures" if chain.kind == "2d" else "scans"] == PATIENTS
    assert 0 < chain.evaluated.metrics["dice"].value < 1
    names = REGIONS[chain.kind]
    values = {name: e.value for name, e in chain.evaluated.metrics.items()}
    assert values["dice"] == pytest.approx(np.mean([values[f"dice_{name}"] for name in names]))
    assert all(f"{metric}_{name}" in values for name in names for metric in ("hd95", "nsd", "assd", "ravd"))
    assert ("dice_box" in values) == (chain.kind == "ct")  # whose box is made of the mask


def test_what_is_predicted_is_what_was_evaluated(chain):
    table = io.StringIO(chain.evaluated.predictions.read_text("utf-8"))
    rows = {row["case"]: row for row in csv.DictReader(table)}
    m = chain.cache.manifest
    regions, values = m["regions"], {int(label): int(code) for code, label in m["label_values"].items()}
    assert chain.predicted.made == sorted(rows)
    for case, path in chain.predicted.files.items():
        found = read_labels(path) if chain.kind == "2d" else read_volume(path).array[::-1, ::-1]
        stored = np.zeros(found.shape, np.uint8)
        for label in np.unique(found):
            stored[found == label] = values.get(int(label), int(label))
        truth = chain.cache.read_box(case, "volumes", "native_mask")
        truth = truth[..., 0] if chain.kind == "2d" else truth
        for name, p, t in zip(regions, masks_of(stored, regions), masks_of(truth, regions), strict=True):
            assert dice(t, p) == pytest.approx(float(rows[case][f"dice_{name}"]), abs=1e-5)
            size = chain.predicted.volumes[case][name]
            unit = "px" if chain.kind == "2d" else "ml"
            assert size == pytest.approx(float(rows[case][f"predicted_{unit}_{name}"]), rel=1e-4)


def test_masks_of_new_images_have_their_geometry_and_the_labels_that_were_learned(chain):
    path = next(iter(chain.predicted.files.values()))
    if chain.kind == "2d":
        assert path.suffix == ".png"
        assert read_labels(path).shape == (70, 90)
        assert set(np.unique(read_labels(path))) <= {0, 10, 255}
        assert chain.predicted.labels == {"10": "10", "255": "255"}
        return
    volume = read_volume(path)
    np.testing.assert_allclose(volume.origin, GRID.origin, atol=1e-4)
    np.testing.assert_allclose(volume.direction, GRID.direction, atol=1e-6)
    assert volume.array.shape == SHAPE
    both = 300 if chain.kind == "ct" else 3
    assert set(np.unique(volume.array)) <= {0, 1, 2, both}
    assert chain.predicted.labels[str(both)] == " + ".join(REGIONS[chain.kind])


def test_only_pictures_are_measured_in_pixels(chain):
    in_pixels = chain.kind == "2d"
    header = chain.evaluated.predictions.read_text("utf-8").splitlines()[0]
    assert ("hd95_px_" in header) == in_pixels
    assert ("hd95_mm_" in header) != in_pixels
    assert any("distances are in pixels" in note for note in chain.evaluated.notes) == in_pixels
    assert chain.evaluated.details["unit"] == ("px" if in_pixels else "mm")
    table = (chain.workspace.root / "predicted/predictions.csv").read_text("utf-8").splitlines()[0]
    assert f"{REGIONS[chain.kind][0]}_{'px' if in_pixels else 'ml'}" in table


def test_every_case_has_an_overlay(chain):
    folder = chain.evaluated.evaluation.parent
    assert sorted(p.stem for p in (folder / "overlays").iterdir()) == sorted(chain.cache.cases())


def test_prep_and_finetune_again_do_nothing(chain):
    before = contents(chain.cache.path)
    again = prep(
        "folder",
        data=chain.raw / "scans",
        workspace=chain.workspace,
        options=chain.options,
        layers=settings(**PREP[chain.kind]),
        jobs=1,
    )
    assert (again.made, again.skipped) == (0, PATIENTS)
    assert contents(chain.cache.path) == before
    assert finetune(task="segment", workspace=chain.workspace, layers=layers(chain.kind)).run == chain.tuned.run


def test_labels_that_were_looked_for_are_noted_and_a_changed_mask_is_looked_at_again(tmp_path):
    options = write_2d(tmp_path / "raw")
    heard = Heard()

    def again():
        return prep("folder", data=tmp_path / "raw/scans", out=tmp_path / "c", options=options, jobs=1, listener=heard)

    again()
    noted = json.loads((tmp_path / "c/labels.json").read_text("utf-8"))
    assert list(noted.values()) == [[10, 255]] * PATIENTS
    assert "regions: 10, 255" in heard.lines
    changed = tmp_path / "raw/masks/pic0.png"
    write_png(np.where(read_labels(changed) == 10, 7, 0).astype(np.uint8), changed)
    with pytest.raises(ConfigError, match=r"other settings \(different: regions.7\)"):
        again()


def test_a_dry_run_writes_nothing(tmp_path):
    options = write_ct(tmp_path / "raw")
    del options["regions"]
    plan = prep("folder", data=tmp_path / "raw/scans", out=tmp_path / "c", options=options, dry_run=True)
    assert isinstance(plan, Plan)
    assert plan.settings["regions"] == {"1": [1], "2": [2], "300": [300]}
    assert not (tmp_path / "c").exists()


def test_bad_cases_are_left_out_by_name(tmp_path):
    options, heard = write_ct(tmp_path / "raw"), Heard()
    (tmp_path / "raw/masks/case1_seg.nii.gz").unlink()
    write_mask(np.full(SHAPE, 9, np.uint8), GRID, tmp_path / "raw/masks/case2_seg.nii.gz")
    shifted = replace(GRID, origin=GRID.origin + 9)
    write_mask(np.ones(SHAPE, np.uint8), shifted, tmp_path / "raw/masks/case3_seg.nii.gz")
    done = prep("folder", data=tmp_path / "raw/scans", out=tmp_path / "c", options=options, jobs=1, listener=heard)
    assert (done.made, sorted(done.bad_cases)) == (PATIENTS - 3, ["case1", "case2", "case3"])
    assert "has no mask" in done.bad_cases["case1"]
    assert "labels 9, which are in no region" in done.bad_cases["case2"]
    assert "off the grid of" in done.bad_cases["case3"]
    assert any("1 scans have no mask" in text for text in heard.warnings)


@pytest.mark.parametrize(
    ("values", "options", "error", "message"),
    [
        ({}, {"regions": "organ"}, ConfigError, "neither NAME=LABEL"),
        ({}, {"regions": "organ=1", "labels": Path("x.csv")}, ConfigError, "--labels and --masks"),
        ({}, {"candidates": Path("x.csv")}, ConfigError, "--candidates is not for the reader folder"),
        ({"modalities": ["t1", "t2"]}, {}, ConfigError, "are channels of MR, and the scans count as CT"),
        ({"prepare": {"normalise": "minmax"}}, {}, ConfigError, r"prepare\.normalise changes nothing for CT"),
        ({"prepare": {"size": 5}}, {}, ConfigError, r"unknown setting prepare.size"),
        ({"regions": {"a": [1]}}, {}, ConfigError, "regions come from --regions"),
        ({}, {"masks": Path("nowhere")}, DataError, "The folder of masks nowhere is not there"),
    ],
)
def test_what_makes_no_sense_is_said_in_one_sentence(ct, tmp_path, values, options, error, message):
    with pytest.raises(error, match=message) as caught:
        prep(
            "folder",
            data=ct.raw / "scans",
            out=tmp_path / "c",
            options=ct.options | options,
            layers=[("flags", values)],
            jobs=1,
        )
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "c").exists()


def test_regions_without_masks_are_refused(ct, tmp_path):
    with pytest.raises(ConfigError, match="--regions is not for the reader folder"):
        prep("folder", data=ct.raw / "scans", out=tmp_path / "c", options={"regions": "a=1"}, jobs=1)


def test_other_tasks_and_other_caches_are_refused_in_words(ct, flat, tmp_path):
    with pytest.raises(ConfigError, match="the task lits is of liver"):
        finetune(ct.cache.path, task="lits", workspace=Workspace(tmp_path), layers=layers("ct"))
    named = tmp_path / "named"
    prep(
        "folder",
        data=ct.raw / "scans",
        out=named,
        options={"masks": ct.raw / "masks", "regions": "liver=1+2+300"},
        layers=settings(),
        jobs=1,
    )
    with pytest.raises(ConfigError, match="whose labels are not those of the task lits; give --task segment"):
        finetune(named, task="lits", workspace=Workspace(tmp_path), layers=layers("ct"))
    with pytest.raises(ConfigError, match="are of liver, and the task segment is of organ, lesion"):
        evaluate(ct.tuned.run, named, workspace=ct.workspace)
    with pytest.raises(ConfigError, match=r"learner.crop is 16x16x16, and the images have 2 axes"):
        finetune(
            flat.cache.path,
            task="segment",
            workspace=Workspace(tmp_path),
            layers=layers("ct")[:0] + settings(width=2, learner={"crop": [16, 16, 16]}, train={"steps": 1, "batch": 2}),
        )


def test_another_cache_may_store_its_regions_by_other_labels(ct, tmp_path):
    """An external test: the same places, called the same, with other numbers in the files and in another order."""
    raw = tmp_path / "raw"
    options = write_ct(raw)
    for path in (raw / "masks").iterdir():
        values = read_volume(path).array
        swapped = np.select([values == 1, values == 2, values == 300], [5, 6, 9], 0).astype(np.uint8)
        write_mask(swapped, GRID, path)
    options["regions"] = "lesion=6+9,organ=5+9"
    other = prep(
        "folder", data=raw / "scans", out=tmp_path / "other", options=options, layers=settings(**PREP["ct"]), jobs=1
    ).cache
    run = finetune(
        ct.cache.path, task="segment", workspace=Workspace(tmp_path), layers=layers("ct", allow_overlap=True)
    )
    found = evaluate(run.run, other, workspace=Workspace(tmp_path), split="all")
    assert {n: e.value for n, e in found.metrics.items()} == {n: e.value for n, e in ct.evaluated.metrics.items()}


@pytest.mark.parametrize("size", [48, 80, 1000, None])
def test_the_size_that_is_foretold_of_pictures_with_masks_follows_their_own_size(tmp_path, size):
    options = {"masks": write_2d(tmp_path / "raw")["masks"]}
    call = {"data": tmp_path / "raw/scans", "layers": settings(prepare={"size": size}), "options": options}
    plan = prep("folder", out=tmp_path / "c", dry_run=True, **call)
    assert isinstance(plan, Plan)
    real = prep("folder", out=tmp_path / "c", jobs=1, **call).bytes
    assert real / 2 < plan.figures["gigabytes"] * 1e9 < 2 * real


def test_a_run_that_is_moved_away_from_its_cache_still_predicts(flat, tmp_path):
    prepared = Run.load(flat.tuned.run).record["prepared"]
    assert prepared["label_values"] == {"1": 10, "2": 255}
    assert prepared["classes"] == ["10", "255"]
    flat.cache.path.rename(tmp_path / "away")
    try:
        again = predict(flat.tuned.run, flat.inputs()[:1], tmp_path / "out")
    finally:
        (tmp_path / "away").rename(flat.cache.path)
    assert again.files["pic0"].read_bytes() == flat.predicted.files["pic0"].read_bytes()


def test_inputs_that_are_no_pictures_are_refused_by_name(flat, tmp_path):
    (tmp_path / "a.png").write_bytes(b"nothing")
    done = predict(flat.tuned.run, [tmp_path / "a.png", flat.raw / "scans", tmp_path / "none.png"], tmp_path / "out")
    assert "is no PNG, JPEG or DICOM file" in done.failed[str(tmp_path / "a.png")]
    assert "is a folder, and a picture is a file" in done.failed[str(flat.raw / "scans")]
    assert "is not there" in done.failed[str(tmp_path / "none.png")]
    with pytest.raises(UsageError, match="each a file of its own"):
        predict(flat.tuned.run, [], tmp_path / "out", modalities={"x": tmp_path / "a.png"})


def test_a_run_says_that_it_reads_pictures_or_scans_where_it_is_given_the_other(chain, tmp_path):
    flat, one, some = chain.kind == "2d", tmp_path / "in", tmp_path / "in/some"
    some.mkdir(parents=True)
    pixels = np.zeros((8, 8), np.uint8)
    for place in (one / "a", some / "a"):
        if flat:
            write_nifti(
                Volume(np.zeros((8, 8, 4), np.int16), np.ones(3), np.zeros(3), np.eye(3)), place.with_suffix(".nii.gz")
            )
        else:
            write_png(pixels, place.with_suffix(".png"))
    given = one / ("a.nii.gz" if flat else "a.png")
    done = predict(chain.tuned.run, [given, some], tmp_path / "out")
    is_, reads = ("scan", "pictures (PNG") if flat else ("picture", "scans (NIfTI")
    assert done.failed[str(given)].startswith(f"{given} is a {is_}, and this run reads {reads}")
    assert done.failed[str(some)].startswith(f"{some} holds {is_}s, and this run reads {reads}")
    assert f"a run that was trained on {is_}s" in done.failed[str(given)]
    if chain.kind == "mr":
        with pytest.raises(DataError, match="is a picture, and this run reads scans"):
            predict(chain.tuned.run, [], tmp_path / "out", modalities={"t1": given, "t2": given})


def test_what_is_counted_while_predicting_and_scoring_is_pictures_or_scans(chain, tmp_path):
    units = []

    class Counting(Heard):
        def begin(self, what, total, unit, done=0):
            units.append(unit)

    predict(chain.tuned.run, chain.inputs()[:1], tmp_path / "out", listener=Counting())
    evaluate(chain.tuned.run, workspace=chain.workspace, listener=Counting())
    said = CliRunner().invoke(
        app, ["predict", str(chain.tuned.run), str(chain.inputs()[0]), "--out", str(tmp_path / "o")]
    )
    unit = "pictures" if chain.kind == "2d" else "scans"
    assert units == [unit, unit]
    assert any(line.split()[:3] == [unit, "1", "predicted,"] for line in said.stdout.splitlines())


def test_two_cases_in_one_folder_of_channels_are_refused(tmp_path_factory, tmp_path):
    mr = build(tmp_path_factory.getbasetemp() / "segment-mr", "mr")
    done = predict(mr.tuned.run, [mr.raw / "scans"], tmp_path / "out")
    assert (
        "are both t1: one folder holds one case; put each into a folder of its own"
        in done.failed[str(mr.raw / "scans")]
    )
    named = {"t1": mr.raw / "scans/c0_t1.nii.gz", "t2": mr.raw / "scans/c0_t2.nii.gz"}
    again = predict(mr.tuned.run, [], tmp_path / "out", modalities=named)
    assert again.files["c0"].read_bytes() == mr.predicted.files["c0"].read_bytes()


def test_the_command_line_does_all_of_it(tmp_path):
    write_2d(tmp_path / "raw")

    def pcrl(*words, code=0):
        done = CliRunner().invoke(app, [str(word) for word in words])
        assert done.exit_code == code, done.output
        return done.output

    workspace = ("--workspace", tmp_path)
    pcrl("prep", "folder", "--data", tmp_path / "raw/scans", "--masks", tmp_path / "raw/masks", *workspace,
         "--regions", "organ=10,lesion=255", "--size", 48, "--jobs", 1)  # fmt: skip
    small = [f"--set={pair}" for pair in ("width=2", "learner.crop=[32,32]", "train.steps=2", "train.batch=2")]
    pcrl("finetune", "--task", "segment", *small, *workspace)
    pcrl("evaluate", "--task", "segment", "--split", "all", "--fail-under", "dice_organ=0", *workspace)
    pcrl("evaluate", "--task", "segment", "--split", "all", "--fail-under", "nsd_lesion=1.5", *workspace, code=8)
    (run,) = (tmp_path / "runs").glob("finetune-*")
    said = pcrl("predict", run, tmp_path / "raw/scans/pic0.png", "--out", tmp_path / "out", "--json")
    assert json.loads(said)["labels"] == {"10": "organ", "255": "lesion"}
    (tmp_path / "ct").mkdir()
    write_ct(tmp_path / "ct")
    pcrl("prep", "folder", "--data", tmp_path / "ct/scans", "--masks", tmp_path / "ct/masks", "--modality", "mr",
         "--out", tmp_path / "mr", "--jobs", 1)  # fmt: skip
    assert open_cache(tmp_path / "mr").manifest["modality"] == "mr"


def test_a_table_compares_methods_on_it(flat, tmp_path):
    spec = tmp_path / "spec.yaml"
    spec.write_text(
        f"""task: segment
cache: {flat.cache.path}
ratios: [1.0]
seeds: [0]
methods: {{scratch: {{}}}}
finetune: {{width: 2, learner: {{crop: [32, 32]}}, train: {{steps: 2, batch: 2}}}}
""",
        encoding="utf-8",
    )
    result = make_table(spec, workspace=Workspace(tmp_path))
    assert not result.failed


@pytest.mark.real
def test_real_tumours_are_the_same_by_their_own_reader_and_as_ones_own(real_data, tmp_path):
    """A BraTS patient: two sequences and a mask beside them, three nested regions."""
    raw = real_data / "BraTS/HGG"
    two = {"modalities": ["flair", "t1ce"]}
    own = prep("brats", data=raw, out=tmp_path / "brats", layers=settings(**two), jobs=1, limit=1)
    options = {"masks": raw, "regions": "WT=1+2+3+4,TC=1+3+4,ET=4"}
    mr = settings(prepare={"modality": "mr"}, **two)
    made = prep("folder", data=raw, out=tmp_path / "folder", options=options, layers=mr, jobs=1, limit=1)
    one, other = open_cache(own.cache), open_cache(made.cache)
    for name in ("image", "mask", "native_mask", "box", "grid", "native"):
        found = [c.read_box(c.cases()[0], "volumes", name) for c in (one, other)]
        np.testing.assert_array_equal(*found)
    assert one.manifest["classes"] == other.manifest["classes"]
