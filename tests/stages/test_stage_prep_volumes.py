"""`pcrl prep lits|brats` on phantoms: whole volumes with their masks, resumable, bad cases left out by name."""

from pathlib import Path

import numpy as np
import pytest
from chain import contents

from pcrl_cli.core.config import dump_yaml, file_layer
from pcrl_cli.core.errors import ConfigError, DataError
from pcrl_cli.core.plan import Grid
from pcrl_cli.data.cache import open_cache, read_split
from pcrl_cli.data.labelled import Preparation, label
from pcrl_cli.data.volume import Intensity, prepare
from pcrl_cli.phantoms import abdomen, brain
from pcrl_cli.readers import brats, lits
from pcrl_cli.stages.finetune import finetune
from pcrl_cli.stages.prep import prep, prep_settings, require
from pcrl_cli.stages.results import Plan
from pcrl_cli.stages.workspace import Workspace

CT, MR = 4, 3
TWO = ("test", {"modalities": ["flair", "t1ce"]})


@pytest.fixture(scope="module")
def ct(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("lits")
    abdomen.make(root, CT)
    return root


@pytest.fixture(scope="module")
def mr(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("brats")
    brain.make(root, MR)
    return root


@pytest.fixture(scope="module")
def made(ct, tmp_path_factory):
    return prep("lits", data=ct, out=tmp_path_factory.mktemp("cache") / "lits", jobs=1)


def test_a_cache_of_volumes_holds_what_the_scans_are(ct, made):
    cache = open_cache(made.cache)
    assert (made.made, made.bad, cache.groups) == (CT, 0, ("volumes",))
    m = cache.manifest
    assert (m["dim"], m["channels"], m["modality"], m["spacing_mm"]) == (3, 1, "ct", 1.0)
    assert (m["classes"], m["pad"], m["channel_names"]) == (["liver"], -200, ["ct"])
    assert m["intensity"] == {"hu_min": -200.0, "hu_max": 200.0}
    for case in lits.cases(ct):
        scan = label(lits.read(case), Preparation())
        np.testing.assert_array_equal(cache.read_box(case.id, "volumes", "image"), np.rint(scan.image))
        np.testing.assert_array_equal(cache.read_box(case.id, "volumes", "mask"), scan.mask)
        np.testing.assert_array_equal(cache.read_box(case.id, "volumes", "native_mask"), scan.native_mask)
        grid = Grid.of_row(cache.read_box(case.id, "volumes", "grid"))
        np.testing.assert_allclose(grid.row(), scan.grid.row())


def test_the_same_scan_in_another_data_sets_clothes_is_recognised(ct, made):
    """By the id that `prep folder` would give it, whose window and arrays are others."""
    for case in lits.cases(ct):
        known = prepare(lits.read(case).images[0], Intensity()).scan_ids
        assert tuple(open_cache(made.cache).records[case.id]["scan_ids"]) == known


def test_two_processes_and_two_halves_make_the_same_bytes(ct, made, tmp_path):
    prep("lits", data=ct, out=tmp_path / "two", jobs=2)
    for half in (1, 2):
        prep("lits", data=ct, out=tmp_path / "halves", jobs=1, shard=(half, 2))
    assert contents(tmp_path / "two") == contents(made.cache)
    assert contents(tmp_path / "halves") == contents(made.cache)


def test_a_second_call_makes_nothing_and_a_changed_mask_is_read_again(ct, made, tmp_path):
    again = prep("lits", data=ct, out=made.cache, jobs=1)
    assert (again.made, again.skipped) == (0, CT)
    for path in ct.rglob("*.nii.gz"):
        target = tmp_path / "raw" / path.name
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(path.read_bytes())
    first = prep("lits", data=tmp_path / "raw", out=tmp_path / "c", jobs=1, limit=2)
    assert (first.made, read_split(tmp_path / "c")) == (2, read_split(made.cache))
    mask = tmp_path / "raw/segmentation-0.nii.gz"
    mask.touch()
    second = prep("lits", data=tmp_path / "raw", out=tmp_path / "c", jobs=1)
    assert (second.made, second.skipped) == (CT - 1, 1)


def test_bad_cases_are_left_out_by_name_and_the_others_prepared(ct, tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    for path in ct.rglob("*.nii.gz"):
        (raw / path.name).write_bytes(path.read_bytes())
    (raw / "segmentation-1.nii.gz").unlink()
    (raw / "volume-2.nii.gz").write_bytes((raw / "volume-2.nii.gz").read_bytes()[:2000])
    done = prep("lits", data=raw, out=tmp_path / "c", jobs=1)
    assert (done.made, done.bad) == (CT - 2, 2)
    assert "segmentation-1.nii.gz" in done.bad_cases["volume-1"]
    assert "volume-2.nii.gz" in done.bad_cases["volume-2"]
    with pytest.raises(DataError, match=r"2 of 4 scans could not be used"):
        require(done, 0.05)
    assert len(open_cache(tmp_path / "c").cases()) == CT - 2


def test_a_subset_of_sequences_is_prepared_and_said(mr, tmp_path):
    done = prep("brats", data=mr, out=tmp_path / "c", jobs=1, layers=[TWO])
    cache = open_cache(done.cache)
    assert (done.made, cache.manifest["channels"], cache.manifest["channel_names"]) == (MR, 2, ["flair", "t1ce"])
    assert (cache.manifest["modality"], cache.manifest["pad"], cache.manifest["classes"]) == (
        "mr",
        0,
        ["WT", "TC", "ET"],
    )
    case = brats.cases(mr, modalities=("flair", "t1ce"))[0]
    scan = label(brats.read(case), Preparation(modality="mr"))
    np.testing.assert_array_equal(cache.read_box(case.id, "volumes", "image"), np.rint(scan.image))
    assert len(cache.records[case.id]["scan_ids"]) == 2
    with pytest.raises(ConfigError, match="different: modalities"):
        prep("brats", data=mr, out=done.cache, jobs=1)


def test_the_order_in_which_sequences_are_named_changes_no_setting():
    def modalities(*names):
        return prep_settings("brats", layers=[("test", {"modalities": list(names)})])[0].modalities

    assert modalities("T1CE", "flair") == modalities("flair", "t1ce") == ("flair", "t1ce")
    assert modalities("t2", "t1ce", "flair", "t1") is None is prep_settings("brats")[0].modalities
    with pytest.raises(ConfigError, match="there is no modality 'pet'"):
        modalities("flair", "pet")


def test_of_several_caches_of_volumes_a_task_takes_its_own_and_no_other(ct, mr, tmp_path):
    workspace = Workspace(tmp_path)
    for name, raw in (("lits", ct), ("brats", mr)):
        prep(name, data=raw, workspace=workspace, jobs=1)
    for name in ("lits", "brats"):
        assert workspace.find_cache(3, "volumes", name) == workspace.cache(name)
    with pytest.raises(ConfigError, match="several caches fit"):
        workspace.find_cache(3, "volumes", "luna")
    small = [
        ("test", {"width": 2, "poolings": 1, "learner": {"crop": [16, 16, 16]}, "train": {"steps": 1, "batch": 2}})
    ]
    with pytest.raises(ConfigError, match=r"masks of .*lits are of liver, and the task brats is of WT, TC, ET"):
        finetune(workspace.cache("lits"), task="brats", workspace=workspace, device="cpu", layers=small)


def test_a_dry_run_foretells_the_size(ct, mr, made, tmp_path):
    for name, raw in (("lits", ct), ("brats", mr)):
        plan = prep(name, data=raw, out=tmp_path / name, dry_run=True)
        assert isinstance(plan, Plan)
        assert not (tmp_path / name).exists()
        real = made.bytes if name == "lits" else prep(name, data=raw, out=tmp_path / name, jobs=1).bytes
        assert plan.figures["gigabytes"] == pytest.approx(real / 1e9, rel=0.35, abs=0.011)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("lits", {"modalities": ["flair"]}, "--modalities is not for the reader lits"),
        ("brats", {"modalities": ["flair", "pet"]}, "no modality 'pet'"),
        ("brats", {"prepare": {"modality": "ct"}}, "brats is a data set of MR scans"),
        ("brats", {"prepare": {"hu_min": -100}}, r"prepare\.hu_min changes nothing for MR"),
        ("lits", {"prepare": {"normalise": "minmax"}}, r"prepare\.normalise changes nothing for CT"),
        ("lits", {"prepare": {"hu_min": 300}}, "must lie below"),
        ("lits", {"pairs": {"pairs": 3}}, "unknown setting pairs"),
    ],
)
def test_settings_that_make_nonsense_are_refused(ct, mr, tmp_path, name, values, message):
    with pytest.raises(ConfigError, match=message):
        prep(name, data=ct if name == "lits" else mr, out=tmp_path / "c", jobs=1, layers=[("flags", values)])
    assert not (tmp_path / "c").exists()


def test_recipes_differ_in_the_normalisation_of_mr():
    assert prep_settings("brats", "paper")[0].prepare.normalise == "zscore"
    assert prep_settings("brats", "released")[0].prepare.normalise == "minmax"


@pytest.mark.parametrize("name", ["lits", "brats"])
def test_written_settings_read_back(name, tmp_path):
    settings, _ = prep_settings(name, None, [("flags", {"prepare": {"spacing_mm": None}})])
    (tmp_path / "c.yaml").write_text(dump_yaml(settings), encoding="utf-8")
    assert prep_settings(name, None, [file_layer(tmp_path / "c.yaml")])[0] == settings
    assert settings.prepare.spacing_mm is None


@pytest.mark.real
def test_real_scans_are_prepared(real_data, tmp_path):
    one = prep("lits", data=real_data / "LiTS", out=tmp_path / "lits", jobs=1)
    two = prep("brats", data=real_data / "BraTS", out=tmp_path / "brats", jobs=1, layers=[TWO])
    assert (one.made, one.bad, two.made, two.bad) == (3, 0, 7, 0)
    assert two.totals["volumes"]["label_4"] > 90_000
    four = prep("brats", data=real_data / "BraTS", out=tmp_path / "four", jobs=1)
    assert (four.made, four.bad) == (2, 5)  # the patients of BraTS 2013 have two sequences here
