import json
import re
from pathlib import Path

import numpy as np
import pytest
from chain import PATIENTS, Heard, contents, prep_layers, settings, tissue, write_dicom, write_scan

from pcrl_cli.core.errors import ConfigError, DataError, IntegrityError, UsageError
from pcrl_cli.data.cache import open_cache, read_split
from pcrl_cli.data.volume import Volume
from pcrl_cli.readers import folder
from pcrl_cli.readers.volume_io import write_nifti
from pcrl_cli.stages.prep import prep, require
from pcrl_cli.stages.results import Plan
from pcrl_cli.stages.workspace import Workspace

ONE = settings(pairs={"pairs": 1, "global_shape": [32, 32, 16], "n_locals": 2})


def shards(cache: Path) -> dict[str, bytes]:
    return {name: content for name, content in contents(cache).items() if name.endswith(".h5")}


def test_one_and_two_processes_make_the_same_bytes(chain, tmp_path):
    prep("luna", data=chain.raw, out=tmp_path / "two", layers=prep_layers(), jobs=2)
    assert contents(tmp_path / "two") == contents(chain.cache)


def test_a_second_call_makes_nothing(chain):
    before = {path: path.stat().st_mtime_ns for path in chain.cache.glob("shards/*")}
    again = prep("luna", workspace=chain.workspace, layers=prep_layers(), jobs=1)
    assert (again.made, again.skipped) == (0, PATIENTS)
    assert {path: path.stat().st_mtime_ns for path in chain.cache.glob("shards/*")} == before
    assert again.totals == chain.prepared.totals


def test_a_workspaces_own_cache_is_not_hashed_again_unless_it_changed(chain, tmp_path):
    workspace = Workspace(tmp_path / "ws")
    few = {"data": chain.raw, "workspace": workspace, "layers": prep_layers(), "jobs": 1}
    cache = open_cache(prep("luna", limit=1, **few).cache)
    assert cache.verify("full", workspace.verified) == 0
    cache = open_cache(prep("luna", limit=2, **few).cache)
    assert cache.verify("full", workspace.verified) == 0
    shard = sorted(cache.path.glob("shards/*.h5"))[0]
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    with pytest.raises(IntegrityError, match="changed or damaged"):
        cache.verify("full", workspace.verified)


def test_a_cache_elsewhere_leaves_nothing_in_the_workspace(chain, tmp_path):
    workspace = Workspace(tmp_path / "ws")
    prep("luna", data=chain.raw, out=tmp_path / "c", workspace=workspace, layers=prep_layers(), jobs=1, limit=1)
    assert not workspace.root.exists()


def test_a_limit_takes_the_first_scans_and_does_not_change_the_split(chain, tmp_path):
    few = prep("luna", data=chain.raw, out=tmp_path / "few", layers=prep_layers(), jobs=1, limit=2)
    assert few.made == 2
    assert read_split(tmp_path / "few") == read_split(chain.cache)
    assert shards(tmp_path / "few").items() <= shards(chain.cache).items()


def test_two_halves_make_what_one_makes(chain, tmp_path):
    for half in (1, 2):
        prep("luna", data=chain.raw, out=tmp_path / "c", layers=prep_layers(), jobs=1, shard=(half, 2))
    assert contents(tmp_path / "c") == contents(chain.cache)


def test_counts_are_given_a_case_and_in_total(chain):
    pairs = [counts["pairs"] for counts in chain.prepared.cases.values()]
    assert all(c["tried"] == c["kept"] + c["refused_iou"] + c["refused_background"] for c in pairs)
    assert chain.prepared.totals["pairs"]["kept"] == sum(c["kept"] for c in pairs) == 4 * PATIENTS
    assert all(c["candidates"]["cached_1"] == c["candidates"]["candidates_1"] for c in chain.prepared.cases.values())


def test_every_part_has_a_patient_and_the_test_part_has_both_classes(chain):
    assert chain.prepared.patients == {"train": 5, "val": 1, "test": 1}
    cache = open_cache(chain.cache)
    labels = cache.read("candidates", ("label",), cache.cases("test")).arrays["label"]
    assert set(labels.tolist()) == {0, 1}


def test_other_settings_are_refused_by_their_names(chain):
    before = contents(chain.cache)
    with pytest.raises(ConfigError, match=r"different: candidates\.negatives, seed\)"):
        prep("luna", workspace=chain.workspace, layers=prep_layers(negatives=4, seed=1), jobs=1)
    assert contents(chain.cache) == before


def test_a_dry_run_makes_nothing(chain, tmp_path):
    plan = prep("luna", data=chain.raw, out=tmp_path / "c", layers=prep_layers(), dry_run=True)
    assert isinstance(plan, Plan)
    assert plan.state == "new"
    assert plan.figures["scans"] == PATIENTS
    assert not (tmp_path / "c").exists()


def test_overwriting_makes_a_cache_again_and_never_deletes_what_is_no_cache(tmp_path):
    write_scan(tmp_path / "raw/a.mhd")
    prep("folder", data=tmp_path / "raw", out=tmp_path / "c", layers=ONE, jobs=1)
    other = settings(seed=1, **ONE[0][1])
    assert prep("folder", data=tmp_path / "raw", out=tmp_path / "c", layers=other, jobs=1, overwrite=True).made == 1
    with pytest.raises(ConfigError, match=r"holds what no cache holds \(a\.mhd\)"):
        prep("folder", data=tmp_path / "raw", out=tmp_path / "raw", layers=ONE, jobs=1, overwrite=True)
    assert (tmp_path / "raw/a.raw").exists()
    with pytest.raises(UsageError, match="other shards' work"):
        prep("folder", data=tmp_path / "raw", out=tmp_path / "c", layers=ONE, shard=(1, 2), overwrite=True)


def test_a_torn_manifest_is_gathered_again(tmp_path):
    write_scan(tmp_path / "raw/a.mhd")
    prep("folder", data=tmp_path / "raw", out=tmp_path / "c", layers=ONE, jobs=1)
    whole = contents(tmp_path / "c")
    (tmp_path / "c/manifest.json").write_bytes(whole["manifest.json"][:50])
    assert prep("folder", data=tmp_path / "raw", out=tmp_path / "c", layers=ONE, jobs=1).skipped == 1
    assert contents(tmp_path / "c") == whole


# ----------------------------------------------------------------------------------------------------- bad scans


@pytest.fixture
def partly_bad(tmp_path) -> Path:
    """One good scan; a truncated one, one with NaN, one of one slice, one too small."""
    raw = tmp_path / "raw"
    write_scan(raw / "good.mhd")
    write_scan(raw / "torn.mhd")
    (raw / "torn.raw").write_bytes((raw / "torn.raw").read_bytes()[:-100])
    array = tissue().array.astype(np.float32)
    array[3, 4, 5] = np.nan
    write_nifti(Volume(array, np.ones(3), np.zeros(3), np.eye(3)), raw / "nan.nii.gz")
    write_scan(raw / "slice.mhd", (68, 66, 1))
    write_scan(raw / "small.mhd", (40, 66, 36))
    return raw


def test_bad_scans_are_quarantined_with_their_reasons_and_the_rest_goes_on(partly_bad, tmp_path, heard):
    done = prep("folder", data=partly_bad, out=tmp_path / "c", layers=ONE, jobs=1, listener=heard)
    assert (done.made, done.bad) == (1, 4)
    assert done.refused == {"bad_values": 1, "too_small": 2, "unreadable": 1}
    reasons = {"torn": "declares", "nan": "NaN", "slice": "2 or more along each axis", "small": "too small"}
    lines = [json.loads(line) for line in (tmp_path / "c/bad_cases.jsonl").read_text("utf-8").splitlines()]
    assert {line["case"] for line in lines} == set(reasons)
    assert all(reasons[line["case"]] in line["reason"] for line in lines)
    assert len(heard.warnings) == 4
    assert [path.name for path in (tmp_path / "c/shards").glob("*.h5")] == ["good.h5"]


def test_too_many_bad_scans_fail_what_is_required_of_the_result(partly_bad, tmp_path):
    done = prep("folder", data=partly_bad, out=tmp_path / "c", layers=ONE, jobs=1)
    with pytest.raises(
        DataError, match=r"4 of 5 scans could not be used, more than --max-bad 0\.05 .*\(the first: nan: "
    ):
        require(done, 0.05)
    require(done, 0.8)
    assert open_cache(tmp_path / "c").cases() == ("good",)
    rows = {row["case"]: row["slug"] for row in open_cache(tmp_path / "c").refused}
    assert rows == {"nan": "bad_values", "slice": "too_small", "small": "too_small", "torn": "unreadable"}


def test_what_a_refused_scan_was_tried_with_is_not_lost(tmp_path):
    write_scan(tmp_path / "raw/a.mhd")
    never = settings(pairs={"pairs": 1, "pair_rule": "blind", "min_iou": 1.0, "max_tries": 2})
    done = prep("folder", data=tmp_path / "raw", out=tmp_path / "c", layers=never, jobs=1)
    assert (done.cases, done.refused) == ({}, {"no_crops": 1})
    counts = done.refused_counts["a"]["pairs"]
    assert counts["refused_iou"] == counts["tried"] == 200


def test_a_mended_scan_is_prepared_by_the_next_call(partly_bad, tmp_path):
    prep("folder", data=partly_bad, out=tmp_path / "c", layers=ONE, jobs=1)
    write_scan(partly_bad / "torn.mhd")
    done = prep("folder", data=partly_bad, out=tmp_path / "c", layers=ONE, jobs=1)
    assert (done.made, done.skipped, done.bad) == (1, 1, 3)


def test_changed_voxels_beside_an_unchanged_header_are_noticed(tmp_path):
    mhd = write_scan(tmp_path / "raw/a.mhd")
    mhd.with_suffix(".raw").rename(tmp_path / "raw/voxels0.raw")
    mhd.write_text(mhd.read_text("utf-8").replace("a.raw", "voxels0.raw"))
    options = {"data": tmp_path / "raw", "out": tmp_path / "c", "layers": ONE, "jobs": 1}
    assert prep("folder", **options).made == 1
    (tmp_path / "raw/voxels0.raw").write_bytes(tissue(seed=9).array.tobytes(order="F"))
    assert prep("folder", **options).made == 1
    assert prep("folder", **options).skipped == 1


def test_a_scan_is_recognised_through_another_reader_and_another_patient(tmp_path):
    write_scan(tmp_path / "raw/1.2.3.mhd", seed=5)
    write_scan(tmp_path / "raw/1.2.4.mhd", seed=6)
    write_scan(tmp_path / "other/first.nii.gz", seed=5)
    (tmp_path / "p.csv").write_text("case,patient\nfirst,Z\n")
    prep("luna", data=tmp_path / "raw", out=tmp_path / "a", layers=ONE, jobs=1)
    prep(
        "folder",
        data=tmp_path / "other",
        out=tmp_path / "b",
        layers=ONE,
        jobs=1,
        options={"patients": tmp_path / "p.csv"},
    )
    a, b = ({r["patient"]: r["scan_ids"] for r in open_cache(tmp_path / name).manifest["cases"]} for name in "ab")
    assert a["1.2.3"] == b["Z"] != a["1.2.4"]


def test_excluded_findings_reach_the_cache_and_the_manifest_says_whether_there_was_a_table(chain, tmp_path):
    assert open_cache(chain.cache).manifest["excluded_findings"] is False
    raw = tmp_path / "raw"
    write_scan(raw / "subset0/1.2.3.mhd")
    (raw / "candidates_V2.csv").write_text("seriesuid,coordX,coordY,coordZ,class\n1.2.3,30,30,18,1\n")
    (raw / "annotations_excluded.csv").write_text("seriesuid,coordX,coordY,coordZ,diameter_mm\n1.2.3,9,8,7,-1\n")
    prep("luna", data=raw, out=tmp_path / "c", layers=ONE, jobs=1)
    cache = open_cache(tmp_path / "c")
    assert cache.manifest["excluded_findings"] is True
    assert cache.read("candidates", ("excluded",), cache.cases()).arrays["excluded"].tolist() == [[9, 8, 7, -1]]


def test_options_that_this_data_has_no_use_for_are_refused(tmp_path):
    write_scan(tmp_path / "raw/a.mhd")
    flags = [("flags", {"candidates": {"negatives": 3}})]
    for name in ("folder", "luna"):
        with pytest.raises(ConfigError, match="lists no candidates that --negatives could apply to; leave it out"):
            prep(name, data=tmp_path / "raw", out=tmp_path / "c", layers=flags)
    with pytest.raises(ConfigError, match="luna is a data set of CT scans; leave --modality mr out"):
        prep("luna", data=tmp_path / "raw", out=tmp_path / "c", layers=settings(intensity={"modality": "mr"}))
    assert not (tmp_path / "c").exists()


def test_rows_of_absent_scans_are_counted_and_never_bad(chain, tmp_path):
    raw = tmp_path / "raw"
    write_scan(raw / "subset0/1.2.3.mhd")
    row = "1.2.3,30,30,18"
    (raw / "candidates_V2.csv").write_text(f"seriesuid,coordX,coordY,coordZ,class\n{row},1\n9.9,0,0,0,0\n9.8,0,0,0,1\n")
    (raw / "annotations.csv").write_text(f"seriesuid,coordX,coordY,coordZ,diameter_mm\n{row},6\n9.8,0,0,0,5\n")
    done = prep("luna", data=raw, out=tmp_path / "c", layers=ONE, jobs=1)
    assert (done.made, done.bad, done.absent_rows) == (1, 0, 3)


# -------------------------------------------------------------------------------------------------- one's own scans


@pytest.fixture
def tree(tmp_path) -> Path:
    raw = tmp_path / "größe & co"
    write_scan(raw / "ann/ct.nii.gz", seed=1)
    write_scan(raw / "ann/ct_seg.nii.gz", seed=1)
    write_scan(raw / "bob.nrrd", seed=2)
    write_scan(raw / "Lung Mask.nrrd", seed=2)
    write_dicom(raw / "d/first", "P-17", "1.2.3", seed=3)
    write_dicom(raw / "d/second", "P-17", "1.2.4", seed=4)
    write_dicom(raw / "d/other", "", "1.2.5", seed=5)
    return raw


def test_a_tree_of_nifti_nrrd_and_dicom_is_prepared(tree, tmp_path, heard):
    done = prep("folder", data=tree, out=tmp_path / "c", layers=ONE, jobs=1, listener=heard)
    cache = open_cache(tmp_path / "c")
    assert cache.cases() == ("ann-ct", "bob", "d-first", "d-other", "d-second")
    assert cache.groups == ("pairs",)
    assert done.notes == heard.warnings
    assert re.match(r"2 files are named like masks and were passed over \(Lung Mask\.nrrd, \.\.\.\)", done.notes[0])


def test_dicom_series_of_one_patient_never_straddle_the_split(tree):
    patients = {case.id: case.patient for case in folder.cases(tree)}
    assert patients["d-first"] == patients["d-second"] == "P-17"
    assert patients["d-other"] == "d-other"
    assert patients["bob"] == "bob"


def test_a_table_of_patients_overrides_the_dicom_header(tree, tmp_path):
    (tmp_path / "p.csv").write_text("case,patient\nd-second,Q\n")
    patients = {case.id: case.patient for case in folder.cases(tree, patients=tmp_path / "p.csv")}
    assert (patients["d-first"], patients["d-second"]) == ("P-17", "Q")


@pytest.mark.parametrize("name", ["x_seg", "x-seg", "Segmentation", "lung_mask", "label", "x_LABELS"])
def test_what_is_named_like_a_mask_is_no_scan(tmp_path, name):
    write_scan(tmp_path / f"{name}.nii.gz", (4, 4, 4))
    with pytest.raises(DataError, match="no scan but files that are named like masks"):
        folder.cases(tmp_path)


@pytest.mark.parametrize("name", ["unmasked_t1", "seg_input", "dalmatian", "bigseg"])
def test_what_only_sounds_like_a_mask_is_a_scan(tmp_path, name):
    write_scan(tmp_path / f"{name}.nii.gz", (4, 4, 4))
    assert len(folder.cases(tmp_path)) == 1


def test_series_that_are_all_of_one_patient_are_remarked_on(tmp_path):
    for i in (1, 2):
        write_dicom(tmp_path / str(i), "ANON", f"1.2.{i}", slices=3, side=4)
    assert "one patient ('ANON')" in folder.remarks(tmp_path, folder.cases(tmp_path))[0]


def test_an_mr_scan_is_stored_in_its_own_range(tmp_path):
    write_scan(tmp_path / "raw/a.nii.gz")
    mr = settings(intensity={"modality": "mr"}, **ONE[0][1])
    prep("folder", data=tmp_path / "raw", out=tmp_path / "c", layers=mr, jobs=1)
    cache = open_cache(tmp_path / "c")
    stored = cache.read("pairs", ("globals",), cache.cases()).arrays["globals"]
    assert cache.manifest["modality"] == "mr"
    assert 0 <= stored.min() < 9000 < 21000 < stored.max() <= 30000


def test_candidates_are_refused_for_readers_without_them(tmp_path):
    write_scan(tmp_path / "raw/a.mhd")
    with pytest.raises(ConfigError, match="not for the reader folder"):
        prep("folder", data=tmp_path / "raw", out=tmp_path / "c", options={"candidates": tmp_path / "c.csv"})
    assert not (tmp_path / "c").exists()


def test_missing_and_empty_data_are_named(tmp_path):
    (tmp_path / "empty").mkdir()
    for name, state in (("none", "is not there"), ("empty", "is empty")):
        with pytest.raises(DataError, match=f"{state}: put LUNA16"):
            prep("luna", data=tmp_path / name, out=tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_what_is_heard_says_what_it_will_take(tmp_path):
    write_scan(tmp_path / "raw/a.mhd")
    heard = Heard()
    prep("folder", data=tmp_path / "raw", out=tmp_path / "c", layers=ONE, jobs=1, listener=heard)
    assert re.match(r"1 of 1 scans from .*, 1 processes \(up to .* GB of memory each\), about .* GB to", heard.lines[0])


LARGE = {"pairs": 2, "global_sizes": [[40, 40, 24]], "global_shape": [40, 40, 24], "n_locals": 3}
LOCALS = {"pairs": 1, "n_locals": 9, "local_sizes": [[24, 24, 24]], "local_shape": [24, 24, 24]}
CROPS = {
    "as they are": {"pairs": {"pairs": 2}},
    "small globals": ONE[0][1],
    "large globals": {"pairs": LARGE},
    "many locals": {"pairs": LOCALS},
    "whole scans alone": {"pairs": {"pairs": 0}, "whole": {"shape": [48, 40, 32]}},
    "small whole scans and pairs": {"pairs": LARGE, "whole": {"shape": [16, 16, 16]}},
}


@pytest.mark.parametrize("values", CROPS.values(), ids=CROPS)
def test_the_size_that_is_foretold_follows_the_shapes_of_the_crops(tmp_path, values):
    for i in range(2):
        write_scan(tmp_path / f"raw/{i}.mhd", seed=i)
    (tmp_path / "t.csv").write_text("path,sick\n0.mhd,0\n1.mhd,1\n", "utf-8")
    options = {"labels": tmp_path / "t.csv"} if "whole" in values else {}
    call = {"data": tmp_path / "raw", "out": tmp_path / "c", "layers": settings(**values), "options": options}
    plan = prep("folder", **call, dry_run=True)
    assert plan.figures["gigabytes"] * 1e9 == pytest.approx(prep("folder", **call, jobs=1).bytes, rel=0.1)


def test_the_size_that_is_foretold_follows_the_side_of_the_candidates_blocks(chain, tmp_path):
    layers = settings(pairs={"pairs": 0}, candidates={"negatives": 2, "side_mm": 24})
    call = {"data": chain.raw, "out": tmp_path / "c", "layers": layers, "limit": 2}
    plan = prep("luna", **call, dry_run=True)
    assert plan.figures["gigabytes"] * 1e9 == pytest.approx(prep("luna", **call, jobs=1).bytes, rel=0.2)


def test_forgetting_the_patients_table_is_refused_since_patients_would_change_parts(tmp_path):
    for i, name in enumerate("abc"):
        write_scan(tmp_path / f"raw/{name}.mhd", seed=i)
    (tmp_path / "p.csv").write_text("path,patient\na.mhd,P\nb.mhd,P\nc.mhd,Q\n")
    again = {"data": tmp_path / "raw", "out": tmp_path / "c", "layers": ONE, "jobs": 1}
    prep("folder", options={"patients": tmp_path / "p.csv"}, **again)
    before = (tmp_path / "c/split.json").read_bytes()
    with pytest.raises(ConfigError, match=r"3 scans of .* belonged to other patients.*give the same --patients"):
        prep("folder", **again)
    assert (tmp_path / "c/split.json").read_bytes() == before
    assert prep("folder", options={"patients": tmp_path / "p.csv"}, **again).skipped == 3


def test_the_plan_of_a_finished_cache_is_that_nothing_is_to_do(tmp_path):
    write_scan(tmp_path / "raw/a.mhd")
    again = {"data": tmp_path / "raw", "out": tmp_path / "c", "layers": ONE, "jobs": 1}
    assert prep("folder", dry_run=True, **again).figures["to prepare"] == 1
    prep("folder", **again)
    plan = prep("folder", dry_run=True, **again)
    assert (plan.figures["there already"], plan.figures["to prepare"]) == (1, 0)
    assert plan.state.startswith("finished")


def test_a_folder_that_holds_something_else_is_no_place_for_a_cache(tmp_path):
    write_scan(tmp_path / "raw/a.mhd")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/run.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"holds what no cache holds \(run\.json\)"):
        prep("folder", data=tmp_path / "raw", out=tmp_path / "run", layers=ONE, jobs=1)
